"""Errors of forecasts by step and target, added up batch by batch, and their averages.

Shapes: B windows of a batch, N steps, T targets.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models.spec import Feature, Metrics, Scores

TITLES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
    "smape": "sMAPE %",
    "mase": "MASE",
    "standardised_mse": "MSE (std)",
    "standardised_mae": "MAE (std)",
}
"""Every metric as a person reads it; the last two are on the standardised scale."""

UNITLESS = frozenset(TITLES) - {"mae", "rmse"}
"""Those that may be averaged over targets."""

OVERALL = "(all)"
"""Stands among the targets for the mean of all of them."""

_NO_SPREAD = 1e-12
"""Of the training variance: what rounding leaves of the spread of a truth that never changes."""

Averages = dict[str, dict[str, float | None]]
"""By target or OVERALL, then by metric; None where a step has no value."""


class Errors:
    """Sums over windows, in double precision.

    `targets` are the T target features, whose training mean and standard deviation set the standardised scale.
    """

    def __init__(self, steps: int, targets: Sequence[Feature]) -> None:
        self.names = [target.name for target in targets]
        self.mean = torch.tensor([target.statistics.mean for target in targets], dtype=torch.float64)
        self.scale = torch.tensor([target.statistics.scale for target in targets], dtype=torch.float64)
        self.windows = 0
        self.scalable = torch.zeros(len(targets), dtype=torch.int64)
        self.absolute, self.scaled, self.squared, self.relative, self.truth, self.truth_squared = torch.zeros(
            6, steps, len(targets), dtype=torch.float64
        )

    def add(self, forecast: Tensor, truth: Tensor, naive_errors: Tensor) -> None:
        """Two [B, N, T] in the units of the data, and the denominators of MASE [B, T]: those of each window's series.

        A window counts for nothing in MASE where its denominator is 0.
        """
        given, wanted = forecast.double(), truth.double()
        error = given - wanted
        # About the mean, so that the squares of a series far from zero keep their digits.
        centred = (wanted - self.mean) / self.scale
        self.windows += truth.size(0)
        self.absolute += error.abs().sum(0)
        known = naive_errors > 0
        self.scaled += (error.abs() / torch.where(known, naive_errors, math.inf).unsqueeze(1)).sum(0)
        self.scalable += known.sum(0)
        self.squared += error.square().sum(0)
        self.relative += _relative(error, given, wanted).sum(0)
        self.truth += centred.sum(0)
        self.truth_squared += centred.square().sum(0)

    def scores(self) -> dict[str, Scores]:
        """By target."""
        return {name: self._of(index) for index, name in enumerate(self.names)}

    def _of(self, target: int) -> Scores:
        scale, scalable = self.scale[target], int(self.scalable[target])
        mae, mse = self.absolute[:, target] / self.windows, self.squared[:, target] / self.windows
        spread = self.truth_squared[:, target] / self.windows - (self.truth[:, target] / self.windows).square()
        standardised = mse / scale.square()
        return Scores(
            mae=mae.tolist(),
            rmse=mse.sqrt().tolist(),
            r2=[
                1 - error / of if of > _NO_SPREAD else None
                for error, of in zip(standardised.tolist(), spread.tolist(), strict=True)
            ],
            mase=[error / scalable if scalable else None for error in self.scaled[:, target].tolist()],
            smape=(200 * self.relative[:, target] / self.windows).tolist(),
            standardised_mse=standardised.tolist(),
            standardised_mae=(mae / scale).tolist(),
        )


def _relative(error: Tensor, forecast: Tensor, truth: Tensor) -> Tensor:
    """|error| / (|forecast| + |truth|), and 0 where both are zero."""
    size = forecast.abs() + truth.abs()
    return torch.where(size > 0, error.abs() / size, 0.0)


def stretches(metrics: Metrics) -> dict[str, slice]:
    """The steps over which averages are taken: `all`, and `direct` and `recursive` apart where there are both."""
    whole = slice(0, metrics.steps)
    if metrics.horizon is None or metrics.horizon >= metrics.steps:
        return {"all": whole}
    return {"all": whole, "direct": slice(0, metrics.horizon), "recursive": slice(metrics.horizon, metrics.steps)}


def forecasts(metrics: Metrics) -> dict[str, dict[str, Scores]]:
    """The scores of the model (`model`) and of the baselines."""
    return {"model": metrics.model, **metrics.baselines}


def averages(scores: Mapping[str, Scores], steps: slice) -> Averages:
    """Means over these steps for each target, and of the unitless metrics over all targets too."""
    found: Averages = {
        target: {metric: _mean(getattr(of, metric)[steps]) for metric in TITLES} for target, of in scores.items()
    }
    overall = {
        metric: _mean([of[metric] for of in found.values()]) if metric in UNITLESS else None for metric in TITLES
    }
    return {**found, OVERALL: overall}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
