"""Windows as views of the series they are cut from, and the batches gathered from them.

Shapes: R rows, F features, L window, N steps, W windows, B windows of a batch, S series.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    """Windows as the loop works with them."""

    rows: Tensor
    """float32 [B, L + N, F]: what is given and what is to be forecast."""
    times: Tensor
    """int64 [B]: the epoch seconds of the last row given."""


class Shard(NamedTuple):
    """The part of every batch that one of several processes works on."""

    rank: int
    of: int


WHOLE = Shard(0, 1)


@dataclass(frozen=True, slots=True)
class Clock:
    """When each row was, by when its series began: that takes no memory, however long the series are."""

    firsts: Tensor
    """int64 [S]: the first row of each series, ascending."""
    begins: Tensor
    """int64 [S]: the epoch seconds of that row."""
    interval: int
    """Seconds between rows."""

    def series(self, rows: Tensor) -> Tensor:
        """Numbers of rows, of any shape -> those of the series that they belong to, int64."""
        return torch.searchsorted(self.firsts, rows.long(), right=True) - 1

    def at(self, rows: Tensor) -> Tensor:
        """Numbers of rows, of any shape -> their epoch seconds, int64."""
        series = self.series(rows)
        return self.begins[series] + (rows.long() - self.firsts[series]) * self.interval

    def to(self, device: torch.device) -> Self:
        """The same there."""
        return replace(self, firsts=self.firsts.to(device), begins=self.begins.to(device))


@dataclass(frozen=True, slots=True)
class Windows:
    """W places where L + N rows in a row can be learnt from. The rows lie in memory once, however many share them."""

    rows: Tensor
    """float32 [R, F]: all series, one after the other; NaN where a value is missing."""
    starts: Tensor
    """int32 [W], or int64 where there are more than 2^31 rows: the first row of each window."""
    clock: Clock
    length: int
    steps: int

    @property
    def view(self) -> Tensor:
        """[R - (L + N) + 1, L + N, F]: every run of rows, as a view."""
        return self.rows.unfold(0, self.length + self.steps, 1).transpose(1, 2)

    def __len__(self) -> int:
        return self.starts.size(0)

    def gather(self, index: Tensor) -> Batch:
        """The windows at int64 [B]."""
        starts = self.starts[index]
        return Batch(self.view[starts], self.clock.at(starts + (self.length - 1)))

    def to(self, device: torch.device) -> Self:
        """The same windows with their rows there, so that batches are gathered where they are needed."""
        return replace(self, rows=self.rows.to(device), starts=self.starts.to(device), clock=self.clock.to(device))


class Batches:
    """What a training loop iterates over: all windows once an epoch, in a fresh order where there is a seed.

    Several processes with the same seed go through the same batches, each through its own shard of every one; then
    `size` is that of all shards together.
    """

    def __init__(
        self,
        windows: Windows,
        size: int,
        *,
        seed: int | None = None,
        shard: Shard = WHOLE,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.windows = windows
        self.size = size
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)
        self.shard = shard
        self.augment = augment

    def __len__(self) -> int:
        # A last window alone joins the batch before it: batch normalisation cannot learn from one.
        fewest = 2 * self.shard.of
        return max(math.ceil((len(self.windows) - fewest + 1) / self.size), 1)

    def __iter__(self) -> Iterator[Batch]:
        sizes = [self.size] * (len(self) - 1)
        sizes.append(len(self.windows) - sum(sizes))
        for index in self._order().to(self.windows.rows.device).split(sizes):
            batch = self.windows.gather(index[self.shard.rank :: self.shard.of])
            yield batch if self.augment is None else batch._replace(rows=self.augment(batch.rows))

    def _order(self) -> Tensor:
        count = len(self.windows)
        kind = self.windows.starts.dtype
        if self.generator is None:
            return torch.arange(count, dtype=kind)
        return torch.randperm(count, generator=self.generator, dtype=kind)


def usable(overlong: Tensor, unscored: Tensor, *, length: int, steps: int, limit: int) -> Tensor:
    """bool [R - (L + N) + 1]: which runs of L + N rows may be a window.

    In the L rows given no run of missing values may be longer than `limit`, counted within the window: `overlong` [R]
    are the rows in which one has become so. None of the N to be forecast may be `unscored` [R].
    """
    runs = max(overlong.size(0) - length - steps + 1, 0)
    if not runs:
        return torch.zeros(0, dtype=torch.bool)
    return ~(_any(overlong, length - limit)[limit:][:runs] | _any(unscored, steps)[length:][:runs])


def usable_short(
    overlong: Tensor, unscored: Tensor, empty: Tensor, *, length: int, shortest: int, steps: int, limit: int
) -> Tensor:
    """The same where a window's first rows may be absent: those before the first that is not `empty` [R].

    At least `shortest` must be left, and within them runs are counted.
    """
    runs = max(overlong.size(0) - length - steps + 1, 0)
    if not runs:
        return torch.zeros(0, dtype=torch.bool)
    places = torch.arange(overlong.size(0), dtype=narrow(overlong.size(0)))
    first = places.masked_fill(empty, overlong.size(0))
    # In place from the last row to the first: the next row that is not empty.
    np.minimum.accumulate(first.numpy()[::-1], out=first.numpy()[::-1])
    first, end = first[:runs], places[:runs] + length
    total = _total(overlong)
    bad = total[end] != total[(first + limit).minimum(end)]
    return ~(bad | (end - first < shortest) | _any(unscored, steps)[length:][:runs])


def overlong(missing: Tensor, limit: int) -> Tensor:
    """bool [R]: the rows in which a run of missing values [R] has become longer than `limit`."""
    found = missing.clone()
    if limit:
        found[:limit] = False
        total = _total(missing)
        found[limit:] = total[limit + 1 :] - total[: -limit - 1] == limit + 1
    return found


def _any(marked: Tensor, size: int) -> Tensor:
    """Whether one is marked in each run of `size` rows, by one cumulative sum."""
    total = _total(marked)
    return total[size:] != total[:-size]


def _total(marked: Tensor) -> Tensor:
    """[R + 1]: how many are marked before each row."""
    total = marked.new_zeros(marked.size(0) + 1, dtype=narrow(marked.size(0)))
    torch.cumsum(marked, 0, dtype=total.dtype, out=total[1:])
    return total


def narrow(rows: int) -> torch.dtype:
    """The smallest type that counts so many rows: of a long series these numbers take more than its values."""
    return torch.int32 if rows < 2**31 else torch.int64
