"""Prediction intervals for what will be served: calibrated on windows of their own, measured on the test windows.

Shapes: W windows, N steps, L window, T targets, Q quantiles.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models import intervals
from models.artifact import ForecastModule
from models.intervals import ADAPTIVE_RATE, Base, Bounds, Floats, LevelError, Table, name_of
from models.spec import Intervals, IntervalScores
from training.data.dataset import Dataset, rows_of
from training.data.windows import Windows
from training.recipe import Recipe
from training.scoring import baselines
from training.scoring.evaluate import Case, answers
from training.scoring.series import Coverage, SeriesScores

_MOST_WINDOWS = 50_000
"""That calibrate: more would make no level better known, and take memory."""

Doubles = NDArray[np.float64]
Singles = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What the archive holds beside the network, and what its spec says of it."""

    table: Table
    intervals: Intervals
    coverage: list[Coverage]
    """Of each series on its test windows; empty where it has none."""

    def told(self, series: Sequence[SeriesScores]) -> list[SeriesScores]:
        """All series, with what the intervals covered of each."""
        return [replace(one, coverage=own) for one, own in zip(series, self.coverage, strict=True)]

    def around(self, recipe: Recipe, case: Case) -> Case:
        """The same with intervals."""
        names = recipe.data.names
        columns = [column for column in range(len(names)) if column not in recipe.data.static_columns]
        targets = [columns.index(column) for column in recipe.data.target_columns]
        volatility = None
        if self.table.method == "scaled":
            # None becomes NaN.
            window = np.array(case.example.window, np.float64)[None, :, targets]
            volatility = self.table.volatility(window)
        outputs = np.array(case.example.forecast, np.float32)[None]
        base = _base(outputs, len(targets), volatility)
        found = self.table.bounds(base, self.intervals.levels)
        bands = {
            f"{name_of(level)} %": (bounds.lower[0], bounds.upper[0])
            for level, bounds in zip(self.intervals.levels, found, strict=True)
        }
        return replace(case, bands=bands)


@dataclass(frozen=True, slots=True)
class Answers:
    """What was forecast for the windows of a part, and what came."""

    outputs: Singles
    """[W, N, T + Q * T]"""
    naive: Singles
    """[W, N, T]: the seasonal-naive forecast."""
    truth: Singles
    """[W, N, T]"""
    volatility: Doubles | None
    """[W, T]"""
    times: NDArray[np.int64]
    """[W]: epoch seconds of the last row given."""

    def base(self, targets: int) -> Base:
        """What intervals are taken from."""
        return _base(self.outputs, targets, self.volatility)


def _base(outputs: Singles, targets: int, volatility: Doubles | None) -> Base:
    low = high = None
    if outputs.shape[2] > targets:
        low, high = outputs[:, :, targets : 2 * targets], outputs[:, :, 2 * targets :]
    return Base(outputs[:, :, :targets], low, high, volatility)


def calibrate(recipe: Recipe, dataset: Dataset, module: ForecastModule) -> Calibrated | None:
    """Intervals of the exported network; None where the recipe sets no windows aside for them."""
    if not recipe.split.calibration:
        return None
    typical = _typical(recipe, dataset) if recipe.intervals.method == "scaled" else None
    ask = _Asker(recipe, dataset, module, typical)
    calibration = ask("calibration", most=_MOST_WINDOWS)
    limits = [dataset.features[column].limits for column in recipe.data.target_columns]
    table = _table(recipe, calibration, ask("validation", most=_MOST_WINDOWS), typical, limits)
    test = ask("test")
    measured = _measured(recipe, dataset, table, calibration, test)
    return Calibrated(table, measured, _by_series(recipe, dataset, table, test))


class _Asker:
    """Has the network forecast the windows of a part."""

    def __init__(self, recipe: Recipe, dataset: Dataset, module: ForecastModule, typical: Doubles | None) -> None:
        self.recipe, self.dataset, self.module, self.typical = recipe, dataset, module, typical
        self.naive = baselines.fitted(recipe, dataset)["seasonal_naive"]

    def __call__(self, part: str, most: int | None = None) -> Answers:
        windows = _sample(self.dataset.windows[part], most)
        asked = list(self._asked(windows))
        volatility = None if self.typical is None else np.concatenate([moves for *_, moves in asked])
        outputs, naive, truth, times = (np.concatenate([found[place] for found in asked]) for place in range(4))
        return Answers(outputs, naive, truth, volatility, times)

    def _asked(self, windows: Windows) -> Iterator[tuple[Any, ...]]:
        for asked, forecast, _ in answers(self.recipe, windows, self.module):
            moves = None
            if self.typical is not None:
                moves = intervals.volatility(asked.targets.numpy(), self.typical)
            yield forecast.numpy(), self.naive(asked.targets).numpy(), asked.truth.numpy(), asked.time.numpy(), moves


