"""The flagship: an LSTM over segments of the window instead of rows, one feature at a time (SegRNN, Lin et al., 2023).

A day of hours is one step for the cells, so that a month is 30 steps and not 720, and what is forecast is decoded in
parallel: every segment ahead asks the encoder's last state with a query of its own, and none waits for the one before.
All features share the weights; an embedding says which one it is. Added to the paper: LSTM cells, attention of every
query over the encoded segments, a linear map from the window beside it all (as in NLinear), and known-future covariates
in the queries.
Shapes: B rows, L window, F features, E derived features, H steps a pass, K known-future covariates, M modelled
features, S rows of a segment, n segments of the window, m segments ahead (R = m with attention), D hidden.
"""

import math
from typing import Annotated, Final, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from models.core import Config as CoreConfig
from models.core import Shape, SlidingWindow
from models.layers.instance import Normalisation
from models.layers.segments import Cells, GRUCells, LSTMCells


class Config(CoreConfig):
    """`segment`: rows a step of the cells reads; a day or half of one is a good choice.

    `skip`: a linear map from window to forecast, of which the cells then learn the rest. `mixing`: every segment is
    read with what all features were meanwhile, derived ones too, and not each feature for itself alone.
    """

    segment: PositiveInt = 24
    hidden: PositiveInt = 128
    cell: Literal["lstm", "gru"] = "lstm"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    normalisation: Normalisation = "mean"
    attention: bool = True
    skip: bool = True
    mixing: bool = False

    def build(self, shape: Shape) -> "SegmentLSTM":
        if shape.derived and not self.mixing:
            raise ValueError("it reads derived features only with the option mixing")
        return SegmentLSTM(self, shape)


class SegmentLSTM(SlidingWindow):
    """At least two segments are read: in a shorter window they are halves of it. Where S does not divide L, the oldest
    rows, which are left over, are read by the linear map alone.

    The m segments ahead are as long as H allows: S rows where S divides H, else the next shorter length that does.
    """

    horizon: Final[int]
    segment: Final[int]
    read: Final[int]
    attends: Final[bool]
    skips: Final[bool]
    mixes: Final[bool]
    quantiles: Final[int]

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__(config, shape)
        self.horizon = shape.horizon
        self.segment = max(min(config.segment, shape.window // 2), 1)
        self.read = shape.window // self.segment
        self.ahead = _parts(shape.horizon, self.segment)
        self.attends, self.skips, self.mixes = config.attention, config.skip, config.mixing
        self.attention_rows = self.ahead if config.attention else 0
        width, length = config.hidden, shape.horizon // self.ahead
        self.embedding = shape.modelled * width
        self.scale = 1.0 / math.sqrt(width)

        self.embed_segment = nn.Linear(self.segment, width)
        self.embed_others = nn.Linear(self.segment * shape.inputs, width) if config.mixing else nn.Identity()
        self.cells: Cells = LSTMCells(width) if config.cell == "lstm" else GRUCells(width)
        self.position = nn.Parameter(torch.randn(self.ahead, width))
        self.channel = nn.Parameter(torch.randn(shape.modelled, 1, width))
        self.embed_future = nn.Linear(length * shape.known, width, bias=False) if shape.known else nn.Identity()
        self.key = nn.Linear(width, width, bias=False) if config.attention else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(2 * width if config.attention else width, length)
        self.quantiles = shape.quantiles
        self.spread = nn.Linear(self.head.in_features, length * shape.quantiles) if shape.quantiles else nn.Identity()
        self.map = _zeros(nn.Linear(shape.window, shape.horizon)) if config.skip else nn.Identity()

    def predict(self, inputs: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
        features = self.modelled(inputs).transpose(1, 2)
        outputs, state = self.cells(self.segments(inputs, features))
        found = self.cells.ask(self.queries(future), state, features.size(1))
        attention = inputs.new_empty(inputs.size(0), 0, inputs.size(1))
        if self.attends:
            keys = self.key(outputs).view(features.size(0), features.size(1), self.read, -1)
            weights = torch.softmax(torch.matmul(found, keys.transpose(2, 3)) * self.scale, 3)
            seen = torch.matmul(weights, outputs.view(keys.shape))
            found = torch.cat([found, seen], 3)
            attention = self.over_rows(weights.mean(1), inputs.size(1))
        modelled = self.head(self.dropout(found)).flatten(2)
        if self.skips:
            modelled = modelled + self.map(features)
        rows: Tensor = modelled.transpose(1, 2)
        if self.has_quantiles:
            rows = self.with_quantiles(rows, self.above(found))
        return rows, attention

    def above(self, found: Tensor) -> Tensor:
        """What was found for each segment [B, M, m, D] -> how far each quantile is above the forecast [B, H, Q, M]."""
        spread: Tensor = self.spread(self.dropout(found))
        spread = spread.view(spread.size(0), spread.size(1), self.ahead, self.quantiles, -1)
        return spread.permute(0, 2, 4, 3, 1).flatten(1, 2)

    def embedded(self, inputs: Tensor) -> Tensor:
        features = self.modelled(inputs).transpose(1, 2)
        _, state = self.cells(self.segments(inputs, features))
        hidden: Tensor = state[0].reshape(inputs.size(0), -1)
        return hidden

    def segments(self, inputs: Tensor, features: Tensor) -> Tensor:
        """Inputs [B, L, F + E], modelled features [B, M, L] -> what the cells read [B * M, n, D]."""
        rows, count = features.size(0), features.size(1)
        own = features[:, :, -self.read * self.segment :].reshape(rows, count, self.read, self.segment)
        embedded = self.embed_segment(own)
        if self.mixes:
            others = inputs[:, -self.read * self.segment :].reshape(rows, 1, self.read, -1)
            embedded = embedded + self.embed_others(others)
        return torch.relu(embedded).view(rows * count, self.read, -1)

    def queries(self, future: Tensor) -> Tensor:
        """Future [B, H, K] -> a question for each segment ahead, [B or 1, M, m, D]."""
        queries = (self.position + self.channel).unsqueeze(0)
        if self.has_known:
            queries = queries + self.embed_future(future.reshape(future.size(0), 1, self.ahead, -1))
        return queries

    def over_rows(self, weights: Tensor, length: int) -> Tensor:
        """Weights of the segments [B, m, n] -> of the window's rows [B, m, L], each with its part of its segment's."""
        spread = (weights / self.segment).repeat_interleave(self.segment, 2)
        return nn.functional.pad(spread, [length - spread.size(2), 0])


def _zeros(linear: nn.Linear) -> nn.Linear:
    """The map that starts from the window's level going on."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _parts(horizon: int, segment: int) -> int:
    """The smallest number of equal parts, none longer than `segment`, that the horizon can be cut in."""
    return next(parts for parts in range(-(-horizon // segment), horizon + 1) if horizon % parts == 0)
