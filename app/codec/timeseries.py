"""KServe's time series API: its JSON to a query, a forecast to its JSON.

Shapes: B series, R rows of one, C columns, L window, N steps, T targets.
"""

import math
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import orjson

from app.asked import times
from app.asked.query import Places, Query
from app.codec.json_bodies import kind, numbers, time_of
from app.codec.tensors import object_of, parse
from app.errors import InvalidError, Place
from app.forecasts.predictor import Forecast
from app.ticket import Floats
from models.spec import Spec

_FIELDS = ("model", "inputs", "options", "metadata")
_INPUT_FIELDS = ("type", "name", "series", "frequency", "start_timestamp")
_OPTION_FIELDS = ("horizon", "quantiles")
_ONE, _SEVERAL = "univariate_time_series", "multivariate_time_series"
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}
_LETTERS = {"S": "second", "T": "minute", "H": "hour", "D": "day", "W": "week"}
_UNEVEN = ("M", "month", "Q", "quarter", "Y", "year")
_PLACES = Places("inputs[{}].series")
_MOST_INPUTS = 100_000
_MOST_QUANTILES = 40
_LONGEST_ECHO = 80
_START = re.compile(r"start\[(\d+)\]", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MEDIAN = 0.5


class Series(NamedTuple):
    """One of a request."""

    name: str
    frequency: str
    values: Floats
    """[R, C]"""
    start: datetime | None


class Asked(NamedTuple):
    """What a body asks."""

    model: str
    series: list[Series]
    horizon: int
    quantiles: list[float]

    @property
    def levels(self) -> tuple[str, ...]:
        """Of the intervals whose bounds the quantiles are."""
        return tuple(dict.fromkeys(level for one in self.quantiles if (level := _level(one)) is not None))


def read(body: bytes) -> Asked:
    """What a body asks; MalformedError, or InvalidError naming the place."""
    fields = object_of(parse(body), _FIELDS, "body")
    model = _text(fields.get("model"), "model")
    given = fields.get("inputs")
    if not isinstance(given, list) or not 0 < len(given) <= _MOST_INPUTS:
        raise InvalidError(Place("inputs", "needed: a list of time series"))
    options = object_of(fields.get("options"), _OPTION_FIELDS, "options")
    horizon = options.get("horizon")
    if type(horizon) is not int or horizon < 1:
        raise InvalidError(Place("options.horizon", "needed: a whole number from 1 on"))
    if not isinstance(fields.get("metadata"), dict | None):
        raise InvalidError(Place("metadata", f"an object is needed, not {kind(fields['metadata'])}"))
    series = [_series(one, f"inputs[{index}]") for index, one in enumerate(given)]
    return Asked(model, series, horizon, _quantiles(options.get("quantiles")))


def query_of(asked: Asked, spec: Spec) -> Query:
    """The query of a model, the last rows that it takes of each series; InvalidError for what it cannot be asked."""
    lacking = [*spec.future, *spec.static]
    if lacking:
        raise InvalidError(Place("model", f"it needs {', '.join(lacking)}, which there is no field for; ask /forecast"))
    columns, windows, starts = spec.columns, [], []
    for index, one in enumerate(asked.series):
        place = f"inputs[{index}]"
        if one.values.shape[1] != len(columns):
            problem = f"{one.values.shape[1]} numbers a row; the model takes {len(columns)}: {', '.join(columns)}"
            raise InvalidError(Place(f"{place}.series", problem))
        _check_frequency(one.frequency, spec, f"{place}.frequency")
        left_out = max(0, len(one.values) - spec.window)
        windows.append(one.values[left_out:])
        if one.start is not None:
            starts.append(_later(one.start, left_out, spec, f"{place}.start_timestamp"))
    if starts and len(starts) < len(windows):
        index = next(index for index, one in enumerate(asked.series) if one.start is None)
        raise InvalidError(Place(f"inputs[{index}].start_timestamp", "needed, since others have theirs"))
    gaps = any(bool(np.isnan(window).any()) for window in windows)
    return Query(windows, None, starts or None, single=False, gaps=gaps, places=_PLACES)


def write(asked: Asked, forecast: Forecast, identity: str) -> bytes:
    """The answer: an output for every series, in order."""
    stamps = list(_stamps(forecast))
    outputs = [
        {
            "type": "time_series_forecast",
            "id": f"{identity}-{index}",
            "status": "completed",
            "content": [_content(asked, forecast, index, stamps[index])],
        }
        for index in range(len(asked.series))
    ]
    answer = {
        "id": identity,
        "created_at": int(time.time()),
        "status": "completed",
        "model": forecast.model.name,
        "outputs": outputs,
    }
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def renamed(error: InvalidError) -> InvalidError:
    """An error in the words of this API."""
    return type(error)(*(Place(_renamed(place), message) for place, message in error.places))


def _renamed(place: str) -> str:
    named = {"query.steps": "options.horizon", "query.level": "options.quantiles", "windows": "inputs"}
    named["start"] = "inputs[0].start_timestamp"
    return named.get(place) or _START.sub(r"inputs[\1].start_timestamp", place)


def _text(value: object, place: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidError(Place(place, "needed: a string"))
    return value


def _series(value: object, place: str) -> Series:
    fields = object_of(value, _INPUT_FIELDS, place)
    name, frequency = _text(fields.get("name"), f"{place}.name"), _text(fields.get("frequency"), f"{place}.frequency")
    said, series = fields.get("type"), fields.get("series")
    if said not in (_ONE, _SEVERAL):
        raise InvalidError(Place(f"{place}.type", f"{_ONE} or {_SEVERAL} is needed"))
    values = numbers(series, f"{place}.series", 1 if said == _ONE else 2, strict=True, gaps=True)
    start = fields.get("start_timestamp")
    return Series(
        name,
        frequency,
        values[:, None] if said == _ONE else values,
        None if start is None else time_of(start, f"{place}.start_timestamp"),
    )


def _quantiles(value: object) -> list[float]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > _MOST_QUANTILES:
        raise InvalidError(Place("options.quantiles", f"a list of at most {_MOST_QUANTILES} numbers is needed"))
    for index, one in enumerate(value):
        if isinstance(one, bool) or not isinstance(one, int | float) or not 0 < one < 1:
            raise InvalidError(Place(f"options.quantiles[{index}]", "a number between 0 and 1 is needed"))
    return value


def _level(quantile: float) -> str | None:
    """Of the interval that has it for a bound; None for the middle."""
    if math.isclose(quantile, _MEDIAN):
        return None
    return f"{abs(1 - 2 * quantile) * 100:.6f}".rstrip("0").rstrip(".")


def _check_frequency(said: str, spec: Spec, place: str) -> None:
    if said in _UNEVEN:
        raise InvalidError(
            Place(place, f"{said} is no even step of time; the model takes a row every {spec.frequency}")
        )
    seconds = _SECONDS.get(_LETTERS.get(said, said))
    if seconds is None:
        known = ", ".join([*_LETTERS, *_SECONDS])
        raise InvalidError(Place(place, f"{said[:_LONGEST_ECHO]!r} is none of {known}"))
    if timedelta(seconds=seconds) != spec.frequency:
        raise InvalidError(Place(place, f"{said}, but the model takes a row every {spec.frequency}"))


def _later(start: datetime, rows: int, spec: Spec, place: str) -> datetime:
    """The time of the row so many behind the first: on the instants, since wall clocks leap."""
    if not rows:
        return start
    moment = times.moment(start, ZoneInfo(spec.timezone), place)
    try:
        return _EPOCH + timedelta(microseconds=moment) + rows * spec.frequency
    except OverflowError:
        raise InvalidError(Place(place, "the series ends after the year 9999")) from None


def _stamps(forecast: Forecast) -> Iterator[str | None]:
    """Of each series, the time of the first step; None where it is not known."""
    spec = forecast.spec
    for index in range(len(forecast.forecast)):
        last = None if forecast.last is None else int(forecast.last[index])
        stamps = None if last is None else times.stamps(last, spec.frequency, 1, ZoneInfo(spec.timezone))
        yield stamps[0] if stamps else None


def _content(asked: Asked, forecast: Forecast, index: int, stamp: str | None) -> dict[str, Any]:
    series = asked.series[index]

    def shown(values: Floats) -> Floats:
        one = values[index]
        return np.ascontiguousarray(one[:, 0] if one.shape[1] == 1 else one)

    content: dict[str, Any] = {
        "type": _ONE if len(forecast.spec.targets) == 1 else _SEVERAL,
        "name": series.name,
        "mean_forecast": shown(forecast.forecast),
        "frequency": series.frequency,
    }
    if stamp is not None:
        content["start_timestamp"] = stamp
    if asked.quantiles:
        content["quantiles"] = {str(one): shown(_quantile(forecast, one)) for one in asked.quantiles}
    return content


def _quantile(forecast: Forecast, quantile: float) -> Floats:
    level = _level(quantile)
    if level is None or forecast.intervals is None:
        return forecast.forecast
    lower, upper = forecast.intervals.bounds[level]
    return lower if quantile < _MEDIAN else upper


def effort(asked: Asked, forecast: Forecast) -> int:
    """Numbers that an answer has."""
    return forecast.forecast.size * (1 + len(asked.quantiles)) + _EFFORT * len(asked.series)


_EFFORT = 50
"""What a series takes to write besides its numbers, in numbers."""
