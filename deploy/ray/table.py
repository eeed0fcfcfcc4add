"""Rows of a Parquet file, each of them a series, to the queries that they are to a model.

A row has a list of numbers in the column of every feature, oldest first, whose last ones are the window; a number in
that of every static feature; and where times are known, a list of them, or the time of the first value. Lists of
known-future covariates go on for the steps ahead, or all lists do and the others have nothing there.

Shapes: n rows of a file, l values of a list, L window, C columns of a request, K known-future covariates, N steps.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.asked.layout import Layout, lay_out, near
from app.asked.query import Places, Query
from app.errors import InvalidError
from app.ticket import Floats, Times
from models.spec import Spec

START = "start"
"""The column with the time of a row's first value, where there is no list of times."""
_TAKEN = ("step", "row", "reason")

Ints = NDArray[np.int64]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_END = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND


class ColumnsError(ValueError):
    """Columns that are not what the model needs."""


@dataclass(frozen=True, slots=True)
class _Lists(Places):
    """What the parts of a row are called."""

    def of(self, _index: int) -> str:
        return "window"

    def of_row(self, _index: int, row: int) -> str:
        return f"value {row + 1} of the window"

    def of_cell(self, index: int, row: int, _column: int, name: str) -> str:
        return f"column {name!r}, {self.of_row(index, row)}"


_PLACES = _Lists(missing="no value", hint=": give a column of times or of starts")


class Columns(NamedTuple):
    """Which columns of a file are read, by what they are."""

    id: str
    lists: list[str]
    """The model's columns, C of them."""
    static: list[str]
    time: str | None
    """Of times, a list in each row or a single one."""

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [self.id, *self.lists, *self.static, *([self.time] if self.time else [])]


def columns_of(schema: pa.Schema, spec: Spec, name: str) -> Columns:
    """For a model, with the series' names in the column `name`; ColumnsError naming what is not there."""
    lacking = [one for one in (name, *spec.columns, *spec.static) if one not in schema.names]
    if lacking:
        raise ColumnsError("; ".join(f"no column {one!r}{near(one, schema.names)}" for one in lacking))
    if name in (*spec.columns, *_TAKEN):
        raise ColumnsError(f"column {name!r} cannot be the series' names: the results have another one of that name")
    for one in spec.columns:
        if not _is_list(schema.field(one).type, pa.types.is_floating, pa.types.is_integer):
            raise ColumnsError(
                f"column {one!r} is {schema.field(one).type}, not a list of numbers: each row is a series"
            )
    for one in spec.static:
        if not (pa.types.is_floating(schema.field(one).type) or pa.types.is_integer(schema.field(one).type)):
            raise ColumnsError(f"column {one!r} is {schema.field(one).type}, not a number: it is a static feature")
    time = next((one for one in (spec.time, START) if one in schema.names), None)
    if time is None and spec.clock:
        raise ColumnsError(f"no column {spec.time!r} or {START!r}, which the model needs since it has a clock")
    if time is not None:
        kind = schema.field(time).type
        if not (pa.types.is_timestamp(kind) or _is_list(kind, pa.types.is_timestamp)):
            raise ColumnsError(f"column {time!r} is {kind}, not a time or a list of times")
    return Columns(name, list(spec.columns), list(spec.static), time)


def _is_list(kind: pa.DataType, *of: Any) -> bool:  # noqa: ANN401  predicates of pyarrow, which has no annotations
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_one(kind) for is_one in lists) and any(is_one(kind.value_type) for is_one in of)


class Ready(NamedTuple):
    """Rows that a model takes, laid out for it."""

    rows: Ints
    """Which of the file's."""
    layout: Layout


