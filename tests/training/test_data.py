"""From files to series: times on a grid, numbers or nothing in the cells, one series or many in a file."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import polars as pl
import pytest
import torch

from tests.training import world
from training.data.files import Series, read
from training.errors import DataError

BERLIN = ZoneInfo("Europe/Berlin")
ALTITUDE = {"name": "altitude", "role": "static"}
WITH_ALTITUDE = [
    *({"name": name, "role": role} for name, role in zip(world.COLUMNS, world.ROLES, strict=True)),
    ALTITUDE,
]


def several(tmp_path: Path, frame: pl.DataFrame, *, name: str = "rows.csv", **data: object) -> list[Series]:
    return read(world.recipe(world.write(tmp_path / name, frame), data=data).data)


def series(tmp_path: Path, frame: pl.DataFrame, *, name: str = "rows.csv", **data: object) -> Series:
    (found,) = several(tmp_path, frame, name=name, **data)
    return found


def refusal(tmp_path: Path, frame: pl.DataFrame, **data: object) -> str:
    with pytest.raises(DataError) as caught:
        several(tmp_path, frame, **data)
    return str(caught.value).removeprefix(f"{tmp_path / 'rows.csv'}: ")


def by_clock(first: datetime, count: int, step: timedelta = world.HOUR) -> pl.DataFrame:
    """Rows whose times are as clocks showed them in the zone of the first, without a word of the zone."""
    moments = [(first.astimezone(UTC) + index * step).astimezone(first.tzinfo) for index in range(count)]
    return world.rows(count).with_columns(time=pl.Series([f"{moment:%Y-%m-%dT%H:%M:%S}" for moment in moments]))


def named(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    return frame.with_columns(pl.lit(name).alias("station"))


def mixed(*frames: pl.DataFrame) -> pl.DataFrame:
    """The rows of all, those of each in their order, in turn."""
    return pl.concat([frame.with_row_index() for frame in frames]).sort("index", maintain_order=True).drop("index")


def with_time(frame: pl.DataFrame, row: int, time: str) -> pl.DataFrame:
    times = frame["time"].to_list()
    times[row - 1] = time
    return frame.with_columns(pl.Series("time", times))


def test_csv_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    """The format of a file changes nothing, nor does the type of its times."""
    frame = world.rows(20)
    typed = frame.with_columns(pl.col("time").str.to_datetime(time_zone="UTC").dt.convert_time_zone("Asia/Tokyo"))

    one, other = series(tmp_path, frame), series(tmp_path, typed, name="rows.parquet")

    assert torch.equal(one.values, other.values)
    assert one.start == other.start == int(world.START.timestamp())


def test_columns_come_in_the_order_of_the_recipe(tmp_path: Path) -> None:
    """The file's own order of columns does not matter."""
    frame = world.rows(5)

    found = series(tmp_path, frame.select("wind", "time", "heat", "load"))

    assert torch.equal(found.values, torch.tensor(frame.select(world.COLUMNS).rows()).float())


def test_absent_rows_and_empty_cells_are_missing(tmp_path: Path) -> None:
    """A row that is not in the file leaves its place on the grid empty."""
    frame = world.with_gap(world.rows(6), "heat", 4, 1)

    found = series(tmp_path, frame.filter(pl.int_range(pl.len()) != 2))

    assert (len(found), found.recorded) == (6, 5)
    assert found.missing.nonzero().tolist() == [[2, 0], [2, 1], [2, 2], [4, 1]]


def test_nothing_is_filled_before_training(tmp_path: Path) -> None:
    """Whatever the recipe says of gaps, the model fills them: the series keeps what was observed."""
    frame = world.with_gap(world.rows(8), "load", 3, 2)

    found = series(tmp_path, frame, gaps={"method": "carry_forward", "limit": 3})

    assert found.missing[:, 0].nonzero().flatten().tolist() == [3, 4]


@pytest.mark.parametrize(
    ("row", "time", "expected"),
    [
        (3, "2026-01-01T01:00:00Z", "row 3: 2026-01-01T01:00:00Z is the time of row 2 too"),
        (3, "2025-12-31T01:00:00Z", "row 3: 2025-12-31T01:00:00Z is earlier than row 2"),
        (3, "2026-01-01T02:30:00Z", "row 3: 2026-01-01T02:30:00Z is off the grid of one row every 3600 s"),
        (3, "noon", "row 3, column 'time': 'noon' is not an ISO 8601 time"),
    ],
)
def test_a_wrong_time_is_named_by_its_row(tmp_path: Path, row: int, time: str, expected: str) -> None:
    """Duplicate, unsorted, off-grid and unreadable times are refused with file and row."""
    assert refusal(tmp_path, with_time(world.rows(6), row, time)).startswith(expected)


