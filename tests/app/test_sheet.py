"""Tables to queries: columns by name, rows by time, series told apart, and the row that is named when it is wrong."""

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from app import codec
from app.asked.cells import Written
from app.asked.layout import lay_out
from app.asked.query import Query
from app.asked.sheet import Sheet, query_of
from app.errors import ForetellError, InvalidError, MalformedError, MediaTypeError, Place
from models.spec import Gaps, Spec
from tests.app.specs import spec_of

NAN = float("nan")
FILLS = {"gaps": Gaps(method="carry_forward", limit=2)}
PLAIN = spec_of(("target", "past"))
RICH = spec_of(("target", "future", "past", "static"))
NEW_YORK: dict[str, Any] = {"timezone": "America/New_York"}


def read(text: str, spec: Spec = PLAIN, steps: int = 1, content_type: str = "text/csv") -> Query:
    sheet = codec.read(text.encode(), content_type)
    assert isinstance(sheet, Sheet)
    return query_of(sheet, spec, steps, most=3)


def table(header: str, *rows: str) -> str:
    return "\n".join([header, *rows, ""])


def window(query: Query) -> list[list[float]]:
    (found,) = query.windows
    return found.tolist()


# Columns and cells


def test_columns_by_name_in_any_order() -> None:
    """What is no feature is not looked at."""
    query = read(table("note,past_1,target_0", "x,2,1", ",4,3"))

    assert window(query) == [[1, 2], [3, 4]]
    assert query.single
    assert (query.start, query.future, query.static, query.series) == (None, None, None, None)


@pytest.mark.parametrize("cell", ["", "NaN", "nan", "null", "NA", " ", " NA "])
def test_missing_values(cell: str) -> None:
    """An empty cell, and the words that others write for it."""
    query = read(table("target_0,past_1", f"1,{cell}", "3,4"))

    np.testing.assert_array_equal(query.windows, [[[1, NAN], [3, 4]]])
    assert query.gaps


@pytest.mark.parametrize(
    "text",
    [
        '"target_0","past_1"\r\n"1","2"\r\n3,4\r\n',
        "\ufefftarget_0,past_1\n1,2\n3,4",
        "target_0,past_1\n\n1,2\n\n3,4\n\n",
        "target_0,past_1\n 1 ,+2.\n3e0,4.0E+0\n",
        'target_0,"a ""quoted"", name\r\nof two lines",past_1\n1,,2\n3,"x,y",4\n',
        "target_0,past_1\r1,2\r3,4",
    ],
)
def test_dialects(text: str) -> None:
    """RFC 4180 with its quotes, either end of a line, a byte-order mark, and lines with nothing in them."""
    assert window(read(text)) == [[1, 2], [3, 4]]


def test_the_last_rows_count() -> None:
    """What is before them is not looked at, whatever it is."""
    assert window(read(table("target_0,past_1", "x,y", *[f"{n},{n}" for n in range(9)]))) == [
        [n, n] for n in range(5, 9)
    ]


@pytest.mark.parametrize(
    ("content_type", "text"),
    [
        ("text/csv; charset=UTF-8", "täglich,target_0,past_1\n1,2,3".encode()),
        ('text/csv;header=present; charset="utf-8"', b"target_0,past_1\n2,3"),
        ("Text/CSV ;charset=iso-8859-1", "täglich,target_0,past_1\n1,2,3".encode("latin-1")),
        ("text/csv", "täglich,target_0,past_1\n1,2,3".encode()),
    ],
)
def test_charsets(content_type: str, text: bytes) -> None:
    """UTF-8 where none is named."""
    sheet = codec.read(text, content_type)

    assert isinstance(sheet, Sheet)
    assert window(query_of(sheet, PLAIN, 1, most=1)) == [[2, 3]]


