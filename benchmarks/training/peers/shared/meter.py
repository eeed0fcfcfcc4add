"""What every library is measured by, Foretell too: a clock that runs while it trains, and the cells that it computes.

On the import path of each worker; needs nothing but torch and numpy.
Shapes: R rows, F features (the first is the target), W windows, L window, H horizon.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_KIB = 1024
_MOST = 2000
"""Held-out windows, spread evenly."""


class Task:
    """What is to be trained, as the first argument names it."""

    def __init__(self) -> None:
        given: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
        self.folder = Path(sys.argv[1]).parent
        self.values = np.load(self.folder / "values.npy")
        """float32 [R, F], standardised by the training rows."""
        self.train: int = given["train"]
        self.end: int = given["end"]
        """Rows up to which it is trained, and from there on validated."""
        self.length: int = given["length"]
        self.horizon: int = given["horizon"]
        self.hidden: int = given["hidden"]
        self.layers: int = given["layers"]
        self.batch: int = given["batch"]
        self.epochs: int = given["epochs"]
        self.learning_rate: float = given["learning_rate"]
        self.seed: int = given["seed"]
        self.threads: int | None = given["threads"]
        """None: as the library has it."""
        if self.threads:
            torch.set_num_threads(self.threads)

    @property
    def features(self) -> int:
        """F"""
        return int(self.values.shape[1])

    @property
    def windows(self) -> int:
        """W of an epoch"""
        return self.train - self.length - self.horizon + 1

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return -(-self.windows // self.batch)

    def held_out(self) -> tuple[Tensor, Tensor]:
        """Windows [W, L, F] and what the target was after them [W, H]; all of that was after the training rows."""
        rows = torch.from_numpy(self.values[self.train - self.length : self.end])
        view = rows.unfold(0, self.length + self.horizon, 1).transpose(1, 2)
        chosen = view[:: -(-len(view) // _MOST)]
        return chosen[:, : self.length].contiguous(), chosen[:, self.length :, 0].contiguous()


class Meter:
    """Told of every step. Its clock stands while nobody trains: before the first step and between epochs."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.seconds: list[float] = []
        """Of each epoch."""
        self.windows: list[float] = []
        """Of each epoch: rows that the first cell read, by the rows of a window."""
        self.errors: list[float] = []
        """After each epoch: the mean squared error on the windows held out."""
        self._steps = 0
        self._cells = 0
        self._began = 0.0
        self._lstm: nn.LSTM
        self._forecast: Callable[[Tensor], Tensor]
        self._imported = _resident_mib()
        self._asked = time.perf_counter()

    def watch(self, lstm: nn.LSTM, forecast: Callable[[Tensor], Tensor]) -> None:
        """The layer in question, and windows [W, L, F] -> forecasts of the target [W, H]."""
        self._lstm, self._forecast = lstm, forecast
        lstm.register_forward_pre_hook(self._count)

    def before_step(self) -> None:
        if self._steps % self.task.steps == 0:
            self._began = time.perf_counter()

    def after_step(self) -> None:
        self._steps += 1
        if self._steps % self.task.steps == 0:
            self.seconds.append(time.perf_counter() - self._began)
            self.windows.append(self._cells / self.task.length)
            self._cells = 0
            self.errors.append(self._error())

    def report(self) -> None:
        """The last line that a worker prints."""
        print(
            json.dumps(
                {
                    "seconds": self.seconds,
                    "windows": self.windows,
                    "errors": self.errors,
                    "fit_s": time.perf_counter() - self._asked,
                    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIB,
                    "imported_mib": self._imported,
                    "threads": torch.get_num_threads(),
                    "dtype": str(self._lstm.weight_ih_l0.dtype).removeprefix("torch."),
                    "lstm": [list(weight.shape) for weight in self._lstm.parameters()],
                }
            )
        )

    def _count(self, lstm: nn.Module, given: tuple[Any, ...]) -> None:
        if lstm.training:
            self._cells += given[0].size(0) * given[0].size(1)

    def _error(self) -> float:
        windows, truth = self.task.held_out()
        was_training = self._lstm.training
        self._lstm.eval()
        with torch.no_grad():
            error = nn.functional.mse_loss(self._forecast(windows), truth).item()
        self._lstm.train(was_training)
        return error


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / _KIB**2
