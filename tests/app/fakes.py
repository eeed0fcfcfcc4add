"""A clock that is turned by hand, a runner whose answers show whom they are for, and a watcher that remembers."""

import asyncio
from collections.abc import Sequence

import numpy as np

from app.ticket import ModelId, NoRoomError, Part, Ticket

MODEL = ModelId("tiny", 1, f"sha256:{'1' * 64}")
OTHER = ModelId("other", 1, f"sha256:{'2' * 64}")


class FakeClock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeRunner:
    """Gives each ticket its own tag and the number of the pass, so that a mixed-up answer shows."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.passes: list[list[Ticket]] = []
        self.takes_s = 0.0
        self.bad: set[Ticket] = set()
        """With any of these in it, a pass fails."""
        self.error: Exception = ValueError("/secret/place")
        self.most: int | None = None
        """Passes of more rows do not fit into memory."""

    def __call__(self, tickets: Sequence[Ticket]) -> Sequence[Part]:
        self.passes.append(list(tickets))
        self._clock.now += self.takes_s
        if self.most is not None and sum(ticket.rows for ticket in tickets) > self.most:
            raise NoRoomError("out of memory")
        if not self.bad.isdisjoint(tickets):
            raise self.error
        return [Part(answer_of(ticket, len(ticket.parts)), None) for ticket in tickets]


class FakeWatcher:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.passes: list[tuple[ModelId, int, float]] = []
        self.rows: list[tuple[str, int]] = []
        self.starved: list[ModelId] = []

    def waited(self, model: ModelId, seconds: float) -> None:
        self.waits.append(seconds)

    def passed(self, model: ModelId, rows: int, seconds: float) -> None:
        self.passes.append((model, rows, seconds))

    def out_of_memory(self, model: ModelId) -> None:
        self.starved.append(model)

    def waiting(self, device: str, rows: int) -> None:
        self.rows.append((device, rows))


def ticket(tag: int = 0, *, passes: int = 1, rows: int = 1, model: ModelId = MODEL, bulk: bool = False) -> Ticket:
    return Ticket(
        model=model,
        window=np.arange(tag, tag + rows, dtype=np.float32).reshape(rows, 1, 1),
        time=np.zeros(rows, np.int64),
        known=np.empty((rows, passes, 0), np.float32),
        passes=passes,
        attention=False,
        bulk=bulk,
    )


def answer_of(ticket: Ticket, done: int) -> np.ndarray:
    return ticket.window * 1000 + done


def is_right(ticket: Ticket) -> bool:
    expected = np.concatenate([answer_of(ticket, done) for done in range(ticket.passes)], 1)
    return ticket.error is None and ticket.finished and np.array_equal(ticket.forecast(), expected)


async def settle() -> None:
    """Let everything that can run without outside help do so."""
    for _ in range(10):
        await asyncio.sleep(0)