@pytest.mark.parametrize(
    ("body", "content_type", "error", "says"),
    [
        (b"\xff,1", "text/csv", MalformedError, "not CSV"),
        (b"a,b\n1,2", "text/csv; charset=utf-7", MediaTypeError, "'utf-7' is not read here"),
        (b"a,b\n1,2", "text/csv; charset=zip", MediaTypeError, "'zip' is not read here"),
        (b'a,"b\n1,2', "text/csv", MalformedError, "not CSV: unexpected end of data"),
        (b'a,"b"c\n1,2', "text/csv", MalformedError, "not CSV"),
        (b"a\n" + b"1" * 200_000, "text/csv", MalformedError, "not CSV: field larger"),
        (b"", "text/csv", InvalidError, "csv header: there is none"),
        (b"\n\n", "text/csv", InvalidError, "csv header: there is none"),
        (b"target_0,past_1\n", "text/csv", InvalidError, "csv: no rows under the header"),
        (b"a,b\n1,2\n1,2,3\n", "text/csv", InvalidError, "csv row 2: 3 cells, but the header has 2"),
        (b"a,b\n1\n1,2\n", "text/csv", InvalidError, "csv row 1: 1 cells, but the header has 2"),
    ],
)
def test_what_is_no_table(body: bytes, content_type: str, error: type[ForetellError], says: str) -> None:
    """Refused when it is read, whatever the model."""
    with pytest.raises(error, match=f"^(the charset )?{says}"):
        codec.read(body, content_type)


# Known future and static features


def test_known_future_follows_the_window() -> None:
    """Rows after the last one with a target or a past value; more than are needed are not looked at."""
    rows = ["1,10,5,7", "2,20,,7", ",30,,7", ",40,NA,7", ",x,,"]

    query = read(table("target_0,future_1,past_2,static_3", *rows), RICH, steps=2)

    np.testing.assert_array_equal(query.windows, [[[1, 10, 5], [2, 20, NAN]]])
    assert query.future is not None
    assert query.future.tolist() == [[[30], [40]]]
    assert query.static == [[7]]


def test_without_a_known_future_a_last_row_of_nothing_is_a_gap() -> None:
    """Nothing can be ahead of it."""
    query = read(table("target_0,past_1", "1,2", ","))

    np.testing.assert_array_equal(query.windows, [[[1, 2], [NAN, NAN]]])


# Times


def test_the_time_of_the_first_row() -> None:
    """Of the rows that count."""
    rows = [f"2013-06-01T{hour:02}:00Z,{hour},0" for hour in range(6)]

    query = read(table("time,target_0,past_1", *rows))

    assert query.start == [datetime(2013, 6, 1, 2, tzinfo=UTC)]


def test_a_row_that_is_left_out_is_missing() -> None:
    """Where the model fills gaps: as many as the grid has there, and no more than the window takes."""
    rows = ["2013-06-01T00:00,1,1", "2013-06-01T01:00,2,2", "2013-06-01T03:00,3,3", "2013-06-01T05:00,4,4"]
    spec = spec_of(("target", "past"), **FILLS)

    query = read(table("time,target_0,past_1", *rows), spec)

    np.testing.assert_array_equal(query.windows, [[[NAN, NAN], [3, 3], [NAN, NAN], [4, 4]]])
    assert query.start == [datetime(2013, 6, 1, 2, tzinfo=UTC)]
    assert query.gaps


def test_a_far_away_row_takes_no_memory() -> None:
    """Eight thousand years of rows are not made to be thrown away."""
    spec = spec_of(("target", "past"), **FILLS, frequency=timedelta(seconds=1))

    query = read(table("time,target_0,past_1", "1971-01-01,1,1", "9998-01-01,2,2"), spec)

    np.testing.assert_array_equal(query.windows, [[[NAN, NAN]] * 3 + [[2, 2]]])


@pytest.mark.parametrize("spelling", ["2013-11-03T{:02}:00", "2013-11-03 {:02}:00:00"])
def test_an_hour_that_comes_twice_is_told_by_its_order(spelling: str) -> None:
    """In autumn, from the row before; or from the row after, where the window begins with it."""
    spec = spec_of(("target", "past"), clock=True, **NEW_YORK)
    hours = [0, 1, 1, 2, 3]

    for first in range(3):
        rows = [f"{spelling.format(hour)},1,1" for hour in hours[first:][:4]]
        query = read(table("time,target_0,past_1", *rows), spec)
        assert query.start == [datetime(2013, 11, 3, 4 + first, tzinfo=UTC)]


def test_a_row_that_the_clock_leaps_over_is_none() -> None:
    """In spring 1:00 and 3:00 are an hour apart."""
    rows = [f"2013-03-10T{hour:02}:00,1,1" for hour in (0, 1, 3, 4)]

    assert read(table("time,target_0,past_1", *rows), spec_of(("target", "past"), **NEW_YORK)).gaps is False


# Series


