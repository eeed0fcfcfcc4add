"""Forecasts that cost nothing and that a model has to beat: last value, last season, one linear map a target.

Shapes: B windows of a batch, L window, F features, N steps, T targets.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from models.layers.fill import Fill
from training.data.dataset import Dataset
from training.data.windows import Windows
from training.recipe import Recipe

Forecast = Callable[[Tensor], Tensor]
"""Windows of the targets [B, L, T], NaN where a value is missing -> forecast [B, N, T]."""

_RUNS = 4096
"""At a time: what bounds the memory where gaps leave many."""
_RIDGE = 1e-6
"""Of the mean of the diagonal: only enough to solve where columns of the window repeat each other."""
_FILL = Fill("carry_forward")


def fitted(recipe: Recipe, dataset: Dataset) -> dict[str, Forecast]:
    """The baselines by name, those with coefficients fitted on the training windows."""
    steps, season = recipe.window.steps, recipe.window.season
    return {
        "last_value": lambda window: last_value(window, steps),
        "seasonal_naive": lambda window: seasonal_naive(window, steps, season),
        "linear": linear(dataset.windows["train"], recipe.data.target_columns),
    }


def last_value(window: Tensor, steps: int) -> Tensor:
    """The last value goes on."""
    return _filled(window)[:, -1:].expand(-1, steps, -1)


def seasonal_naive(window: Tensor, steps: int, season: int) -> Tensor:
    """The last season goes on, over and over; of a value that it lacks the one a season before, or the last one."""
    size = window.size(1)
    place = torch.arange(steps, device=window.device) % season
    found = window[:, size - season + place]
    for end in range(size - season, 0, -season):
        missing = found.isnan()
        if not missing.any():
            break
        # Where there is no whole season any more, none of those rows counts.
        earlier = end - season + place
        older = window[:, earlier.clamp(min=0)].masked_fill((earlier < 0).view(1, -1, 1), float("nan"))
        found = torch.where(missing, older, found)
    return torch.where(found.isnan(), last_value(window, steps), found)


def linear(windows: Windows, targets: list[int]) -> Forecast:
    """Least squares from a target's window to its steps ahead, both as differences from the window's last value.

    Missing values are those before them, where the window has none those after them. The fit takes what came before the
    window for them, if the series has that: so it needs to cut no window out.
    """
    maps = torch.stack([_least_squares(windows, target) for target in targets])

    def forecast(window: Tensor) -> Tensor:
        window = _filled(window)
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
    values = _filled_series(windows, target, inside).double()
    # About the mean, for precision: a shift changes no difference. Rows that no window holds may still be missing.
    values = torch.where(inside, values - values[inside].mean(), 0.0)
    products = torch.zeros(size, size, dtype=torch.float64)
    for lag in range(size):
        found = _over_runs(values[: len(values) - lag] * values[lag:], first, after, size - lag)
        products.diagonal(lag).copy_(found)
        products.diagonal(-lag).copy_(found)
    return _over_runs(values, first, after, size), products


def _filled(window: Tensor) -> Tensor:
    """[B, L, T] -> each missing value that before it, or that after it where there is none."""
    filled: Tensor = _FILL(window) if window.isnan().any() else window
    return filled


def _filled_series(windows: Windows, target: int, inside: Tensor) -> Tensor:
    """The target in all rows [R], filled in the same way series by series, if windows have missing values inside."""
    values = windows.rows[:, target]
    seen = ~values.isnan()
    if (seen | ~inside).all():
        return values
    place = torch.arange(len(values))
    before = torch.from_numpy(np.maximum.accumulate(torch.where(seen, place, -1).numpy()))
    after = torch.from_numpy(np.minimum.accumulate(torch.where(seen, place, len(values)).numpy()[::-1])[::-1].copy())
    first = windows.clock.firsts[windows.clock.series(place)]
    return values[torch.where(before < first, after, before).clamp(max=len(values) - 1)]


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
