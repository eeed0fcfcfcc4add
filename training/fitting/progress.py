"""What is kept of every epoch, the best weights among them, and the bar that shows how far training has come."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import lightning
from lightning.pytorch.callbacks import Callback
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from training.errors import DivergedError
from training.fitting.objective import Objective

_SHOWN_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over the training windows and what the validation windows said after it."""

    number: int
    """From 1."""
    loss: float
    validation: float
    """The loss of the targets alone, on the validation windows."""
    learning_rate: float
    windows_per_s: float
    best: bool
    """Whether no earlier epoch had a smaller validation error."""
    member: int = 0
    """Of an ensemble, from 1; 0 where there is none."""

    def __str__(self) -> str:
        member = f"member {self.member}  " if self.member else ""
        best = "*" if self.best else " "
        return (
            f"{member}epoch {self.number:3d}  loss {self.loss:.4f}  validation {self.validation:.4f}{best}"
            f"  lr {self.learning_rate:.1e}  {self.windows_per_s:,.0f} windows/s"
        )


def runs(epochs: Sequence[Epoch]) -> list[list[Epoch]]:
    """The epochs of each network that was trained: of every member of an ensemble, else one list of all."""
    return [list(group) for _, group in groupby(epochs, key=lambda epoch: epoch.member)]


def kept(run: Sequence[Epoch]) -> Epoch:
    """The epoch whose weights are published."""
    return [epoch for epoch in run if epoch.best][-1]


class History(Callback):
    """Keeps every epoch and the weights of the best; DivergedError where the error is not a number."""

    def __init__(self, network: nn.Module, tell: Callable[[Epoch], None]) -> None:
        self.network = network
        self.tell = tell
        self.epochs: list[Epoch] = []
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        best = found["validation"] < min((epoch.validation for epoch in self.epochs), default=math.inf)
        epoch = Epoch(
            trainer.current_epoch + 1,
            found["loss"],
            found["validation"],
            found["learning_rate"],
            found["windows_per_s"],
            best,
        )
        if not math.isfinite(epoch.loss + epoch.validation):
            raise DivergedError(f"epoch {epoch.number}: the loss is {epoch.loss}; try a smaller training.learning_rate")
        self.epochs.append(epoch)
        if best:
            self.weights = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        if trainer.is_global_zero:
            self.tell(epoch)

    def restore(self) -> None:
        """Give the network the best weights again."""
        self.network.load_state_dict(self.weights)


class Bar(Callback):
    """The steps of the epoch, its loss so far, and the validation error of the epoch before.

    It looks at the clock at every step and at the loss only when it draws, so that a step costs nothing more.
    """

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  validation {task.fields[validation]:.4f}"),
            console=get_console(),
            transient=True,
        )
        self.task: TaskID | None = None
        self.validation = math.nan
        self.due = 0.0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        fields: dict[str, Any] = {
            "epoch": f"{trainer.current_epoch + 1}/{trainer.max_epochs}",
            "loss": math.nan,
            "validation": self.validation,
        }
        if self.task is None:
            self.task = self.progress.add_task("", total=trainer.num_training_batches, **fields)
            self.progress.start()
        else:
            self.progress.reset(self.task, total=int(trainer.num_training_batches), **fields)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        now = time.monotonic()
        if self.task is not None and now >= self.due:
            self.due = now + _SHOWN_EVERY_S
            self.progress.update(self.task, completed=batch_idx + 1, loss=cast(Objective, pl_module).running)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.validation = float(trainer.callback_metrics["validation"])
        if self.task is not None:
            self.progress.update(self.task, validation=self.validation)

    def teardown(self, *_: object, **__: object) -> None:
        """Give the terminal back."""
        self.progress.stop()

    on_exception = teardown
