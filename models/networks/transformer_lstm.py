"""An LSTM, then self-attention over its outputs: the cells know the order, the heads reach any distance at once.

Blocks as in Vaswani et al. (2017), layer norm first (Xiong et al., ICML 2020); the recurrent layer takes the place of
their positional encoding, as in R-Transformer (Wang et al., 2019). `models/encoded.py` gives shapes and attention.
"""

from pydantic import PositiveInt
from torch import Tensor

from models import encoded
from models.core import Shape
from models.layers.stack import LSTMStack


class Config(encoded.Config):
    """`layers`: of the LSTM, `hidden` wide like the blocks behind it; of these there are `blocks`.

    Each has `heads` and a feed-forward part `feed_forward` wide. `pooling`: how the blocks' rows become one vector for
    the window: its last row, the mean of all, or a mean whose shares are learnt (`attention`). `residual`: forecast
    changes from the last row instead of levels.
    """

    layers: PositiveInt = 1

    def build(self, shape: Shape) -> "TransformerLSTM":
        return TransformerLSTM(self, shape)


class TransformerLSTM(encoded.EncodedWindow):
    """What the cells have made of each row goes on through the blocks, which add what they see to it."""

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__(config, shape)
        self.cells = LSTMStack(shape.inputs, config.hidden, config.layers, config.dropout)

    def read(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.cells(inputs)[0]
        return outputs
