"""Forecasts that cost nothing and that a model has to beat: last value, last season, one linear map a target.

Shapes: B windows of a batch, L window, F features, N steps, T targets.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from training.dataset import Dataset
from training.recipe import Recipe
from training.windows import Batches, Windows

Forecast = Callable[[Tensor], Tensor]
"""Windows of the targets [B, L, T] -> forecast [B, N, T]."""

_BATCH = 4096
_RIDGE = 1e-6
"""Of the mean of the diagonal: only enough to solve where columns of the window repeat each other."""


def fitted(recipe: Recipe, dataset: Dataset) -> dict[str, Forecast]:
    """The baselines by name, those with coefficients fitted on the training windows."""
    steps, season = recipe.window.steps, recipe.window.season
    return {
        "last_value": lambda window: last_value(window, steps),
        "seasonal_naive": lambda window: seasonal_naive(window, steps, season),
        "linear": linear(dataset.windows["train"], recipe.data.target_columns),
    }


def last_value(window: Tensor, steps: int) -> Tensor:
    """The last row goes on."""
    return window[:, -1:].expand(-1, steps, -1)


def seasonal_naive(window: Tensor, steps: int, season: int) -> Tensor:
    """The last season goes on, over and over."""
    place = torch.arange(steps, device=window.device) % season
    return window[:, window.size(1) - season + place]


def linear(windows: Windows, targets: list[int]) -> Forecast:
    """Least squares from a target's window to its steps ahead, both as differences from the window's last value."""
    maps = torch.stack([_least_squares(windows, target) for target in targets])

    def forecast(window: Tensor) -> Tensor:
        last = window[:, -1:]
        change = torch.einsum("blt,tln->bnt", _terms(window - last), maps)
        return (change + last).to(window.dtype)

    return forecast


def _least_squares(windows: Windows, target: int) -> Tensor:
    """The coefficients [L, N] by the normal equations, which need no more memory than a batch."""
    length = windows.length
    inner = torch.zeros(length, length, dtype=torch.float64)
    outer = torch.zeros(length, windows.steps, dtype=torch.float64)
    for rows in Batches(windows, _BATCH):
        values = rows[:, :, target : target + 1].double()
        change = values - values[:, length - 1 : length]
        terms = _terms(change[:, :length])[:, :, 0]
        inner += terms.T @ terms
        outer += terms.T @ change[:, length:, 0]
    inner += torch.eye(length, dtype=torch.float64) * (_RIDGE * inner.diagonal().mean())
    coefficients: Tensor = torch.linalg.solve(inner, outer)
    return coefficients


def _terms(change: Tensor) -> Tensor:
    """Differences [B, L, T] with the last, which is always zero, replaced by the constant term."""
    ones = torch.ones_like(change[:, :1], dtype=torch.float64)
    return torch.cat([change[:, :-1].double(), ones], 1)
