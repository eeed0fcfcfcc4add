"""Foretell's worker: `training.fitting.fit` on a recipe, measured as the peers are."""

import sys
from typing import Any

import numpy as np
import polars as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from benchmarks.training.peers.shared.meter import Meter, Task
from training.data.dataset import prepare
from training.fitting.fit import fit
from training.recipe import Recipe


class Hooks(Callback):
    """The meter as a callback of lightning."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ANN401, ARG002
        network = pl_module.network
        lstm = next(part for part in network.modules() if isinstance(part, nn.LSTM))

        def forecast(windows: Tensor) -> Tensor:
            count, steps = len(windows), self.meter.task.horizon
            times, future = torch.zeros(count, dtype=torch.int64), torch.zeros(count, steps, 0)
            found, _ = network.rollout(windows, times, future, steps)
            return found[:, :, 0]

        self.meter.watch(lstm, forecast)

    def on_train_batch_start(self, *_: object) -> None:
        self.meter.before_step()

    def on_train_batch_end(self, *_: object) -> None:
        self.meter.after_step()


def main() -> None:
    task = Task()
    meter = Meter(task)
    recipe = _recipe(task, sys.argv[2])
    torch.set_num_threads(recipe.training.threads)
    fit(recipe, prepare(recipe), tell=lambda _: None, callbacks=[Hooks(meter)])
    meter.report()


def _recipe(task: Task, precision: str) -> Recipe:
    """The same task; covariates count for nothing in the loss, for the peers do not forecast them."""
    file = task.folder / "foretell.parquet"
    hours = np.datetime64("2020-01-01", "us") + np.arange(len(task.values)) * np.timedelta64(1, "h")
    names = [f"x{index}" for index in range(task.features)]
    pl.DataFrame({"time": hours, **dict(zip(names, task.values.T, strict=True))}).write_parquet(file)
    rows = len(task.values)
    threads = {"threads": task.threads} if task.threads else {}
    return Recipe.model_validate(
        {
            "name": "benchmark",
            "data": {
                "files": [str(file)],
                "frequency": "PT1H",
                "features": [{"name": name, "role": "past" if index else "target"} for index, name in enumerate(names)],
            },
            "split": {"train": task.train / rows, "validation": (task.end - task.train) / rows},
            "window": {"length": task.length, "horizon": task.horizon, "steps": task.horizon, "season": 24},
            "network": {
                "architecture": "lstm",
                "config": {"hidden": task.hidden, "layers": task.layers, "dropout": 0.0},
            },
            "training": {
                "seed": task.seed,
                "epochs": task.epochs,
                "patience": task.epochs,
                "batch": task.batch,
                "loss": "mse",
                "covariate_weight": 0.0,
                "optimizer": "adam",
                "learning_rate": task.learning_rate,
                "schedule": "none",
                "clip": 0.0,
                "hardware": {"precision": precision},
                **threads,
            },
        }
    )


if __name__ == "__main__":
    main()
