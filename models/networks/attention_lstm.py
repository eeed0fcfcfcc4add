"""A stacked LSTM that looks back: at every pass its state attends over the encoder's states of the window.

The state is carried on as in `lstm`, while the window's states stay what they were, so the attention weights of
every step of a long forecast tell which of the rows that were given it rests on. Added on request: self-attention of
the window's states before they are looked back at (heads as of Vaswani et al., 2017).
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
from models.layers.head import Head, Norm
from models.layers.self_attention import SelfAttention, check_heads
from models.layers.stack import LSTMStack


class Config(CoreConfig):
    """`score`: how query and state are compared; `attention_size`: the key width of the additive score.

    `self_attention`: let the window's states look at each other first, with so many `heads`. `norm`: what the forecast
    is made of is normalised by this first, over the batch or over its own features. `residual`: forecast changes from
    the last row instead of levels.
    """

    hidden: PositiveInt = 64
    layers: PositiveInt = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    score: ScoreName = "additive"
    attention_size: PositiveInt = 64
    self_attention: bool = False
    heads: PositiveInt = 4
    norm: Norm = "none"
    residual: bool = True

    def build(self, shape: Shape) -> "AttentionLSTM":
        return AttentionLSTM(self, shape)


class AttentionLSTM(CarriedState):
    """Own state: keys [B, L, A] and values [B, L, D] of the window, hidden and cell [B, layers, D].

    Weight i says how much of the forecast comes from the encoder's state after row i. That state has read the rows
    before too; with self-attention it has also seen those behind it, so that the weight then says where the forecast
    was gathered rather than when what decided it happened.

    The window's newest H rows are read twice, once for their place among the values and once as the first pending
    rows: that keeps the first pass like every other, so that rows at different steps share a batch.
    """

    attention_rows = 1

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__(config, shape)
        self.cells = LSTMStack(shape.inputs, config.hidden, config.layers, config.dropout)
        if config.self_attention:
            check_heads(config.heads, config.hidden)
        self.refine = (
            SelfAttention(config.hidden, config.heads, config.dropout) if config.self_attention else nn.Identity()
        )
        self.score = score(config.score, config.hidden, config.attention_size)
        self.head = Head(
            2 * config.hidden,
            shape,
            dropout=config.dropout,
            norm=config.norm,
            residual=config.residual,
        )
        self.embedding = config.hidden

    def start(self, inputs: Tensor) -> list[Tensor]:
        older, state = self.cells(inputs[:, : -self.horizon])
        newer, _ = self.cells(inputs[:, -self.horizon :], state)
        values = self.refine(torch.cat([older, newer], 1))
        return [self.score.prepare(values), values, state[0], state[1]]

    def step(self, state: list[Tensor], pending: Tensor, future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        keys, values = state[0], state[1]
        outputs, carried = self.cells(pending, state[2:])
        query = outputs[:, -1]
        weights = self.score.weigh(query, keys)
        context = torch.bmm(weights, values).squeeze(1)
        modelled = self.head(torch.cat([query, context], 1), self.modelled(pending[:, -1:]), future)
        return modelled, weights, [keys, values, carried[0], carried[1]]

    def embedded(self, inputs: Tensor) -> Tensor:
        _, state = self.cells(inputs)
        last: Tensor = state[0][:, -1]
        return last
