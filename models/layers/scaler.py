"""Scaling inside the graph, so that no client and no service can forget it.

Shapes: B rows, L window, F features, H steps, K known-future covariates, M = F - K modelled features, T targets.
"""

from collections.abc import Sequence

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

    def __init__(self, features: Sequence[Feature]) -> None:
        super().__init__()
        for prefix, chosen in (
            ("", list(features)),
            ("future_", [feature for feature in features if feature.role == "future"]),
            ("target_", [feature for feature in features if feature.role == "target"]),
        ):
            shift = torch.tensor([feature.shift for feature in chosen], dtype=torch.float32)
            scale = torch.tensor([feature.scale for feature in chosen], dtype=torch.float32)
            self.register_buffer(f"{prefix}shift", shift)
            self.register_buffer(f"{prefix}scale", scale)
        modelled = [feature for feature in features if feature.role != "future"]
        columns = [index for index, feature in enumerate(modelled) if feature.role == "target"]
        self.register_buffer("target_columns", torch.tensor(columns))

    def scale_rows(self, rows: Tensor) -> Tensor:
        """[B, L, F] in raw units -> scaled."""
        return (rows - self.shift) / self.scale

    def scale_future(self, future: Tensor) -> Tensor:
        """[B, H, K] in raw units -> scaled."""
        return (future - self.future_shift) / self.future_scale

    def unscale_targets(self, modelled: Tensor) -> Tensor:
        """Scaled [B, H, M] -> the targets among them [B, H, T] in raw units."""
        return modelled.index_select(2, self.target_columns) * self.target_scale + self.target_shift
