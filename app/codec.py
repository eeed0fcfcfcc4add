"""Bodies to arrays and back: the only place where bytes become numbers.

Shapes: B windows, L window, F features, N steps, K known-future covariates, T targets, A attention rows.
"""

import difflib
import json
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import chain
from typing import Any, cast

import numpy as np
import orjson
import simdjson

from app.errors import InvalidError, MalformedError, MediaTypeError, Place
from app.predictor import Forecast, Query
from app.ticket import Floats

_LARGEST = float(np.finfo(np.float32).max)
_FIELDS = ("window", "windows", "future", "start")
_BLANK = b" \t\r\n"
_NUMERIC = b"0123456789+-.eE" + _BLANK
"""What numbers and the room between them are made of."""
_WINDOW, _WINDOWS, _END = b'{"window":[', b'{"windows":[', b"]}"
_START, _TIMED_ENDS = b'"start"', (b'"}', b'"]}')
_SIMDJSON = simdjson.Parser()
_LONGEST_ECHO = 80
"""So much of an unknown field's name, or of what is no time, is told: it may be as long as a body."""
_TIME = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?)?", re.ASCII)
"""What is written of ISO 8601; Python reads weeks, too, and anything at all between date and time."""
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def read(body: bytes, content_type: str | None) -> Query:
    """The query in a body; MediaTypeError, MalformedError, or InvalidError naming the place."""
    media_type = (content_type or "application/json").partition(";")[0].strip().lower()
    if media_type not in _READERS:
        raise MediaTypeError(f"{media_type!r} is not read here; send {' or '.join(_READERS)}")
    return _READERS[media_type](body)


def prediction(forecast: Forecast, *, single: bool) -> bytes:
    """The JSON answer of one step: values [T], or [B, T] for several windows."""
    values = forecast.forecast[:, 0]
    return _answer(forecast, "prediction" if single else "predictions", values, single=single)


def forecast(forecast: Forecast, *, single: bool) -> bytes:
    """The JSON answer of N steps: values [N, T], or [B, N, T] for several windows."""
    values = forecast.forecast
    return _answer(forecast, "forecast" if single else "forecasts", values, single=single, steps=values.shape[1])


def _answer(forecast: Forecast, field: str, values: Floats, *, single: bool, **more: object) -> bytes:
    answer: dict[str, object] = {
        "model": forecast.model.name,
        "version": forecast.model.version,
        "digest": forecast.model.digest,
        "targets": forecast.spec.targets,
        **more,
        field: _array(values[0] if single else values),
    }
    if forecast.attention is not None:
        weights = _array(forecast.attention[0] if single else forecast.attention)
        per_row = forecast.spec.horizon // forecast.spec.attention_rows
        answer["attention"] = {"steps_per_row": per_row, "weights": weights}
    elif forecast.wants_attention:
        # It was asked for, and the model has none.
        answer["attention"] = None
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _array(values: Floats) -> Floats:
    return np.ascontiguousarray(values)


def _read_json(body: bytes) -> Query:
    plain = _read_timed(body) if body.endswith(_TIMED_ENDS) else _read_plain(body)
    if plain is not None:
        return plain
    fields = _parse(body)
    if not isinstance(fields, dict):
        raise InvalidError(Place("body", f"a JSON object is needed, not {_kind(fields)}"))
    for name in fields:
        if name not in _FIELDS:
            shown = name[:_LONGEST_ECHO]
            near = difflib.get_close_matches(shown, _FIELDS, n=1)
            raise InvalidError(Place(shown, "unknown field" + (f"; did you mean {near[0]!r}?" if near else "")))
    if ("window" in fields) == ("windows" in fields):
        raise InvalidError(Place("body", "exactly one of 'window' and 'windows' is needed"))
    single = "window" in fields
    name, depth = ("window", 2) if single else ("windows", 3)
    # true would be taken for 1 among numbers; only a body that has the word is worth a look at every item. The single
    # letters are found much faster, and most bodies have neither.
    strict = (b"u" in body or b"l" in body) and (b"true" in body or b"false" in body)
    windows = _numbers(fields[name], name, depth, strict=strict)
    future = _numbers(fields["future"], "future", depth, strict=strict) if "future" in fields else None
    query = Query(windows, future, None, single=False)
    if single:
        query = Query(windows[None], None if future is None else future[None], None, single=True)
    return _timed(query, fields["start"]) if "start" in fields else query


