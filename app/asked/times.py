"""Times as clients write them and as they are answered: ISO 8601, wall-clock time where no offset is named.

Inside, a moment is an integer: microseconds since the start of 1970 in UTC.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from app.errors import InvalidError, Place

_WRITTEN = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?)?", re.ASCII)
"""What is written of ISO 8601; Python reads weeks, too, and anything at all between date and time."""
_EPOCH, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
END = (_LATEST - _EPOCH) // _MICROSECOND
_UTC = ("UTC", "Etc/UTC")


def read(text: str) -> datetime | None:
    """What a client wrote, without a zone where it names no offset; None where it is no ISO 8601 time."""
    text = text.upper()
    try:
        return datetime.fromisoformat(text) if _WRITTEN.fullmatch(text) else None
    except ValueError:
        return None


def candidates(time: datetime, zone: ZoneInfo) -> list[int]:
    """The moments that it may be: none where the zone's clocks leap over it, two where they show it twice."""
    if time.tzinfo is not None:
        return [(time - _EPOCH) // _MICROSECOND]
    first, second = ((time.replace(tzinfo=zone, fold=fold) - _EPOCH) // _MICROSECOND for fold in (0, 1))
    if first == second:
        return [first]
    # Of a time that is leapt over, `fold=0` is the later of the two that it might have been (PEP 495).
    return [first, second] if first < second else []


def moment(time: datetime, zone: ZoneInfo, place: str) -> int:
    """The moment that it is; InvalidError where it is none, or two, or outside the years 1970 to 9999."""
    found = candidates(time, zone)
    check(time, found, zone, place)
    if len(found) > 1:
        raise ambiguous(time, zone, place)
    return found[0]


def check(time: datetime, found: list[int], zone: ZoneInfo, place: str) -> None:
    """InvalidError where a time is no moment of the years 1970 to 9999."""
    if not found:
        leap = f"{shown(time)} does not exist in {zone.key}, whose clocks leap over it; give its offset from UTC"
        raise InvalidError(Place(place, leap))
    if found[0] < 0 or found[-1] > END:
        raise InvalidError(Place(place, f"{shown(time)} is not within the years 1970 to 9999"))


def ambiguous(time: datetime, zone: ZoneInfo, place: str) -> InvalidError:
    """What to raise of a time that is two moments."""
    return InvalidError(Place(place, f"{shown(time)} comes twice in {zone.key}; give its offset from UTC"))


def chosen(found: list[list[int]], step: int, *, gaps: bool) -> Iterator[int | None]:
    """Of the candidates of each of the times that follow each other, the one that is `step` from a neighbour that is
    sure; where there may be gaps, else the one that is any number of steps from it. None where neither tells, and where
    the one before and the one behind tell different ones: then a row is missing, and nobody knows which.
    """
    sure = [one[0] if len(one) == 1 else None for one in found]
    if None not in sure:
        yield from sure
        return
    told = []
    onwards = range(len(found))
    for rows, towards in ((onwards, step), (onwards[::-1], -step)):
        chain = sure.copy()
        for neighbour, row in pairwise(rows):
            if chain[row] is None:
                chain[row] = _beside(chain[neighbour], found[row], towards, gaps=gaps)
        told.append(chain)
    for before, behind in zip(*told, strict=True):
        agree = before is None or behind is None or before == behind
        yield (behind if before is None else before) if agree else None


def _beside(neighbour: int | None, found: list[int], step: int, *, gaps: bool) -> int | None:
    if neighbour is None:
        return None
    if neighbour + step in found:
        return neighbour + step
    fitting = [one for one in found if gaps and (one - neighbour) % step == 0 and (one - neighbour) // step > 0]
    return fitting[0] if len(fitting) == 1 else None


def stamps(last: int, step: timedelta, steps: int, zone: ZoneInfo) -> list[str] | None:
    """The times of the rows after the one of that moment, with the zone's offsets; None beyond the year 9999."""
    # On the instants, since a wall clock that leaps would not be a step further.
    try:
        start = _EPOCH + last * _MICROSECOND
        written = [(start + ahead * step).astimezone(zone).isoformat() for ahead in range(1, steps + 1)]
    except OverflowError:
        return None
    return [text.replace("+00:00", "Z") for text in written] if zone.key in _UTC else written


def shown(time: datetime) -> str:
    """As it stands in a message."""
    return repr(time.isoformat().replace("+00:00", "Z"))
