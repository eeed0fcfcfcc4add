"""A long table or array to the series that are in it, each on an even grid of times, with all that a model looks at.

It may be large: cells are turned into numbers some thousands of rows at a time, and nothing here is for the event loop.
Shapes: R rows of a series, F features, S static features.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from app.asked import times
from app.asked.cells import Cells
from app.asked.query import Series
from app.asked.sheet import Long, columns_of, distance
from app.codec import npy_bodies, tables
from app.errors import InvalidError, MediaTypeError, Place
from app.ticket import Floats, Times
from models.spec import Spec

_SPARSEST = 10
"""Rows of the grid for each that is given, at most: two rows a century apart are no reason to take gigabytes."""
_MICROSECOND = timedelta(microseconds=1)
_NPY = "application/x-npy"
_MEDIA_TYPES = (*tables.MEDIA_TYPES, _NPY)


def series_of(
    body: bytes, content_type: str | None, spec: Spec, *, most_bytes: int = tables.USUAL_BYTES
) -> list[Series]:
    """What a body says for that model; MediaTypeError, MalformedError, BodyTooLargeError where more than `most_bytes`
    come out of it, or InvalidError naming the place.
    """
    media_type, _, parameters = (content_type or "").partition(";")
    media_type = media_type.strip().lower()
    if media_type not in _MEDIA_TYPES:
        raise MediaTypeError(f"{media_type!r} is not read here; send {' or '.join(_MEDIA_TYPES)}")
    if media_type == _NPY:
        return [_array(body, spec)]
    return table_of(tables.read_long(body, media_type, parameters, most_bytes), spec)


def table_of(table: Long, spec: Spec) -> list[Series]:
    """The same of a table."""
    return _Table(table, spec).series()


def _array(body: bytes, spec: Spec) -> Series:
    query = npy_bodies.read(body)
    if not query.single:
        raise InvalidError(Place("array", "3 dimensions; send [rows, columns]"))
    (values,) = query.windows
    if values.shape[1] != len(spec.columns):
        problem = f"{values.shape[1]} columns; the model takes {len(spec.columns)}: {', '.join(spec.columns)}"
        raise InvalidError(Place("array", problem))
    if spec.static:
        raise InvalidError(Place("array", f"without the static features {', '.join(spec.static)}; send text/csv"))
    if spec.clock:
        raise InvalidError(Place("array", "without times, which the model needs since it has a clock; send text/csv"))
    return Series(None, values, None)


class _Read(NamedTuple):
    """All rows of a table, one after the other."""

    values: Floats
    """[R, F]"""
    moments: Times | None
    """[R, 2], the earlier and the later of the two that a time may be, mostly the same; None without a time column."""
    series: Times
    """[R], numbers of the names."""
    names: list[str | None]


class _Placed(NamedTuple):
    """Where the rows of a series lie on its grid."""

    rows: Times
    """[R], which of the table's they are."""
    places: Times
    """[R], how many steps each is after the first."""
    start: int | None
    """Epoch microseconds of the first; None without a time column."""

    @property
    def length(self) -> int:
        """Of the grid."""
        return int(self.places[-1]) + 1


