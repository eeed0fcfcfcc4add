"""Stacked recurrent layers behind one interface: their state is a list of batch-first tensors, whatever the cells.

Shapes: B rows, n rows of a sequence, I width of the inputs, D hidden, S layers times directions.
"""

from abc import abstractmethod

from torch import Tensor, nn


class Stack(nn.Module):
    """Layers of cells, each reading the outputs of the one below; both directions where it is bidirectional."""

    @abstractmethod
    def forward(self, rows: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Rows [B, n, I], the state before them (none: of zeros) -> outputs of the top layer [B, n, D or 2 D], state.

        The state's tensors are [B, S, D], the hidden one first.
        """


class LSTMStack(Stack):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997). State: hidden and cell."""

    def __init__(self, inputs: int, hidden: int, layers: int, dropout: float, *, bidirectional: bool = False) -> None:
        super().__init__()
        between = _between(layers, dropout)
        self.layer = nn.LSTM(inputs, hidden, layers, batch_first=True, bidirectional=bidirectional, dropout=between)

    def forward(self, rows: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        if state is None:
            outputs, (hidden, cell) = self.layer(rows)
        else:
            before = (state[0].transpose(0, 1).contiguous(), state[1].transpose(0, 1).contiguous())
            outputs, (hidden, cell) = self.layer(rows, before)
        return outputs, [hidden.transpose(0, 1), cell.transpose(0, 1)]


class GRUStack(Stack):
    """Gated recurrent units (Cho et al., 2014). State: hidden."""

    def __init__(self, inputs: int, hidden: int, layers: int, dropout: float, *, bidirectional: bool = False) -> None:
        super().__init__()
        between = _between(layers, dropout)
        self.layer = nn.GRU(inputs, hidden, layers, batch_first=True, bidirectional=bidirectional, dropout=between)

    def forward(self, rows: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        if state is None:
            outputs, hidden = self.layer(rows)
        else:
            outputs, hidden = self.layer(rows, state[0].transpose(0, 1).contiguous())
        return outputs, [hidden.transpose(0, 1)]


def _between(layers: int, dropout: float) -> float:
    """Between layers only: with one layer there is nothing between, and torch warns."""
    return dropout if layers > 1 else 0.0
