"""The traveller: a request's windows on their way through the scheduler and the runtime.

Shapes: n rows (windows) of the ticket, L window, F features, H steps a pass, P passes, K known-future covariates,
T targets, R attention rows a pass.
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.errors import ForetellError

Floats = NDArray[np.float32]
Times = NDArray[np.int64]


class ModelId(NamedTuple):
    """A published version; the digest alone would do, the rest is for people."""

    name: str
    version: int
    digest: str


class NoRoomError(Exception):
    """A pass does not fit into the device's memory; one of fewer rows may."""


class Slot(NamedTuple):
    """Where a ticket's rows are between passes: from row `start` of a layout on, which is the runtime's own."""

    layout: Any
    start: int


class Part(NamedTuple):
    """What p passes in a row gave a ticket: forecast [n, p * H, T], attention [n, p * R, L] where it was asked for."""

    forecast: Floats
    attention: Floats | None
    passes: int = 1
    """p"""


@dataclass(slots=True, eq=False)
class Ticket:
    """Rows of one model that start, step and finish together. Times are of the scheduler's clock, in seconds."""

    model: ModelId
    window: Floats
    """[n, L, F]"""
    time: Times
    """[n], epoch seconds of each window's last row; zeros where the model has no clock."""
    known: Floats
    """[n, P * H, K], the known future in whole passes."""
    passes: int
    """P, how many passes the steps that were asked for take."""
    attention: bool
    bulk: bool = False
    """Whether it gives way to whoever is not."""
    owner: Any = None
    """Whoever submitted it, to know it again; nobody on the way looks at it."""
    parts: list[Part] = field(default_factory=list)
    """What it has been given so far."""
    done: int = 0
    """Passes done."""
    state: Any = None
    """A Slot between passes; None before the first."""
    lane: Any = None
    """The scheduler's own: where it waits."""
    submitted: float = 0.0
    queued_s: float | None = None
    """From submission to the first pass; None before it."""
    device_s: float = 0.0
    """The sum of the passes that it was in."""
    gone: bool = False
    """It has left the scheduler: finished, failed, or nobody waits for it any more."""
    error: ForetellError | None = None
    """Why it failed."""
    rows: int = field(init=False)
    """n"""

    def __post_init__(self) -> None:
        # Kept, since a pass asks for it many times.
        self.rows = len(self.window)

    @property
    def finished(self) -> bool:
        """Whether it has been through all its passes."""
        return self.done == self.passes

    def take(self, part: Part) -> None:
        """One or several passes more are done."""
        self.parts.append(part)
        self.done += part.passes

    def halves(self) -> "tuple[Ticket, Ticket]":
        """Two tickets of this one's rows, each as far as this one is, which thereby has left."""
        middle = self.rows // 2
        self.gone = True
        return self._share(0, middle), self._share(middle, self.rows)

    def _share(self, start: int, end: int) -> "Ticket":
        parts = [
            Part(forecast[start:end], None if attention is None else attention[start:end], passes)
            for forecast, attention, passes in self.parts
        ]
        state = None if self.state is None else Slot(self.state.layout, self.state.start + start)
        rows = slice(start, end)
        return replace(
            self,
            window=self.window[rows],
            time=self.time[rows],
            known=self.known[rows],
            parts=parts,
            state=state,
            gone=False,
        )

    def passed(self, start: int, end: int) -> Part:
        """What the passes from `start` to before `end` gave, all of them done."""
        forecast, attention = self.forecast(), self.weights()
        # Each pass gives as many rows as any other.
        steps, rows = forecast.shape[1] // self.done, 0 if attention is None else attention.shape[1] // self.done
        weights = None if attention is None else attention[:, start * rows : end * rows]
        return Part(forecast[:, start * steps : end * steps], weights, end - start)

    def forecast(self) -> Floats:
        """[n, P * H, T], once finished; before that, as far as it has got."""
        parts = [part.forecast for part in self.parts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, 1)

    def weights(self) -> Floats | None:
        """Attention [n, P * R, L], likewise; None where it was not asked for."""
        parts = [part.attention for part in self.parts if part.attention is not None]
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else np.concatenate(parts, 1)
