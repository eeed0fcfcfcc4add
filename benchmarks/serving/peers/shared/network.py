"""What every peer does with the model: load the archive, one step, many steps. On the import path of each peer.

Shapes: B windows, L window, F features (all of them targets), N steps.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]
WARM_UP_ROWS = (1, 2, 8, 64, 1, 2, 8, 64)
"""Batches of several sizes, each more than once: TorchScript specialises on the first calls it sees."""


class Network:
    """The TorchScript archive, on one thread: every server here has more processes than there are cores."""

    def __init__(self, archive: Path, window: int = 96, features: int = 7) -> None:
        torch.set_num_threads(1)
        self._module: Any = torch.jit.load(str(archive))
        self._module.eval()
        for rows in WARM_UP_ROWS:
            self.predict(np.zeros((rows, window, features), np.float32))

    def predict(self, windows: Floats) -> tuple[Floats, Floats]:
        """Windows [B, L, F] -> next step [B, F], attention [B, L]."""
        with torch.inference_mode():
            forecast, attention = self._forward(torch.from_numpy(windows))
            return forecast[:, 0].numpy(), attention[:, 0].numpy()

    def forecast(self, windows: Floats, steps: Sequence[int]) -> list[Floats]:
        """Windows [B, L, F] and the steps of each -> a forecast [N, F] for each.

        Step by step over the whole batch; a row leaves it when it has its steps, so that nobody pays for the longest.
        """
        rows: list[list[torch.Tensor]] = [[] for _ in steps]
        with torch.inference_mode():
            moving = torch.from_numpy(windows)
            left = list(range(len(steps)))
            for step in range(max(steps)):
                forecast, _ = self._forward(moving)
                for place, row in enumerate(left):
                    rows[row].append(forecast[place])
                moving = torch.cat([moving[:, 1:], forecast], 1)
                stays = [place for place, row in enumerate(left) if steps[row] > step + 1]
                if len(stays) < len(left):
                    moving = moving[stays]
                    left = [left[place] for place in stays]
            return [torch.cat(found).numpy() for found in rows]

    def _forward(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count = windows.size(0)
        time = torch.zeros(count, dtype=torch.int64)
        forecast, attention = self._module.forward(windows, time, torch.zeros(count, 1, 0))
        return forecast, attention
