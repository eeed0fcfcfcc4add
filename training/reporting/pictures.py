"""Pictures of errors and forecasts. Equal figures give equal bytes.

Shapes: W windows, L window, N steps, T targets, R attention rows a pass.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from models.spec import Intervals, Spec
from training.fitting.progress import Epoch, kept, runs
from training.scoring.evaluate import Case
from training.scoring.evidence import Evidence, autocorrelation

SHOWN = 8
"""Targets in a picture, the first ones: more would be too small to read."""

_WIDTH = 9.0
_HEIGHT = 2.6
"""Of one row of panels, in inches."""
_DPI = 80
_COLUMNS = 3
_LONG = 200
"""Steps from which on lines are thin, or they would cover each other."""
_TICKS = 6
"""At most, along an axis of whole numbers."""
_LEGEND = 5
"""Entries in a line."""
_HISTORY = 3
"""A forecast is drawn behind so many times its own length of what came before."""
_BINS = 60
_STRETCHES = 40
"""Of the test span: each has one point on the line of mean residuals."""
_SEASONS = 2
"""Seasons that the autocorrelation reaches back, but at least"""
_LAGS = 24


def save(figure: Figure, path: Path) -> None:
    """As PNG, without the library's version in the file, so that equal pictures are equal bytes."""
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})


def loss(epochs: Sequence[Epoch]) -> Figure:
    """Loss and validation error, and the learning rate below."""
    figure = Figure(figsize=(_WIDTH, 1.7 * _HEIGHT), layout="constrained")
    axes, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for index, run in enumerate(runs(epochs)):
        # One entry in the legend for each kind of line, however many members an ensemble has.
        hidden = "_" * min(index, 1)
        numbers = [epoch.number for epoch in run]
        best = kept(run)
        axes.plot(numbers, [epoch.loss for epoch in run], color="C0", label=f"{hidden}training loss")
        errors = [epoch.validation for epoch in run]
        axes.plot(numbers, errors, color="C1", label=f"{hidden}validation error of the targets")
        axes.plot(best.number, best.validation, "o", color="black", label=f"{hidden}kept")
        rate.plot(numbers, [epoch.learning_rate for epoch in run], ".-", color="grey")
    axes.set(ylabel="loss, scaled units", title="Loss by epoch")
    axes.legend(loc="upper right")
    rate.set(xlabel="epoch", ylabel="learning rate")
    rate.set_ylim(bottom=0)
    rate.xaxis.set_major_locator(MaxNLocator(_TICKS, integer=True))
    return figure


def errors(
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    units: Mapping[str, str],
    across: str,
    horizon: int | None = None,
    emphasis: str | None = None,
) -> Figure:
    """Mean absolute errors: of each target, the curves by name, from 1 on along what `across` says.

    `horizon` marks the border of direct and recursive steps, `emphasis` names the curve that is drawn in black.
    """
    shown = dict(list(curves.items())[:SHOWN])
    figure, places = _grid(len(shown))
    for axes, (target, lines) in zip(places, shown.items(), strict=True):
        for name, values in lines.items():
            style = {"color": "black", "linewidth": 1.8} if name == emphasis else {"linewidth": 1.2}
            marker = "." if len(values) < _LAGS else ""
            axes.plot(range(1, len(values) + 1), values, label=name, marker=marker, **style)
        if horizon and horizon < max(map(len, lines.values())):
            axes.axvline(horizon + 0.5, color="grey", linestyle=":", label="recursive from here")
        axes.set(title=target, ylabel=f"MAE{_in(units[target])}", xlabel=across)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(_TICKS, integer=True))
    _legend_below(figure, places)
    return figure


def forecast(spec: Spec, case: Case) -> Figure:
    """One case: what was given, what came and what was forecast, of each target."""
    targets = spec.targets[:SHOWN]
    figure = Figure(figsize=(_WIDTH, _HEIGHT * len(targets)), layout="constrained")
    places = list(figure.subplots(len(targets), 1, sharex=True, squeeze=False).flat)
    for index, (target, axes) in enumerate(zip(targets, places, strict=True)):
        _draw_case(axes, spec, case, index)
        axes.set(title=target, ylabel=_unit(spec, target) or "value")
    places[-1].set_xlabel(_rows_label(spec))
    _legend_below(figure, places)
    return figure