def test_times_in_another_order_of_day_and_month_are_refused(tmp_path: Path) -> None:
    """01/02/2026 is January to some and February to others, so it is neither here."""
    frame = world.rows(3).with_columns(time=pl.Series(["01/02/2026 00:00", "01/02/2026 01:00", "01/02/2026 02:00"]))
    assert "'01/02/2026 00:00' is not an ISO 8601 time" in refusal(tmp_path, frame)


def test_a_column_of_other_things_than_times_is_refused(tmp_path: Path) -> None:
    """Neither numbers nor text without any time in it pass for times."""
    frame = world.rows(3)

    assert "is not an ISO 8601 time" in refusal(tmp_path, frame.with_columns(time=pl.lit("x")))
    with pytest.raises(DataError, match="column 'time' holds Int64, not times"):
        series(tmp_path, frame.with_columns(time=pl.lit(3).cast(pl.Int64)), name="rows.parquet")


@pytest.mark.parametrize("cell", ["mild", "N/A", "-", "inf"])
def test_a_cell_that_is_no_number_is_named_by_row_and_column(tmp_path: Path, cell: str) -> None:
    """Anything that is neither a finite number nor a word for nothing is a mistake in the file."""
    frame = world.rows(4).with_columns(pl.col("heat").cast(pl.String))
    frame = frame.with_columns(heat=pl.when(pl.int_range(pl.len()) == 1).then(pl.lit(cell)).otherwise("heat"))

    assert refusal(tmp_path, frame).startswith(f"row 2, column 'heat': '{cell}' is not a number")


@pytest.mark.parametrize("cell", ["NA", "NaN", "nan", "null", ""])
def test_what_the_service_reads_as_missing_is_missing_in_a_csv(tmp_path: Path, cell: str) -> None:
    """In features only, for a series may be called so; Parquet has a null of its own, and text there is a mistake."""
    frame = named(world.rows(4).with_columns(pl.col("heat").cast(pl.String)), "NA")
    frame = frame.with_columns(heat=pl.when(pl.int_range(pl.len()) == 1).then(pl.lit(cell)).otherwise("heat"))

    found = series(tmp_path, frame, series="station")

    assert found.name == "NA"
    assert found.missing.nonzero().tolist() == [[1, 1]]
    if cell == "NA":
        with pytest.raises(DataError, match="'NA' is not a number"):
            series(tmp_path, frame, name="rows.parquet")


def test_a_row_of_too_many_cells_is_named(tmp_path: Path) -> None:
    """Decimal commas without quotes give surplus cells, and would shift all that follow."""
    file = tmp_path / "rows.csv"
    world.write(file, world.rows(4))
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], lines[2].replace(".", ","), *lines[3:]]) + "\n")

    with pytest.raises(DataError, match=r"rows.csv: row 2: \d cells for 4 columns"):
        read(world.recipe(str(file)).data)


def test_missing_columns_are_named_beside_those_there_are(tmp_path: Path) -> None:
    """The message helps to find the right name."""
    message = refusal(tmp_path, world.rows(4).drop("heat"))

    assert message.endswith("no column 'heat' (there are: time, load, wind)")


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    """An absent, an empty and a damaged file each give one message."""
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and nothing more")
    (tmp_path / "header.csv").write_text("time,load,heat,wind\n")

    for name, problem in (
        ("absent.csv", "No such file"),
        ("empty.csv", "cannot be read as CSV or Parquet"),
        ("damaged.parquet", "cannot be read as CSV or Parquet"),
        ("header.csv", "no rows"),
    ):
        with pytest.raises(DataError, match=problem) as caught:
            read(world.recipe(tmp_path / name).data)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("month", "day"), [(3, 28), (6, 1), (10, 24), (12, 1)])
@pytest.mark.parametrize("step", [timedelta(minutes=20), world.HOUR])
def test_times_without_an_offset_are_of_the_recipes_clocks(
    tmp_path: Path, month: int, day: int, step: timedelta
) -> None:
    """Through a change of the clock either way: in autumn the order of rows tells the same clock times apart."""
    first = datetime(2026, month, day, 12, tzinfo=BERLIN)

    found = series(tmp_path, by_clock(first, 90, step), timezone="Europe/Berlin", frequency=step)

    assert (found.start, len(found), found.recorded) == (int(first.timestamp()), 90, 90)
    assert not found.missing.any()


