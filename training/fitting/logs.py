"""What other programs can watch a training run by: CSV, and event files for TensorBoard."""

from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from training.recipe import Recipe


class Logs(Callback):
    """Loss, validation error, learning rate and speed of every epoch, under `<folder>/<name of the model>/version_<n>`.

    The recipe stands beside them, and with the best validation error under TensorBoard's hyper-parameters.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.recipe = recipe.record()
        self.events = TensorBoardLogger(folder, recipe.name, default_hp_metric=False)
        self.table = CSVLogger(folder, recipe.name, self.events.version, flush_logs_every_n_steps=1)
        self.best = float("inf")

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # The table first: it warns of a folder that is not empty.
        self.table.log_hyperparams(self.recipe)
        self.events.log_hyperparams(self.recipe)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.best = min(self.best, found["validation"])
        self.table.log_metrics({**found}, trainer.current_epoch + 1)
        self.events.log_metrics(found, trainer.current_epoch + 1)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.events.log_hyperparams(self.recipe, {"best_validation": self.best})

    def teardown(self, *_: object, **__: object) -> None:
        """Write what is not written yet."""
        for logger in (self.table, self.events):
            logger.finalize("finished")

    on_exception = teardown
