"""What the layers around a network share: each hands on to the one within, and tells the network of more columns.

Shapes: B rows, n rows of a window, F features, X columns that are added.
"""

from dataclasses import replace

import torch
from torch import Tensor

from models.core import Core, Shape
from models.spec import Role


def widened(shape: Shape, columns: int) -> Shape:
    """The shape that a core within sees: behind the features so many more columns that are known ahead."""
    added: list[Role] = ["future"] * columns
    return replace(shape, roles=(*shape.roles, *added))


class Surrounding(Core):
    """A core around another: what that one can do, this one can."""

    def __init__(self, inner: Core, shape: Shape) -> None:
        super().__init__(shape)
        self.inner = inner
        self.recursion = inner.recursion
        self.clock = inner.clock
        self.streams = inner.streams
        self.attention_rows = inner.attention_rows
        self.embedding = inner.embedding
        self.attention_heads = inner.attention_heads


def beside(rows: Tensor, added: Tensor) -> Tensor:
    """Rows [B, n, F] and columns [B, n, X] or [1, n, X] -> [B, n, F + X]."""
    return torch.cat([rows, added.expand(rows.size(0), -1, -1)], 2)
