"""From files to series: times on a grid, numbers or nothing in the cells, gaps."""

from pathlib import Path

import polars as pl
import pytest
import torch

from tests.training import world
from training.data.files import Series, read
from training.errors import DataError


def series(tmp_path: Path, frame: pl.DataFrame, *, carry_forward: int = 0, name: str = "rows.csv") -> Series:
    file = world.write(tmp_path / name, frame)
    (found,) = read(world.recipe(file, data={"gaps": {"carry_forward": carry_forward}}).data)
    return found


def refusal(tmp_path: Path, frame: pl.DataFrame) -> str:
    with pytest.raises(DataError) as caught:
        series(tmp_path, frame)
    return str(caught.value)


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


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_gaps_no_longer_than_the_limit_carry_the_last_value(tmp_path: Path, limit: int) -> None:
    """A gap of two rows is filled from the row before it, or not at all where the limit is one."""
    frame = world.rows(8)

    found = series(tmp_path, world.with_gap(frame, "load", 3, 2), carry_forward=limit)

    if limit == 1:
        assert found.missing[:, 0].nonzero().flatten().tolist() == [3, 4]
    else:
        assert found.filled.nonzero().tolist() == [[3, 0], [4, 0]]
        assert found.values[3:5, 0].tolist() == [found.values[2, 0].item()] * 2
    assert bool((found.observed | found.filled | found.missing).all())


def test_a_gap_without_a_row_before_it_stays(tmp_path: Path) -> None:
    """There is nothing to carry forward at the beginning; values from the future are never used."""
    found = series(tmp_path, world.with_gap(world.rows(8), "load", 0, 1), carry_forward=5)

    assert found.missing[:, 0].nonzero().flatten().tolist() == [0]


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
    message = refusal(tmp_path, with_time(world.rows(6), row, time))

    assert message.startswith(f"{tmp_path / 'rows.csv'}: {expected}")


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


@pytest.mark.parametrize("cell", ["mild", "NA", "inf"])
def test_a_cell_that_is_no_number_is_named_by_row_and_column(tmp_path: Path, cell: str) -> None:
    """Only an empty cell is a gap: anything else that is not a finite number is a mistake in the file."""
    frame = world.rows(4).with_columns(pl.col("heat").cast(pl.String))
    frame = frame.with_columns(heat=pl.when(pl.int_range(pl.len()) == 1).then(pl.lit(cell)).otherwise("heat"))

    assert refusal(tmp_path, frame).startswith(
        f"{tmp_path / 'rows.csv'}: row 2, column 'heat': '{cell}' is not a number"
    )


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