def test_times_with_an_offset_keep_it(tmp_path: Path) -> None:
    """Whatever the zone of the recipe, in text or in the type of the column."""
    frame = world.rows(5)
    typed = frame.with_columns(pl.col("time").str.to_datetime(time_zone="UTC").dt.convert_time_zone("Asia/Tokyo"))

    starts = [
        series(tmp_path, frame, timezone="Europe/Berlin").start,
        series(tmp_path, typed, name="rows.parquet", timezone="Europe/Berlin").start,
    ]

    assert starts == [int(world.START.timestamp())] * 2


def test_naive_times_of_a_column_of_times_are_of_the_recipes_clocks(tmp_path: Path) -> None:
    """A Parquet file without a zone says as little as text."""
    frame = by_clock(datetime(2026, 6, 1, tzinfo=BERLIN), 5).with_columns(pl.col("time").str.to_datetime())

    found = series(tmp_path, frame, name="rows.parquet", timezone="Europe/Berlin")

    assert found.start == int(datetime(2026, 5, 31, 22, tzinfo=UTC).timestamp())


def test_a_clock_time_that_never_was_is_named_by_its_row(tmp_path: Path) -> None:
    """In spring an hour is left out."""
    frame = with_time(by_clock(datetime(2026, 3, 29, tzinfo=BERLIN), 6), 3, "2026-03-29T02:00:00")

    message = refusal(tmp_path, frame, timezone="Europe/Berlin")

    assert message == "row 3: 2026-03-29T02:00:00 never was in Europe/Berlin: clocks went forward over it"


def test_a_clock_time_that_was_twice_is_refused_where_nothing_tells_which(tmp_path: Path) -> None:
    """One of the two hours is not in the file, and it could be either; or there is nothing else in it."""
    frame = by_clock(datetime(2026, 10, 25, tzinfo=BERLIN), 6)

    message = refusal(tmp_path, frame.filter(pl.int_range(pl.len()) != 2), timezone="Europe/Berlin")
    alone = refusal(tmp_path, frame[2:3], timezone="Europe/Berlin")

    assert message.startswith("row 3: 2026-10-25T02:00:00 was twice in Europe/Berlin, and the rows around it do not")
    assert alone.startswith("row 1: 2026-10-25T02:00:00 was twice in Europe/Berlin")


@pytest.mark.parametrize(
    ("kept", "start"),
    [
        # The file ends with the first of the two hours, or begins with the second.
        (slice(0, 3), datetime(2026, 10, 24, 22, tzinfo=UTC)),
        (slice(3, 6), datetime(2026, 10, 25, 1, tzinfo=UTC)),
    ],
)
def test_a_clock_time_that_was_twice_is_told_by_the_rows_beside_it(
    tmp_path: Path, kept: slice, start: datetime
) -> None:
    """It is the one that leaves no gap."""
    frame = by_clock(datetime(2026, 10, 25, tzinfo=BERLIN), 6)[kept]

    found = series(tmp_path, frame, timezone="Europe/Berlin")

    assert (found.start, len(found)) == (int(start.timestamp()), 3)


def test_every_two_hours_a_clock_time_that_was_twice_may_come_once(tmp_path: Path) -> None:
    """Where the grid steps over one of the two hours, its neighbours on both sides tell which it was."""
    first = datetime(2026, 10, 24, 22, tzinfo=BERLIN)
    frame = by_clock(first, 8, 2 * world.HOUR)

    found = series(tmp_path, frame, timezone="Europe/Berlin", frequency="PT2H")

    assert frame["time"].str.contains("T02:00").any()
    assert (found.start, len(found)) == (int(first.timestamp()), 8)


