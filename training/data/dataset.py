"""From series to what a run works with: a split in time, statistics of the training rows, windows of each part.

Shapes: R rows of a series, F features, T targets, L window, N steps.
"""

from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from models.intervals import windows_for
from models.spec import Data, Feature, Span, Statistics
from training.data.files import Series, read
from training.data.windows import Clock, Windows, narrow, overlong, usable, usable_short
from training.errors import DataError
from training.recipe import Recipe, Split


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the split: the half-open time [start, end) in epoch seconds."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Dataset:
    """Everything that the data has to say."""

    series: list[Series]
    features: list[Feature]
    """With the statistics of the training rows."""
    parts: dict[str, Part]
    windows: dict[str, Windows]
    """Of each part: `train`, `validation`, `calibration` where the recipe asks for one, `test`."""
    naive_errors: list[list[float]]
    """Of each series and target: the mean absolute error of the seasonal-naive forecast on the series' own training
    rows; 0 where it has no pair of them a season apart."""

    @property
    def names(self) -> list[str]:
        """Of the series: what the files call them, or the files' own; with the file where that leaves two the same."""
        names = [one.file if one.name is None else one.name for one in self.series]
        counts = Counter(names)
        return [
            name if counts[name] == 1 or one.name is None else f"{one.file}: {name}"
            for name, one in zip(names, self.series, strict=True)
        ]

    def sources(self) -> list[Data]:
        """The files, as the spec records them."""
        rows: Counter[tuple[str, str]] = Counter()
        for one in self.series:
            rows[one.file, one.sha256] += one.recorded
        return [Data(file=file, sha256=sha256, rows=count) for (file, sha256), count in rows.items()]

    def inventory(self) -> list[list[str]]:
        """A head and of each series: name, rows, rows of the grid that are not in the file, missing values in all."""
        lines = [
            [name, str(one.recorded), str(len(one) - one.recorded), str(int(one.missing.sum()))]
            for name, one in zip(self.names, self.series, strict=True)
        ]
        return [["series", "rows", "absent rows", "missing cells"], *lines]

    def span(self, name: str) -> Span:
        """A part as the spec records it."""
        part = self.parts[name]
        start, end = (datetime.fromtimestamp(moment, UTC) for moment in (part.start, part.end))
        return Span(start=start, end=end, windows=len(self.windows[name]))


def prepare(recipe: Recipe) -> Dataset:
    """Read, split and measure; DataError where a part has no window or a feature no training value."""
    series = read(recipe.data)
    return assemble(recipe, series, split(series, recipe.split, recipe.data.interval))


def assemble(recipe: Recipe, series: list[Series], parts: dict[str, Part]) -> Dataset:
    """Measure what is split already; DataError as of `prepare`."""
    interval = recipe.data.interval
    rows, series, firsts = _together(recipe, series)
    training = [rows_of(one, parts["train"], interval) for one in series]
    features = _features(recipe, series, training)
    windows = {name: _windows(recipe, series, part, rows, firsts) for name, part in parts.items()}
    if "calibration" in windows:
        _check_calibration(recipe, len(windows["calibration"]))
    return Dataset(
        series=series,
        features=features,
        parts=parts,
        windows=windows,
        naive_errors=[_naive_errors(recipe, one, rows) for one, rows in zip(series, training, strict=True)],
    )


def _check_calibration(recipe: Recipe, windows: int) -> None:
    """DataError where the calibration windows are too few for a level: that is better known before the training."""
    options = recipe.intervals
    level = max(options.levels)
    needed = windows_for(level, symmetric=options.symmetric)
    if windows < needed:
        raise DataError(
            f"intervals.levels: {level:g} takes {needed} calibration windows; there are {windows}: see"
            " split.calibration in the recipe"
        )


def _together(recipe: Recipe, series: list[Series]) -> tuple[Tensor, list[Series], list[int]]:
    """All rows, one series after the other, and the series as views of them, so that they are in memory once.

    And the number of the first row of each: in front of it are as many absent rows as a window may lack, in which
    nothing but static features has a value.
    """
    absent = recipe.window.length - recipe.window.fewest
    if len(series) == 1 and not absent:
        return series[0].values, series, [0]
    static = recipe.data.static_columns
    pieces: list[Tensor] = []
    firsts, before = [], 0
    for one in series:
        front = one.values.new_full((absent, one.values.size(1)), float("nan"))
        front[:, static] = one.values[0, static]
        pieces += [front, one.values]
        firsts.append(before + absent)
        before += absent + len(one)
    rows = torch.cat(pieces)
    views = [replace(one, values=rows[first : first + len(one)]) for one, first in zip(series, firsts, strict=True)]
    return rows, views, firsts


def split(series: list[Series], fractions: Split, interval: int) -> dict[str, Part]:
    """Cut the time that all series span together, so that no series lets another one look ahead."""
    start = min(one.start for one in series)
    end = max(one.start + len(one) * interval for one in series)
    rows = (end - start) // interval
    shares = {"train": fractions.train, "validation": fractions.validation, "calibration": fractions.calibration}
    # Summed in this order, so that a part more moves no border before it.
    ends = [start + round(rows * share) * interval for share in accumulate(shares.values())]
    bounds = zip([*shares, "test"], pairwise([start, *ends, end]), strict=True)
    return {name: Part(name, *bound) for name, bound in bounds if shares.get(name, 1)}