def test_series_are_told_apart() -> None:
    """In order of first appearance, however they are mixed, each with its own future, static features and start."""
    spec = spec_of(("target", "future", "past", "static"), series="station")
    rows = [
        "JFK,2013-06-01T00:00Z,1,1,1,7",
        "LGA,2013-06-02T00:00Z,5,5,5,8",
        "JFK,2013-06-01T01:00Z,2,2,2,7",
        "JFK,2013-06-01T02:00Z,,3,,7",
        "LGA,2013-06-02T01:00Z,,6,,8",
    ]

    query = read(table("station,time,target_0,future_1,past_2,static_3", *rows), spec)

    assert [one.tolist() for one in query.windows] == [[[1, 1, 1], [2, 2, 2]], [[5, 5, 5]]]
    assert query.future is not None
    assert query.future.tolist() == [[[3], [3]], [[6], [6]]]  # a whole pass, as in its last row
    assert query.static == [[7], [8]]
    assert query.start == [datetime(2013, 6, 1, tzinfo=UTC), datetime(2013, 6, 2, tzinfo=UTC)]
    assert (query.series, query.single) == (["JFK", "LGA"], False)


def test_a_known_future_beyond_the_steps_is_read_to_the_end_of_the_pass() -> None:
    """As from JSON: what is known of the hours after the last step is part of the same pass. No further rows count."""
    spec = spec_of(("target", "future", "past"), horizon=3)
    rows = ["1,1,1", "2,2,2", ",3,", ",4,", ",5,", ",6,"]

    one, whole, beyond = (read(table("target_0,future_1,past_2", *rows[:count]), spec, 1) for count in (3, 5, 6))

    assert one.future is not None
    assert whole.future is not None
    assert beyond.future is not None
    assert one.future.tolist() == [[[3], [3], [3]]]
    assert whole.future.tolist() == beyond.future.tolist() == [[[3], [4], [5]]]


def test_one_series_with_a_name_is_a_list_of_one() -> None:
    """And without the column it is one window."""
    spec = spec_of(("target", "past"), series="station")

    named, nameless = (
        read(table("station,target_0,past_1", "JFK,1,2"), spec),
        read(table("target_0,past_1", "1,2"), spec),
    )

    assert (named.series, named.single) == (["JFK"], False)
    assert (nameless.series, nameless.single) == (None, True)


# What is refused

