"""A learnable seasonal cycle around any network (the residual cycle forecasting of CycleNet, Lin et al., NeurIPS 2024).

What recurs with the calendar is one parameter a phase and feature; the network forecasts what remains.
Shapes: B rows, L window, F features, H steps a pass, W rows of the cycle, M modelled features.
"""

from typing import Final

import torch
from torch import Tensor, nn

from models.core import Core
from models.surrounding import Surrounding


class Seasonal(Surrounding):
    """State: that of the network, then the phase of the last row, int64 [B]."""

    length: Final[int]
    interval: Final[int]

    def __init__(self, inner: Core, length: int) -> None:
        super().__init__(inner, inner.shape)
        self.clock = True
        self.streams = False
        self.length = length
        self.interval = inner.shape.interval
        self.cycle = nn.Parameter(torch.zeros(length, inner.shape.modelled))

    def encode(self, window: Tensor, time: Tensor) -> list[Tensor]:
        phase = self.phase(time)
        state = self.inner.encode(self.without(window, phase), time)
        state.append(phase)
        return state

    def decode(self, state: list[Tensor], future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        steps = future.size(1)
        outputs, attention, inner = self.inner.decode(state[:-1], future)
        phase = (state[-1] + steps) % self.length
        inner.append(phase)
        return outputs + self.outputs(self.season(phase, steps)), attention, inner

    def correct(self, state: list[Tensor], rows: Tensor) -> list[Tensor]:
        inner = self.inner.correct(state[:-1], self.without(rows, state[-1]))
        inner.append(state[-1])
        return inner

    def embed(self, window: Tensor, time: Tensor) -> Tensor:
        return self.inner.embed(self.without(window, self.phase(time)), time)

    def heads(self, window: Tensor, time: Tensor) -> Tensor:
        return self.inner.heads(self.without(window, self.phase(time)), time)

    def phase(self, time: Tensor) -> Tensor:
        """Epoch seconds [B] -> the place in the cycle [B]."""
        return torch.div(time, self.interval, rounding_mode="floor") % self.length

    def season(self, phase: Tensor, rows: int) -> Tensor:
        """The cycle [B, n, M] of so many rows up to the phases [B]."""
        before = torch.arange(1 - rows, 1, device=phase.device)
        return self.cycle[(phase.unsqueeze(1) + before) % self.length]

    def without(self, rows: Tensor, phase: Tensor) -> Tensor:
        """Rows [B, n, F] that end at the phases [B], less their season."""
        season = self.season(phase, rows.size(1))
        known = season.new_zeros(rows.size(0), rows.size(1), rows.size(2) - season.size(2))
        return rows - self.rows(season, known)
