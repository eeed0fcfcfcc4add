"""From files to series on an even grid of times. Nothing here knows of splits or windows.

Columns are read one by one, so that no more than one is in memory beside the series that it becomes.
Shapes: R rows of a file or a series, F features. Rows are counted from 1 in messages, the first below the header.
"""

import csv
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from training import recipe
from training.errors import DataError

_MICROSECONDS = 1_000_000
_DAY = 86_400 * _MICROSECONDS

_MISSING = ("", "NaN", "nan", "null", "NA")
"""What a cell of a CSV says that has no value: the same as in what the service is sent."""

_Times = NDArray[np.int64]
_Rows = NDArray[np.int64] | None
"""Numbers of rows from 0, ascending; None: all of them."""


@dataclass(frozen=True, slots=True)
class Series:
    """One file, or the rows of one name in it: every row of the grid from its first time to its last."""

    file: str
    """As the recipe names it."""
    sha256: str
    """Of the file."""
    name: str | None
    """In the column of series; None where the file is one."""
    recorded: int
    """Its rows in the file; the others of the grid are missing."""
    start: int
    """Epoch seconds of the first row."""
    values: Tensor
    """[R, F] in raw units; NaN where missing."""

    @property
    def missing(self) -> Tensor:
        """bool [R, F]"""
        return self.values.isnan()

    def __len__(self) -> int:
        return self.values.size(0)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which rows of a file belong to which series."""

    file: str
    names: Sequence[str | None]
    """Of the series, in the order in which they come; a single None where the file is one."""
    codes: NDArray[np.integer] | None = None
    """[R]: the series of each row; None where there is one."""

    def series(self) -> Iterator[_Rows]:
        """The rows of each series."""
        if self.codes is None:
            yield None
            return
        order = np.argsort(self.codes, kind="stable")
        yield from np.split(order, np.bincount(self.codes).cumsum()[:-1])

    def place(self, row: int) -> str:
        """A row of the file, numbered from 0, as messages call it."""
        name = None if self.codes is None else self.names[self.codes[row]]
        return f"{self.file}: row {row + 1}" + ("" if name is None else f" (series {name!r})")


class _Grid(NamedTuple):
    """The times of a series."""

    start: int
    """Epoch seconds of the first."""
    length: int
    recorded: int
    """Of them, those in the file."""


def read(data: recipe.Data) -> list[Series]:
    """The recipe's series with their gaps; DataError naming file, row, series and column."""
    return [series for file in data.files for series in _read(file, data)]


def _read(file: str, data: recipe.Data) -> list[Series]:
    digest = _digest(file)
    source = _source(file, [data.time, *([data.series] if data.series else [])], data.names)
    layout = _layout(file, source, data.series)
    grids, places = _grid(layout, *_times(layout, _column(file, source, data.time), data.timezone), data)
    lengths = [grid.length for grid in grids]
    values = np.full((sum(lengths), len(data.names)), np.nan, np.float32)
    for index, name in enumerate(data.names):
        column = values[:, index]
        if index in data.static_columns:
            column[:] = np.repeat(_constants(layout, name, _numbers(layout, _column(file, source, name))), lengths)
        else:
            column[places] = _numbers(layout, _column(file, source, name))
    parts = torch.from_numpy(values).split(lengths)
    return [
        Series(recipe.portable(file), digest, name, grid.recorded, grid.start, part)
        for name, grid, part in zip(layout.names, grids, parts, strict=True)
    ]


def _layout(file: str, source: pl.LazyFrame, column: str | None) -> _Layout:
    if column is None:
        return _Layout(file, [None])
    names = _column(file, source, column).cast(pl.String)
    empty = names.is_null() | (names == "")
    if empty.any():
        row = int(empty.arg_max() or 0)
        raise DataError(f"{file}: row {row + 1}, column {column!r}: empty, where the name of a series belongs")
    known = names.unique(maintain_order=True)
    return _Layout(file, known.to_list(), names.cast(pl.Enum(known)).to_physical().to_numpy())


