"""What the networks with self-attention blocks share: they differ in what makes the blocks' inputs of the window.

Shapes: B rows, L window, F features, E derived features, H steps a pass, D hidden, A heads, K known-future
covariates, M modelled features.
"""

from abc import abstractmethod
from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor

from models.core import Config as CoreConfig
from models.core import Shape, SlidingWindow
from models.layers.head import Head
from models.layers.self_attention import Encoder, Pooling, check_heads


class Config(CoreConfig):
    """`blocks`: of self-attention, each with `heads` and a feed-forward part `feed_forward` wide.

    `pooling`: how the blocks' rows become one vector for the window: its last row, the mean of all, or a mean whose
    shares are learnt (`attention`). `residual`: forecast changes from the last row instead of levels.
    """

    hidden: PositiveInt = 64
    heads: PositiveInt = 4
    blocks: PositiveInt = 2
    feed_forward: PositiveInt = 128
    pooling: Pooling = "last"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    residual: bool = True


class EncodedWindow(SlidingWindow):
    """The attention row: what the last block saw of the window, in shares, as the mean of its heads.

    `heads` gives each head's own. A share belongs to what the block before made of that row, which has already seen
    others: it says where the forecast was gathered, not that this row alone decided it.
    """

    attention_rows = 1

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__(config, shape)
        check_heads(config.heads, config.hidden)
        self.encoder = Encoder(
            config.hidden,
            heads=config.heads,
            blocks=config.blocks,
            inner=config.feed_forward,
            dropout=config.dropout,
            pooling=config.pooling,
        )
        self.head = Head(config.hidden, shape, dropout=config.dropout, residual=config.residual)
        self.embedding = config.hidden
        self.attention_heads = config.heads

    @abstractmethod
    def read(self, inputs: Tensor) -> Tensor:
        """Inputs [B, L, F + E] -> what the first block reads [B, L, D]."""

    def predict(self, inputs: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
        pooled, seen = self.encoder(self.read(inputs))
        return self.head(pooled, self.modelled(inputs[:, -1:]), future), seen.mean(1, keepdim=True)

    def embedded(self, inputs: Tensor) -> Tensor:
        pooled: Tensor = self.encoder(self.read(inputs))[0]
        return pooled

    def seen(self, inputs: Tensor) -> Tensor:
        seen: Tensor = self.encoder(self.read(inputs))[1]
        return seen
