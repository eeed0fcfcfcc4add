"""What is kept of every epoch, and the best weights among them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import lightning
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from training.errors import DivergedError


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

    def __str__(self) -> str:
        return (
            f"epoch {self.number:3d}  loss {self.loss:.4f}  validation {self.validation:.4f}{'*' if self.best else ' '}"
            f"  lr {self.learning_rate:.1e}  {self.windows_per_s:,.0f} windows/s"
        )


class History(Callback):
    """Keeps every epoch and the weights of the best; DivergedError where the error is not a number."""

    def __init__(self, network: nn.Module, tell: Callable[[Epoch], None]) -> None:
        self.network = network
        self.tell = tell
        self.epochs: list[Epoch] = []
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        best = found["validation"] < min((epoch.validation for epoch in self.epochs), default=math.inf)
        epoch = Epoch(trainer.current_epoch + 1, best=best, **found)
        if not math.isfinite(epoch.loss + epoch.validation):
            raise DivergedError(f"epoch {epoch.number}: the loss is {epoch.loss}; try a smaller training.learning_rate")
        self.epochs.append(epoch)
        if best:
            self.weights = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.tell(epoch)

    def restore(self) -> None:
        """Give the network the best weights again."""
        self.network.load_state_dict(self.weights)
