"""From files to series on an even grid of times. Nothing here knows of splits or windows.

Columns are read one by one, so that no more than one is in memory beside the series that it becomes.
Shapes: R rows of a series, F features. Rows are counted from 1 in messages, the first below the header.
"""

import csv
import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from training import recipe
from training.errors import DataError

_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class Series:
    """One file: every row of the grid from its first time to its last."""

    file: str
    """As the recipe names it."""
    sha256: str
    recorded: int
    """Rows in the file; the others of the grid are missing."""
    start: int
    """Epoch seconds of the first row."""
    values: Tensor
    """[R, F] in raw units; NaN where missing."""
    filled: Tensor
    """bool [R, F]: carried forward from an earlier row."""

    @property
    def missing(self) -> Tensor:
        """bool [R, F]: neither observed nor filled."""
        return self.values.isnan()

    @property
    def observed(self) -> Tensor:
        """bool [R, F]"""
        return ~(self.missing | self.filled)

    def __len__(self) -> int:
        return self.values.size(0)


def read(data: recipe.Data) -> list[Series]:
    """The recipe's series, gaps filled as it says; DataError naming file, row and column."""
    return [_series(file, data) for file in data.files]


def _series(file: str, data: recipe.Data) -> Series:
    digest = _digest(file)
    source = _source(file, [data.time, *data.names])
    start, places = _places(file, _times(file, _column(file, source, data.time)), data.interval)
    values = np.full((int(places[-1]) + 1, len(data.names)), np.nan, np.float32)
    recorded = len(places)
    # Without a gap the rows are taken as they come: an index of them would be larger than they are.
    rows = slice(None) if recorded == len(values) else places
    del places
    for index, name in enumerate(data.names):
        values[rows, index] = _numbers(file, _column(file, source, name))
    filled = _carry_forward(values, data.gaps.carry_forward)
    return Series(
        file=recipe.portable(file),
        sha256=digest,
        recorded=recorded,
        start=start,
        values=torch.from_numpy(values),
        filled=torch.from_numpy(filled),
    )


def _digest(file: str) -> str:
    try:
        with Path(file).open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error


def _source(file: str, columns: list[str]) -> pl.LazyFrame:
    """The file, not read yet, in which all the columns are."""
    with Path(file).open("rb") as content:
        is_parquet = content.read(4) == b"PAR1"
    # CSV as text, so that a cell that is no number can be named by its row.
    source = pl.scan_parquet(file, glob=False) if is_parquet else pl.scan_csv(file, glob=False, infer_schema=False)
    try:
        names = source.collect_schema().names()
    except pl.exceptions.PolarsError as error:
        raise _unreadable(file, error) from error
    lacking = [name for name in columns if name not in names]
    if lacking:
        raise DataError(f"{file}: no column {', '.join(map(repr, lacking))} (there are: {', '.join(names)})")
    if not is_parquet:
        _refuse_long_rows(file, source, len(names))
    return source


def _refuse_long_rows(file: str, source: pl.LazyFrame, cells: int) -> None:
    # polars drops surplus cells without a word where it reads single columns, and only there.
    try:
        source.select(pl.all().count()).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        with Path(file).open(newline="", encoding="utf-8", errors="replace") as lines:
            for row, found in enumerate(filter(None, csv.reader(lines))):
                if len(found) > cells:
                    raise DataError(f"{file}: row {row}: {len(found)} cells for {cells} columns") from error
        raise _unreadable(file, error) from error


def _column(file: str, source: pl.LazyFrame, name: str) -> pl.Series:
    try:
        column = source.select(name).collect()[name]
    except pl.exceptions.PolarsError as error:
        raise _unreadable(file, error) from error
    if column.is_empty():
        raise DataError(f"{file}: no rows")
    return column


def _unreadable(file: str, error: pl.exceptions.PolarsError) -> DataError:
    return DataError(f"{file}: cannot be read as CSV or Parquet: {str(error).splitlines()[0]}")


