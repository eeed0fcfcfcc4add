"""JSON to windows, in a short way for the bodies that are nothing but numbers and in one that knows everything else.

Shapes: B windows, L rows of a window, C columns, N steps, K known-future covariates.
"""

import difflib
import json
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from itertools import accumulate, chain, pairwise
from typing import Any, TypedDict, cast

import numpy as np
import orjson
import simdjson

from app.asked import times
from app.asked.query import WINDOW, WINDOWS, Followed, Query, Static
from app.errors import InvalidError, MalformedError, Place
from app.ticket import Floats

_LARGEST = float(np.finfo(np.float32).max)
_OF_SEVERAL = ("windows", "actuals")
"""Lists of rows that need not be as many in each."""
_FIELDS = ("window", "windows", "future", "static", "start")
_BLANK = b" \t\r\n"
_NUMERIC = b"0123456789+-.eE" + _BLANK
"""What numbers and the room between them are made of."""
_WINDOW, _WINDOWS, _END = b'{"window":[', b'{"windows":[', b"]}"
_START, _TIMED_ENDS = b'"start"', (b'"}', b'"]}')
_SIMDJSON = simdjson.Parser()
_LONGEST_ECHO = 80
"""So much of an unknown field's name, or of what is no time, is told: it may be as long as a body."""


def read(body: bytes) -> Query:
    """The query in a body; MalformedError, or InvalidError naming the place."""
    plain = _read_timed(body) if body.endswith(_TIMED_ENDS) else _read_plain(body)
    if plain is not None:
        return plain
    return _query(_fields(body, _FIELDS), **_hints(body))


def read_followed(body: bytes) -> Followed:
    """The query in a body that also says what followed; MalformedError, or InvalidError naming the place."""
    fields = _fields(body, (*_FIELDS, "actual", "actuals"))
    hints = _hints(body)
    name, other = ("actual", "actuals") if "window" in fields else ("actuals", "actual")
    if name not in fields:
        raise InvalidError(Place(name, "needed: the rows that followed"))
    if other in fields:
        raise InvalidError(Place(other, f"it is called {name!r} here"))
    given = fields.pop(name)
    query = _query(fields, **hints)
    if query.single:
        return Followed(query, [numbers(given, name, 2, **hints)])
    _each(given, name, "lists of rows", len(query.windows))
    return Followed(query, list(_windows(given, name, **hints)))


def _fields(body: bytes, known: Sequence[str]) -> dict[str, Any]:
    """The fields of an object that has no others than these."""
    fields = _parse(body)
    if not isinstance(fields, dict):
        raise InvalidError(Place("body", f"a JSON object is needed, not {kind(fields)}"))
    for name in fields:
        if name not in known:
            shown = name[:_LONGEST_ECHO]
            near = difflib.get_close_matches(shown, known, n=1)
            raise InvalidError(Place(shown or "''", "unknown field" + (f"; did you mean {near[0]!r}?" if near else "")))
    if ("window" in fields) == ("windows" in fields):
        raise InvalidError(Place("body", "exactly one of 'window' and 'windows' is needed"))
    return fields


class _Hints(TypedDict):
    """What there may be in a body besides numbers: `strict` of booleans, `gaps` of nulls."""

    strict: bool
    gaps: bool


def _hints(body: bytes) -> _Hints:
    # true would be taken for 1 among numbers; only a body that has the word is worth a look at every item. The single
    # letters are found much faster, and most bodies have neither.
    strict = (b"u" in body or b"l" in body) and (b"true" in body or b"false" in body)
    return {"strict": strict, "gaps": b"null" in body}


def _query(fields: dict[str, Any], *, strict: bool, gaps: bool) -> Query:
    """What the fields say; `strict` where there may be booleans in them, `gaps` where there may be nulls."""
    single = "window" in fields
    windows: Floats | list[Floats]
    if single:
        windows = numbers(fields["window"], "window", 2, strict=strict, gaps=gaps)[None]
    else:
        windows = _windows(fields["windows"], "windows", strict=strict, gaps=gaps)
    future, static, start = None, None, None
    if "future" in fields:
        future = numbers(fields["future"], "future", 2 if single else 3, strict=strict)
        future = future[None] if single else future
    if "static" in fields:
        given = _each(fields["static"], "static", "static features", None if single else len(windows))
        static = [_static(one, place) for place, one in given]
    if "start" in fields:
        given = _each(fields["start"], "start", "times", None if single else len(windows))
        start = [time_of(one, place) for place, one in given]
    places = WINDOW if single else WINDOWS
    return Query(windows, future, start, single=single, static=static, gaps=gaps, places=places)


def _each(value: object, name: str, of: str, windows: int | None) -> list[tuple[str, object]]:
    """What there is one of beside one window and a list of beside several, with the place of each."""
    if windows is None:
        return [(name, value)]
    if not isinstance(value, list):
        raise InvalidError(Place(name, f"a list of {of} is needed, not {kind(value)}"))
    if len(value) != windows:
        raise InvalidError(Place(name, f"for {len(value)} windows, but there are {windows}"))
    return [(f"{name}[{index}]", one) for index, one in enumerate(value)]


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
    floats = numbers.astype(np.float32).reshape(windows, rows, columns)
    return Query(floats, None, None, single=single, places=WINDOW if single else WINDOWS)


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
    if plain is None or fields.keys() != {"start"}:
        return None
    given = _each(fields["start"], "start", "times", None if plain.single else len(plain.windows))
    return replace(plain, start=[time_of(one, place) for place, one in given])


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
        fields = json.loads(body, object_pairs_hook=once)
        # It lets half a surrogate pair pass, which no answer could repeat as the name of an unknown field.
        "".join(fields if isinstance(fields, dict) else ()).encode()
    except (ValueError, RecursionError):
        raise malformed from None
    return fields