def _read_plain(body: bytes) -> Query | None:
    """The query of a body that has windows and nothing else and nothing wrong, as nearly all have.

    None for every other body: that is read again in the way that knows options and finds faults. simdjson gives the
    numbers as one buffer, in less than half the time that lists of them take, but without the shape, which is what is
    left of the text when all that numbers are made of is taken out of it.
    """
    frame = body.translate(None, _NUMERIC)
    single = frame.startswith(_WINDOW)
    if not (single or frame.startswith(_WINDOWS)):
        return None
    inside = frame[len(_WINDOW if single else _WINDOWS) : -len(_END)]
    window = inside if single else inside[1 : inside.find(b"]]") + 1]
    row = window[: window.find(b"]") + 1]
    columns = len(row) - 1
    rows = _repeats(row, window)
    windows = 1 if single else _repeats(b"[%b]" % window, inside)
    if not rows or not windows or row != b"[%b]" % (b"," * (columns - 1)) or not frame.endswith(_END):
        return None
    try:
        # A parser has one document at a time, and this one is gone at the end of the statement.
        numbers = np.frombuffer(
            cast(Any, _SIMDJSON.parse(body))["window" if single else "windows"].as_buffer(of_type="d"), np.float64
        )
    except (ValueError, KeyError, TypeError, RuntimeError):
        return None
    if len(numbers) != windows * rows * columns or not np.abs(numbers).max() <= _LARGEST:
        return None
    return Query(numbers.astype(np.float32).reshape(windows, rows, columns), None, None, single=single)


def _read_timed(body: bytes) -> Query | None:
    """The same of a body that goes on with the start, and nothing else, after its windows."""
    # Nothing but blanks and one comma may be between what each of the two ways is given.
    place = body.rfind(_START)
    before = body[:place].rstrip(_BLANK)
    plain = _read_plain(before[:-1] + b"}") if before.endswith(b",") else None
    try:
        fields = orjson.loads(b"{" + body[place:])
    except orjson.JSONDecodeError:
        return None
    return _timed(plain, fields["start"]) if plain is not None and fields.keys() == {"start"} else None


def _repeats(item: bytes, items: bytes) -> int:
    """How many times, with commas between, the item makes the items; 0 where it does not."""
    count = (len(items) + 1) // (len(item) + 1)
    return count if items == b",".join([item] * count) else 0


def _parse(body: bytes) -> Any:  # noqa: ANN401  JSON can be anything until it is looked at
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        malformed = MalformedError(f"not JSON: {error}")
        if b"NaN" not in body and b"Infinity" not in body:
            raise malformed from None
    # Python's json and others write NaN, which is no JSON; read it all the same, to say where it stands.
    try:
        fields = json.loads(body)
        # It lets half a surrogate pair pass, which no answer could repeat as the name of an unknown field.
        "".join(fields if isinstance(fields, dict) else ()).encode()
    except (ValueError, RecursionError):
        raise malformed from None
    return fields


def _numbers(value: object, place: str, depth: int, *, strict: bool) -> Floats:
    """Nested lists as a float32 array of that many dimensions, all finite."""
    try:
        floats = _packed(value, depth)
    except (TypeError, ValueError, OverflowError, struct.error):
        raise InvalidError(_first_fault(value, place, depth)) from None
    if not np.isfinite(floats).all() or (strict and _fault(value, depth)):
        raise InvalidError(_first_fault(value, place, depth))
    return floats


