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
        shape.inputs,
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
    """Own state: hidden and cell [B, layers, D]."""

    streams = True

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__(config, shape)
        self.cells = _cells(config, shape)
        self.head = _head(config, shape, config.hidden)
        self.embedding = config.hidden

    def start(self, inputs: Tensor) -> list[Tensor]:
        _, (hidden, cell) = self.cells(inputs[:, : -self.horizon])
        return [hidden.transpose(0, 1), cell.transpose(0, 1)]

    def step(self, state: list[Tensor], pending: Tensor, future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        carried = (state[0].transpose(0, 1).contiguous(), state[1].transpose(0, 1).contiguous())
        outputs, (hidden, cell) = self.cells(pending, carried)
        modelled = self.head(outputs[:, -1], self.modelled(pending[:, -1:]), future)
        attention = modelled.new_empty(modelled.size(0), 0, self.window)
        return modelled, attention, [hidden.transpose(0, 1), cell.transpose(0, 1)]

    def embedded(self, inputs: Tensor) -> Tensor:
        _, (hidden, _) = self.cells(inputs)
        last: Tensor = hidden[-1]
        return last


class BidirectionalLSTM(SlidingWindow):
    """Reads the window both ways and forecasts from the last state of each direction."""

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__(config, shape)
        self.cells = _cells(config, shape)
        self.head = _head(config, shape, 2 * config.hidden)
        self.embedding = 2 * config.hidden

    def predict(self, inputs: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
        modelled = self.head(self.embedded(inputs), self.modelled(inputs[:, -1:]), future)
        return modelled, inputs.new_empty(inputs.size(0), 0, inputs.size(1))

    def embedded(self, inputs: Tensor) -> Tensor:
        _, (hidden, _) = self.cells(inputs)
        both: Tensor = hidden[-2:].transpose(0, 1).flatten(1)
        return both
