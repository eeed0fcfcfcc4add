"""A table as a client has it to the query that it is to a model: columns by name, rows by time, series told apart.

Rows are counted from 1, the first below the header, as training counts them. Of each series the rows that count are
the last ones that the model takes, and the known-future rows after them; nothing before them is looked at.

Shapes: l rows of a window, C columns of a request, N steps, K known-future covariates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from app.asked import times
from app.asked.cells import CSV, LONGEST_ECHO, Called, Cells
from app.asked.layout import near
from app.asked.query import Places, Query
from app.errors import InvalidError, Place
from app.ticket import Floats
from models.spec import Gaps, Spec

_MOST_NAMES = 100
"""Of a header, so many are looked at for what a client may have meant;"""
_MOST_TOLD = 10
"""so many that are not there are told."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Sheet(NamedTuple):
    """The names of the columns and, in every row, as many cells."""

    header: list[str]
    cells: Cells


class Long(NamedTuple):
    """The same of a table that may be large, in parts."""

    header: list[str]
    called: Called
    parts: Iterator[Cells]
    """At least one row in each."""


@dataclass(frozen=True, slots=True)
class _TablePlaces(Places):
    """Those of a table, whose rows are told by their number in it."""

    called: Called = CSV
    names: Sequence[str] = ()
    """Of the series; none where the table is one."""
    numbers: Sequence[Sequence[int]] = ()
    """Of each row of each window; of one that is not there, the next."""

    def of(self, index: int) -> str:
        return self.called.series(self.names[index]) if self.names else self.called.table

    def of_row(self, index: int, row: int) -> str:
        return self.called.row(self.numbers[index][row])

    def of_cell(self, index: int, row: int, _column: int, name: str) -> str:
        return self.called.cell(self.numbers[index][row], name)


class _Part(NamedTuple):
    """What a series gives: window [l, C], future [N, K]."""

    window: Floats
    future: Floats
    static: list[float]
    start: datetime | None
    """Of the window's first row."""
    numbers: Sequence[int]
    """Of each row of the window, which of the table's it is; of one that is missing there, the next."""


class Columns(NamedTuple):
    """Which columns of the table the model knows."""

    window: list[int]
    seen: list[int]
    """The targets and past covariates, which are not known ahead."""
    future: list[int]
    static: list[int]
    time: int | None
    series: int | None


def query_of(sheet: Sheet, spec: Spec, steps: int, *, most: int) -> Query:
    """What the table asks of a model for so many steps; InvalidError naming the row, or where there are more than
    `most` series.
    """
    reader, called = _Reader(sheet, spec, steps), sheet.cells.called
    series = reader.series()
    if series is None:
        parts, names = [reader.part(range(len(sheet.cells)), called.table)], None
    elif len(series) > most:
        raise InvalidError(Place(called.table, f"{len(series)} series; a request may have at most {most}"))
    else:
        names = list(series)
        parts = [reader.part(rows, called.series(name)) for name, rows in series.items()]
    windows = [part.window for part in parts]
    starts = [part.start for part in parts if part.start is not None]
    return Query(
        windows,
        np.stack([part.future for part in parts]) if spec.future else None,
        starts or None,
        single=names is None,
        static=[part.static for part in parts] if spec.static else None,
        gaps=any(bool(np.isnan(window).any()) for window in windows),
        places=_TablePlaces(
            called=called,
            missing="no value",
            hint=f": no column {spec.time!r}{near(spec.time, sheet.header[:_MOST_NAMES])}",
            names=names or (),
            numbers=[part.numbers for part in parts],
        ),
        series=names,
    )


