"""What the purely recurrent networks share: they differ in their cells alone.

Forward in time only, their state is carried from pass to pass; bidirectional, the window slides and is read again,
since a backward pass has to start from the newest row (Schuster and Paliwal, 1997).
Shapes: B rows, L window, F features, E derived features, H steps a pass, D hidden, K known-future covariates, M
modelled features.
"""

from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor

from models.core import CarriedState, Core, Shape, SlidingWindow
from models.core import Config as CoreConfig
from models.layers.head import Head, Norm
from models.layers.stack import GRUStack, LSTMStack, Stack


class Config(CoreConfig):
    """`norm`: what the state is normalised by on its way to the forecast, over the batch or over its own features.

    `residual`: forecast changes from the last row instead of levels. `bidirectional`: read the window backwards too.
    """

    hidden: PositiveInt = 64
    layers: PositiveInt = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    bidirectional: bool = False
    norm: Norm = "none"
    residual: bool = True


def build(config: Config, shape: Shape, kind: type[LSTMStack] | type[GRUStack]) -> Core:
    """The network of these cells."""
    cells = kind(shape.inputs, config.hidden, config.layers, config.dropout, bidirectional=config.bidirectional)
    return Bidirectional(config, shape, cells) if config.bidirectional else Stacked(config, shape, cells)


class Stacked(CarriedState):
    """Own state: that of the cells, each tensor [B, layers, D]."""

    streams = True

    def __init__(self, config: Config, shape: Shape, cells: Stack) -> None:
        super().__init__(config, shape)
        self.cells = cells
        self.head = Head(config.hidden, shape, dropout=config.dropout, norm=config.norm, residual=config.residual)
        self.embedding = config.hidden

    def start(self, inputs: Tensor) -> list[Tensor]:
        _, state = self.cells(inputs[:, : -self.horizon])
        return list(state)

    def step(self, state: list[Tensor], pending: Tensor, future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        outputs, following = self.cells(pending, state)
        modelled = self.head(outputs[:, -1], self.modelled(pending[:, -1:]), future)
        return modelled, modelled.new_empty(modelled.size(0), 0, self.window), following

    def embedded(self, inputs: Tensor) -> Tensor:
        _, state = self.cells(inputs)
        last: Tensor = state[0][:, -1]
        return last


class Bidirectional(SlidingWindow):
    """Reads the window both ways and forecasts from the last state of each direction."""

    def __init__(self, config: Config, shape: Shape, cells: Stack) -> None:
        super().__init__(config, shape)
        self.cells = cells
        self.head = Head(2 * config.hidden, shape, dropout=config.dropout, norm=config.norm, residual=config.residual)
        self.embedding = 2 * config.hidden

    def predict(self, inputs: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
        modelled = self.head(self.embedded(inputs), self.modelled(inputs[:, -1:]), future)
        return modelled, inputs.new_empty(inputs.size(0), 0, inputs.size(1))

    def embedded(self, inputs: Tensor) -> Tensor:
        _, state = self.cells(inputs)
        both: Tensor = state[0][:, -2:].flatten(1)
        return both
