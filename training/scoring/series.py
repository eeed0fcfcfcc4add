"""The errors of each series apart, added up while the windows are scored.

Shapes: B windows of a batch, W windows, N steps, T targets, O outputs (T of the forecast first), S series.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor

from training.data.dataset import Dataset
from training.recipe import Recipe
from training.scoring.evaluate import Question
from training.scoring.metrics import UNITLESS

Coverage = Mapping[str, Mapping[str, float]]
"""By target, then by level: the share of truths inside of the interval, mean of all steps."""

METRICS = ("mae", "rmse", "mase", "standardised_mae")
"""Those that are told of each series, of those in `metrics.TITLES`."""


@dataclass(frozen=True, slots=True)
class SeriesScores:
    """What one series has, and how it was forecast."""

    name: str
    rows: int
    """In the file."""
    absent: int
    """Rows of its grid that are not."""
    missing: int
    """Missing values, those of absent rows included."""
    windows: int
    """That were scored."""
    errors: Mapping[str, Mapping[str, float | None]]
    """By target, then by metric: means over all steps; empty where no window was scored.

    The scaled error is relative to the seasonal-naive forecast of this series' own training rows; None where it has
    none a season apart.
    """
    coverage: Coverage = field(default_factory=dict)
    """Empty where no window was scored, or the model has no intervals."""

    @property
    def covered(self) -> dict[str, float]:
        """By level: percent, mean of steps and targets."""
        targets = list(self.coverage.values())
        return {level: 100 * fmean(of[level] for of in targets) for level in targets[0]} if targets else {}

    @property
    def overall(self) -> dict[str, float | None]:
        """Of one target its errors; of several the means of what has no unit, and None for the rest."""
        if len(self.errors) == 1:
            return dict(*self.errors.values())
        return {metric: self._mean(metric) if metric in UNITLESS else None for metric in METRICS}

    def _mean(self, metric: str) -> float | None:
        known = [value for of in self.errors.values() if (value := of[metric]) is not None]
        return fmean(known) if known and len(known) == len(self.errors) else None


class BySeries:
    """Hears of every batch of an evaluation, in the order of the windows (`evaluate.Watch`)."""

    def __init__(self, recipe: Recipe, dataset: Dataset, part: str = "test") -> None:
        windows = dataset.windows[part]
        self.dataset = dataset
        self.targets = [dataset.features[column] for column in recipe.data.target_columns]
        self.of = windows.clock.series(windows.starts)
        self.done = 0
        series, steps, targets = len(dataset.series), recipe.window.steps, len(self.targets)
        self.absolute = torch.zeros(series, targets, dtype=torch.float64)
        self.squared = torch.zeros(series, steps, targets, dtype=torch.float64)

    def add(self, asked: Question, outputs: Tensor, attention: Tensor) -> None:  # noqa: ARG002  the contract of Watch
        """A batch: its outputs [B, N, O]."""
        error = outputs[:, :, : len(self.targets)].double() - asked.truth
        of = self.of[self.done : self.done + len(error)]
        self.absolute.index_add_(0, of, error.abs().mean(1))
        self.squared.index_add_(0, of, error.square())
        self.done += len(error)

    def scores(self) -> list[SeriesScores]:
        """Of every series, in the order of the data."""
        counts = self.of.bincount(minlength=len(self.absolute))
        mae = self.absolute / counts.unsqueeze(1)
        rmse = (self.squared / counts.view(-1, 1, 1)).sqrt().mean(1)
        dataset, found = self.dataset, []
        for index, (name, one) in enumerate(zip(dataset.names, dataset.series, strict=True)):
            windows = int(counts[index])
            errors = {}
            for place, target in enumerate(self.targets if windows else ()):
                error, naive = float(mae[index, place]), dataset.naive_errors[index][place]
                errors[target.name] = {
                    "mae": error,
                    "rmse": float(rmse[index, place]),
                    "mase": error / naive if naive > 0 else None,
                    "standardised_mae": error / target.statistics.scale,
                }
            missing = int(one.missing.sum())
            found.append(SeriesScores(name, one.recorded, len(one) - one.recorded, missing, windows, errors))
        return found


def ranked(scores: Sequence[SeriesScores]) -> list[SeriesScores]:
    """Those with a scaled error, the best first."""
    known = [(error, one) for one in scores if (error := one.overall["mase"]) is not None]
    return [one for _, one in sorted(known, key=lambda pair: pair[0])]
