"""A stacked LSTM, optionally bidirectional (Hochreiter and Schmidhuber, 1997; Schuster and Paliwal, 1997).

Forward in time only, its state is carried from pass to pass; bidirectional, the window slides and is read again,
since a backward pass has to start from the newest row.
Shapes: B rows, L window, F features, H steps a pass, D hidden, K known-future covariates, M modelled features.
"""

from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from models.core import CarriedState, Core, Shape, SlidingWindow
from models.core import Config as CoreConfig
from models.layers.head import Head


class Config(CoreConfig):
    """`residual`: forecast changes from the last row instead of levels."""

    hidden: PositiveInt = 64
    layers: PositiveInt = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    bidirectional: bool = False
    batch_norm: bool = False
    residual: bool = True

    def build(self, shape: Shape) -> Core:
        return BidirectionalLSTM(self, shape) if self.bidirectional else StackedLSTM(self, shape)


def _cells(config: Config, shape: Shape) -> nn.LSTM:
    return nn.LSTM(
        shape.features,
        config.hidden,
        config.layers,
        batch_first=True,
        bidirectional=config.bidirectional,
        # Between layers only: with one layer there is nothing between, and torch warns.
        dropout=config.dropout if config.layers > 1 else 0.0,
    )


def _head(config: Config, shape: Shape, width: int) -> Head:
    return Head(width, shape, dropout=config.dropout, batch_norm=config.batch_norm, residual=config.residual)


class StackedLSTM(CarriedState):
    """State: hidden and cell [B, layers, D], pending rows [B, H, F]."""

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__(shape)
        self.cells = _cells(config, shape)
        self.head = _head(config, shape, config.hidden)

    def encode(self, window: Tensor) -> list[Tensor]:
        seen, pending = self.split(window)
        _, (hidden, cell) = self.cells(seen)
        return [hidden.transpose(0, 1), cell.transpose(0, 1), pending]

    def decode(self, state: list[Tensor], future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        pending = state[2]
        carried = (state[0].transpose(0, 1).contiguous(), state[1].transpose(0, 1).contiguous())
        outputs, (hidden, cell) = self.cells(pending, carried)
        modelled = self.head(outputs[:, -1], self.modelled(pending[:, -1:]), future)
        state = [hidden.transpose(0, 1), cell.transpose(0, 1), self.rows(modelled, future)]
        return modelled, modelled.new_empty(modelled.size(0), 0, self.window), state


class BidirectionalLSTM(SlidingWindow):
    """Reads the window both ways and forecasts from the last state of each direction."""

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__(shape)
        self.cells = _cells(config, shape)
        self.head = _head(config, shape, 2 * config.hidden)

    def predict(self, window: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
        _, (hidden, _) = self.cells(window)
        both = hidden[-2:].transpose(0, 1).flatten(1)
        modelled = self.head(both, self.modelled(window[:, -1:]), future)
        return modelled, window.new_empty(window.size(0), 0, window.size(1))