def places(spec: Spec, cases: Mapping[str, Case]) -> Figure:
    """Several cases beside each other, a row for each target."""
    targets = spec.targets[:SHOWN]
    figure = Figure(figsize=(4.0 * len(cases), _HEIGHT * len(targets)), layout="constrained")
    grid = figure.subplots(len(targets), len(cases), sharex=True, squeeze=False)
    for column, (name, case) in enumerate(cases.items()):
        for index, target in enumerate(targets):
            axes = grid[index, column]
            _draw_case(axes, spec, case, index)
            if not column:
                axes.set_ylabel(f"{target}{_in(_unit(spec, target))}")
        grid[0, column].set_title(f"{name}: {_first_step(spec, case):%Y-%m-%d %H:%M}")
        grid[-1, column].set_xlabel(_rows_label(spec))
    _legend_below(figure, grid[0])
    return figure


def residuals(spec: Spec, evidence: Evidence) -> Figure:
    """Of each target: how residuals are spread, how they went over time, how they hang together."""
    targets = spec.targets[:SHOWN]
    figure = Figure(figsize=(1.4 * _WIDTH, _HEIGHT * len(targets)), layout="constrained")
    grid = figure.subplots(len(targets), 3, squeeze=False)
    first, last, times = evidence.first, evidence.last, evidence.times
    for index, (target, (spread, course, chain)) in enumerate(zip(targets, grid, strict=True)):
        unit = _unit(spec, target)
        _draw_spread(spread, first[:, index], last[:, index], spec.metrics.steps)
        spread.set_ylabel(f"{target}\nshare of windows")
        spread.set_xlabel(f"forecast minus truth{_in(unit)}")
        _draw_course(course, first[:, index], times)
        course.set_ylabel(f"one step ahead{_in(unit)}")
        _draw_chain(chain, first[:, index], times, spec)
        chain.set(ylabel="correlation", xlabel=f"lag in rows ({_duration(spec.frequency)} each)")
    for axes, title in zip(
        grid[0], ("Residuals", "Residuals over time", "Autocorrelation, one step ahead"), strict=True
    ):
        axes.set_title(title)
        # To look for the best place takes seconds, with as many points as there are windows.
        axes.legend(fontsize="small", loc="upper right")
    return figure


def attention(spec: Spec, evidence: Evidence) -> Figure:
    """Weights over the window: of the example and the mean of all test windows."""
    figure = Figure(figsize=(_WIDTH, 1.3 * _HEIGHT), layout="constrained")
    maps = {"example": spec.example.attention, "mean of all test windows": evidence.attention.tolist()}
    each = spec.horizon // spec.attention_rows
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (title, rows) in zip(panels, maps.items(), strict=True):
        extent = (0.5 - spec.window, 0.5, len(rows) + 0.5, 0.5)
        image = axes.imshow(rows, aspect="auto", extent=extent, interpolation="nearest", vmin=0)
        figure.colorbar(image, ax=axes, location="bottom", label="weight", aspect=40, ticks=MaxNLocator(_TICKS))
        axes.set(title=f"Attention: {title}", xlabel="row of the window (0 is the last)")
    panels[0].set_ylabel(f"attention row ({each} {'step' if each == 1 else 'steps'} each)")
    panels[0].yaxis.set_major_locator(MaxNLocator(_TICKS, integer=True))
    return figure


def coverage(spec: Spec, intervals: Intervals) -> Figure:
    """What the intervals of each level held of the test windows, by step, beside the level itself."""
    figure = Figure(figsize=(_WIDTH, 1.5 * _HEIGHT), layout="constrained")
    axes = figure.subplots()
    steps = range(1, intervals.calibrated_steps + 1)
    for index, (level, by_step) in enumerate(intervals.coverage.items()):
        colour = f"C{index}"
        axes.axhline(float(level), color=colour, linewidth=0.8)
        held, corrected = ([100 * share for share in of] for of in (by_step, intervals.adaptive[level]))
        axes.plot(steps, held, color=colour, marker=".", label=f"{level} %")
        axes.plot(steps, corrected, color=colour, linestyle=":", label=f"{level} %, adaptive")
    axes.set(title="Coverage", xlabel=steps_label(spec.frequency), ylabel="% of test windows")
    _legend_below(figure, [axes])
    return figure


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    """As many panels as there are targets."""
    columns = min(count, _COLUMNS)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(_WIDTH, (_HEIGHT + 0.3) * rows + 0.3), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in panels[count:]:
        spare.remove()
    return figure, panels[:count]


