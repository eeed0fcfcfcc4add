"""Self-attention: every row of a sequence looks at all of them (Vaswani et al., 2017).

Shapes: B rows, L window, q rows that ask, D width, A heads.
"""

import math
from typing import Final, Literal

import torch
from torch import Tensor, nn

Pooling = Literal["last", "mean", "attention"]


def check_heads(heads: int, hidden: int) -> None:
    """ValueError where the heads cannot share the width equally."""
    if hidden % heads:
        raise ValueError(f"heads ({heads}) must divide hidden ({hidden})")


class SelfAttention(nn.Module):
    """Multi-head attention as a residual step: what the heads see is added to the rows.

    The layer norm comes before the heads and not behind the sum, which trains without a warm-up (Xiong et al., ICML
    2020). Dropout is of what is added, as in the paper; that of the weights would take the fast kernels away. Queries
    and keys have no bias: that of the keys cancels out in the softmax.
    """

    heads: Final[int]

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = 1.0 / math.sqrt(width // heads)
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.merge = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]; by kernels that never hold the weights."""
        given = self.norm(rows)
        seen = nn.functional.scaled_dot_product_attention(
            self.split(self.query(given)), self.split(self.key(given)), self.split(self.value(given))
        )
        found: Tensor = rows + self.merged(seen)
        return found

    def look(self, asking: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the rows that ask [B, q, D], rows [B, L, D] -> what becomes of them [B, q, D], weights [B, A, q, L].

        The same as `forward`, for fewer rows and with the weights, which are positive and sum to one over L.
        """
        given = self.norm(rows)
        query = self.split(self.query(self.norm(asking))) * self.scale
        weights = torch.softmax(torch.matmul(query, self.split(self.key(given)).transpose(2, 3)), -1)
        seen = torch.matmul(weights, self.split(self.value(given)))
        return asking + self.merged(seen), weights

    def split(self, rows: Tensor) -> Tensor:
        """[B, n, D] -> [B, A, n, D / A]"""
        return rows.view(rows.size(0), rows.size(1), self.heads, -1).transpose(1, 2)

    def merged(self, seen: Tensor) -> Tensor:
        """[B, A, n, D / A] -> [B, n, D]"""
        merged: Tensor = self.dropout(self.merge(seen.transpose(1, 2).flatten(2)))
        return merged


class FeedForward(nn.Module):
    """Two linear maps at every row for itself, as a residual step with its layer norm before."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor) -> Tensor:
        inner = self.dropout(torch.relu(self.up(self.norm(rows))))
        found: Tensor = rows + self.dropout(self.down(inner))
        return found


class Block(nn.Module):
    """Self-attention, then feed-forward."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, dropout)
        self.feed_forward = FeedForward(width, inner, dropout)

    def forward(self, rows: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]"""
        found: Tensor = self.feed_forward(self.attention(rows))
        return found

    def look(self, asking: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """As `SelfAttention.look`."""
        found, weights = self.attention.look(asking, rows)
        return self.feed_forward(found), weights


class Encoder(nn.Module):
    """Blocks, a layer norm, and then one vector for the whole window.

    `pooling`: the last row, the mean of all, or a mean whose shares a learnt query decides. Only rows that count are
    asked for in the last block, so that with `last` it costs little.
    """

    last_only: Final[bool]
    learnt: Final[bool]

    def __init__(self, width: int, *, heads: int, blocks: int, inner: int, dropout: float, pooling: Pooling) -> None:
        super().__init__()
        self.last_only = pooling == "last"
        self.learnt = pooling == "attention"
        self.earlier = nn.ModuleList(Block(width, heads, inner, dropout) for _ in range(blocks - 1))
        self.final = Block(width, heads, inner, dropout)
        self.norm = nn.LayerNorm(width)
        self.energy = nn.Linear(width, 1, bias=False) if self.learnt else nn.Identity()

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L, D] -> pooled [B, D], what each head of the last block saw [B, A, L].

        That is the weights of the rows that asked, by their shares in what is pooled: of the last row alone, or the
        mean over all rows. So they are positive and sum to one in every head.
        """
        for block in self.earlier:
            rows = block(rows)
        found, weights = self.final.look(rows[:, -1:] if self.last_only else rows, rows)
        found = self.norm(found)
        shares = self.shares(found)
        return torch.bmm(shares, found).squeeze(1), torch.matmul(shares.unsqueeze(1), weights).squeeze(2)

    def shares(self, found: Tensor) -> Tensor:
        """[B, q, D] -> [B, 1, q]"""
        if self.learnt:
            return torch.softmax(self.energy(found).transpose(1, 2), 2)
        return found.new_full((found.size(0), 1, found.size(1)), 1.0 / found.size(1))
