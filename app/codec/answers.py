"""Forecasts to JSON and to CSV.

Shapes: B windows, L window, N steps, T targets, A attention rows.
"""

import csv
import io
from collections.abc import Callable, Sequence
from datetime import timedelta
from zoneinfo import ZoneInfo

import numpy as np
import orjson

from app.asked import times
from app.codec import tables
from app.codec.accepted import qualities
from app.forecasts.predictor import Forecast, stamping
from app.ticket import Floats, Times
from models.spec import Spec

_TABLES = (tables.CSV, tables.ARROW)
_CELL = 10
"""Numbers of JSON that a cell of CSV takes as long to write as."""
_IMPORT = 1_000_000
"""And those that a first answer of Arrow does."""
_MICROSECOND = timedelta(microseconds=1)


def effort(forecast: Forecast, table: str | None) -> int:
    """What an answer takes to write, as a table of that media type or in JSON, in numbers of JSON."""
    if table == tables.ARROW:
        return forecast.forecast.size + (0 if tables.is_loaded() else _IMPORT)
    bounds = [] if forecast.intervals is None else [end for ends in forecast.intervals.bounds.values() for end in ends]
    numbers = forecast.forecast.size + sum(end.size for end in bounds)
    if table is not None:
        numbers *= _CELL
    elif forecast.attention is not None:
        numbers += forecast.attention.size
    return numbers + stamping(forecast.last, forecast.forecast.shape[1])


def prediction(forecast: Forecast) -> bytes:
    """The JSON answer of one step: values [T], or [B, T] for several windows."""
    stamps = _stamps(forecast)
    ends = None if stamps is None else [window[0] for window in stamps]
    if forecast.single:
        return _answer(forecast, "prediction", lambda values: values[0, 0], timestamp=ends and ends[0])
    return _answer(forecast, "predictions", lambda values: values[:, 0], timestamps=ends)


def forecast(forecast: Forecast) -> bytes:
    """The JSON answer of N steps: values [N, T], or [B, N, T] for several windows."""
    stamps = _stamps(forecast)
    if forecast.single:
        return _answer(forecast, "forecast", lambda values: values[0], timestamps=stamps and stamps[0])
    return _answer(forecast, "forecasts", lambda values: values, timestamps=stamps)


def table(forecast: Forecast, media_type: str) -> bytes:
    """The answer as a table of that type: a row a step, of one window after the other, with its targets and their
    intervals.
    """
    return tables.to_arrow(forecast) if media_type == tables.ARROW else _csv(forecast)


def columns_of(forecast: Forecast) -> dict[str, Floats]:
    """The numbers of a table, by the names of its columns: the targets and their intervals, [B * N]."""
    columns = {name: forecast.forecast[:, :, index] for index, name in enumerate(forecast.spec.targets)}
    for level, bounds in (forecast.intervals.bounds if forecast.intervals else {}).items():
        for side, values in zip(("lower", "upper"), bounds, strict=True):
            targets = enumerate(forecast.spec.targets)
            columns |= {f"{name}_{side}_{level}": values[:, :, index] for index, name in targets}
    return {name: values.ravel() for name, values in columns.items()}


def told_apart(forecast: Forecast) -> tuple[str, Sequence[str] | range] | None:
    """The column of a table that tells windows apart, and what each of them is called there; None of a single one."""
    if forecast.single:
        return None
    if forecast.series:
        return forecast.spec.series or "series", forecast.series
    # Windows that have no names are told apart by their number.
    return "window", range(len(forecast.forecast))