def rows_of(series: Series, part: Part, interval: int) -> slice:
    """The series' rows that lie in the part."""
    first, end = (max(-(-(moment - series.start) // interval), 0) for moment in (part.start, part.end))
    return slice(min(first, len(series)), min(end, len(series)))


def _features(recipe: Recipe, series: list[Series], training: list[slice]) -> list[Feature]:
    """Over the values observed in the training rows of all series, each row as heavy as any other."""
    features = []
    for index, column in enumerate(recipe.data.features):
        seen = [one.values[rows, index] for one, rows in zip(series, training, strict=True)]
        values = torch.cat([of[~of.isnan()] for of in seen]).double()
        if not values.numel():
            raise DataError(f"column {column.name!r} has no value in the training rows")
        statistics = Statistics(
            mean=values.mean().item(),
            std=values.std(correction=0).item(),
            min=values.min().item(),
            max=values.max().item(),
            quartiles=_quartiles(values),
        )
        features.append(Feature(**column.model_dump(), statistics=statistics))
    return features


def _quartiles(values: Tensor) -> tuple[float, float, float]:
    """Of the values, whose order is lost by it: so there need be no copy of them."""
    # numpy's, for torch takes no more than 16 million values.
    low, median, high = np.quantile(values.numpy(), (0.25, 0.5, 0.75), overwrite_input=True).tolist()
    return low, median, high


def _naive_errors(recipe: Recipe, series: Series, training: slice) -> list[float]:
    """Of each target; a pair of which one is missing counts for nothing."""
    season, found = recipe.window.season, []
    for column in recipe.data.target_columns:
        values = series.values[training, column]
        errors = values[season:].double().sub_(values[:-season]).abs_()
        found.append(errors.nansum().item() / max(int(errors.isfinite().sum()), 1))
    return found


def _windows(recipe: Recipe, series: list[Series], part: Part, rows: Tensor, firsts: list[int]) -> Windows:
    """The part's windows: every row to be forecast lies in the part; the rows given may reach back before it.

    `rows` are those of all series, one after the other. Of what is to be forecast, targets and what is known ahead must
    have been observed; past covariates need not, for nobody is told their forecast.
    """
    window, interval = recipe.window, recipe.data.interval
    absent = window.length - window.fewest
    starts = []
    for one, first in zip(series, firsts, strict=True):
        inside = rows_of(one, part, interval)
        own = rows[first - absent : first + len(one)]
        found = _usable(recipe, own, slice(inside.start + absent, inside.stop + absent)).nonzero().flatten()
        starts.append(found.add_(first - absent).to(narrow(len(rows))))
    if not any(map(len, starts)):
        raise DataError(_no_windows(recipe, series, part))
    return Windows(rows, torch.cat(starts), _clock(series, firsts, absent, interval), window.length, window.steps)


def _usable(recipe: Recipe, rows: Tensor, inside: slice) -> Tensor:
    """bool [R - (L + N) + 1]: which windows of a series' rows [R, F] may be; those to be forecast must be inside."""
    window, columns = recipe.window, recipe.data.features
    limit = recipe.data.gaps.limit or 0
    blocked = _blocked(rows, limit)
    unscored = torch.ones_like(blocked)
    unscored[inside] = False
    for index, column in enumerate(columns):
        if column.role != "past":
            unscored |= rows[:, index].isnan()
    if window.shortest is None:
        return usable(blocked, unscored, length=window.length, steps=window.steps, limit=limit)
    empty = torch.ones_like(blocked)
    for index, column in enumerate(columns):
        if column.role != "static":
            empty &= rows[:, index].isnan()
    return usable_short(
        blocked, unscored, empty, length=window.length, shortest=window.shortest, steps=window.steps, limit=limit
    )


def _blocked(rows: Tensor, limit: int) -> Tensor:
    """bool [R]: where a run of missing values of any feature [R, F] has become longer than `limit`."""
    found = torch.zeros(len(rows), dtype=torch.bool)
    for column in rows.unbind(1):
        found |= overlong(column.isnan(), limit)
    return found


def _clock(series: list[Series], firsts: list[int], absent: int, interval: int) -> Clock:
    begins = torch.tensor([one.start for one in series]) - absent * interval
    return Clock(torch.tensor(firsts) - absent, begins, interval)


def _no_windows(recipe: Recipe, series: list[Series], part: Part) -> str:
    window, limit = recipe.window, recipe.data.gaps.limit or 0
    longest = max(_longest_run(~_blocked(one.values, limit)) for one in series)
    rows = max(0, (part.end - part.start) // recipe.data.interval)
    kind, gap = (f"rows with no gap longer than {limit}", "such a gap") if limit else ("complete rows", "a gap")
    return (
        f"no window for {part.name}: one takes {window.fewest + window.steps} {kind} in a row, {part.name} spans"
        f" {rows} rows and the longest run without {gap} has {longest}; see data.gaps, split and window in the recipe"
    )


def _longest_run(marked: Tensor) -> int:
    ends = torch.nn.functional.pad((~marked).nonzero().flatten() + 1, (1, 0))
    return int(torch.diff(ends, append=torch.tensor([marked.size(0) + 1])).max()) - 1
