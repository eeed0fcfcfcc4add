"""Errors of forecasts by step and target, in original units, added up batch by batch.

Shapes: B windows of a batch, N steps, T targets.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.spec import Scores


class Errors:
    """Sums over windows, in double precision."""

    def __init__(self, steps: int, targets: int) -> None:
        self.windows = 0
        self.absolute, self.squared, self.truth, self.truth_squared = torch.zeros(
            4, steps, targets, dtype=torch.float64
        )

    def add(self, forecast: Tensor, truth: Tensor) -> None:
        """Two [B, N, T]."""
        wanted = truth.double()
        error = forecast.double() - wanted
        self.windows += truth.size(0)
        self.absolute += error.abs().sum(0)
        self.squared += error.square().sum(0)
        self.truth += wanted.sum(0)
        self.truth_squared += wanted.square().sum(0)

    def scores(self, targets: Sequence[str], naive_errors: Sequence[float]) -> dict[str, Scores]:
        """By target; `naive_errors` are the denominators of MASE."""
        return {name: self._of(index, naive_errors[index]) for index, name in enumerate(targets)}

    def _of(self, target: int, naive_error: float) -> Scores:
        mae = (self.absolute[:, target] / self.windows).tolist()
        squared = self.squared[:, target]
        spread = (self.truth_squared - self.truth.square() / self.windows)[:, target]
        return Scores(
            mae=mae,
            rmse=(squared / self.windows).sqrt().tolist(),
            r2=[
                1 - error / of if of > 0 else None for error, of in zip(squared.tolist(), spread.tolist(), strict=True)
            ],
            mase=[error / naive_error if naive_error > 0 else None for error in mae],
        )