def _packed(value: Any, depth: int) -> Floats:  # noqa: ANN401  whatever it is not, it raises
    """The same for lists that are what they should be. `struct` takes half the time that numpy takes to look first."""
    shape = [len(value)]
    for _ in range(depth - 1):
        (length,) = set(map(len, value))
        shape.append(length)
        value = list(chain.from_iterable(value))
    return np.frombuffer(_floats(len(value)).pack(*value), np.float32).reshape(shape)


@lru_cache(maxsize=64)
def _floats(count: int) -> struct.Struct:
    if not count:
        raise ValueError("no numbers")
    return struct.Struct(f"{count}f")


def _first_fault(value: object, place: str, depth: int) -> Place:
    """The first place that keeps nested lists from being an array of finite numbers."""
    fault = _fault(value, depth) or _ragged(value) or Place("", "not an array of numbers")
    return Place(place + fault.place, fault.message)


def _fault(value: object, depth: int) -> Place | None:
    """What is no number or no list, its place from here on."""
    if depth == 0:
        return _number_fault(value)
    if not isinstance(value, list):
        return Place("", f"a list is needed, not {_kind(value)}")
    if not value:
        return Place("", "an empty list")
    return _first(_fault(item, depth - 1) for item in value)


def _first(faults: Iterable[Place | None]) -> Place | None:
    """The first fault among the items of a list, its place seen from the list."""
    # Only here is a place written out: a body may have a million items and one fault.
    found = ((index, fault) for index, fault in enumerate(faults) if fault is not None)
    return next((Place(f"[{index}]{fault.place}", fault.message) for index, fault in found), None)


def _number_fault(value: object) -> Place | None:
    if value is None:
        return Place("", "null, but the model does not fill gaps")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Place("", f"a number is needed, not {_kind(value)}")
    if not abs(value) <= _LARGEST:
        return Place("", f"{value} is not a finite 32-bit number")
    return None


def _ragged(value: object) -> Place | None:
    """Where a list is not as long as the first beside it."""
    if not isinstance(value, list) or not isinstance(value[0], list):
        return None
    for index, item in enumerate(value):
        if len(item) != len(value[0]):
            return Place(f"[{index}]", f"{len(item)} items, but the first beside it has {len(value[0])}")
    return _first(_ragged(item) for item in value)


def _timed(query: Query, start: object) -> Query:
    """The query with its start: a time beside one window, a list of as many beside several."""
    if query.single:
        return replace(query, start=np.array([_time(start, "start")]))
    windows = len(query.windows)
    if not isinstance(start, list):
        raise InvalidError(Place("start", f"a list of times is needed, not {_kind(start)}"))
    if len(start) != windows:
        raise InvalidError(Place("start", f"for {len(start)} windows, but there are {windows}"))
    return replace(query, start=np.array([_time(item, f"start[{index}]") for index, item in enumerate(start)]))


def _time(value: object, place: str) -> int:
    """An ISO 8601 time, of UTC where it names no offset, in epoch microseconds."""
    if not isinstance(value, str):
        raise InvalidError(Place(place, f"an ISO 8601 time is needed, not {_kind(value)}"))
    try:
        time = datetime.fromisoformat(value.upper()) if _TIME.fullmatch(value.upper()) else None
    except ValueError:
        time = None
    if time is None:
        example = "such as 2013-06-01T00:00:00Z"
        raise InvalidError(Place(place, f"{value[:_LONGEST_ECHO]!r} is not an ISO 8601 time, {example}"))
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    if not _EARLIEST <= time <= _LATEST:
        raise InvalidError(Place(place, f"{value[:_LONGEST_ECHO]!r} is not within the years 1970 to 9999"))
    return (time - _EARLIEST) // _MICROSECOND


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


_READERS: dict[str, Callable[[bytes], Query]] = {"application/json": _read_json}