def moments_of(forecast: Forecast) -> Times | None:
    """Epoch microseconds of every step [B, N]; None where it is not known when it was, or beyond the year 9999."""
    if forecast.last is None:
        return None
    ahead = np.arange(1, forecast.forecast.shape[1] + 1) * (forecast.spec.frequency // _MICROSECOND)
    moments: Times = forecast.last[:, None] + ahead
    return moments if moments.max() <= times.END else None


def _csv(forecast: Forecast) -> bytes:
    spec, (windows, steps, _) = forecast.spec, forecast.forecast.shape
    cells: dict[str, list[str]] = {}
    called = told_apart(forecast)
    if called is not None:
        cells[called[0]] = [str(one) for one in called[1] for _ in range(steps)]
    stamps = _stamps(forecast)
    if stamps is not None:
        cells[spec.time] = [stamp for window in stamps for stamp in window]
    cells["step"] = [str(step + 1) for _ in range(windows) for step in range(steps)]
    # As short as a float32 can be told, like in JSON.
    cells |= {name: values.astype(str).tolist() for name, values in columns_of(forecast).items()}
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(cells)
    writer.writerows(zip(*cells.values(), strict=True))
    return text.getvalue().encode()


def _stamps(forecast: Forecast) -> list[list[str]] | None:
    return stamps_of(forecast.spec, forecast.last, forecast.forecast.shape[1])


def stamps_of(spec: Spec, last: Times | None, steps: int) -> list[list[str]] | None:
    """Of each window, the times of the steps; None where it is not known when it was."""
    if last is None:
        return None
    zone, moments = ZoneInfo(spec.timezone), last.tolist()
    # Windows that end together, as those of a table mostly do, share theirs.
    found = {last: times.stamps(last, spec.frequency, steps, zone) for last in set(moments)}
    written = {last: window for last, window in found.items() if window is not None}
    return [written[last] for last in moments] if len(written) == len(found) else None


def _answer(forecast: Forecast, field: str, part: Callable[[Floats], Floats], **stamps: object) -> bytes:
    answer: dict[str, object] = {
        "model": forecast.model.name,
        "version": forecast.model.version,
        "digest": forecast.model.digest,
        "targets": forecast.spec.targets,
    }
    if forecast.series is not None:
        answer["series"] = forecast.series
    if field.startswith("forecast"):
        answer["steps"] = forecast.forecast.shape[1]
    answer[field] = _array(part(forecast.forecast))
    if forecast.intervals is not None:
        answer["intervals"] = {
            level: {"lower": _array(part(lower)), "upper": _array(part(upper))}
            for level, (lower, upper) in forecast.intervals.bounds.items()
        }
        told = {"extrapolated_from": forecast.intervals.extrapolated_from, "actuals": forecast.intervals.actuals}
        answer |= {name: value for name, value in told.items() if value is not None}
    if forecast.attention is not None:
        weights = _array(forecast.attention[0] if forecast.single else forecast.attention)
        per_row = forecast.spec.horizon // forecast.spec.attention_rows
        answer["attention"] = {"steps_per_row": per_row, "weights": weights}
    elif forecast.wants_attention:
        # It was asked for, and the model has none.
        answer["attention"] = None
    answer |= {name: value for name, value in stamps.items() if value is not None}
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _array(values: Floats) -> Floats:
    return np.ascontiguousarray(values)


def wants_table(accept: bytes | None) -> str | None:
    """The kind of table that an Accept header names, and neither JSON as much nor anything more; of those that are
    written here.
    """
    kind = preferred(accept, _TABLES)
    return preferred(accept, (tables.CSV,)) if kind == tables.ARROW and not tables.has_arrow() else kind


def preferred(accept: bytes | None, offered: Sequence[str]) -> str | None:
    """Which of these an Accept header names above JSON, and nothing more than it; the first of equals."""
    if accept is None or not any(name.encode() in accept.lower() for name in offered):
        return None
    wanted = qualities(accept, unreadable=1.0)
    best = max(offered, key=lambda name: wanted.get(name, 0.0))
    liked, anything = wanted.get(best, 0.0), max(wanted.get("application/*", 0.0), wanted.get("*/*", 0.0))
    return best if liked > wanted.get("application/json", 0.0) and liked >= anything else None
