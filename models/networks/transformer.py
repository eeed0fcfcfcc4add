"""Attention alone, for comparison: the encoder of Vaswani et al. (2017) over the rows of the window.

Layer norm comes first (Xiong et al., ICML 2020). `models/encoded.py` gives shapes and attention.
"""

import math

import torch
from torch import Tensor, nn

from models import encoded
from models.core import Shape


class Config(encoded.Config):
    def build(self, shape: Shape) -> "Transformer":
        return Transformer(self, shape)


class Transformer(encoded.EncodedWindow):
    """A row is mapped to D features, and waves of its place in the window are added to them."""

    positions: Tensor

    def __init__(self, config: Config, shape: Shape) -> None:
        super().__init__(config, shape)
        self.embed_row = nn.Linear(shape.inputs, config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("positions", waves(shape.window, config.hidden), persistent=False)

    def read(self, inputs: Tensor) -> Tensor:
        rows: Tensor = self.dropout(self.embed_row(inputs) + self.positions)
        return rows


def waves(rows: int, width: int) -> Tensor:
    """The sinusoidal encoding [n, D]: sine and cosine in turn, their wavelengths from 2 pi to 10000 times that."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(rows).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)[:, :width]
