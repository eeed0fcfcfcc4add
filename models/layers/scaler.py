"""Scaling inside the graph, so that no client and no service can forget it.

Shapes: B rows, L window, F features, H steps, K known-future covariates, M = F - K modelled features, T targets.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.spec import Feature


class Scaler(nn.Module):
    """Standardises every feature by the mean and standard deviation of its training rows, and back."""

    mean: Tensor
    std: Tensor
    future_mean: Tensor
    future_std: Tensor
    target_mean: Tensor
    target_std: Tensor
    target_columns: Tensor

    def __init__(self, features: Sequence[Feature]) -> None:
        super().__init__()
        for prefix, chosen in (
            ("", list(features)),
            ("future_", [feature for feature in features if feature.role == "future"]),
            ("target_", [feature for feature in features if feature.role == "target"]),
        ):
            mean = torch.tensor([feature.statistics.mean for feature in chosen], dtype=torch.float32)
            std = torch.tensor([feature.statistics.scale for feature in chosen], dtype=torch.float32)
            self.register_buffer(f"{prefix}mean", mean)
            self.register_buffer(f"{prefix}std", std)
        modelled = [feature for feature in features if feature.role != "future"]
        columns = [index for index, feature in enumerate(modelled) if feature.role == "target"]
        self.register_buffer("target_columns", torch.tensor(columns))

    def scale_rows(self, rows: Tensor) -> Tensor:
        """[B, L, F] in raw units -> standardised."""
        return (rows - self.mean) / self.std

    def scale_future(self, future: Tensor) -> Tensor:
        """[B, H, K] in raw units -> standardised."""
        return (future - self.future_mean) / self.future_std

    def unscale_targets(self, modelled: Tensor) -> Tensor:
        """Standardised [B, H, M] -> the targets among them [B, H, T] in raw units."""
        return modelled.index_select(2, self.target_columns) * self.target_std + self.target_mean