def _grid(
    layout: _Layout, earlier: _Times, later: _Times | None, data: recipe.Data
) -> tuple[list[_Grid], slice | _Times]:
    """The grid of each series, and where each row of the file belongs among those of all grids, one after the other.

    From the times of `_times`.
    """
    grids: list[_Grid] = []
    before = 0
    places = np.empty(0 if layout.codes is None else len(earlier), np.int64)
    for rows in layout.series():
        times = earlier if rows is None else earlier[rows]
        if later is not None:
            times = _told_apart(layout, rows, times, later if rows is None else later[rows], data)
        _refuse_disorder(layout, rows, times)
        start, own = _places(layout, rows, times, data.interval)
        if rows is None:
            places = own
        else:
            places[rows] = before + own
        grids.append(_Grid(start, int(own[-1]) + 1, len(own)))
        before += grids[-1].length
    # Without a gap the rows are taken as they come: an index of them would be larger than they are.
    is_whole = layout.codes is None and grids[0].recorded == grids[0].length
    return grids, slice(None) if is_whole else places


def _digest(file: str) -> str:
    try:
        with Path(file).open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error


def _source(file: str, keys: list[str], features: list[str]) -> pl.LazyFrame:
    """The file, not read yet, in which all the columns are; cells of features are null where a CSV has no value."""
    with Path(file).open("rb") as content:
        is_parquet = content.read(4) == b"PAR1"
    # CSV as text, so that a cell that is no number can be named by its row.
    source = pl.scan_parquet(file, glob=False) if is_parquet else pl.scan_csv(file, glob=False, infer_schema=False)
    try:
        names = source.collect_schema().names()
    except pl.exceptions.PolarsError as error:
        raise _unreadable(file, error) from error
    lacking = [name for name in [*keys, *features] if name not in names]
    if lacking:
        raise DataError(f"{file}: no column {', '.join(map(repr, lacking))} (there are: {', '.join(names)})")
    if is_parquet:
        return source
    _refuse_long_rows(file, source, len(names))
    # Not by `null_values` of the scan: a series may be called NA.
    return source.with_columns(pl.col(features).replace(_MISSING, None))


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


def _times(layout: _Layout, column: pl.Series, timezone: str) -> tuple[_Times, _Times | None]:
    """Epoch microseconds of each row. Where clock times came twice, the second time of each row too."""
    times = _parsed(layout.file, column).dt.cast_time_unit("us")
    if times.null_count():
        row = int(times.is_null().arg_max() or 0)
        raise DataError(f"{layout.place(row)}, column {column.name!r}: {column[row]!r} is not an ISO 8601 time")
    if not isinstance(times.dtype, pl.Datetime) or times.dtype.time_zone or timezone == "UTC":
        return times.to_physical().to_numpy(), None
    first, second = (
        times.dt.replace_time_zone(timezone, ambiguous=which, non_existent="null") for which in ("earliest", "latest")
    )
    if first.null_count():
        row = int(first.is_null().arg_max() or 0)
        raise DataError(f"{layout.place(row)}: {column[row]} never was in {timezone}: clocks went forward over it")
    earlier, later = first.to_physical().to_numpy(), second.to_physical().to_numpy()
    return earlier, None if np.array_equal(earlier, later) else later


def _parsed(file: str, column: pl.Series) -> pl.Series:
    """As times: in UTC where they name an offset, else as clocks showed them."""
    if column.dtype == pl.String:
        # polars guesses other orders of day and month too, without a word.
        if column[0] is not None and not re.match(r"\d{4}-\d{2}-\d{2}", column[0]):
            raise DataError(f"{file}: column {column.name!r}: {column[0]!r} is not an ISO 8601 time")
        try:
            return column.str.to_datetime(time_unit="us", strict=False)
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{file}: column {column.name!r}: {column[0]!r} is not an ISO 8601 time") from error
    if column.dtype == pl.Date:
        return column.cast(pl.Datetime("us"))
    if not isinstance(column.dtype, pl.Datetime):
        raise DataError(f"{file}: column {column.name!r} holds {column.dtype}, not times")
    return column