TWO = "target_0,past_1"
TIMED = f"time,{TWO}"
FULL = "target_0,future_1,past_2,static_3"
HOURLY = spec_of(("target", "past"))
FILLING = spec_of(("target", "past"), **FILLS)
AUTUMN = spec_of(("target", "past"), **NEW_YORK)
STATIONS = spec_of(("target", "past"), series="station")
REFUSALS: dict[str, tuple[str, Spec, str]] = {
    "no such column": (
        table("target_0,pst_1", "1,2"),
        HOURLY,
        "csv header: no column 'past_1'; did you mean 'pst_1'?",
    ),
    "no such columns": (table("x", "1"), HOURLY, "csv header: no column 'target_0'; csv header: no column 'past_1'"),
    "case matters": (table("Target_0,past_1", "1,2"), HOURLY, "csv header: no column 'target_0'"),
    "static column": (table("target_0,future_1,past_2", "1,2,3"), RICH, "csv header: no column 'static_3'"),
    "twice": (table("target_0,past_1,past_1", "1,2,3"), HOURLY, "csv header: column 'past_1' is there twice"),
    "text": (table(TWO, "1,2", "1,x"), HOURLY, "csv row 2, column 'past_1': 'x' is not a number"),
    "underscore": (table(TWO, "1,1_0"), HOURLY, "csv row 1, column 'past_1': '1_0' is not a number"),
    "infinity": (table(TWO, "1,inf"), HOURLY, "csv row 1, column 'past_1': 'inf' is not a number"),
    "signed NaN": (table(TWO, "1,-nan"), HOURLY, "csv row 1, column 'past_1': '-nan' is not a number"),
    "other digits": (table(TWO, "1,٣"), HOURLY, "csv row 1, column 'past_1': '٣' is not a number"),
    "comma": (table(TWO, '1,"1,5"'), HOURLY, "csv row 1, column 'past_1': '1,5' is not a number"),
    "large": (table(TWO, "1,1e39"), HOURLY, "csv row 1, column 'past_1': 1e39 is not a finite 32-bit number"),
    "overflow": (table(TWO, "1,1e999"), HOURLY, "csv row 1, column 'past_1': 1e999 is not a finite 32-bit number"),
    "gap": (
        table(TWO, "0,0", "0,", *["1,2"] * 3),
        HOURLY,
        "csv row 2, column 'past_1': no value, but the model does not",
    ),
    "long gap": (table(TWO, "0,0", *["1,"] * 3), FILLING, "csv row 2, column 'past_1': more than 2 values missing"),
    "empty column": (
        table(TWO, *["1,"] * 4),
        spec_of(("target", "past"), gaps=Gaps(method="interpolate", limit=4)),
        "csv: no value of 'past_1'",
    ),
    "too few": (table(TWO, "1,2"), HOURLY, "csv: 1 rows; the model takes exactly 4"),
    "too few of a series": (
        table(f"station,{TWO}", *["a,1,2"] * 4, "b,1,2"),
        STATIONS,
        "csv series 'b': 1 rows; the model takes exactly 4",
    ),
    "series without a name": (table(f"station,{TWO}", ",1,2"), STATIONS, "csv row 1, column 'station': no name"),
    "many series": (
        table(f"station,{TWO}", *[f"{name},1,2" for name in "abcd"]),
        STATIONS,
        "csv: 4 series; a request may have at most 3",
    ),
    "no time": (table(TIMED, ",1,2"), HOURLY, "csv row 1, column 'time': '' is not an ISO 8601 time"),
    "odd time": (table(TIMED, "01/06/2013,1,2"), HOURLY, "csv row 1, column 'time': '01/06/2013' is not an ISO 8601"),
    "early time": (
        table(TIMED, "1969-06-01,1,2"),
        HOURLY,
        "csv row 1, column 'time': '1969-06-01T00:00:00' is not within",
    ),
    "needed time": (
        table("Time,target_0,past_1", *["2013-06-01,1,2"] * 4),
        spec_of(("target", "past"), clock=True),
        "start: needed: the time of the first row, since the model has a clock: no column 'time'; did you mean 'Time'?",
    ),
    "step": (
        table(TIMED, "2013-06-01T00:00,1,2", "2013-06-01T02:00,1,2"),
        HOURLY,
        "csv row 2: 2:00:00 after csv row 1; the model takes a row every 1:00:00",
    ),
    "half a step": (
        table(TIMED, "2013-06-01T00:00,1,2", "2013-06-01T01:30,1,2"),
        FILLING,
        "csv row 2: 1:30:00 after csv row 1; the model takes a row every 1:00:00, or a multiple of it",
    ),
    "same time": (
        table(TIMED, "2013-06-01T00:00,1,2", "2013-06-01T00:00,1,2"),
        FILLING,
        "csv row 2: at the time of csv row 1; the model takes",
    ),
    "backwards": (
        table(TIMED, "2013-06-01T00:00,1,2", "2013-05-31T00:00,1,2"),
        FILLING,
        "csv row 2: 1 day, 0:00:00 before csv row 1; the model takes",
    ),
    "long gap of rows": (
        table(TIMED, "2013-06-01T00:00,1,2", "2013-06-01T04:00,1,2"),
        FILLING,
        "csv row 2, column 'target_0': more than 2 values missing in a row",
    ),
    "never": (
        table(TIMED, "2013-03-10T01:00,1,2", "2013-03-10T02:00,1,2"),
        AUTUMN,
        "csv row 2, column 'time': '2013-03-10T02:00:00' does not exist in America/New_York",
    ),
    "either": (
        table(TIMED, "2013-11-03T01:00,1,2"),
        AUTUMN,
        "csv row 1, column 'time': '2013-11-03T01:00:00' comes twice in America/New_York; give its offset",
    ),
    "thrice": (
        table(TIMED, *[f"2013-11-03T0{hour}:00,1,2" for hour in (0, 1, 1, 1)]),
        AUTUMN,
        "csv row 4, column 'time': '2013-11-03T01:00:00' comes twice",
    ),
    "no future": (table(FULL, *["1,2,3,4"] * 4), RICH, "csv: 0 rows ahead for 2 steps: 2 are missing"),
    "short future": (table(FULL, *["1,2,3,4"] * 4, ",2,,4"), RICH, "csv: 1 rows ahead for 2 steps: 1 are missing"),
    "gap in the future": (
        table(FULL, *["1,2,3,4"] * 4, ",2,,4", ",,,4"),
        RICH,
        "csv row 6, column 'future_1': no value; known-future values must all be given",
    ),
    "gap between future and window": (
        table(f"time,{FULL}", "2013-06-01T00:00,1,2,3,4", "2013-06-01T02:00,,2,,4", "2013-06-01T03:00,,2,,4"),
        spec_of(("target", "future", "past", "static"), **FILLS),
        "csv row 2: 2:00:00 after csv row 1; the model takes a row every 1:00:00",
    ),
    "only future": (table(FULL, ",2,,4"), RICH, "csv: no row has a value of a target or a past covariate"),
    "changing static": (
        table(FULL, "1,2,3,4", "1,2,3,5", ",2,,4", ",2,,4"),
        RICH,
        "csv row 2, column 'static_3': 5, but 4 in csv row 1; a static feature has one value",
    ),
    "static gap": (
        table(FULL, "1,2,3,4", "1,2,3,", ",2,,4", ",2,,4"),
        RICH,
        "csv row 2, column 'static_3': no value; static features must all be given",
    ),
}


