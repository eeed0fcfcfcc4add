"""Filling missing values inside a window, so that a client sends what it has, and training and serving fill alike.

Shapes: B rows, L window, F features.
"""

from typing import Final, Literal

import torch
from torch import Tensor, nn


class Fill(nn.Module):
    """Each missing value by its feature's neighbours in the window: the last before it, or a straight line to the next.

    Before the first value a feature is taken to have been as in it, after the last one to stay as it was. A feature
    without any value stays missing.
    """

    straight: Final[bool]

    def __init__(self, method: Literal["carry_forward", "interpolate"] = "carry_forward") -> None:
        super().__init__()
        self.straight = method == "interpolate"

    def forward(self, window: Tensor) -> Tensor:
        """[B, L, F] with NaN -> the same without."""
        seen = ~window.isnan()
        place = torch.arange(window.size(1), device=window.device).view(1, -1, 1)
        # Of each row, the nearest rows with a value: itself where it has one.
        before = torch.where(seen, place, -1).cummax(1)[0]
        after = torch.where(seen, place, window.size(1)).flip(1).cummin(1)[0].flip(1)
        last = window.size(1) - 1
        older = window.gather(1, torch.where(before < 0, after, before).clamp(0, last))
        if not self.straight:
            return torch.where(seen, window, older)
        newer = window.gather(1, torch.where(after > last, before, after).clamp(0, last))
        share = ((place - before) / (after - before).clamp(min=1)).to(window.dtype)
        return torch.where(seen, window, older + (newer - older) * share)
