"""Long tables and arrays: which series are in them, on which grid of times, and what is said of a row that is wrong."""

import io
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from app.asked.query import Series
from app.codec import csv_bodies
from app.codec.series import series_of
from app.errors import ForetellError, InvalidError, MediaTypeError
from models.spec import Spec
from tests.app.specs import spec_of

HOUR = timedelta(hours=1)
SPEC = spec_of(("target", "past", "future"))
WHOLE = ("time", "target_0", "past_1", "future_2")


def table(rows: Sequence[Sequence[object]], header: Sequence[str] = WHOLE) -> bytes:
    """As CSV."""
    return "\n".join(",".join(str(cell) for cell in row) for row in [header, *rows]).encode()


def read(body: bytes, spec: Spec = SPEC, content_type: str = "text/csv") -> list[Series]:
    """The series in it."""
    return series_of(body, content_type, spec)


def at(hour: float, day: int = 1) -> str:
    """A time of January 2013."""
    return (datetime(2013, 1, day, tzinfo=UTC) + hour * HOUR).isoformat()


def micros(time: str) -> int:
    """Since 1970."""
    return int(datetime.fromisoformat(time).timestamp()) * 1_000_000


def test_columns_are_found_by_name() -> None:
    """In any order, beside others that the model knows not, with nothing for a value that is missing."""
    header = ("past_1", "remark", "future_2", "target_0")
    (found,) = read(table([(2, "x", 3, 1), (5, "y", "", 4.5)], header))
    assert (found.name, found.start) == (None, None)
    assert found.values.dtype == np.float32
    assert np.array_equal(found.values, [[1, 2, 3], [4.5, 5, np.nan]], equal_nan=True)


def test_rows_that_are_left_out_are_missing() -> None:
    """On the grid there is a row for every step from the first time to the last."""
    (found,) = read(table([(at(0), 1, 2, 3), (at(3), 4, 5, 6), (at(4), 7, 8, 9)]))
    assert found.start == micros(at(0))
    expected = np.full((5, 3), np.nan)
    expected[[0, 3, 4]] = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert np.array_equal(found.values, expected, equal_nan=True)


def test_series_are_told_apart_by_name() -> None:
    """Wherever their rows stand, each on a grid of its own; in the order in which they appear."""
    spec = spec_of(("target",), series="place")
    rows = [("b", at(0), 1), ("a", at(7), 2), ("b", at(1), 3), ("a", at(9), 4)]
    first, second = read(table(rows, ("place", "time", "target_0")), spec)
    assert (first.name, first.start, first.values.tolist()) == ("b", micros(at(0)), [[1], [3]])
    assert (second.name, second.start) == ("a", micros(at(7)))
    assert np.array_equal(second.values, [[2], [np.nan], [4]], equal_nan=True)


def test_static_features_hold_for_all_rows() -> None:
    """Also for those that are left out."""
    spec = spec_of(("target", "static"), series="place")
    rows = [("a", at(0), 1, 7), ("a", at(2), 2, 7), ("b", at(0), 3, 8)]
    first, second = read(table(rows, ("place", "time", "target_0", "static_1")), spec)
    assert first.values[:, 1].tolist() == [7, 7, 7]
    assert second.values.tolist() == [[3, 8]]


