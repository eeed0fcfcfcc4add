"""Attention of one query over the encoder's states: three scores behind one interface.

Shapes: B rows, L window, D width of the states, A width of the keys. `prepare` is done once a window and `weigh`
once a pass, so that a step of a recursion pays only for its query.
"""

import math
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

ScoreName = Literal["additive", "dot", "bilinear"]


class Score(nn.Module):
    """How well a query fits each of the window's states."""

    @abstractmethod
    def prepare(self, values: Tensor) -> Tensor:
        """Encoder states [B, L, D] -> keys [B, L, A]."""

    @abstractmethod
    def energy(self, query: Tensor, keys: Tensor) -> Tensor:
        """Query [B, D], keys [B, L, A] -> one number a state [B, L]."""

    def weigh(self, query: Tensor, keys: Tensor) -> Tensor:
        """Query [B, D], keys [B, L, A] -> weights [B, 1, L] that are positive and sum to one."""
        return torch.softmax(self.energy(query, keys), dim=-1).unsqueeze(1)


class AdditiveScore(Score):
    """v · tanh(W q + U k) (Bahdanau, Cho and Bengio, 2015)."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.of_query = nn.Linear(width, size)
        self.of_key = nn.Linear(width, size, bias=False)
        self.read = nn.Linear(size, 1, bias=False)

    def prepare(self, values: Tensor) -> Tensor:
        keys: Tensor = self.of_key(values)
        return keys

    def energy(self, query: Tensor, keys: Tensor) -> Tensor:
        # tanh, written so that it is fast on every CPU: the one in torch takes ten times as long on AMD's.
        summed = self.of_query(query).unsqueeze(1) + keys
        energy: Tensor = self.read(2.0 * torch.sigmoid(2.0 * summed) - 1.0)
        return energy.squeeze(-1)


class DotScore(Score):
    """q · k / sqrt(D) (Luong, Pham and Manning, 2015; scaled as by Vaswani et al., 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = 1.0 / math.sqrt(width)

    def prepare(self, values: Tensor) -> Tensor:
        return values * self.scale

    def energy(self, query: Tensor, keys: Tensor) -> Tensor:
        return torch.bmm(keys, query.unsqueeze(2)).squeeze(2)


class BilinearScore(Score):
    """q · W k (the "general" score of Luong, Pham and Manning, 2015)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_key = nn.Linear(width, width, bias=False)

    def prepare(self, values: Tensor) -> Tensor:
        keys: Tensor = self.of_key(values)
        return keys

    def energy(self, query: Tensor, keys: Tensor) -> Tensor:
        return torch.bmm(keys, query.unsqueeze(2)).squeeze(2)


def score(name: ScoreName, width: int, size: int) -> Score:
    """The score of that name for states `width` wide; `size` is the width of the additive one's keys."""
    if name == "additive":
        return AdditiveScore(width, size)
    return DotScore(width) if name == "dot" else BilinearScore(width)