@pytest.mark.parametrize(("text", "spec", "says"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals(text: str, spec: Spec, says: str) -> None:
    """What is wrong is told with the row where it is, and the column where it is one."""
    with pytest.raises(InvalidError) as refusal:
        lay_out(read(text, spec, steps=2), spec, 2, most=3)

    assert refusal.value.detail.startswith(says)


def test_endless_cells_and_names_are_cut() -> None:
    """What a refusal tells of a body is short."""
    long = "z" * 50_000
    for text in (table(TWO, f"1,{long}"), table(long, "1"), table(f"time,{TWO}", f"{long},1,2")):
        with pytest.raises(InvalidError, match=r"^.{1,300}$"):
            read(text)


# Whatever comes

CELLS = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.none()
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5)


@given(
    st.lists(st.tuples(CELLS, CELLS, NAMES), min_size=1, max_size=4),
    st.permutations(range(3)),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_csv_writes_is_read(
    rows: list[tuple[float | None, float | None, str]], order: list[int], end: str, quoting: int
) -> None:
    """A table that Python writes comes back to the last bit, with its columns in any order."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=end, quoting=quoting)  # type: ignore[arg-type]
    for row in [("target_0", "past_1", "a note"), *rows]:
        writer.writerow([row[column] for column in order])

    found = read(text.getvalue())

    np.testing.assert_array_equal(found.windows[0], np.array([row[:2] for row in rows], np.float32))


TOKENS = st.sampled_from(["", "1", "-2.5", "x", "2013-06-01", "2013-11-03T01:00", "2013-06-01T01:00Z", "a", "NaN", '"'])
HEADERS = st.permutations(["time", "station", "target_0", "future_1", "past_2", "static_3"])


@given(HEADERS, st.lists(st.lists(TOKENS, min_size=6, max_size=6), max_size=8), st.integers(1, 3), st.booleans())
def test_any_table_is_laid_out_or_refused(header: list[str], rows: list[list[str]], steps: int, fills: bool) -> None:
    """Whatever stands in it, the answer is what a model takes, or one of our refusals."""
    gaps = FILLS if fills else {}
    spec = spec_of(("target", "future", "past", "static"), series="station", shortest=1, clock=True, **NEW_YORK, **gaps)
    text = table(",".join(header), *(",".join(row) for row in rows))
    try:
        query = read(text, spec, steps)
        laid = lay_out(query, spec, steps, most=10)
    except ForetellError:
        return
    assert laid.windows.shape[1:] == (4, 4)
    assert np.isfinite(laid.known).all()
    assert np.isfinite(laid.windows[:, -1]).all() or fills


def test_missing_values_do_not_make_a_column_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are looked at one by one only where there is something in them that is not just a number."""

    def looked_at(cell: str, place: str) -> float:
        raise InvalidError(Place(place, cell))

    def numbers_of(*cells: str) -> np.ndarray:
        return Written([[cell] for cell in cells]).numbers(range(len(cells)), 0, "load")

    monkeypatch.setattr("app.asked.cells._number", looked_at)
    found = numbers_of("1", "", "nan", "2.5e3", " 4 ", "NA")
    np.testing.assert_array_equal(found, [1, np.nan, np.nan, 2500, 4, np.nan])
    for cell in ("NAN", " nan", "inf", "1e39", "1_0"):
        with pytest.raises(InvalidError):
            numbers_of("1", "", cell)
