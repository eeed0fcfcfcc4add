"""From files to series on an even grid of times. Nothing here knows of splits or windows.

Shapes: R rows of a series, F features. Rows are counted from 1 in messages, the first below the header.
"""

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
    content = _bytes(file)
    frame = _frame(file, content, [data.time, *data.names])
    times = _times(file, frame[data.time])
    places = _places(file, times, data.interval)
    values = np.full((int(places[-1]) + 1, len(data.names)), np.nan, np.float32)
    values[places] = np.stack([_numbers(file, frame[name]) for name in data.names], 1)
    filled = _carry_forward(values, data.gaps.carry_forward)
    return Series(
        file=recipe.portable(file),
        sha256=hashlib.sha256(content).hexdigest(),
        recorded=len(frame),
        start=int(times[0]) // _MICROSECONDS,
        values=torch.from_numpy(values),
        filled=torch.from_numpy(filled),
    )


def _bytes(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error


def _frame(file: str, content: bytes, columns: list[str]) -> pl.DataFrame:
    try:
        # CSV as text, so that a cell that is no number can be named by its row.
        is_parquet = content.startswith(b"PAR1")
        frame = pl.read_parquet(content) if is_parquet else pl.read_csv(content, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{file}: cannot be read as CSV or Parquet: {str(error).splitlines()[0]}") from error
    lacking = [name for name in columns if name not in frame.columns]
    if lacking:
        raise DataError(f"{file}: no column {', '.join(map(repr, lacking))} (there are: {', '.join(frame.columns)})")
    if frame.is_empty():
        raise DataError(f"{file}: no rows")
    return frame.select(columns)


def _times(file: str, column: pl.Series) -> NDArray[np.int64]:
    """Epoch microseconds, strictly increasing."""
    times = _utc(file, column).dt.epoch("us")
    if times.null_count():
        row = int(times.is_null().arg_max() or 0)
        raise DataError(f"{file}: row {row + 1}, column {column.name!r}: {column[row]!r} is not an ISO 8601 time")
    found = times.to_numpy()
    wrong = np.flatnonzero(np.diff(found) <= 0)
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


def _places(file: str, times: NDArray[np.int64], interval: int) -> NDArray[np.int64]:
    """The grid's row of each of the file's rows."""
    start = times[0] // _MICROSECONDS * _MICROSECONDS
    places, off = np.divmod(times - start, interval * _MICROSECONDS)
    if off.any():
        row = int(np.flatnonzero(off)[0])
        raise DataError(
            f"{file}: row {row + 1}: {_shown(int(times[row]))} is off the grid of one row"
            f" every {interval} s from {_shown(int(start))}"
        )
    return np.asarray(places, np.int64)


def _numbers(file: str, column: pl.Series) -> NDArray[np.float32]:
    """float32 [R]; NaN where the cell is empty."""
    numbers = column.cast(pl.Float64, strict=False)
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
    missing = np.isnan(values)
    rows = np.arange(len(values))[:, None]
    before = np.maximum.accumulate(np.where(missing, -1, rows), axis=0)
    after = np.minimum.accumulate(np.where(missing, len(values), rows)[::-1], axis=0)[::-1]
    filled: NDArray[np.bool_] = missing & (before >= 0) & (after - before - 1 <= limit)
    values[filled] = np.take_along_axis(values, before, axis=0)[filled]
    return filled


def _shown(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / _MICROSECONDS, UTC).isoformat().replace("+00:00", "Z")
