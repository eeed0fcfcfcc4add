"""Several networks of the same data as one: their forecasts are averaged, so that chance in training averages out.

Shapes: B rows, L window, F features, H steps a pass, K features known ahead, R attention rows a pass.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from models.core import Core


class Ensemble(Core):
    """Each member reads as many of the newest rows as its own window has, and goes on from its own forecasts.

    Attention is the mean of the members that have any. State: those of the members, one after the other.
    """

    horizon: Final[int]
    window: Final[int]

    def __init__(self, members: Sequence[Core], window: int) -> None:
        shapes = [member.shape for member in members]
        super().__init__(replace(shapes[0], window=window))
        if any(replace(shape, window=window) != self.shape or shape.window > window for shape in shapes):
            raise ValueError("the members of an ensemble must agree in all but their windows, none longer than its own")
        self.window = window
        attending = {member.attention_rows for member in members} - {0}
        if len(attending) > 1:
            raise ValueError(
                f"the members of an ensemble must have as many attention rows a pass; got {sorted(attending)}"
            )
        # Any: mypy knows of its items only that they are modules.
        self.members: Any = nn.ModuleList(members)
        self.recursion = "sliding" if any(member.recursion == "sliding" for member in members) else "carried"
        self.clock = any(member.clock for member in members)
        self.attention_rows = max(attending, default=0)
        self.embedding = sum(member.embedding for member in members)
        self.attention_heads = sum(member.attention_heads for member in members)
        self.horizon = self.shape.horizon
        self.windows = [shape.window for shape in shapes]
        self.sizes = [_state_size(member) for member in members]
        self.attends = [member.attention_rows > 0 for member in members]

    def encode(self, window: Tensor, time: Tensor) -> list[Tensor]:
        state: list[Tensor] = []
        for index, member in enumerate(self.members):
            state += member.encode(window[:, -self.windows[index] :], time)
        return state

    def decode(self, state: list[Tensor], future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        forecasts: list[Tensor] = []
        attentions: list[Tensor] = []
        following: list[Tensor] = []
        place = 0
        for index, member in enumerate(self.members):
            size = self.sizes[index]
            outputs, attention, own = member.decode(state[place : place + size], future)
            place += size
            forecasts.append(outputs)
            following += own
            if self.attends[index]:
                older = self.window - attention.size(2)
                attentions.append(nn.functional.pad(attention, [older, 0]))
        outputs = torch.stack(forecasts).mean(0)
        if len(attentions) > 0:
            return outputs, torch.stack(attentions).mean(0), following
        return outputs, outputs.new_empty(outputs.size(0), 0, self.window), following

    def correct(self, state: list[Tensor], rows: Tensor) -> list[Tensor]:
        corrected: list[Tensor] = []
        place = 0
        for index, member in enumerate(self.members):
            corrected += member.correct(state[place : place + self.sizes[index]], rows)
            place += self.sizes[index]
        return corrected

    def embed(self, window: Tensor, time: Tensor) -> Tensor:
        found: list[Tensor] = []
        for index, member in enumerate(self.members):
            found.append(member.embed(window[:, -self.windows[index] :], time))
        return torch.cat(found, 1)

    def heads(self, window: Tensor, time: Tensor) -> Tensor:
        found: list[Tensor] = []
        for index, member in enumerate(self.members):
            seen = member.heads(window[:, -self.windows[index] :], time)
            found.append(nn.functional.pad(seen, [self.window - seen.size(2), 0]))
        return torch.cat(found, 1)


def _state_size(member: Core) -> int:
    """How many tensors its state has."""
    shape, training = member.shape, member.training
    with torch.no_grad():
        window = torch.zeros(1, shape.window, shape.features)
        size = len(member.eval().encode(window, torch.zeros(1, dtype=torch.int64)))
    member.train(training)
    return size