def test_the_clocks_go_back_once(tmp_path: Path) -> None:
    """An hour that comes a third time is a mistake in the file."""
    frame = by_clock(datetime(2026, 10, 25, tzinfo=BERLIN), 4)

    message = refusal(tmp_path, pl.concat([frame, frame[-1:]]), timezone="Europe/Berlin")

    assert message.startswith("row 5: 2026-10-25T01:00:00Z is the time of row 4 too")


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_series_in_one_file_equal_files_of_their_own(tmp_path: Path, name: str) -> None:
    """With mixed rows or one after the other, of different lengths and with gaps: the rows of each, by their name."""
    gap = world.with_gap(world.rows(30).filter(pl.int_range(30) != 7), "heat", 12, 2)
    frames = {"b": gap, "a": world.rows(20, seed=1, start=world.START + 5 * world.HOUR), "c": world.rows(1, seed=2)}
    alone = [series(tmp_path, frame, name=f"{key}-{name}") for key, frame in frames.items()]
    parts = [named(frame, key) for key, frame in frames.items()]

    for together in (pl.concat(parts), mixed(*parts)):
        found = several(tmp_path, together, name=name, series="station")

        assert [one.name for one in found] == ["b", "a", "c"]
        for one, other in zip(found, alone, strict=True):
            assert (one.start, one.recorded) == (other.start, other.recorded)
            assert torch.equal(one.values.nan_to_num(-99), other.values.nan_to_num(-99))


def test_clock_times_that_were_twice_are_told_apart_series_by_series(tmp_path: Path) -> None:
    """Mixed rows of two series have each hour twice as often."""
    frame = by_clock(datetime(2026, 10, 25, tzinfo=BERLIN), 8)

    found = several(tmp_path, mixed(named(frame, "a"), named(frame, "b")), series="station", timezone="Europe/Berlin")

    assert [(len(one), one.recorded) for one in found] == [(8, 8)] * 2


def test_series_may_have_numbers_for_names(tmp_path: Path) -> None:
    """Whatever the type of the column."""
    frame = world.rows(4).with_columns(station=pl.Series([1, 2, 1, 2]))

    found = several(tmp_path, frame, name="rows.parquet", series="station")

    assert [one.name for one in found] == ["1", "2"]


def test_a_mistake_in_a_series_is_named_by_the_row_of_the_file(tmp_path: Path) -> None:
    """Times go up within a series, not within the file; and every row needs a name."""
    a, b = named(world.rows(5), "a"), named(world.rows(5, seed=1), "b")
    same = mixed(a, with_time(b, 3, "2026-01-01T01:00:00Z"))
    off = mixed(a, with_time(b, 3, "2026-01-01T02:30:00Z"))
    word = mixed(a, b).with_columns(pl.when(pl.int_range(10) == 7).then(pl.lit("x")).otherwise("heat").alias("heat"))
    empty = mixed(a, b).with_columns(station=pl.when(pl.int_range(10) == 7).then(None).otherwise("station"))

    assert refusal(tmp_path, same, series="station").startswith(
        "row 6 (series 'b'): 2026-01-01T01:00:00Z is the time of row 4 too"
    )
    assert refusal(tmp_path, off, series="station").startswith(
        "row 6 (series 'b'): 2026-01-01T02:30:00Z is off the grid"
    )
    assert refusal(tmp_path, word, series="station").startswith(
        "row 8 (series 'b'), column 'heat': 'x' is not a number"
    )
    assert refusal(tmp_path, empty, series="station").startswith("row 8, column 'station': empty")
    assert refusal(tmp_path, world.rows(5), series="station").startswith("no column 'station'")


def test_a_static_feature_fills_the_whole_grid(tmp_path: Path) -> None:
    """Also in rows that the file does not have; each series has its own value."""
    frame = mixed(
        named(world.rows(6), "a").with_columns(altitude=3.5), named(world.rows(6), "b").with_columns(altitude=80.0)
    ).filter(pl.int_range(12) != 5)

    one, other = several(tmp_path, frame, features=WITH_ALTITUDE, series="station")

    assert one.values[:, 3].tolist() == [3.5] * 6
    assert other.values[:, 3].tolist() == [80.0] * 6
    assert other.missing.nonzero().tolist() == [[2, 0], [2, 1], [2, 2]]


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        (4.0, "4 is not 3, and a static feature stays as it is throughout a series"),
        (None, "empty, where a static feature has a value in every row"),
    ],
)
def test_a_static_feature_that_changes_is_named_by_its_row(tmp_path: Path, cell: float | None, problem: str) -> None:
    """Or one that is not there."""
    frame = mixed(named(world.rows(4), "a"), named(world.rows(4), "b"))
    frame = frame.with_columns(altitude=pl.when(pl.int_range(8) == 5).then(pl.lit(cell)).otherwise(3.0))

    message = refusal(tmp_path, frame, features=WITH_ALTITUDE, series="station")

    assert message == f"row 6 (series 'b'), column 'altitude': {problem}"
