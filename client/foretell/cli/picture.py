"""A forecast drawn in the terminal: what was, what is to come, and the bands around it."""

import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import plotext

from foretell.answers import Forecast, Version
from foretell.cli.ending import plain
from foretell.given import JSON, Data, body_of, is_table, table_of

_TICKS = 5
_NARROWEST, _LOWEST = 30, 10
_MARKER = "braille"
_BANDS = "·-+x"
"""A marker for each level, and from the start again."""
_COLOURS = {"history": "gray", "forecast": "blue", "band": "cyan"}


class History(NamedTuple):
    """The last rows before the forecast, by target; None where a value is missing."""

    values: Mapping[str, list[float | None]]


def history_of(data: Data, version: Version, series: str | None, rows: int) -> History:
    """From what was sent; nothing where that does not say which column is which."""
    spec = version.spec or {}
    if is_table(data):
        header, lines = table_of(data)
        if series is not None and spec.get("series") in header:
            place = header.index(spec["series"])
            lines = [line for line in lines if line[place] == series]
        known_ahead = {one["name"] for one in spec.get("features", []) if one["role"] in ("future", "static")}
        seen = [header.index(name) for name in version.columns if name in header and name not in known_ahead]
        # Rows behind the last one with anything but the known future are that future.
        while lines and not any(_number(lines[-1][place]) is not None for place in seen):
            lines.pop()
        lines = lines[-rows:]
        values = {
            name: [_number(line[header.index(name)]) for line in lines] for name in version.targets if name in header
        }
        return History(values)
    body = body_of(data)
    if body.content_type != JSON:
        return History({})
    said: Any = json.loads(body.content)
    window = said["window"] if "window" in said else said["windows"][0]
    columns = version.columns
    return History({name: [row[columns.index(name)] for row in window[-rows:]] for name in version.targets})


def _number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if number == number else None


def picture_of(
    forecast: Forecast, history: History, targets: Sequence[str], *, width: int, height: int, colours: bool
) -> str:
    """A chart a target, one below the other."""
    charts = [_chart(forecast, history, target, max(width, _NARROWEST), max(height, _LOWEST)) for target in targets]
    text = "\n".join(charts) + "\n"
    return text if colours else "\n".join(line.rstrip() for line in plotext.uncolorize(text).split("\n"))


def _chart(forecast: Forecast, history: History, target: str, width: int, height: int) -> str:
    place = forecast.targets.index(target)
    past = history.values.get(target, [])
    ahead = list(range(1, forecast.steps + 1))
    values = [float(row[place]) for row in forecast.values]
    plotext.clear_figure()
    plotext.plot_size(width, height)
    plotext.theme("clear")
    plotext.title(plain(f"{target}, {forecast.model} {forecast.version}"))
    known = [(index - len(past) + 1, value) for index, value in enumerate(past) if value is not None]
    if known:
        plotext.plot(*map(list, zip(*known, strict=True)), marker=_MARKER, color=_COLOURS["history"], label="history")
    for marker, (level, interval) in zip(cycle(_BANDS), forecast.intervals.items(), strict=False):
        for side, ends in (("", interval.lower), (f"{level} %", interval.upper)):
            bounds = [float(row[place]) for row in ends]
            plotext.scatter(ahead, bounds, marker=marker, color=_COLOURS["band"], label=side or None)
    plotext.plot(ahead, values, marker=_MARKER, color=_COLOURS["forecast"], label="forecast")
    plotext.vline(0.5, "gray")
    _name_ticks(forecast, len(past))
    return str(plotext.build()).rstrip("\n")


def _name_ticks(forecast: Forecast, past: int) -> None:
    """Times where they are known, else steps."""
    first, last = 1 - past, forecast.steps
    places = sorted({round(first + (last - first) * index / (_TICKS - 1)) for index in range(_TICKS)})
    if forecast.timestamps is None:
        plotext.xticks(places, [str(place) for place in places])
        return
    # In the zone of the forecast: a step further back is a step earlier.
    times = forecast.timestamps
    step = times[1] - times[0] if len(times) > 1 else None
    if step is None:
        plotext.xticks([1], [times[0].strftime("%m-%d %H:%M")])
        return
    plotext.xticks(places, [(times[0] + (place - 1) * step).strftime("%m-%d %H:%M") for place in places])
