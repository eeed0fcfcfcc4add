"""Recurrent cells that read segments one after the other, and are then asked for all segments ahead at once.

Shapes: B rows, M features, n segments read, m segments ahead, D hidden.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Cells(nn.Module):
    """One layer of cells whose last step is taken once for every segment ahead, from the same state."""

    @abstractmethod
    def forward(self, segments: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Segments [B * M, n, D] -> outputs [B * M, n, D] and the last state, its hidden [B * M, D] first."""

    @abstractmethod
    def ask(self, queries: Tensor, state: list[Tensor], features: int) -> Tensor:
        """Queries [B or 1, M, m, D] -> hidden [B, M, m, D] of the step that reads them.

        What the queries add to the gates does not depend on the row, nor what the state adds on the segment: each
        product is taken once, and only their sums are as many as the answers.
        """


class LSTMCells(Cells):
    def __init__(self, width: int) -> None:
        super().__init__()
        # Any: mypy takes the weights for modules.
        self.layer: Any = nn.LSTM(width, width, batch_first=True)

    def forward(self, segments: Tensor) -> tuple[Tensor, list[Tensor]]:
        outputs, (hidden, cell) = self.layer(segments)
        return outputs, [hidden[0], cell[0]]

    def ask(self, queries: Tensor, state: list[Tensor], features: int) -> Tensor:
        of_query = nn.functional.linear(queries, self.layer.weight_ih_l0, self.layer.bias_ih_l0)
        of_state = nn.functional.linear(state[0], self.layer.weight_hh_l0, self.layer.bias_hh_l0)
        gates = of_query + of_state.view(-1, features, 1, of_state.size(1))
        enter, forget, new, leave = gates.chunk(4, 3)
        before = state[1].view(-1, features, 1, state[1].size(1))
        cell = torch.sigmoid(forget) * before + torch.sigmoid(enter) * _tanh(new)
        return torch.sigmoid(leave) * _tanh(cell)


class GRUCells(Cells):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer: Any = nn.GRU(width, width, batch_first=True)

    def forward(self, segments: Tensor) -> tuple[Tensor, list[Tensor]]:
        outputs, hidden = self.layer(segments)
        return outputs, [hidden[0]]

    def ask(self, queries: Tensor, state: list[Tensor], features: int) -> Tensor:
        of_query = nn.functional.linear(queries, self.layer.weight_ih_l0, self.layer.bias_ih_l0)
        of_state = nn.functional.linear(state[0], self.layer.weight_hh_l0, self.layer.bias_hh_l0)
        query_reset, query_update, query_new = of_query.chunk(3, 3)
        state_reset, state_update, state_new = of_state.view(-1, features, 1, of_state.size(1)).chunk(3, 3)
        new = _tanh(query_new + torch.sigmoid(query_reset + state_reset) * state_new)
        update = torch.sigmoid(query_update + state_update)
        return new + update * (state[0].view(-1, features, 1, state[0].size(1)) - new)


def _tanh(x: Tensor) -> Tensor:
    # Written so that it is fast on every CPU: the one in torch takes ten times as long on AMD's.
    return 2.0 * torch.sigmoid(2.0 * x) - 1.0
