"""Forecasts that cost nothing and that a model has to beat: last value, last season, one linear map a target.

Shapes: B windows of a batch, L window, F features, N steps, T targets.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from training.data.dataset import Dataset
from training.data.windows import Windows
from training.recipe import Recipe

Forecast = Callable[[Tensor], Tensor]
"""Windows of the targets [B, L, T] -> forecast [B, N, T]."""

_RUNS = 4096
"""At a time: what bounds the memory where gaps leave many."""
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
        change = window - last
        # The last difference is always zero; its place is that of the constant term.
        change[:, -1] = 1.0
        return torch.einsum("blt,tln->bnt", change, maps) + last

    return forecast


def _least_squares(windows: Windows, target: int) -> Tensor:
    """The coefficients float32 [L, N] by the normal equations."""
    last = windows.length - 1
    sums, products = _moments(windows, target)
    # Of differences from the last row, which leave zeros in its own place: the constant term takes it.
    inner = products - products[last] - products[:, last : last + 1] + products[last, last]
    inner[last] = inner[:, last] = sums - sums[last]
    inner[last, last] = len(windows)
    given, ahead = inner[: windows.length, : windows.length], inner[: windows.length, windows.length :]
    given.diagonal().add_(_RIDGE * given.diagonal().mean())
    coefficients: Tensor = torch.linalg.solve(given, ahead)
    return coefficients.float()


def _moments(windows: Windows, target: int) -> tuple[Tensor, Tensor]:
    """Over all windows: the sums of each row [L + N] and of the products of every two rows [L + N, L + N].

    Windows that start one row after the other make up a run. Over a run, row i of the windows is a stretch of the
    series, and the product of rows i and i + k a stretch of the series times itself k rows later; so one cumulative
    sum for each k is enough, and no window is ever cut out.
    """
    size = windows.length + windows.steps
    first, after = _runs(windows.starts)
    inside = _inside(first, after + size - 1, len(windows.rows))
    values = windows.rows[:, target].double()
    # About the mean, for precision: a shift changes no difference. Rows that no window holds may be missing.
    values = torch.where(inside, values - values[inside].mean(), 0.0)
    products = torch.zeros(size, size, dtype=torch.float64)
    for lag in range(size):
        found = _over_runs(values[: len(values) - lag] * values[lag:], first, after, size - lag)
        products.diagonal(lag).copy_(found)
        products.diagonal(-lag).copy_(found)
    return _over_runs(values, first, after, size), products


def _runs(starts: Tensor) -> tuple[Tensor, Tensor]:
    """Where each run of consecutive starts begins, and the row after its last start."""
    breaks = (starts.diff() != 1).nonzero().flatten()
    ends = torch.cat([breaks, torch.tensor([len(starts) - 1])])
    begins = torch.cat([torch.tensor([0]), breaks + 1])
    return starts[begins].long(), starts[ends].long() + 1


def _inside(begins: Tensor, ends: Tensor, rows: int) -> Tensor:
    """bool [R]: which rows lie in one of the half-open stretches."""
    changes = torch.zeros(rows + 1, dtype=torch.int64)
    changes.index_add_(0, begins, torch.ones_like(begins)).index_add_(0, ends, -torch.ones_like(ends))
    return changes.cumsum(0)[:rows] > 0


def _over_runs(values: Tensor, first: Tensor, after: Tensor, count: int) -> Tensor:
    """[count]: entry i is the sum of the values in the i-th row of all windows."""
    total = nn.functional.pad(values.cumsum(0), (1, 0)).unfold(0, count, 1)
    pairs = zip(first.split(_RUNS), after.split(_RUNS), strict=True)
    return torch.stack([(total[end] - total[begin]).sum(0) for begin, end in pairs]).sum(0)