def _times(file: str, column: pl.Series) -> NDArray[np.int64]:
    """Epoch microseconds, strictly increasing."""
    times = _utc(file, column).dt.cast_time_unit("us").to_physical()
    if times.null_count():
        row = int(times.is_null().arg_max() or 0)
        raise DataError(f"{file}: row {row + 1}, column {column.name!r}: {column[row]!r} is not an ISO 8601 time")
    found = times.to_numpy()
    wrong = np.flatnonzero(found[1:] <= found[:-1])
    if wrong.size:
        row = int(wrong[0]) + 1
        same = found[row] == found[row - 1]
        problem = f"is the time of row {row} too" if same else f"is earlier than row {row}"
        raise DataError(f"{file}: row {row + 1}: {_shown(int(found[row]))} {problem}")
    return found


def _utc(file: str, column: pl.Series) -> pl.Series:
    if column.dtype == pl.String:
        # polars guesses other orders of day and month too, without a word.
        if column[0] is not None and not re.match(r"\d{4}-\d{2}-\d{2}", column[0]):
            raise DataError(f"{file}: column {column.name!r}: {column[0]!r} is not an ISO 8601 time")
        try:
            return column.str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{file}: column {column.name!r}: {column[0]!r} is not an ISO 8601 time") from error
    if column.dtype == pl.Date:
        column = column.cast(pl.Datetime("us"))
    if not isinstance(column.dtype, pl.Datetime):
        raise DataError(f"{file}: column {column.name!r} holds {column.dtype}, not times")
    return column.dt.convert_time_zone("UTC") if column.dtype.time_zone else column.dt.replace_time_zone("UTC")


def _places(file: str, times: NDArray[np.int64], interval: int) -> tuple[int, NDArray[np.int64]]:
    """Epoch seconds of the grid's first row, and the grid's row of each of the file's rows."""
    start = int(times[0]) // _MICROSECONDS
    step = interval * _MICROSECONDS
    places = times - start * _MICROSECONDS
    off = places % step != 0
    if off.any():
        row = int(off.argmax())
        raise DataError(
            f"{file}: row {row + 1}: {_shown(int(times[row]))} is off the grid of one row"
            f" every {interval} s from {_shown(start * _MICROSECONDS)}"
        )
    places //= step
    return start, places


def _numbers(file: str, column: pl.Series) -> NDArray[np.float32]:
    """float32 [R]; NaN where the cell is empty."""
    numbers = column if column.dtype == pl.Float32 else column.cast(pl.Float64, strict=False)
    wrong = (numbers.is_null() & column.is_not_null()) | numbers.is_infinite().fill_null(value=False)
    if wrong.any():
        row = int(wrong.arg_max() or 0)
        raise DataError(
            f"{file}: row {row + 1}, column {column.name!r}: {column[row]!r} is not a number"
            " (leave the cell empty where there is none)"
        )
    return numbers.fill_null(float("nan")).cast(pl.Float32).to_numpy()


def _carry_forward(values: NDArray[np.float32], limit: int) -> NDArray[np.bool_]:
    """Fill in place the runs of missing values no longer than `limit` that have a value before them; say which."""
    filled = np.zeros(values.shape, np.bool_)
    for column, marks in zip(values.T, filled.T, strict=True):
        edges = np.flatnonzero(np.diff(np.isnan(column), prepend=False, append=False))
        first, end = edges[::2], edges[1::2]
        short = (first > 0) & (end - first <= limit)
        first, sizes = first[short], (end - first)[short]
        # Of each missing row, the number within its run.
        within = np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes)
        before = np.repeat(first - 1, sizes)
        column[before + 1 + within] = column[before]
        marks[before + 1 + within] = True
    return filled


def _shown(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / _MICROSECONDS, UTC).isoformat().replace("+00:00", "Z")
