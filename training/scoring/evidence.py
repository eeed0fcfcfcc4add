"""What the pictures of a report are drawn from, gathered while the test windows are scored.

Shapes: B windows of a batch, W windows, L window, N steps, T targets, O outputs, T of the forecast first, R attention
rows a pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.spec import Feature
from training.scoring.evaluate import Question


@dataclass(slots=True)
class Evidence:
    """Hears of every batch of the evaluation, in the order of the windows."""

    targets: Sequence[Feature]
    """The T target features."""
    _times: list[Tensor] = field(default_factory=list)
    _first: list[Tensor] = field(default_factory=list)
    _last: list[Tensor] = field(default_factory=list)
    _misses: list[Tensor] = field(default_factory=list)
    _attention: list[Tensor] = field(default_factory=list)

    def add(self, asked: Question, outputs: Tensor, attention: Tensor) -> None:
        """A batch: its outputs [B, N, O] and attention [B, R * passes, L]."""
        scale = torch.tensor([target.statistics.scale for target in self.targets])
        error = outputs[:, :, : len(self.targets)] - asked.truth
        self._times.append(asked.time)
        self._first.append(error[:, 0])
        self._last.append(error[:, -1])
        self._misses.append((error.abs() / scale).mean((1, 2)))
        self._attention.append(attention.double().sum(0))

    @property
    def times(self) -> Tensor:
        """int64 [W]: the epoch seconds of the last row given."""
        return torch.cat(self._times)

    @property
    def first(self) -> Tensor:
        """[W, T]: forecast minus truth one step ahead."""
        return torch.cat(self._first)

    @property
    def last(self) -> Tensor:
        """[W, T]: forecast minus truth at the last step."""
        return torch.cat(self._last)

    @property
    def attention(self) -> Tensor:
        """[R * passes, L]: the mean over all windows."""
        return torch.stack(self._attention).sum(0) / len(self.times)

    def places(self) -> dict[str, int]:
        """The windows with the smallest, the median and the largest error: mean absolute, standardised."""
        order = torch.cat(self._misses).argsort(stable=True).tolist()
        return {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}


def autocorrelation(values: Tensor, times: Tensor, interval: int, lags: int) -> Tensor:
    """[lags]: the correlation of [W] values with those 1, 2, ... intervals before, over the pairs that there are.

    Times are int64 [W], ascending within each run; several series may follow each other.
    """
    deviation = (values - values.mean()).double()
    variance = deviation.square().mean()
    found = torch.zeros(lags, dtype=torch.float64)
    for lag in range(1, min(lags, len(values) - 1) + 1):
        paired = times[lag:] - times[:-lag] == lag * interval
        products = (deviation[lag:] * deviation[:-lag])[paired]
        if len(products) and variance > 0:
            found[lag - 1] = products.mean() / variance
    return found