class Table:
    """Some rows of a file."""

    def __init__(self, batch: pa.RecordBatch, columns: Columns, spec: Spec, steps: int) -> None:
        self._batch = batch
        self._columns = columns
        self._spec = spec
        self._steps = steps
        self._step = spec.frequency // _MICROSECOND
        self._lists = {name: _flat(batch.column(name)) for name in columns.lists}
        self._seen = [name for name in columns.lists if name not in spec.future]
        self.reasons: dict[int, str] = {}
        """Why rows are left out, by their number; complete once `ready` has come to its end."""

    def ready(self) -> Iterator[Ready]:
        """All rows that the model takes, those that are alike together."""
        for name, one in self._lists.items():
            self._refuse(one.infinite(), f"column {name!r}: a number that is not finite")
        ends = self._ends()
        firsts = self._firsts(ends)
        static = self._static()
        good = np.array([row not in self.reasons for row in range(self._batch.num_rows)], bool)
        alike = good & _alike(list(self._lists.values()), self._spec.window) & (not self._spec.future)
        if alike.any():
            rows = np.flatnonzero(alike)
            windows = np.stack([one.last(rows, self._spec.window) for one in self._lists.values()], 2)
            yield from self._laid(rows, self._query(rows, windows, None, ends, firsts, static))
        others = [
            (row, *found) for row in np.flatnonzero(good & ~alike).tolist() if (found := self._one(row, int(ends[row])))
        ]
        if others:
            rows = np.array([row for row, _, _ in others])
            future = np.stack([ahead for _, _, ahead in others]) if self._spec.future else None
            query = self._query(rows, [past for _, past, _ in others], future, ends, firsts, static)
            yield from self._laid(rows, query)

    def _refuse(self, rows: Iterable[int], reason: str) -> None:
        for row in rows:
            self.reasons.setdefault(row, reason)

    def _query(
        self,
        rows: Ints,
        windows: Floats | list[Floats],
        future: Floats | None,
        ends: Ints,
        firsts: Ints | None,
        static: Floats | None,
    ) -> Query:
        start = None
        if firsts is not None:
            # A window may begin later than its row.
            before = ends[rows] - np.array([len(window) for window in windows])
            start = [_EPOCH + moment * _MICROSECOND for moment in (firsts[rows] + before * self._step).tolist()]
        gaps = any(bool(np.isnan(window).any()) for window in windows)
        told = None if static is None else static[rows].tolist()
        return Query(windows, future, start, single=False, static=told, gaps=gaps, places=_PLACES)

    def _laid(self, rows: Ints, query: Query) -> Iterator[Ready]:
        try:
            yield Ready(rows, lay_out(query, self._spec, self._steps, most=len(rows)))
        except InvalidError as error:
            if len(rows) == 1:
                self.reasons[int(rows[0])] = error.detail
                return
            # One of them is to blame, and the others are not to pay for it.
            middle = len(rows) // 2
            yield from self._laid(rows[:middle], query.part(0, middle))
            yield from self._laid(rows[middle:], query.part(middle, len(rows)))

    def _ends(self) -> Ints:
        """[n], how many values of each row have been seen; what is behind them is the known future.

        Lists that are longer than the others tell of it; else it begins where the others have nothing any more.
        """
        ends = self._lists[self._seen[0]].lengths.copy()
        for row in range(len(ends)) if self._spec.future else ():
            if all(self._lists[name].lengths[row] == ends[row] for name in self._columns.lists):
                seen = np.flatnonzero(~np.isnan([self._lists[name].of(row) for name in self._seen]).all(0))
                ends[row] = seen[-1] + 1 if len(seen) else 0
        return ends

    def _one(self, row: int, end: int) -> tuple[Floats, Floats] | None:
        """The window [l, C] and what follows it [P * H, K]; None, with the reason noted, where it cannot be."""
        lists = {name: one.of(row) for name, one in self._lists.items()}
        first = self._seen[0]
        for name, values in lists.items():
            if len(values) != len(lists[first]) and not (name in self._spec.future and len(values) > end):
                self._refuse([row], f"column {name!r}: {len(values)} values, but {first!r} has {len(lists[first])}")
        if not end:
            self._refuse([row], "window: no value of a target or a past covariate")
        ahead = {name: lists[name][end:] for name in self._spec.future}
        whole = math.ceil(self._steps / self._spec.horizon) * self._spec.horizon
        for name, values in ahead.items():
            if len(values) < self._steps:
                self._refuse([row], f"column {name!r}: {len(values)} values ahead for {self._steps} steps")
            elif np.isnan(values[:whole]).any():
                self._refuse([row], f"column {name!r}: no value ahead; they must all be given")
        if row in self.reasons:
            return None
        past = np.stack([values[max(0, end - self._spec.window) : end] for values in lists.values()], 1)
        # Of one length for all, as the layout would make it.
        padded = [np.pad(one[:whole], (0, max(0, whole - len(one))), mode="edge") for one in ahead.values()]
        return past, np.stack(padded, 1) if padded else np.empty((whole, 0), np.float32)

    def _static(self) -> Floats | None:
        """[n, S]; None where the model has none."""
        if not self._columns.static:
            return None
        found = np.stack([_floats(self._batch.column(name)) for name in self._columns.static], 1)
        for row, column in np.argwhere(~np.isfinite(found)).tolist():
            self._refuse([row], f"column {self._columns.static[column]!r}: no finite number")
        return found

    def _firsts(self, ends: Ints) -> Ints | None:
        """[n], the moment of each row's first value in epoch microseconds; None where no times are given."""
        if self._columns.time is None:
            return None
        column = self._batch.column(self._columns.time)
        firsts = self._of_times(column) if pa.types.is_timestamp(column.type) else self._of_lists(column, ends)
        outside = (firsts < 0) | (firsts > _END - (ends + self._steps) * self._step)
        self._refuse(np.flatnonzero(outside).tolist(), f"column {self._columns.time!r}: not within 1970 to 9999")
        return np.where(outside, 0, firsts)

    def _of_times(self, column: pa.Array) -> Ints:
        """Of the time of each row's first value."""
        missing = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
        self._refuse(missing.tolist(), f"column {self._columns.time!r}: no time")
        early, late = self._moments(column)
        problem = f"no single moment in {self._spec.timezone}; give times with their offset from UTC"
        self._refuse(np.flatnonzero(early != late).tolist(), f"column {self._columns.time!r}: {problem}")
        return early

    def _of_lists(self, column: pa.Array, ends: Ints) -> Ints:
        """Of lists of times. They must be a step apart: there is no row for one that is left out."""
        flat, starts, lengths = _spread(column)
        missing = flat.is_null().to_numpy(zero_copy_only=False)
        candidates = self._moments(flat)
        longest = np.stack([one.lengths for one in self._lists.values()]).max(0)
        firsts = np.zeros(len(starts), np.int64)
        for row, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
            part = slice(start, start + length)
            if not length or length not in (ends[row], longest[row]) or missing[part].any():
                there = length - int(missing[part].sum())
                self._refuse([row], f"column {self._columns.time!r}: {there} times for {longest[row]} values")
                continue
            grid = np.arange(length) * self._step
            fitting = {
                int(one[start])
                for one in candidates
                if np.logical_or.reduce([other[part] == one[start] + grid for other in candidates]).all()
            }
            if len(fitting) == 1:
                firsts[row] = fitting.pop()
            else:
                problem = f"are not {self._spec.frequency} apart" if not fitting else "may be one or another"
                self._refuse([row], f"column {self._columns.time!r}: times that {problem}")
        return firsts

    def _moments(self, flat: pa.Array) -> tuple[Ints, Ints]:
        """Epoch microseconds, the earlier and the later of the two that a time without an offset may be; mostly the
        same. 0 where there is no time.
        """
        whole = pc.fill_null(flat.cast(pa.timestamp("us", flat.type.tz), safe=False), 0)
        sure = [whole, whole]
        if whole.type.tz is None:
            # What the clocks leap over becomes the moments before and behind the leap.
            sure = [
                pc.assume_timezone(whole, self._spec.timezone, ambiguous=which, nonexistent=which)
                for which in ("earliest", "latest")
            ]
        early, late = (one.cast(pa.int64()).to_numpy() for one in sure)
        return early, late


