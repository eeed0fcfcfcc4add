"""A stacked LSTM that looks back: at every pass its state attends over the encoder's states of the window.

The state is carried on as in `lstm`, while the window's states stay what they were, so the attention weights of
every step of a long forecast tell which of the rows that were given it rests on.
Shapes: B rows, L window, F features, H steps a pass, D hidden, A key width, K known-future covariates, M modelled
features.
"""

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from models.core import CarriedState, Shape
from models.core import Config as CoreConfig
from models.layers.attention import ScoreName, score
from models.layers.head import Head


class Config(CoreConfig):
    """`score`: how query and state are compared; `attention_size`: the key width of the additive score."""

    hidden: PositiveInt = 64
    layers: PositiveInt = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    score: ScoreName = "additive"
    attention_size: PositiveInt = 64
    batch_norm: bool = False
    residual: bool = True

    def build(self, shape: Shape) -> "AttentionLSTM":
        return AttentionLSTM(self, shape)


class AttentionLSTM(CarriedState):
    """Own state: keys [B, L, A] and values [B, L, D] of the window, hidden and cell [B, layers, D].

    The window's newest H rows are read twice, once for their place among the values and once as the first pending
    rows: that keeps the first pass like every other, so that rows at different steps share a batch.
    """

    attention_rows = 1

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__(config, shape)
        dropout = config.dropout if config.layers > 1 else 0.0
        self.cells = nn.LSTM(shape.inputs, config.hidden, config.layers, batch_first=True, dropout=dropout)
        self.score = score(config.score, config.hidden, config.attention_size)
        self.head = Head(
            2 * config.hidden,
            shape,
            dropout=config.dropout,
            batch_norm=config.batch_norm,
            residual=config.residual,
        )
        self.embedding = config.hidden

    def start(self, inputs: Tensor) -> list[Tensor]:
        older, (hidden, cell) = self.cells(inputs[:, : -self.horizon])
        newer, _ = self.cells(inputs[:, -self.horizon :], (hidden, cell))
        values = torch.cat([older, newer], 1)
        return [self.score.prepare(values), values, hidden.transpose(0, 1), cell.transpose(0, 1)]

    def step(self, state: list[Tensor], pending: Tensor, future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        keys, values = state[0], state[1]
        carried = (state[2].transpose(0, 1).contiguous(), state[3].transpose(0, 1).contiguous())
        outputs, (hidden, cell) = self.cells(pending, carried)
        query = outputs[:, -1]
        weights = self.score.weigh(query, keys)
        context = torch.bmm(weights, values).squeeze(1)
        modelled = self.head(torch.cat([query, context], 1), self.modelled(pending[:, -1:]), future)
        return modelled, weights, [keys, values, hidden.transpose(0, 1), cell.transpose(0, 1)]

    def embedded(self, inputs: Tensor) -> Tensor:
        _, (hidden, _) = self.cells(inputs)
        last: Tensor = hidden[-1]
        return last
