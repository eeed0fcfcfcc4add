"""Instance normalisation: every window by its own level and spread, so that a shift between years costs nothing.

Shapes: B rows, L window, M modelled features.
"""

from typing import Final, Literal

import torch
from torch import Tensor, nn

Normalisation = Literal["none", "last", "mean", "standard", "robust"]

_FLOOR = 1e-4
"""Of the variance, in scaled units: a window in which hardly anything happens must not blow up its noise."""
_MAD_TO_STD = 1.4826


class InstanceNorm(nn.Module):
    """What a window is shifted and scaled by.

    `last`: the last row, unscaled (as in NLinear, Zeng et al., AAAI 2023); `mean`: the mean, unscaled; `standard`:
    mean and standard deviation (RevIN, Kim et al., ICLR 2022, without its affine part); `robust`: median and median
    absolute deviation, which outliers do not move.
    """

    kind: Final[str]
    active: Final[bool]
    floor: Final[float]
    to_std: Final[float]

    def __init__(self, kind: Normalisation) -> None:
        super().__init__()
        self.kind = kind
        self.floor = _FLOOR
        self.to_std = _MAD_TO_STD
        self.active = kind != "none"

    def forward(self, modelled: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L, M] -> shift and scale, each [B, 1, M]."""
        last = modelled[:, -1:]
        if self.kind == "standard":
            variance, mean = torch.var_mean(modelled, dim=1, correction=0, keepdim=True)
            return mean, (variance + self.floor).sqrt()
        if self.kind == "robust":
            median = modelled.median(dim=1, keepdim=True)[0]
            deviation = (modelled - median).abs().median(dim=1, keepdim=True)[0] * self.to_std
            return median, (deviation.square() + self.floor).sqrt()
        if self.kind == "mean":
            return modelled.mean(1, keepdim=True), torch.ones_like(last)
        return last, torch.ones_like(last)
