"""The meter as a callback of pytorch_lightning, in which both peers train."""

from typing import Any

from meter import Meter
from pytorch_lightning.callbacks import Callback


class Hooks(Callback):
    def __init__(self, meter: Meter, watch: Any) -> None:  # noqa: ANN401  Lightning module -> None
        self.meter = meter
        self.watch = watch

    def __deepcopy__(self, memo: object) -> "Hooks":
        """Itself: NeuralForecast trains a copy of the model that it is given, callbacks and all."""
        return self

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ANN401, ARG002
        self.watch(pl_module)

    def on_train_batch_start(self, *_: object) -> None:
        self.meter.before_step()

    def on_train_batch_end(self, *_: object) -> None:
        self.meter.after_step()
