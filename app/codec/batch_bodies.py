"""Bodies of many windows, which may be large: nothing here is for the event loop.

Shapes: B windows, l rows of a window, L window, C columns, F features, H steps a pass, N steps, K known-future
covariates, S static features; R rows of a series.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np

from app.asked.cells import CSV, LONGEST_ECHO, Called
from app.asked.query import Places, Query, Series
from app.codec import json_bodies, npy_bodies, tables
from app.codec.series import table_of
from app.errors import InvalidError, MalformedError, MediaTypeError, Place
from app.ticket import Floats
from models.spec import Spec

LINES = "application/x-ndjson"
MEDIA_TYPES = (tables.CSV, LINES, "application/x-npy", *tables.ARROWS)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class _Lines(Places):
    """Of the window that stands on a line of its own."""

    number: int = 0

    def of(self, _index: int) -> str:
        return f"line {self.number}: window"


@dataclass(frozen=True, slots=True)
class _Named(Places):
    """Of the last rows of series."""

    called: Called = CSV
    names: Sequence[str | None] = ()

    def of(self, index: int) -> str:
        name = self.names[index]
        return self.called.table if name is None else self.called.series(name)

    def of_row(self, index: int, row: int) -> str:
        return f"{self.of(index)}, row {row + 1} of its window"

    def of_cell(self, index: int, row: int, _column: int, name: str) -> str:
        return f"{self.of_row(index, row)}, column {name[:LONGEST_ECHO]!r}"


def queries(body: bytes, content_type: str | None, spec: Spec, steps: int, *, most_bytes: int) -> list[Query]:
    """What a body asks of that model for so many steps, in order: of all windows together, or of each by itself.

    MediaTypeError, MalformedError, BodyTooLargeError where more than `most_bytes` come out of it, or InvalidError
    naming the place.
    """
    media_type, _, parameters = (content_type or "").partition(";")
    media_type = media_type.strip().lower()
    if media_type in tables.MEDIA_TYPES:
        table = tables.read_long(body, media_type, parameters, most_bytes)
        return [_table(table_of(table, spec), spec, steps, table.called)]
    if media_type == LINES:
        return _lines(body)
    if media_type == "application/x-npy":
        return [npy_bodies.read(body)]
    raise MediaTypeError(f"{media_type!r} is not read here; send {', '.join(MEDIA_TYPES)}")


def _lines(body: bytes) -> list[Query]:
    found = []
    for number, line in enumerate(body.split(b"\n"), 1):
        if line.strip():
            found.append(_line(line, number))
    if not found:
        raise InvalidError(Place("body", "no line in it"))
    return found


def _line(line: bytes, number: int) -> Query:
    try:
        query = json_bodies.read(line)
    except InvalidError as error:
        raise InvalidError(*(Place(f"line {number}: {place}", message) for place, message in error.places)) from None
    except MalformedError as error:
        raise MalformedError(f"line {number}: {error.detail}") from None
    if not query.single:
        raise InvalidError(Place(f"line {number}: windows", "each line has one window"))
    return Query(
        query.windows,
        query.future,
        query.start,
        single=True,
        static=query.static,
        gaps=query.gaps,
        places=_Lines(number=number),
    )


class _Last(NamedTuple):
    """The last window of a series and what follows it."""

    window: Floats
    """[l, C]"""
    future: Floats
    """[P * H, K]"""
    static: list[float]
    start: datetime | None


def _table(series: Sequence[Series], spec: Spec, steps: int, called: Called) -> Query:
    """Of each series its last rows, as `/forecast` takes a table: the known future is behind them."""
    names = [one.name for one in series]
    last = [_last(one, spec, steps, called) for one in series]
    starts = [one.start for one in last if one.start is not None]
    return Query(
        [one.window for one in last],
        np.stack([one.future for one in last]) if spec.future else None,
        starts or None,
        single=False,
        static=[one.static for one in last] if spec.static else None,
        gaps=any(bool(np.isnan(one.window).any()) for one in last),
        places=_Named(missing="no value", called=called, names=names),
        series=None if names[0] is None else [str(name) for name in names],
    )


def _last(series: Series, spec: Spec, steps: int, called: Called) -> _Last:
    where = {feature.name: index for index, feature in enumerate(spec.features)}
    values = series.values
    end = len(values)
    if spec.future:
        seen = [where[feature.name] for feature in spec.features if not feature.is_known]
        given = np.flatnonzero(~np.isnan(values[:, seen]).all(1))
        end = int(given[-1]) + 1 if len(given) else 0
    place = _Named(called=called, names=[series.name]).of(0)
    if not end:
        raise InvalidError(Place(place, "no row has a value of a target or a past covariate"))
    first = max(0, end - spec.window)
    start = None
    if series.start is not None:
        start = _EPOCH + (series.start + first * (spec.frequency // _MICROSECOND)) * _MICROSECOND
    return _Last(
        values[first:end, [where[name] for name in spec.columns]],
        _future(values[end:, [where[name] for name in spec.future]], spec, steps, place),
        [float(values[0, where[name]]) for name in spec.static],
        start,
    )


def _future(ahead: Floats, spec: Spec, steps: int, place: str) -> Floats:
    """Of one length for all series: whole passes."""
    if not spec.future:
        return ahead[:0]
    if len(ahead) < steps:
        lacking = f"{len(ahead)} rows ahead for {steps} steps: {steps - len(ahead)} are missing"
        raise InvalidError(Place(place, lacking))
    whole = math.ceil(steps / spec.horizon) * spec.horizon
    ahead = ahead[:whole]
    if np.isnan(ahead).any():
        raise InvalidError(Place(place, "known-future values must all be given"))
    return np.pad(ahead, ((0, whole - len(ahead)), (0, 0)), mode="edge")
