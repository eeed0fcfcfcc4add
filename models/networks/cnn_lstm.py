"""Causal convolutions in front of a stacked LSTM: they find short shapes, and the cells remember what they found.

After the CNN-LSTM of Sainath et al. (ICASSP 2015), without its pooling: every row has its features, made of it and
of the rows before it alone, so that the state can be carried on (causal as in WaveNet, van den Oord et al., 2016).
Shapes: B rows, L window, F features, E derived features, H steps a pass, C channels, D hidden, K known-future
covariates, M modelled features.
"""

from typing import Annotated, Final

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from models.core import CarriedState, Shape
from models.core import Config as CoreConfig
from models.layers.head import Head, Norm
from models.layers.stack import LSTMStack


class Config(CoreConfig):
    """`convolutions`: how many follow each other, each over `kernel` rows and with `channels` outputs.

    `layers`, `hidden`: of the LSTM behind them. `norm`: what the state is normalised by on its way to the forecast,
    over the batch or over its own features. `residual`: forecast changes from the last row instead of levels.
    """

    convolutions: PositiveInt = 2
    kernel: PositiveInt = 3
    channels: PositiveInt = 64
    hidden: PositiveInt = 64
    layers: PositiveInt = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    norm: Norm = "none"
    residual: bool = True

    def build(self, shape: Shape) -> "CNNLSTM":
        reach = self.convolutions * (self.kernel - 1)
        if reach >= shape.window:
            raise ValueError(
                f"convolutions ({self.convolutions}) of kernel {self.kernel} reach {reach} rows back;"
                f" it must be less than window ({shape.window})"
            )
        return CNNLSTM(self, shape)


class CNNLSTM(CarriedState):
    """Own state: the inputs that the next row's convolutions reach back to [B, reach, F + E], then the hidden and cell
    state [B, layers, D].
    """

    streams = True
    reach: Final[int]

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__(config, shape)
        self.reach = config.convolutions * (config.kernel - 1)
        layers: list[nn.Module] = []
        for index in range(config.convolutions):
            width = config.channels if index else shape.inputs
            layers += [nn.Conv1d(width, config.channels, config.kernel), nn.ReLU(), nn.Dropout(config.dropout)]
        self.convolutions = nn.Sequential(*layers)
        self.cells = LSTMStack(config.channels, config.hidden, config.layers, config.dropout)
        self.head = Head(config.hidden, shape, dropout=config.dropout, norm=config.norm, residual=config.residual)
        self.embedding = config.hidden

    def start(self, inputs: Tensor) -> list[Tensor]:
        rows = self.pad(inputs)
        read = rows.size(1) - self.horizon
        _, state = self.cells(self.found(rows[:, :read]))
        return [rows[:, read - self.reach : read], state[0], state[1]]

    def step(self, state: list[Tensor], pending: Tensor, future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        rows = torch.cat([state[0], pending], 1)
        outputs, carried = self.cells(self.found(rows), state[1:])
        modelled = self.head(outputs[:, -1], self.modelled(pending[:, -1:]), future)
        attention = modelled.new_empty(modelled.size(0), 0, self.window)
        return modelled, attention, [rows[:, rows.size(1) - self.reach :], carried[0], carried[1]]

    def embedded(self, inputs: Tensor) -> Tensor:
        _, state = self.cells(self.found(self.pad(inputs)))
        last: Tensor = state[0][:, -1]
        return last

    def pad(self, inputs: Tensor) -> Tensor:
        """[B, n, F + E] -> [B, reach + n, F + E]: before its first row a window is taken to have been as in it."""
        return torch.cat([inputs[:, :1].expand(-1, self.reach, -1), inputs], 1)

    def found(self, rows: Tensor) -> Tensor:
        """[B, reach + n, F + E] -> what the convolutions find at the last n rows, [B, n, C]."""
        channels: Tensor = self.convolutions(rows.transpose(1, 2))
        return channels.transpose(1, 2)