def _told_apart(layout: _Layout, rows: _Rows, earlier: _Times, later: _Times, data: recipe.Data) -> _Times:
    """Of one series: when each row was, where its clock time came twice by the order of the rows around it."""
    twice = np.flatnonzero(earlier != later)
    if not twice.size:
        return earlier
    found = earlier.copy()
    # Each time that the clocks went back on its own.
    breaks = np.flatnonzero((np.diff(twice) > 1) | (np.abs(np.diff(earlier[twice])) > _DAY)) + 1
    for part in np.split(twice, breaks):
        first, end = int(part[0]), int(part[-1]) + 1
        change = _change(found, later, first, end, data.interval * _MICROSECONDS)
        if change is None:
            row = _of_file(rows, first)
            shown = datetime.fromtimestamp(found[first] / _MICROSECONDS, ZoneInfo(data.timezone))
            raise DataError(
                f"{layout.place(row)}: {shown:%Y-%m-%dT%H:%M:%S} was twice in {data.timezone}, and the rows around it"
                " do not tell which time is meant; give times with their offset"
            )
        found[change:end] = later[change:end]
    return found


def _change(times: _Times, later: _Times, first: int, end: int, step: int) -> int | None:
    """From which of the rows [first, end) on the clocks had gone back already; None where nothing tells.

    The times are those of the first round; they go back once where there are rows of both. Else the only change that
    leaves no gap counts.
    """
    back = np.flatnonzero(np.diff(times[first:end]) <= 0)
    if back.size:
        # A second time back is a mistake that the order of rows will show.
        return first + int(back[0]) + 1
    around = slice(max(first - 1, 0), end + 1)
    found = []
    for change in range(first, end + 1):
        tried = np.concatenate([times[around.start : change], later[change:end], times[end : around.stop]])
        if (np.diff(tried) == step).all():
            found.append(change)
    return found[0] if len(found) == 1 else None


def _of_file(rows: _Rows, row: int) -> int:
    """The row of the file that this one of a series is."""
    return row if rows is None else int(rows[row])


def _refuse_disorder(layout: _Layout, rows: _Rows, times: _Times) -> None:
    wrong = np.flatnonzero(times[1:] <= times[:-1])
    if not wrong.size:
        return
    before = int(wrong[0])
    problem = "is the time of row {} too" if times[before + 1] == times[before] else "is earlier than row {}"
    row, other = (_of_file(rows, row) for row in (before + 1, before))
    raise DataError(f"{layout.place(row)}: {_shown(int(times[before + 1]))} {problem.format(other + 1)}")


def _places(layout: _Layout, rows: _Rows, times: _Times, interval: int) -> tuple[int, _Times]:
    """Epoch seconds of the grid's first row, and the grid's row of each of the series' rows."""
    start = int(times[0]) // _MICROSECONDS
    step = interval * _MICROSECONDS
    places = times - start * _MICROSECONDS
    off = places % step != 0
    if off.any():
        row = int(off.argmax())
        raise DataError(
            f"{layout.place(_of_file(rows, row))}: {_shown(int(times[row]))} is off the grid of one row"
            f" every {interval} s from {_shown(start * _MICROSECONDS)}"
        )
    places //= step
    return start, places


def _numbers(layout: _Layout, column: pl.Series) -> NDArray[np.float32]:
    """float32 [R]; NaN where there is no value."""
    numbers = column if column.dtype == pl.Float32 else column.cast(pl.Float64, strict=False)
    wrong = (numbers.is_null() & column.is_not_null()) | numbers.is_infinite().fill_null(value=False)
    if wrong.any():
        row = int(wrong.arg_max() or 0)
        raise DataError(
            f"{layout.place(row)}, column {column.name!r}: {column[row]!r} is not a number"
            " (leave the cell empty where there is none)"
        )
    return numbers.fill_null(float("nan")).cast(pl.Float32).to_numpy()


def _constants(layout: _Layout, column: str, numbers: NDArray[np.float32]) -> list[float]:
    """The value of a static feature in each series."""
    found = []
    for rows in layout.series():
        own = numbers if rows is None else numbers[rows]
        wrong = np.flatnonzero(own != own[0])
        if wrong.size:
            row = int(wrong[0])
            problem = (
                "empty, where a static feature has a value in every row"
                if np.isnan(own[row])
                else f"{own[row]:g} is not {own[0]:g}, and a static feature stays as it is throughout a series"
            )
            raise DataError(f"{layout.place(_of_file(rows, row))}, column {column!r}: {problem}")
        found.append(float(own[0]))
    return found


def _shown(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / _MICROSECONDS, UTC).isoformat().replace("+00:00", "Z")
