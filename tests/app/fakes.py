"""A clock that is turned by hand and a runner whose passes end when the test says so."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from app.ticket import ModelId, Part, Ticket

MODEL = ModelId("tiny", 1, "sha256:one")
OTHER = ModelId("other", 1, "sha256:two")


@dataclass(eq=False)
class FakeTimer:
    when: float
    callback: Callable[..., object]
    args: tuple[object, ...]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class FakeClock:
    now: float = 0.0
    timers: list[FakeTimer] = field(default_factory=list)

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> FakeTimer:
        self.timers.append(FakeTimer(when, callback, args))
        return self.timers[-1]

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self.timers if timer.when <= self.now]
        self.timers = [timer for timer in self.timers if timer.when > self.now]
        for timer in due:
            if not timer.cancelled:
                timer.callback(*timer.args)


class FakeRunner:
    """Gives each ticket its own tag and the number of the pass, so that a mixed-up answer shows."""

    def __init__(self) -> None:
        self.passes: list[list[Ticket]] = []
        self._running: asyncio.Future[Exception | None] | None = None

    @property
    def running(self) -> bool:
        return self._running is not None

    async def __call__(self, tickets: Sequence[Ticket]) -> Sequence[Part]:
        assert self._running is None, "one pass at a time"
        self.passes.append(list(tickets))
        self._running = asyncio.get_running_loop().create_future()
        try:
            error = await self._running
        finally:
            self._running = None
        if error is not None:
            raise error
        return [Part(answer_of(ticket, len(ticket.parts)), None) for ticket in tickets]

    async def finish(self, error: Exception | None = None) -> None:
        """End the pass under way, well or badly, and let the loop get to its next decision."""
        assert self._running is not None, "no pass is running"
        self._running.set_result(error)
        await settle()


class SilentWatcher:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.rows: list[int] = []

    def waited(self, model: ModelId, seconds: float) -> None:
        self.waits.append(seconds)

    def passed(self, model: ModelId, rows: int, seconds: float) -> None:
        self.rows.append(rows)


def ticket(
    tag: int = 0, *, passes: int = 1, rows: int = 1, deadline: float | None = None, model: ModelId = MODEL
) -> Ticket:
    return Ticket(
        model=model,
        window=np.full((rows, 1, 1), tag, np.float32),
        time=np.zeros(rows, np.int64),
        known=np.empty((rows, passes, 0), np.float32),
        passes=passes,
        attention=False,
        deadline=deadline,
        answer=asyncio.get_running_loop().create_future(),
    )


def answer_of(ticket: Ticket, done: int) -> np.ndarray:
    return ticket.window * 1000 + done


def is_right(ticket: Ticket) -> bool:
    expected = np.concatenate([answer_of(ticket, done) for done in range(ticket.passes)], 1)
    return np.array_equal(ticket.forecast(), expected)


async def settle() -> None:
    """Let everything that can run without outside help do so."""
    for _ in range(10):
        await asyncio.sleep(0)