class _Flat(NamedTuple):
    """A column of lists: all values, and where each row's begin."""

    values: Floats
    starts: Ints
    lengths: Ints

    def of(self, row: int) -> Floats:
        start = int(self.starts[row])
        return self.values[start : start + int(self.lengths[row])]

    def last(self, rows: Ints, count: int) -> Floats:
        """[rows, count]"""
        ends = self.starts[rows] + self.lengths[rows]
        found: Floats = self.values[ends[:, None] + np.arange(-count, 0)]
        return found

    def infinite(self) -> list[int]:
        """The rows with a number that is neither finite nor missing."""
        found = np.flatnonzero(np.isinf(self.values))
        if not len(found):
            return []
        rows = np.searchsorted(self.starts, found, side="right") - 1
        inside = found < self.starts[rows] + self.lengths[rows]
        return sorted(set(rows[inside].tolist()))


def _alike(lists: Sequence[_Flat], window: int) -> NDArray[np.bool_]:
    """The rows that have equally many values in every column, and a window full of them."""
    lengths = np.stack([one.lengths for one in lists])
    return np.asarray((lengths == lengths[0]).all(0) & (lengths[0] >= window))


def _flat(column: pa.Array) -> _Flat:
    values, starts, lengths = _spread(column)
    return _Flat(_floats(values), starts, lengths)


def _spread(column: pa.Array) -> tuple[pa.Array, Ints, Ints]:
    """The values of a column of lists, and where each row's begin and how many; none where it is null."""
    if not pa.types.is_large_list(column.type):
        column = column.cast(pa.large_list(column.type.value_type))
    offsets = column.offsets.to_numpy().astype(np.int64)
    lengths = np.where(column.is_null().to_numpy(zero_copy_only=False), 0, np.diff(offsets))
    return column.values, offsets[:-1], lengths


def _floats(values: pa.Array) -> Floats:
    """Float32, NaN for what is missing; infinite for what is too large."""
    wide = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        return np.asarray(wide.astype(np.float32))


def stamps(last: Times, spec: Spec, steps: int) -> pa.Array:
    """The times of the steps after each of these moments [B], B * N of them."""
    ahead = np.arange(1, steps + 1) * (spec.frequency // _MICROSECOND)
    return pa.array((last[:, None] + ahead).ravel(), pa.timestamp("us", spec.timezone))
