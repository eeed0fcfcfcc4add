"""What is minimised: the loss of unrolled forecasts, in the units that the recipe scales each feature to.

Shapes: B windows of a batch, L window, N steps, F features, M modelled features, T targets, Q quantiles.
"""

import math
import time
from functools import partial

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler, OptimizerLRSchedulerConfig
from torch import Tensor

from models.forecaster import Forecaster
from training.data.windows import Batch
from training.fitting import optimisation
from training.fitting.losses import Loss, loss, pinball
from training.recipe import Recipe


class Objective(lightning.LightningModule):
    """A network and its loss. Nothing is logged within an epoch: that would cost more than a small network's step."""

    weights: Tensor
    target_weights: Tensor
    known: Tensor
    targets: Tensor

    def __init__(self, network: Forecaster, recipe: Recipe) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.cost = loss(recipe.training)
        is_target = torch.tensor(
            [column.role == "target" for column in recipe.data.features if column.role in ("target", "past")]
        )
        weights = torch.where(is_target, 1.0, recipe.training.covariate_weight)
        self.register_buffer("weights", weights / weights.sum(), persistent=False)
        self.register_buffer("target_weights", is_target / is_target.sum(), persistent=False)
        self.register_buffer("targets", is_target.nonzero().flatten(), persistent=False)
        self.register_buffer("known", torch.tensor(recipe.data.known_columns, dtype=torch.int64), persistent=False)
        # No buffers: those are overwritten where several processes train.
        self.total = torch.zeros(())
        self.windows = 0
        self.forcing = 0.0
        self.began = self.speed = self.loss = self.rate = math.nan

    @property
    def running(self) -> float:
        """The mean loss of the epoch so far; asking waits for the device."""
        return float(self.total) / self.windows if self.windows else math.nan

    def errors(self, batch: Batch, forcing: float = 0.0) -> Tensor:
        """The mean loss of each modelled feature [M] over what was observed of it, that of a target's quantiles added.

        `forcing` is the probability of `Forecaster.unroll`.
        """
        window, ahead = batch.rows.split([self.recipe.window.length, self.recipe.window.steps], 1)
        found, _ = self.network.unroll(
            window,
            batch.times,
            ahead.index_select(2, self.known),
            self.recipe.window.steps,
            ahead if forcing else None,
            forcing,
        )
        wanted = self.network.core.modelled(self.network.scaler.scale_rows(ahead))
        found = found.to(wanted.dtype)
        cost = mean_cost(self.cost, found[:, :, : wanted.size(2)], wanted)
        if self.recipe.quantiles:
            cost = cost.index_add(0, self.targets, self.quantile_cost(found, wanted))
        return cost

    def quantile_cost(self, found: Tensor, wanted: Tensor) -> Tensor:
        """The loss [T] of the quantiles in outputs [B, N, M + Q * T], their mean."""
        truth = wanted.index_select(2, self.targets)
        spread = found[:, :, wanted.size(2) :].unflatten(2, (len(self.recipe.quantiles), -1))
        costs = [
            mean_cost(partial(pinball, quantile=quantile), spread[:, :, index], truth)
            for index, quantile in enumerate(self.recipe.quantiles)
        ]
        return torch.stack(costs).mean(0)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        options = self.recipe.training
        optimizer = optimisation.optimiser(options, self.network.parameters())
        schedule = optimisation.schedule(
            options, optimizer, steps=int(self.trainer.estimated_stepping_batches) // options.epochs
        )
        if schedule is None:
            return optimizer
        return OptimizerLRSchedulerConfig(optimizer=optimizer, lr_scheduler=schedule)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """As it is: batches are gathered where they are needed, and looking through them would cost time."""
        return batch

    def on_train_epoch_start(self) -> None:
        self._forget()
        # Now, since the schedule moves on before the epoch's validation ends.
        self.rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        options, epoch = self.recipe.training, self.trainer.current_epoch
        self.forcing = options.teacher_forcing * (1 - epoch / max(options.epochs - 1, 1))
        self.began = time.perf_counter()

    def training_step(self, batch: Batch, index: int) -> Tensor:
        found = self.errors(batch, self.forcing) @ self.weights
        self.count(found, batch.rows.size(0))
        return found

    def on_validation_epoch_start(self) -> None:
        self.loss, windows = self._take()
        self.speed = windows / (time.perf_counter() - self.began)

    def validation_step(self, batch: Batch, index: int) -> None:
        self.count(self.errors(batch) @ self.target_weights, batch.rows.size(0))

    def on_validation_epoch_end(self) -> None:
        validation, _ = self._take()
        found = {
            "loss": self.loss,
            "validation": validation,
            "learning_rate": self.rate,
            "windows_per_s": self.speed,
        }
        self.log_dict(found, batch_size=1, logger=False)

    def count(self, found: Tensor, windows: int) -> None:
        """Add the mean loss of so many windows to the epoch's."""
        self.total.add_(found.detach(), alpha=windows)
        self.windows += windows

    def _take(self) -> tuple[float, float]:
        """The mean loss of the windows of all processes since the last call, and their number."""
        own = torch.stack([self.total, self.total.new_tensor(self.windows)])
        total, windows = self.trainer.strategy.reduce(own, reduce_op="sum").tolist()
        self._forget()
        return total / windows, windows

    def _forget(self) -> None:
        self.total = torch.zeros((), device=self.device)
        self.windows = 0


def mean_cost(cost: Loss, found: Tensor, wanted: Tensor) -> Tensor:
    """The mean cost of each column of [B, N, any], over what was observed: NaN in the truth is nothing."""
    seen = ~wanted.isnan()
    # Not of the NaN itself: its gradient would be one too, whatever it is multiplied by.
    total = torch.where(seen, cost(found, torch.where(seen, wanted, 0.0)), 0.0).sum((0, 1))
    return total / seen.sum((0, 1)).clamp(min=1)
