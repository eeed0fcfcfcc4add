"""Windows as views of the series they are cut from, and the batches gathered from them.

Shapes: R rows, F features, L window, N steps, W windows, B windows of a batch.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Windows:
    """W places where L + N rows in a row are complete. The rows lie in memory once, however many windows share them."""

    rows: Tensor
    """float32 [R, F]: all series, one after the other."""
    starts: Tensor
    """int64 [W]: the first row of each window."""
    times: Tensor
    """int64 [W]: the epoch seconds of that row."""
    length: int
    steps: int

    @property
    def view(self) -> Tensor:
        """[R - (L + N) + 1, L + N, F]: every run of rows, as a view."""
        return self.rows.unfold(0, self.length + self.steps, 1).transpose(1, 2)

    def __len__(self) -> int:
        return self.starts.size(0)

    def gather(self, index: Tensor) -> Tensor:
        """Rows [B, L + N, F] of the windows at int64 [B]: what is given and what is to be forecast."""
        return self.view[self.starts[index]]

    def to(self, device: torch.device) -> Self:
        """The same windows with their rows there, so that batches are gathered where they are needed."""
        return type(self)(self.rows.to(device), self.starts.to(device), self.times, self.length, self.steps)


class Batches:
    """What a training loop iterates over: all windows once an epoch, in a fresh order where there is a seed."""

    def __init__(self, windows: Windows, size: int, *, seed: int | None = None) -> None:
        self.windows = windows
        self.size = size
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        # A last window alone joins the batch before it: batch normalisation cannot learn from one.
        return max(math.ceil((len(self.windows) - 1) / self.size), 1)

    def __iter__(self) -> Iterator[Tensor]:
        sizes = [self.size] * (len(self) - 1)
        sizes.append(len(self.windows) - sum(sizes))
        for index in self._order().to(self.windows.rows.device).split(sizes):
            yield self.windows.gather(index)

    def _order(self) -> Tensor:
        count = len(self.windows)
        return torch.arange(count) if self.generator is None else torch.randperm(count, generator=self.generator)


def complete(blocked: Tensor, unscored: Tensor, length: int, steps: int) -> Tensor:
    """bool [R - (L + N) + 1]: which runs of L + N rows may be a window.

    None of its rows may be blocked [R], and none of the N to be forecast unscored [R].
    """
    runs = max(blocked.size(0) - length - steps + 1, 0)
    if not runs:
        return torch.zeros(0, dtype=torch.bool)
    return (_count(blocked, length + steps)[:runs] + _count(unscored, steps)[length:][:runs]) == 0


def _count(marked: Tensor, size: int) -> Tensor:
    """How many are marked in each run of `size` rows, by one cumulative sum."""
    total = torch.nn.functional.pad(marked.to(torch.int64).cumsum(0), (1, 0))
    return total[size:] - total[:-size]