class _Reader:
    """Reads a table as a model's spec says."""

    def __init__(self, sheet: Sheet, spec: Spec, steps: int) -> None:
        self._cells = sheet.cells
        self._called = sheet.cells.called
        self._header = sheet.header
        self._spec = spec
        self._steps = steps
        self._columns = columns_of(sheet.header, spec, self._called)
        self._zone = ZoneInfo(spec.timezone)
        self._step = spec.frequency // _MICROSECOND
        self._fills = isinstance(spec.gaps, Gaps)

    def series(self) -> dict[str, list[int]] | None:
        """The rows of each series by its name, in the order in which they appear; None where the table is one."""
        column = self._columns.series
        if column is None:
            return None
        found: dict[str, list[int]] = {}
        for row, name in enumerate(self._cells.names(column, self._header[column])):
            found.setdefault(name, []).append(row)
        return found

    def part(self, rows: Sequence[int], place: str) -> _Part:
        """What these rows give as one series."""
        spec = self._spec
        end = self._end(rows) if spec.future else len(rows)
        # In whole passes, like every other body: what comes after a step tells of it too.
        whole = -(-self._steps // spec.horizon) * spec.horizon
        past, ahead = rows[max(0, end - spec.window) : end], rows[end : end + whole] if spec.future else []
        if not past:
            raise InvalidError(Place(place, "no row has a value of a target or a past covariate"))
        if spec.future and len(ahead) < self._steps:
            lacking = f"{len(ahead)} rows ahead for {self._steps} steps: {self._steps - len(ahead)} are missing"
            raise InvalidError(Place(place, lacking))
        future = self._present(ahead, self._columns.future, "known-future values")
        if len(future):
            # Of one length for all series, as the layout would make it.
            future = np.pad(future, ((0, whole - len(future)), (0, 0)), mode="edge")
        static = self._static([*past, *ahead])
        window = self._numbers(past, self._columns.window)
        if self._columns.time is None:
            return _Part(window, future, static, None, past)
        every = [*past, *ahead]
        return self._on_grid(_Part(window, future, static, None, past), self._moments(every, self._columns.time), every)

    def _end(self, rows: Sequence[int]) -> int:
        """Behind the last row with a value of a target or a past covariate: from there on it is the known future."""
        end = len(rows)
        while end and all(self._cells.is_missing(rows[end - 1], column) for column in self._columns.seen):
            end -= 1
        return end

    def _on_grid(self, part: _Part, moments: Sequence[int], rows: Sequence[int]) -> _Part:
        """With a row of nothing for every one that is left out among the last that the model takes, and the start."""
        places = np.array(self._places(moments, rows, len(part.window)))[: len(part.window)]
        last = int(places[-1])
        first = max(0, last - self._spec.window + 1)
        start = _EPOCH + (moments[0] + first * self._step) * _MICROSECOND
        if last + 1 == len(places):
            return part._replace(start=start)
        window = np.full((last - first + 1, part.window.shape[1]), np.nan, np.float32)
        counts = places >= first
        window[places[counts] - first] = part.window[counts]
        numbers = np.array(part.numbers)[np.searchsorted(places, np.arange(first, last + 1))]
        return part._replace(window=window, start=start, numbers=numbers.tolist())

    def _moments(self, rows: Sequence[int], column: int) -> list[int]:
        """Epoch microseconds of rows that follow each other; a time that comes twice is told by its neighbours."""
        found, read = [], []
        for row in rows:
            place = self._called.cell(row, self._spec.time)
            time = self._cells.time(row, column, self._spec.time)
            read.append(time)
            found.append(times.candidates(time, self._zone))
            times.check(time, found[-1], self._zone, place)
        moments = []
        for row, time, moment in zip(rows, read, times.chosen(found, self._step, gaps=self._fills), strict=True):
            if moment is None:
                raise times.ambiguous(time, self._zone, self._called.cell(row, self._spec.time))
            moments.append(moment)
        return moments

    def _places(self, moments: Sequence[int], rows: Sequence[int], past: int) -> list[int]:
        """How many steps each row is from the first. Only among the `past` ones may any be left out."""
        places = [0]
        for index in range(1, len(rows)):
            apart = moments[index] - moments[index - 1]
            steps, rest = divmod(apart, self._step)
            may_lack = self._fills and index < past
            if rest or steps < 1 or (steps > 1 and not may_lack):
                problem = f"{distance(apart)} {self._called.row(rows[index - 1])}; the model takes a row every"
                multiple = ", or a multiple of it" if may_lack else ""
                raise InvalidError(Place(self._called.row(rows[index]), f"{problem} {self._spec.frequency}{multiple}"))
            places.append(places[-1] + steps)
        return places

    def _static(self, rows: Sequence[int]) -> list[float]:
        """One value of each static feature."""
        columns = self._columns.static
        values = self._present(rows, columns, "static features")
        other = np.argwhere(values != values[0])
        if len(other):
            row, column = (int(one) for one in other[0])
            name = self._header[columns[column]]
            problem = f"{values[row, column]:g}, but {values[0, column]:g} in {self._called.row(rows[0])}"
            raise InvalidError(Place(self._called.cell(rows[row], name), f"{problem}; a static feature has one value"))
        return [float(value) for value in values[0]]

    def _present(self, rows: Sequence[int], columns: Sequence[int], what: str) -> Floats:
        """The same where none may be missing."""
        values = self._numbers(rows, columns)
        missing = np.argwhere(np.isnan(values))
        if len(missing):
            row, column = (int(one) for one in missing[0])
            place = self._called.cell(rows[row], self._header[columns[column]])
            raise InvalidError(Place(place, f"no value; {what} must all be given"))
        return values

    def _numbers(self, rows: Sequence[int], columns: Sequence[int]) -> Floats:
        """[rows, columns]; NaN where a value is missing."""
        values = np.empty((len(rows), len(columns)), np.float32)
        for index, column in enumerate(columns):
            values[:, index] = self._cells.numbers(rows, column, self._header[column])
        return values


def distance(microseconds: int) -> str:
    """How far a row is from another, to be followed by the other."""
    if not microseconds:
        return "at the time of"
    return f"{abs(microseconds) * _MICROSECOND} {'after' if microseconds > 0 else 'before'}"


def columns_of(header: list[str], spec: Spec, called: Called) -> Columns:
    """Where what is needed stands; InvalidError naming all that is not there."""
    where = {name: column for column, name in enumerate(header)}
    lacking = [name for name in [*spec.columns, *spec.static] if name not in where]
    if lacking:
        there = [name[:LONGEST_ECHO] for name in header[:_MOST_NAMES]]
        told = [Place(called.header, f"no column {name!r}{near(name, there)}") for name in lacking[:_MOST_TOLD]]
        raise InvalidError(*told)
    used = {*spec.columns, *spec.static, spec.time, spec.series}
    for column, name in enumerate(header):
        if name in used and where[name] != column:
            raise InvalidError(Place(called.header, f"column {name!r} is there twice"))
    return Columns(
        window=[where[name] for name in spec.columns],
        seen=[where[feature.name] for feature in spec.features if not feature.is_known],
        future=[where[name] for name in spec.future],
        static=[where[name] for name in spec.static],
        time=where.get(spec.time),
        series=None if spec.series is None else where.get(spec.series),
    )
