"""Tensors to a query, a forecast to tensors: what the Open Inference Protocol's names and shapes mean to a model.

Shapes: B windows, l rows of a window, C columns, N steps, K known-future covariates, S static features.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np

from app.asked.layout import near
from app.asked.query import Places, Query
from app.asked.tensors import ATTENTION, FORECAST, FUTURE, LOWER, STATIC, TIME, UPPER, WINDOW, inputs_of, outputs_of
from app.codec.tensors import Given, Inference, Output, floats, integers
from app.errors import InvalidError, Place
from app.forecasts.bands import levels_of
from app.forecasts.predictor import Forecast
from app.ticket import Floats
from models.spec import Spec

_LONGEST_ECHO = 80
_PLACES = Places(WINDOW + "[{}]", "NaN")
_RANKS = {WINDOW: (3,), TIME: (1, 2), FUTURE: (3,), STATIC: (2,)}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_SECOND = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(seconds=1)
_BOUND = re.compile(r"(?:LOWER|UPPER)_(\d{1,3}(?:\.\d{1,7})?)", re.ASCII)
_NAMES = {"query": "parameters", "start": TIME, "future": FUTURE, "static": STATIC, "windows": WINDOW}
_FIRST_WORD = re.compile(r"\w+", re.ASCII)


class Chosen(NamedTuple):
    """The outputs that a request is answered with."""

    names: list[tuple[str, bool]] | None
    """And whether in bytes; None where it is all that there are."""
    levels: tuple[str, ...]
    """Those of the intervals that they take."""
    attention: bool | None
    """Whether they take it; None where the request leaves it open."""


def query_of(asked: Inference, spec: Spec) -> Query:
    """The query in the tensors; InvalidError naming the place."""
    given = _by_name(asked.inputs, spec)
    windows = floats(given[WINDOW], gaps=True)
    start = future = static = None
    if TIME in given:
        start = _start(given[TIME], len(windows))
    if FUTURE in given:
        future = floats(given[FUTURE])
    if STATIC in given:
        rows = floats(given[STATIC])
        _check_windows(given[STATIC], len(rows), len(windows))
        static = rows.tolist()
    gaps = bool(np.isnan(windows).any())
    return Query(windows, future, start, single=False, static=static, gaps=gaps, places=_PLACES)


def chosen(asked: Inference, spec: Spec, level: str | None) -> Chosen:
    """What to answer, where levels are asked for besides; InvalidError for an output that the model has not."""
    levels = () if level is None else levels_of(level)
    if asked.outputs is None:
        return Chosen(None, levels, None)
    known = [tensor.name for tensor in outputs_of(spec)]
    for output in asked.outputs:
        bound = _BOUND.fullmatch(output.name)
        # As short as it can be written, since that is what the answer calls it.
        if bound is not None and spec.intervals is not None and levels_of(bound[1]) == (bound[1],):
            levels += () if bound[1] in levels else (bound[1],)
        elif output.name not in known:
            shown = output.name[:_LONGEST_ECHO]
            problem = f"the model gives no {shown!r}{near(shown, known)}; it gives {', '.join(known)}"
            raise InvalidError(Place(output.place, problem))
    names = [(output.name, output.binary) for output in asked.outputs]
    return Chosen(names, levels and levels_of(",".join(levels)), any(name == ATTENTION for name, _ in names))


def outputs(forecast: Forecast, wanted: Chosen, *, binary: bool) -> list[Output]:
    """The tensors of an answer, in the order that they were asked for."""
    there: dict[str, Floats] = {FORECAST: forecast.forecast}
    if forecast.attention is not None:
        there[ATTENTION] = forecast.attention
    if forecast.intervals is not None:
        for level, (lower, upper) in forecast.intervals.bounds.items():
            there |= {f"{LOWER}{level}": lower, f"{UPPER}{level}": upper}
    if wanted.names is None:
        return [Output(name, values, binary) for name, values in there.items()]
    return [Output(name, there[name], in_bytes) for name, in_bytes in wanted.names]


def said(forecast: Forecast, identity: str | None) -> dict[str, object]:
    """What an answer says beside its tensors."""
    parameters: dict[str, object] = {"digest": forecast.model.digest}
    if forecast.intervals is not None:
        told = {"extrapolated_from": forecast.intervals.extrapolated_from, "actuals": forecast.intervals.actuals}
        parameters |= {name: value for name, value in told.items() if value is not None}
    model: dict[str, object] = {"model_name": forecast.model.name, "model_version": str(forecast.model.version)}
    return model | ({} if identity is None else {"id": identity}) | {"parameters": parameters}


def renamed(error: InvalidError) -> InvalidError:
    """An error in the words of those who send tensors and parameters."""
    return type(error)(*(Place(_renamed(place), message) for place, message in error.places))


def _renamed(place: str) -> str:
    if place == "query.deadline_ms":
        return "parameters.timeout"
    return _FIRST_WORD.sub(lambda word: _NAMES.get(word[0], word[0]), place, count=1)


def _by_name(inputs: Sequence[Given], spec: Spec) -> dict[str, Given]:
    """Those that the model takes, all of them, and of as many dimensions as they have."""
    known = [tensor.name for tensor in inputs_of(spec)]
    given: dict[str, Given] = {}
    for tensor in inputs:
        shown = tensor.name[:_LONGEST_ECHO]
        if tensor.name not in known:
            problem = f"the model takes no {shown!r}{near(shown, known)}; it takes {', '.join(known)}"
            raise InvalidError(Place(f"{tensor.place}.name", problem))
        whole = tensor if tensor.shape else _raw(tensor, spec)
        if len(whole.shape) not in _RANKS[tensor.name]:
            shape = next(known.shape for known in inputs_of(spec) if known.name == tensor.name)
            problem = f"{len(whole.shape)} dimensions; {shown} has {len(shape)}: {list(shape)}"
            raise InvalidError(Place(f"{tensor.place}.shape", problem))
        given[tensor.name] = whole
    lacking = [name for name in known if name not in given]
    if lacking:
        raise InvalidError(Place("inputs", f"{' and '.join(lacking)} missing; the model takes {', '.join(known)}"))
    return given


def _raw(tensor: Given, spec: Spec) -> Given:
    """One window of as many rows as the bytes are."""
    width = 4 * len(spec.columns)
    rows, rest = divmod(len(tensor.data), width)
    if rest or not rows:
        problem = f"{len(tensor.data)} bytes; a row of the window has {len(spec.columns)} numbers, {width} bytes"
        raise InvalidError(Place(tensor.place, problem))
    return tensor._replace(shape=(1, rows, len(spec.columns)))


def _start(given: Given, windows: int) -> list[datetime]:
    """The time of each window's first row."""
    seconds = integers(given)
    if seconds.ndim > 1 and seconds.shape[1] != 1:
        raise InvalidError(Place(f"{given.place}.shape", f"{list(seconds.shape)}; {TIME} has one time a window"))
    _check_windows(given, len(seconds), windows)
    found = seconds.ravel()
    wrong = (found < 0) | (found > _LAST_SECOND)
    if wrong.any():
        index = int(np.argmax(wrong))
        problem = f"{found[index]} is not within the years 1970 to 9999, in seconds since the start of 1970"
        raise InvalidError(Place(f"{TIME}[{index}]", problem))
    return [_EPOCH + timedelta(seconds=second) for second in found.tolist()]


def _check_windows(given: Given, count: int, windows: int) -> None:
    if count != windows:
        raise InvalidError(Place(f"{given.place}.shape", f"for {count} windows, but there are {windows}"))
