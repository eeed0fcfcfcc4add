"""Scaling inside the graph, so that no client and no service can forget it.

Shapes: B rows, L window, F features, H steps, K features known ahead, M = F - K modelled features, T targets,
Q quantiles of each, O = M + Q * T outputs.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from models.spec import Feature


class Scaler(nn.Module):
    """Shifts and scales every feature by what its training rows say, and back."""

    shift: Tensor
    scale: Tensor
    future_shift: Tensor
    future_scale: Tensor
    target_shift: Tensor
    target_scale: Tensor
    target_columns: Tensor
    target_low: Tensor
    target_high: Tensor
    limited: Final[bool]

    def __init__(self, features: Sequence[Feature], quantiles: int = 0) -> None:
        super().__init__()
        for prefix, chosen in (
            ("", list(features)),
            ("future_", [feature for feature in features if feature.is_known]),
            ("target_", [feature for feature in features if feature.role == "target"] * (1 + quantiles)),
        ):
            shift = torch.tensor([feature.shift for feature in chosen], dtype=torch.float32)
            scale = torch.tensor([feature.scale for feature in chosen], dtype=torch.float32)
            self.register_buffer(f"{prefix}shift", shift)
            self.register_buffer(f"{prefix}scale", scale)
        limits = torch.tensor([feature.limits for feature in chosen], dtype=torch.float32).view(-1, 2)
        self.limited = bool(limits.isfinite().any())
        self.register_buffer("target_low", limits[:, 0].clone(), persistent=False)
        self.register_buffer("target_high", limits[:, 1].clone(), persistent=False)
        modelled = [feature for feature in features if not feature.is_known]
        columns = [index for index, feature in enumerate(modelled) if feature.role == "target"]
        columns += range(len(modelled), len(modelled) + len(columns) * quantiles)
        self.register_buffer("target_columns", torch.tensor(columns))

    def scale_rows(self, rows: Tensor) -> Tensor:
        """[B, L, F] in raw units -> scaled."""
        return (rows - self.shift) / self.scale

    def scale_future(self, future: Tensor) -> Tensor:
        """[B, H, K] in raw units -> scaled."""
        return (future - self.future_shift) / self.future_scale

    def unscale_targets(self, outputs: Tensor) -> Tensor:
        """Scaled [B, H, O] -> the targets among them, and their quantiles, [B, H, T + Q * T] in raw units.

        Within the limits of each, where it has any.
        """
        targets = outputs.index_select(2, self.target_columns) * self.target_scale + self.target_shift
        return targets.clamp(self.target_low, self.target_high) if self.limited else targets
