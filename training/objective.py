"""What is minimised and by which steps: the loss of unrolled forecasts, in standard deviations of each feature.

Shapes: B windows of a batch, L window, N steps, F features, M modelled features.
"""

import math
import time
from collections.abc import Callable

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import lr_scheduler

from models.forecaster import Forecaster
from training.recipe import Recipe

_LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": nn.functional.mse_loss,
    "mae": nn.functional.l1_loss,
    "huber": nn.functional.smooth_l1_loss,
}
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
_PATIENCE = 2
"""Epochs without progress after which `plateau` halves the learning rate."""


class Objective(lightning.LightningModule):
    """A network and its loss. Nothing is logged within an epoch: that would cost more than a small network's step."""

    weights: Tensor
    target_weights: Tensor
    known: Tensor
    total: Tensor
    """Of the epoch so far: loss times windows, and windows."""

    def __init__(self, network: Forecaster, recipe: Recipe) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        is_target = torch.tensor(
            [column.role == "target" for column in recipe.data.features if column.role != "future"]
        )
        weights = torch.where(is_target, 1.0, recipe.training.covariate_weight)
        self.register_buffer("weights", weights / weights.sum(), persistent=False)
        self.register_buffer("target_weights", is_target / is_target.sum(), persistent=False)
        self.register_buffer("known", torch.tensor(recipe.data.known_columns, dtype=torch.int64), persistent=False)
        self.register_buffer("total", torch.zeros(2), persistent=False)
        self.began = self.speed = self.loss = self.rate = math.nan

    def errors(self, rows: Tensor) -> Tensor:
        """Rows [B, L + N, F] in raw units -> the mean loss of each modelled feature [M]."""
        length, steps = self.recipe.window.length, self.recipe.window.steps
        window, ahead = rows[:, :length], rows[:, length:]
        time_of_last = rows.new_zeros(rows.size(0), dtype=torch.int64)
        found, _ = self.network.unroll(window, time_of_last, ahead.index_select(2, self.known), steps)
        wanted = self.network.core.modelled(self.network.scaler.scale_rows(ahead))
        return _LOSSES[self.recipe.training.loss](found, wanted, reduction="none").mean((0, 1))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        options = self.recipe.training
        optimizer = _OPTIMIZERS[options.optimizer](
            self.network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        if options.schedule == "cosine":
            return [optimizer], [lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)]
        if options.schedule == "plateau":
            plateau = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=_PATIENCE - 1)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "validation"}}
        return optimizer

    def on_train_epoch_start(self) -> None:
        self.total.zero_()
        # Now, since the schedule moves on before the epoch's validation ends.
        self.rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.began = time.perf_counter()

    def training_step(self, rows: Tensor, index: int) -> Tensor:  # noqa: ARG002  Lightning's name for it
        loss = self.errors(rows) @ self.weights
        self._add(loss, rows)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.loss, windows = self._take()
        self.speed = windows / (time.perf_counter() - self.began)

    def validation_step(self, rows: Tensor, index: int) -> None:  # noqa: ARG002
        self._add(self.errors(rows) @ self.target_weights, rows)

    def on_validation_epoch_end(self) -> None:
        validation, _ = self._take()
        found = {
            "loss": self.loss,
            "validation": validation,
            "learning_rate": self.rate,
            "windows_per_s": self.speed,
        }
        self.log_dict(found, batch_size=1)

    def _add(self, loss: Tensor, rows: Tensor) -> None:
        count = float(rows.size(0))
        self.total += torch.stack([loss.detach() * count, loss.new_tensor(count)])

    def _take(self) -> tuple[float, float]:
        """The mean loss of the windows since the last call, and their number."""
        total, count = self.total.tolist()
        self.total.zero_()
        return total / count, count