def _sample(windows: Windows, most: int | None) -> Windows:
    """All of them, or so many by chance: evenly spaced ones would always be of the same hours."""
    if most is None or len(windows) <= most:
        return windows
    chosen = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))[:most]
    return replace(windows, starts=windows.starts[chosen.sort()[0]])


def _typical(recipe: Recipe, dataset: Dataset) -> Doubles:
    """[T]: how much the targets move from row to row over the training rows; 1 where they never do."""
    targets = recipe.data.target_columns
    total, count = np.zeros(len(targets)), np.zeros(len(targets))
    for one in dataset.series:
        rows = one.values[rows_of(one, dataset.parts["train"], recipe.data.interval)]
        moves = rows[:, targets].double().diff(dim=0).abs_()
        total += moves.nansum(0).numpy()
        count += moves.isfinite().sum(0).numpy()
    mean = total / np.maximum(count, 1)
    return np.where(mean > 0, mean, 1.0)


def _table(
    recipe: Recipe,
    calibration: Answers,
    validation: Answers,
    typical: Doubles | None,
    limits: Sequence[tuple[float, float]],
) -> Table:
    options, targets = recipe.intervals, len(recipe.data.target_columns)
    # From other windows than those that calibrate, or these would not be like later ones.
    errors = np.abs(validation.truth - validation.base(targets).forecast)
    if validation.volatility is not None:
        errors = errors / validation.volatility[:, None]
    scale = np.nanmean(errors, 0)
    return intervals.calibrate(
        calibration.base(targets),
        calibration.truth,
        np.where(scale > 0, scale, 1.0),
        method=options.method,
        symmetric=options.symmetric,
        typical=typical,
        extrapolate=options.extrapolate,
        limits=limits,
    )