@pytest.mark.parametrize("rows", [1, 2, 3, 1000])
def test_any_part_of_a_table_at_a_time_gives_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows are read at once, and rows are counted from the first below the header in messages."""
    spec = spec_of(("target",), series="place")
    lines = [("ab"[row % 2], at(row), row) for row in range(11)]
    header = ("place", "time", "target_0")
    whole = read(table(lines, header), spec)
    monkeypatch.setattr(csv_bodies, "_ROWS", rows)
    for one, other in zip(read(table(lines, header), spec), whole, strict=True):
        assert (one.name, one.start) == (other.name, other.start)
        assert np.array_equal(one.values, other.values, equal_nan=True)
    for bad, place in (
        ([*lines, ("a", at(12), "x")], "csv row 12, column 'target_0'"),
        ([*lines, ("a", "noon", 1)], "csv row 12, column 'time'"),
        ([*lines, ("", at(12), 1)], "csv row 12, column 'place'"),
        ([*lines, ("a", at(12))], "csv row 12"),
        ([*lines, ("b", at(9), 1)], "csv row 12"),
    ):
        with pytest.raises(InvalidError) as error:
            read(table(bad, header), spec)
        assert error.value.places[0].place == place


def test_wall_clock_times_go_with_the_zone() -> None:
    """An hour that comes twice is told by its neighbours, and the grid leaps over none that the clocks leap over."""
    spec = spec_of(("target",), timezone="America/New_York")
    autumn = ["2013-11-03T00:00", "2013-11-03T01:00", "2013-11-03T01:00", "2013-11-03T02:00"]
    (found,) = read(table([(time, row) for row, time in enumerate(autumn)], ("time", "target_0")), spec)
    assert (len(found.values), found.start) == (4, micros("2013-11-03T00:00-04:00"))
    spring = ["2013-03-10T01:00", "2013-03-10T03:00"]
    (found,) = read(table([(time, row) for row, time in enumerate(spring)], ("time", "target_0")), spec)
    assert len(found.values) == 2
    with pytest.raises(InvalidError, match=r"csv row 1, column 'time': it comes twice in America/New_York"):
        read(table([("2013-11-03T01:00", 1)], ("time", "target_0")), spec)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(at(1), 1, 2, 3), (at(0), 1, 2, 3)], "csv row 2: 1:00:00 before csv row 1"),
        ([(at(1), 1, 2, 3), (at(1), 1, 2, 3)], "csv row 2: at the time of csv row 1"),
        (
            [(at(0), 1, 2, 3), (at(0.5), 1, 2, 3)],
            "csv row 2: 0:30:00 after csv row 1; the model takes a row every 1:00:00",
        ),
        ([(at(0), 1, 2, 3), (at(0, 31), 1, 2, 3)], "csv row 1: 2 rows, but 721 steps from the first to the last"),
        ([(at(0), 1, 2, 1e39)], "csv row 1, column 'future_2': 1e+39 is not a finite 32-bit number"),
        ([("2013-03-10T02:30Z", 1, 2, "1_0")], "csv row 1, column 'future_2': '1_0' is not a number"),
    ],
)
def test_faults_name_the_row(rows: list[tuple[object, ...]], message: str) -> None:
    """As they are counted below the header."""
    with pytest.raises(InvalidError) as error:
        read(table(rows))
    assert message in error.value.detail


@pytest.mark.parametrize("count", [1, 2, 30])
def test_sparse_series_share_what_a_grid_may_take(count: int) -> None:
    """However many there are, their grids together have no more rows than one of as many given ones would."""
    spec = spec_of(("target",), series="place")
    # For 2 rows and a window of 4 there may be 24: alone it is just taken.
    rows = [(f"s{name}", at(hour), 1) for name in range(count) for hour in (0, 23)]
    body = table(rows, ("place", "time", "target_0"))
    if count == 1:
        assert [len(one.values) for one in read(body, spec)] == [24]
        return
    with pytest.raises(InvalidError, match="csv row 1: 2 rows, but 24 steps from the first to the last") as error:
        read(body, spec)
    assert error.value.detail.endswith(f"({2 * count} rows and {24 * count} steps in all {count} series)")


def test_static_feature_with_two_values_is_refused() -> None:
    """Or with none, by the row that shows it."""
    spec = spec_of(("target", "static"))
    for value, problem in ((8, "8, but 7 in csv row 1"), ("", "nan, but 7 in csv row 1")):
        with pytest.raises(InvalidError) as error:
            read(table([(1, 7), (2, 7), (3, value)], ("target_0", "static_1")), spec)
        assert error.value.places[0].place == "csv row 3, column 'static_1'"
        assert problem in error.value.detail


def test_missing_column_is_named() -> None:
    """All of them at once."""
    with pytest.raises(InvalidError) as error:
        read(table([(1,)], ("target_0",)))
    assert [place.message.partition(";")[0] for place in error.value.places] == [
        "no column 'past_1'",
        "no column 'future_2'",
    ]


def array_of(values: np.ndarray) -> bytes:
    """As NumPy writes it."""
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def test_array_is_one_series() -> None:
    """With the columns in the model's order; NaN is a missing value."""
    values = np.array([[1, 2, 3], [np.nan, 5, 6]])
    (found,) = read(array_of(values), content_type="application/x-npy; version=1")
    assert (found.name, found.start, found.values.dtype) == (None, None, np.float32)
    assert np.array_equal(found.values, values, equal_nan=True)


@pytest.mark.parametrize(
    ("spec", "values", "message"),
    [
        (SPEC, np.zeros((5, 2)), "array: 2 columns; the model takes 3: target_0, past_1, future_2"),
        (SPEC, np.zeros((1, 5, 3)), "array: 3 dimensions; send [rows, columns]"),
        (SPEC, np.full((5, 3), np.inf), "is not a finite 32-bit number"),
        (spec_of(("target", "static")), np.zeros((5, 1)), "array: without the static features static_1; send text/csv"),
        (spec_of(clock=True), np.zeros((5, 1)), "array: without times, which the model needs since it has a clock"),
    ],
)
def test_array_that_does_not_fit(spec: Spec, values: np.ndarray, message: str) -> None:
    """It is refused as a whole: a window of it would be no better."""
    with pytest.raises(InvalidError) as error:
        read(array_of(values), spec, "application/x-npy")
    assert message in error.value.detail


@pytest.mark.parametrize(
    ("content_type", "body"),
    [("application/json", b"{}"), ("", b""), ("text/csv; charset=utf-16", b"a"), ("application/x-npy", b"a")],
)
def test_other_bodies_are_refused(content_type: str, body: bytes) -> None:
    """By their type, or by what they are."""
    with pytest.raises(ForetellError) as error:
        read(body, content_type=content_type)
    assert isinstance(error.value, MediaTypeError) == (content_type != "application/x-npy")
