"""From a network's features to the next H rows.

Shapes: B rows, D width of the features, H steps a pass, K features known ahead, M modelled features, O outputs.
"""

from typing import Final, Literal

import torch
from torch import Tensor, nn

from models.core import Shape

Norm = Literal["none", "batch", "layer"]


class Head(nn.Module):
    """Features and the known future -> H rows, as changes from the last row when `residual`.

    Forecasting the change instead of the level makes "tomorrow is like now" the starting point of training. `norm`
    is taken of the features first: over the batch in training (Ioffe and Szegedy, 2015), or over the features of
    each row (Ba, Kiros and Hinton, 2016).
    """

    residual: Final[bool]
    horizon: Final[int]
    outputs: Final[int]
    modelled: Final[int]
    columns: Tensor

    def __init__(self, width: int, shape: Shape, *, dropout: float, norm: Norm = "none", residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.horizon = shape.horizon
        self.outputs, self.modelled = shape.outputs, shape.modelled
        columns = [*range(shape.modelled), *(shape.targets * shape.quantiles)]
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.norm = _norm(norm, width)
        self.dropout = nn.Dropout(dropout)
        self.read = nn.Linear(width + shape.horizon * shape.known, shape.horizon * shape.outputs)

    def forward(self, features: Tensor, last: Tensor, future: Tensor) -> Tensor:
        """Features [B, D], last row's modelled features [B, 1, M], future [B, H, K] -> rows [B, H, O]."""
        features = self.dropout(self.norm(features))
        rows: Tensor = self.read(torch.cat([features, future.flatten(1)], 1))
        rows = rows.view(rows.size(0), self.horizon, -1)
        if not self.residual:
            return rows
        return rows + (last.index_select(2, self.columns) if self.outputs > self.modelled else last)


def _norm(name: Norm, width: int) -> nn.Module:
    if name == "none":
        return nn.Identity()
    return nn.BatchNorm1d(width) if name == "batch" else nn.LayerNorm(width)
