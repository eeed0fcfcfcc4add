"""From series to what a run works with: a split in time, statistics of the training rows, windows of each part.

Shapes: R rows of a series, F features, T targets, L window, N steps.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import torch
from torch import Tensor

from models.spec import Feature, Span, Statistics
from training.data.files import Series, read
from training.data.windows import Clock, Windows, complete, narrow
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
    """Of each part: `train`, `validation`, `test`."""
    naive_errors: list[float]
    """Of each target: the mean absolute error of the seasonal-naive forecast on the training rows."""

    def inventory(self) -> list[list[str]]:
        """Of each file: name, rows, missing rows, filled cells, cells still missing."""
        return [
            [
                one.file,
                str(one.recorded),
                str(len(one) - one.recorded),
                str(int(one.filled.sum())),
                str(int(one.missing.sum())),
            ]
            for one in self.series
        ]

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
    rows, series = _together(series)
    training = [rows_of(one, parts["train"], interval) for one in series]
    return Dataset(
        series=series,
        features=_features(recipe, series, training),
        parts=parts,
        windows={name: _windows(recipe, series, part, rows) for name, part in parts.items()},
        naive_errors=_naive_errors(recipe, series, training),
    )


def _together(series: list[Series]) -> tuple[Tensor, list[Series]]:
    """All rows, one series after the other, and the series as views of them, so that they are in memory once."""
    if len(series) == 1:
        return series[0].values, series
    rows = torch.cat([one.values for one in series])
    parts = rows.split([len(one) for one in series])
    return rows, [replace(one, values=part) for one, part in zip(series, parts, strict=True)]


def split(series: list[Series], fractions: Split, interval: int) -> dict[str, Part]:
    """Cut the time that all series span together, so that no series lets another one look ahead."""
    start = min(one.start for one in series)
    end = max(one.start + len(one) * interval for one in series)
    rows = (end - start) // interval
    first = start + round(rows * fractions.train) * interval
    second = start + round(rows * (fractions.train + fractions.validation)) * interval
    bounds = {"train": (start, first), "validation": (first, second), "test": (second, end)}
    return {name: Part(name, *bound) for name, bound in bounds.items()}


def rows_of(series: Series, part: Part, interval: int) -> slice:
    """The series' rows that lie in the part."""
    first, end = (max(-(-(moment - series.start) // interval), 0) for moment in (part.start, part.end))
    return slice(min(first, len(series)), min(end, len(series)))


def _features(recipe: Recipe, series: list[Series], training: list[slice]) -> list[Feature]:
    features = []
    observed = [one.observed[rows] for one, rows in zip(series, training, strict=True)]
    for index, column in enumerate(recipe.data.features):
        seen = [
            one.values[rows, index][marks[:, index]]
            for one, rows, marks in zip(series, training, observed, strict=True)
        ]
        values = torch.cat(seen).double()
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


def _naive_errors(recipe: Recipe, series: list[Series], training: list[slice]) -> list[float]:
    season, targets = recipe.window.season, recipe.data.target_columns
    found = []
    for column in targets:
        total, count = 0.0, 0
        for one, rows in zip(series, training, strict=True):
            # NaN where either of the two was not observed: such a pair counts for nothing.
            values = one.values[rows, column].masked_fill(one.filled[rows, column], float("nan"))
            errors = values[season:].double().sub_(values[:-season]).abs_()
            total += errors.nansum().item()
            count += int(errors.isfinite().sum())
        found.append(total / max(count, 1))
    return found


def _windows(recipe: Recipe, series: list[Series], part: Part, rows: Tensor) -> Windows:
    """The part's windows: every row to be forecast lies in the part; the rows given may reach back before it.

    `rows` are those of all series, one after the other. A target that was filled is never to be forecast: nobody
    knows what it was.
    """
    length, steps, interval = recipe.window.length, recipe.window.steps, recipe.data.interval
    starts, offset = [], 0
    for one in series:
        inside = torch.zeros(len(one), dtype=torch.bool)
        inside[rows_of(one, part, interval)] = True
        unscored = ~inside | one.filled[:, recipe.data.target_columns].any(1)
        found = complete(one.missing.any(1), unscored, length, steps).nonzero().flatten()
        starts.append(found.add_(offset).to(narrow(len(rows))))
        offset += len(one)
    if not any(map(len, starts)):
        raise DataError(_no_windows(series, part, length + steps, interval))
    return Windows(rows, torch.cat(starts), _clock(series, interval), length, steps)


def _clock(series: list[Series], interval: int) -> Clock:
    firsts = torch.tensor([0, *map(len, series)]).cumsum(0)[:-1]
    return Clock(firsts, torch.tensor([one.start for one in series]), interval)


def _no_windows(series: list[Series], part: Part, needed: int, interval: int) -> str:
    longest = max(_longest_run(~one.missing.any(1)) for one in series)
    rows = max(0, (part.end - part.start) // interval)
    return (
        f"no window for {part.name}: one takes {needed} complete rows in a row, {part.name} spans {rows} rows"
        f" and the longest run without a gap has {longest}; see data.gaps, split and window in the recipe"
    )


def _longest_run(marked: Tensor) -> int:
    ends = torch.nn.functional.pad((~marked).nonzero().flatten() + 1, (1, 0))
    return int(torch.diff(ends, append=torch.tensor([marked.size(0) + 1])).max()) - 1
