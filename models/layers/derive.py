"""Derived features, computed in the graph: rolling mean, variance and trend of a feature, and its change.

So a client sends raw rows, and training and serving cannot differ in how they derive.
Shapes: B rows, n rows of a window, F features, E derived features.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from models.spec import Derived


class Derive(nn.Module):
    """Every derived feature as a filter over the last rows of its feature; a variance is one over the squares too."""

    reach: Final[int]
    """How many rows before a row its derived features look at."""
    weights: Tensor
    squared: Tensor

    def __init__(self, derived: Sequence[tuple[int, Derived]], features: int) -> None:
        super().__init__()
        self.reach = max((_taps(one).size(0) - 1 for _, one in derived), default=0)
        weights = torch.zeros(len(derived), features, self.reach + 1)
        for index, (column, one) in enumerate(derived):
            taps = _taps(one)
            weights[index, column, self.reach + 1 - taps.size(0) :] = taps
        squared = torch.tensor([one.kind == "variance" for _, one in derived]).view(-1, 1)
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("squared", squared, persistent=False)
        self.active = bool(derived)

    def pad(self, rows: Tensor) -> Tensor:
        """[B, n, F] -> [B, reach + n, F]: before its first row a window is taken to have been as in it."""
        if self.reach == 0:
            return rows
        return torch.cat([rows[:, :1].expand(-1, self.reach, -1), rows], 1)

    def forward(self, rows: Tensor) -> Tensor:
        """[B, reach + n, F] -> the last n rows with their derived features, [B, n, F + E]."""
        if not self.active:
            return rows
        features = rows.transpose(1, 2)
        found = torch.conv1d(features, self.weights)
        # From the first row, as squares of a level far from zero would leave no digits for the spread.
        offset = features - features[:, :, :1]
        spread = torch.conv1d(offset.square(), self.weights) - torch.conv1d(offset, self.weights).square()
        found = torch.where(self.squared, spread.clamp(min=0.0), found)
        return torch.cat([rows[:, self.reach :], found.transpose(1, 2)], 2)

    def extend(self, rows: Tensor) -> Tensor:
        """[B, n, F] -> [B, n, F + E]."""
        return self.forward(self.pad(rows))


def _taps(derived: Derived) -> Tensor:
    """What each of the last rows counts, the newest last."""
    rows = derived.rows
    if derived.kind == "difference":
        # The change from so many rows before to now.
        return torch.cat([torch.tensor([-1.0]), torch.zeros(rows - 1), torch.tensor([1.0])])
    if derived.kind == "trend":
        # The slope of the least-squares line, a row.
        place = torch.arange(rows) - (rows - 1) / 2
        return place / place.square().sum()
    return torch.full((rows,), 1.0 / rows)