def _legend_below(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend for all panels, where it hides nothing."""
    found: dict[str, Artist] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        found.update(zip(labels, handles, strict=True))
    columns = min(len(found), _LEGEND)
    figure.legend(
        handles=list(found.values()), labels=list(found), loc="outside lower center", ncols=columns, frameon=False
    )


def _draw_case(axes: Axes, spec: Spec, case: Case, index: int) -> None:
    example, column = case.example, spec.columns.index(spec.targets[index])
    shown = min(_HISTORY * example.steps, spec.window)
    # A line breaks off where there is no number.
    past = [math.nan if (value := row[column]) is None else value for row in example.window[-shown:]]
    ahead = range(1, example.steps + 1)
    axes.plot(range(1 - shown, 1), past, color="grey", linewidth=1, label="given")
    width = 1.5 if example.steps < _LONG else 0.8
    for share, (lower, upper) in reversed(list(case.bands.items())):
        axes.fill_between(
            ahead, lower[:, index], upper[:, index], color="tab:blue", alpha=0.15, linewidth=0, label=share
        )
    axes.plot(ahead, case.truth[:, index].tolist(), color="tab:green", linewidth=width, label="what came")
    axes.plot(ahead, [row[index] for row in example.forecast], color="black", linewidth=width, label="forecast")
    if spec.horizon < example.steps and spec.horizon > 1:
        axes.axvline(spec.horizon + 0.5, color="grey", linestyle=":", label="recursive from here")


def _draw_spread(axes: Axes, first: Tensor, last: Tensor, steps: int) -> None:
    both = {f"step {steps}": (last, "tab:orange"), "step 1": (first, "tab:blue")}
    # A few windows far out would squeeze all others into one bar.
    # numpy's quantiles, for torch takes no more than 16 million values.
    low, high = np.quantile(torch.cat([first, last]).numpy(), (0.002, 0.998)).tolist()
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    for name, (values, colour) in list(both.items())[: 2 if steps > 1 else 1]:
        weights = np.full(len(values), 1 / len(values))
        axes.hist(values.numpy(), edges.tolist(), weights=weights, alpha=0.55, color=colour, label=name)
    axes.axvline(0, color="black", linewidth=0.8)


def _draw_course(axes: Axes, values: Tensor, times: Tensor) -> None:
    moments = times.numpy().astype("datetime64[s]")
    axes.plot(moments, values.numpy(), ",", color="grey", alpha=0.5)
    edges = torch.linspace(float(times.min()), float(times.max()) + 1, _STRETCHES + 1, dtype=torch.float64)
    place = (torch.bucketize(times.double(), edges, right=True) - 1).clamp(0, _STRETCHES - 1)
    count = torch.bincount(place, minlength=_STRETCHES)
    # Not a number where there are none, so that the line breaks off.
    mean = torch.bincount(place, values.double(), minlength=_STRETCHES) / count
    middle = ((edges[:-1] + edges[1:]) / 2).long().numpy().astype("datetime64[s]")
    axes.plot(middle, mean.numpy(), color="tab:blue", label="mean")
    axes.axhline(0, color="black", linewidth=0.8)
    # As few as two: of three days it would find no four that are at round times, and warn.
    locator = AutoDateLocator(minticks=2, maxticks=6)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))


def _draw_chain(axes: Axes, values: Tensor, times: Tensor, spec: Spec) -> None:
    lags = max(_LAGS, _SEASONS * spec.metrics.season)
    found = autocorrelation(values, times, int(spec.frequency.total_seconds()), lags)
    axes.vlines(range(1, lags + 1), 0, found.tolist(), color="tab:blue", linewidth=1.5)
    # What 95 % of the correlations of white noise stay within.
    bound = 1.96 / math.sqrt(len(values))
    axes.axhspan(-bound, bound, color="grey", alpha=0.3, label="95 % of white noise")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylim(-1, 1)


def _first_step(spec: Spec, case: Case) -> datetime:
    start = case.example.start
    return (start or datetime.fromtimestamp(0, UTC)) + spec.window * spec.frequency


def steps_label(frequency: timedelta) -> str:
    """For the axis of the steps."""
    return f"steps ahead ({_duration(frequency)} each)"


def _rows_label(spec: Spec) -> str:
    return f"rows from the last one given ({_duration(spec.frequency)} each)"


def _duration(frequency: timedelta) -> str:
    seconds = frequency.total_seconds()
    units = {"d": 86400, "h": 3600, "min": 60, "s": 1}
    unit = next(unit for unit, size in units.items() if seconds % size == 0)
    return f"{seconds / units[unit]:g} {unit}"


def _unit(spec: Spec, target: str) -> str:
    return next(feature.unit for feature in spec.features if feature.name == target)


def _in(unit: str) -> str:
    return f" in {unit}" if unit else ""