def _measured(recipe: Recipe, dataset: Dataset, table: Table, calibration: Answers, test: Answers) -> Intervals:
    options, windows = recipe.intervals, len(calibration.truth)
    targets = [recipe.data.names[column] for column in recipe.data.target_columns]
    base, levels = test.base(len(targets)), options.levels
    own = dict(zip(levels, table.bounds(base, levels), strict=True))
    paths = _paths(table, base, levels)
    forecast = base.forecast
    others = {
        "gaussian": _gaussian(calibration.truth - calibration.base(len(targets)).forecast, forecast, levels),
        "seasonal_naive": _naive(calibration, test, levels, symmetric=options.symmetric),
    }
    scores = {name_of(level): _scores(bounds, test.truth, level, targets) for level, bounds in own.items()}
    corrected = {
        name_of(level): _mean(adaptive(table, base, test, level, recipe.data.interval)).mean(1).tolist()
        for level in levels
    }
    return Intervals(
        method=options.method,
        symmetric=options.symmetric,
        levels=list(levels),
        calibrated_steps=recipe.window.steps,
        extrapolate=options.extrapolate,
        coverage={
            level: np.mean([found.coverage[target] for target in targets], 0).tolist()
            for level, found in scores.items()
        },
        windows=windows,
        effective=max(windows // recipe.window.steps, 1),
        calibration=dataset.span("calibration"),
        scores=scores,
        simultaneous={
            name_of(level): dict(
                zip(
                    targets,
                    intervals.measured(bounds, test.truth, level, recipe.window.steps).path_coverage.tolist(),
                    strict=True,
                )
            )
            for level, bounds in paths.items()
        },
        adaptive=corrected,
        baselines={
            name: {name_of(level): _scores(bounds, test.truth, level, targets) for level, bounds in found.items()}
            for name, found in others.items()
        },
    )


def _by_series(recipe: Recipe, dataset: Dataset, table: Table, test: Answers) -> list[Coverage]:
    """Of all test windows in their order: a level that holds for all series together need not for any of them."""
    targets = [recipe.data.names[column] for column in recipe.data.target_columns]
    windows, base = dataset.windows["test"], test.base(len(targets))
    of = windows.clock.series(windows.starts).numpy()
    counts = np.bincount(of, minlength=len(dataset.series))
    found: list[dict[str, dict[str, float]]] = [{name: {} for name in targets} if count else {} for count in counts]
    for level in recipe.intervals.levels:
        (bounds,) = table.bounds(base, [level])
        inside = ((bounds.lower <= test.truth) & (test.truth <= bounds.upper)).mean(1)
        for index, name in enumerate(targets):
            shares = np.bincount(of, inside[:, index], minlength=len(counts)) / np.maximum(counts, 1)
            for one, share in zip(found, shares.tolist(), strict=True):
                if one:
                    one[name][name_of(level)] = share
    return list(found)


def _scores(bounds: Bounds, truth: Singles, level: float, targets: Sequence[str]) -> IntervalScores:
    found = intervals.measured(bounds, truth, level, truth.shape[1])

    def by_target(values: Doubles) -> dict[str, list[float]]:
        return {name: values[:, index].tolist() for index, name in enumerate(targets)}

    return IntervalScores(
        coverage=by_target(found.coverage),
        width=by_target(found.width),
        winkler=by_target(found.interval_score),
    )


def _paths(table: Table, base: Base, levels: Sequence[float]) -> Mapping[float, Bounds]:
    """The simultaneous bands of those levels that there are windows enough for."""
    found = {}
    for level in levels:
        try:
            (found[level],) = table.bounds(base, [level], "path")
        except LevelError:
            continue
    return found


def _gaussian(errors: Floats, forecast: Floats, levels: Sequence[float]) -> dict[float, Bounds]:
    """As if errors were normal, with the mean and deviation of the calibration windows': what many libraries give."""
    mean, std = np.nanmean(errors, 0), np.nanstd(errors, 0)
    found = {}
    for level in levels:
        reach = NormalDist().inv_cdf(0.5 + level / 200) * std
        found[level] = Bounds(
            (forecast + mean - reach).astype(np.float32), (forecast + mean + reach).astype(np.float32)
        )
    return found


def _naive(calibration: Answers, test: Answers, levels: Sequence[float], *, symmetric: bool) -> dict[float, Bounds]:
    """The same way of making intervals, around the seasonal-naive forecast."""
    scale = np.ones(calibration.truth.shape[1:])
    table = intervals.calibrate(Base(calibration.naive), calibration.truth, scale, symmetric=symmetric)
    return dict(zip(levels, table.bounds(Base(test.naive), levels), strict=True))


def adaptive(
    table: Table, base: Base, asked: Answers, level: float, interval: int, rate: float = ADAPTIVE_RATE
) -> Doubles:
    """Which truths [W, N, T] are inside (1) or not (0) where what came corrects what is forecast after it; NaN where
    none was observed.

    The truth of step h is known h steps after the forecast was made; only then may it change anything.
    """
    steps, targets = asked.truth.shape[1:]
    target = intervals.miscoverage(level)
    alpha = np.full((steps, targets), target)
    made: dict[int, Doubles] = {}
    found = np.full(asked.truth.shape, math.nan)
    rows = sorted(range(len(asked.times)), key=lambda row: int(asked.times[row]))
    for time, group in groupby(rows, key=lambda row: int(asked.times[row])):
        for step in range(steps):
            came = made.get(time - (step + 1) * interval)
            if came is not None:
                alpha[step] = intervals.adapted(alpha[step], came[step], target, rate)
        chosen = list(group)
        bounds, _ = table.adaptive_bounds(_rows(base, chosen), alpha)
        truth = asked.truth[chosen]
        inside = ((bounds.lower <= truth) & (truth <= bounds.upper)).astype(np.float64)
        inside[np.isnan(truth)] = math.nan
        # Of several series at the same time, what they were on the whole.
        made[time] = _mean(inside)
        made.pop(time - (steps + 1) * interval, None)
        found[chosen] = inside
    return found


def _mean(inside: Doubles) -> Doubles:
    seen = np.isfinite(inside).sum(0)
    return np.where(seen > 0, np.nansum(inside, 0) / np.maximum(seen, 1), math.nan)


def _rows(base: Base, rows: Sequence[int]) -> Base:
    def of(values: Any) -> Any:  # noqa: ANN401  an array or None
        return None if values is None else values[rows]

    return Base(base.forecast[rows], of(base.low), of(base.high), of(base.volatility))