def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object whose names differ: of two that are alike, a NaN in the first would not be seen."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name that comes twice")
    return fields


def numbers(value: object, place: str, depth: int, *, strict: bool, gaps: bool = False) -> Floats:
    """Nested lists as a float32 array of that many dimensions, all finite but the nulls, which become NaN."""
    try:
        floats = _packed(value, depth, gaps=gaps)
    except (AttributeError, TypeError, ValueError, OverflowError, struct.error):
        raise InvalidError(first_fault(value, place, depth, gaps=gaps)) from None
    if strict and _fault(value, depth, gaps=gaps):
        raise InvalidError(first_fault(value, place, depth, gaps=gaps))
    return floats


def _windows(
    value: Any,  # noqa: ANN401  it may be anything
    place: str,
    *,
    strict: bool,
    gaps: bool,
) -> Floats | list[Floats]:
    """The same of windows [B, L, C], or a list of [L, C] where they are not of one length."""
    try:
        lengths = [len(window) for window in value]
        rows = _packed(list(chain.from_iterable(value)), 2, gaps=gaps)
        sound = 0 not in lengths and not (strict and _fault(value, 3, gaps=gaps))
    except (TypeError, ValueError, OverflowError, struct.error):
        sound = False
    if not sound:
        raise InvalidError(first_fault(value, place, 3, gaps=gaps))
    if len(set(lengths)) == 1:
        return rows.reshape(len(lengths), lengths[0], -1)
    return [rows[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]


def _packed(value: Any, depth: int, *, gaps: bool) -> Floats:  # noqa: ANN401  whatever it is not, it raises
    """The same for lists that are what they should be. `struct` takes half the time that numpy takes to look first."""
    shape = [len(value)]
    for _ in range(depth - 1):
        (length,) = set(map(len, value))
        shape.append(length)
        value = list(chain.from_iterable(value))
    missing = value.count(None) if gaps else 0
    if missing:
        value = [math.nan if number is None else number for number in value]
    floats = np.frombuffer(_floats(len(value)).pack(*value), np.float32)
    if np.count_nonzero(np.isfinite(floats)) + missing != len(floats):
        raise ValueError("not finite")
    return floats.reshape(shape)


@lru_cache(maxsize=64)
def _floats(count: int) -> struct.Struct:
    if not count:
        raise ValueError("no numbers")
    return struct.Struct(f"{count}f")


def first_fault(value: Any, place: str, depth: int, *, gaps: bool) -> Place:  # noqa: ANN401  it may be anything
    """The first place that keeps nested lists from being an array of finite numbers."""
    fault = _fault(value, depth, gaps=gaps)
    if fault is None:
        fault = _uneven(value) if place in _OF_SEVERAL else _ragged(value)
    if fault is None:
        fault = Place("", "not an array of numbers")
    return Place(place + fault.place, fault.message)


def _fault(value: object, depth: int, *, gaps: bool) -> Place | None:
    """What is no number or no list, its place from here on."""
    if depth == 0:
        return None if gaps and value is None else _number_fault(value)
    if not isinstance(value, list):
        return Place("", f"a list is needed, not {kind(value)}")
    if not value:
        return Place("", "an empty list")
    return _first(_fault(item, depth - 1, gaps=gaps) for item in value)


def _first(faults: Iterable[Place | None]) -> Place | None:
    """The first fault among the items of a list, its place seen from the list."""
    # Only here is a place written out: a body may have a million items and one fault.
    found = ((index, fault) for index, fault in enumerate(faults) if fault is not None)
    return next((Place(f"[{index}]{fault.place}", fault.message) for index, fault in found), None)


def _number_fault(value: object) -> Place | None:
    if value is None:
        return Place("", "null, but only a window may have gaps")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Place("", f"a number is needed, not {kind(value)}")
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


def _uneven(windows: list[list[list[object]]]) -> Place | None:
    """Where a row is not as long as the first of all."""
    width = len(windows[0][0])
    for index, window in enumerate(windows):
        for row, items in enumerate(window):
            if len(items) != width:
                return Place(f"[{index}][{row}]", f"{len(items)} items, but the first row has {width}")
    return None


def _static(value: object, place: str) -> Static:
    """Static features by name, or in the model's order."""
    if isinstance(value, dict):
        named = [(f"{place}.{name[:_LONGEST_ECHO]}", number) for name, number in value.items()]
    elif isinstance(value, list):
        named = [(f"{place}[{index}]", number) for index, number in enumerate(value)]
    else:
        raise InvalidError(Place(place, f"an object or a list of numbers is needed, not {kind(value)}"))
    for where, number in named:
        fault = _number_fault(number)
        if fault is not None:
            raise InvalidError(Place(where, fault.message))
    return value


def time_of(value: object, place: str) -> datetime:
    """An ISO 8601 time."""
    if not isinstance(value, str):
        raise InvalidError(Place(place, f"an ISO 8601 time is needed, not {kind(value)}"))
    time = times.read(value)
    if time is None:
        example = "such as 2013-06-01T00:00:00Z"
        raise InvalidError(Place(place, f"{value[:_LONGEST_ECHO]!r} is not an ISO 8601 time, {example}"))
    return time


def kind(value: object) -> str:
    """What a value of JSON is called."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