class _Table:
    """Reads one as a model's spec says."""

    def __init__(self, table: Long, spec: Spec) -> None:
        self._spec = spec
        self._zone = ZoneInfo(spec.timezone)
        self._step = spec.frequency // _MICROSECOND
        self._header, self._called, self._parts = table
        self._columns = columns_of(self._header, spec, self._called)
        if spec.clock and self._columns.time is None:
            problem = f"no column {spec.time!r}, which the model needs since it has a clock"
            raise InvalidError(Place(self._called.header, problem))

    def series(self) -> list[Series]:
        """In the order in which they appear."""
        read = self._read()
        if not read.names:
            raise InvalidError(Place(self._called.table, "no rows under the header"))
        order = np.argsort(read.series, kind="stable")
        ends = np.cumsum(np.bincount(read.series))
        placed = [self._placed(read, rows) for rows in np.split(order, ends[:-1])]
        self._check_sparsity(placed)
        return [self._one(name, read, one) for name, one in zip(read.names, placed, strict=True)]

    def _read(self) -> _Read:
        spec, columns = self._spec, self._columns
        where = dict(zip([*spec.columns, *spec.static], [*columns.window, *columns.static], strict=True))
        order = [where[feature.name] for feature in spec.features]
        values = [np.empty((0, len(order)), np.float32)]
        moments, series = [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)]
        names: dict[str | None, int] = {}
        for cells in self._parts:
            rows = range(len(cells))
            part = np.empty((len(cells), len(order)), np.float32)
            for index, column in enumerate(order):
                part[:, index] = cells.numbers(rows, column, self._header[column])
            values.append(part)
            if columns.time is not None:
                moments.append(self._moments(cells, columns.time))
            if columns.series is None:
                series.append(np.full(len(cells), names.setdefault(None, 0)))
            else:
                called = cells.names(columns.series, self._header[columns.series])
                series.append(np.array([names.setdefault(name, len(names)) for name in called]))
        times_read = None if columns.time is None else np.concatenate(moments)
        return _Read(np.concatenate(values), times_read, np.concatenate(series), list(names))

    def _moments(self, cells: Cells, column: int) -> Times:
        """[R, 2] of these rows."""
        sure = cells.moments(column, self._spec.time)
        if sure is not None:
            return np.stack([sure, sure], 1)
        return np.array([self._moment(cells, row, column) for row in range(len(cells))])

    def _moment(self, cells: Cells, row: int, column: int) -> tuple[int, int]:
        time = cells.time(row, column, self._spec.time)
        found = times.candidates(time, self._zone)
        times.check(time, found, self._zone, self._called.cell(cells.first + row, self._spec.time))
        return found[0], found[-1]

    def _placed(self, read: _Read, rows: Times) -> _Placed:
        if read.moments is None:
            return _Placed(rows, np.arange(len(rows)), None)
        moments = self._sure(read.moments[rows], rows)
        return _Placed(rows, self._places(moments, rows), int(moments[0]))

    def _check_sparsity(self, placed: Sequence[_Placed]) -> None:
        """Of all series together, and before any grid is made: many small ones would take as much as a large one."""
        given, steps = sum(len(one.rows) for one in placed), sum(one.length for one in placed)
        if steps > _SPARSEST * given + self._spec.window:
            worst = max(placed, key=lambda one: one.length - _SPARSEST * len(one.rows))
            problem = f"{len(worst.rows)} rows, but {worst.length} steps from the first to the last: too few are there"
            every = f" ({given} rows and {steps} steps in all {len(placed)} series)" if len(placed) > 1 else ""
            raise InvalidError(Place(self._called.row(int(worst.rows[0])), problem + every))

    def _one(self, name: str | None, read: _Read, placed: _Placed) -> Series:
        values = read.values[placed.rows]
        self._check_static(values, placed.rows)
        if placed.length == len(values):
            return Series(name, values, placed.start)
        whole = np.full((placed.length, values.shape[1]), np.nan, np.float32)
        whole[placed.places] = values
        static = [index for index, feature in enumerate(self._spec.features) if feature.role == "static"]
        whole[:, static] = values[0, static]
        return Series(name, whole, placed.start)

    def _check_static(self, values: Floats, rows: Times) -> None:
        for index, feature in enumerate(self._spec.features):
            # Of a missing value, too, nothing is true.
            other = np.flatnonzero(values[:, index] != values[0, index])
            if feature.role == "static" and len(other):
                row = int(other[0])
                problem = f"{values[row, index]:g}, but {values[0, index]:g} in {self._called.row(int(rows[0]))}"
                place = self._called.cell(int(rows[row]), feature.name)
                raise InvalidError(Place(place, f"{problem}: a static feature has one value in a series"))

    def _sure(self, moments: Times, rows: Times) -> Times:
        """[R] of [R, 2]: a time that comes twice is told by its neighbours."""
        unsure = moments[:, 0] != moments[:, 1]
        if not unsure.any():
            return moments[:, 0]
        candidates = [[early] if early == late else [early, late] for early, late in moments.tolist()]
        chosen = list(times.chosen(candidates, self._step, gaps=True))
        if None in chosen:
            row = int(rows[chosen.index(None)])
            raise InvalidError(
                Place(self._called.cell(row, self._spec.time), f"it comes twice in {self._zone.key}; give its offset")
            )
        return np.array(chosen)

    def _places(self, moments: Times, rows: Times) -> Times:
        """How many steps each row is after the first, [R]."""
        wrong = np.flatnonzero((np.diff(moments) <= 0) | (np.diff(moments) % self._step != 0))
        if len(wrong):
            before, row = (int(one) for one in rows[wrong[0] : wrong[0] + 2])
            apart = distance(int(moments[wrong[0] + 1] - moments[wrong[0]]))
            problem = f"{apart} {self._called.row(before)}; the model takes a row every {self._spec.frequency}"
            raise InvalidError(Place(self._called.row(row), f"{problem}, or a multiple of it"))
        places: Times = (moments - moments[0]) // self._step
        return places
