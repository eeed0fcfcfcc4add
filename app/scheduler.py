"""Decides which tickets run in the next pass. Knows no tensor and no HTTP; its clock and its runner are given to it.

Scheduling is per pass, not per request: between two passes finished tickets leave, waiting ones join, and cancelled
or expired ones are dropped (docs/decisions/0003).
"""

import asyncio
import logging
import math
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

from app.errors import (
    DeadlineError,
    DeviceLostError,
    DrainingError,
    EngineDiedError,
    FailedError,
    ForetellError,
    QueueFullError,
)
from app.ticket import ModelId, Part, Ticket

log = logging.getLogger(__name__)

Runner = Callable[[Sequence[Ticket]], Awaitable[Sequence[Part]]]
"""Takes tickets of one model through one pass and gives their parts, in the same order."""


class Timer(Protocol):
    """What `Clock.call_at` gives."""

    def cancel(self) -> object:
        """Call it off."""


class Clock(Protocol):
    """The part of an event loop that the scheduler needs; tests turn one by hand."""

    def time(self) -> float:
        """Seconds, monotonic."""

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> Timer:
        """Call back at a time of this clock."""


class Watcher(Protocol):
    """Who wants to know what happens (the metrics)."""

    def waited(self, model: ModelId, seconds: float) -> None:
        """A ticket entered its first pass after that long."""

    def passed(self, model: ModelId, rows: int, seconds: float) -> None:
        """A pass of that many rows took that long."""


class Scheduler:
    """One queue, one loop, one pass at a time: `submit` tickets, await their answers."""

    def __init__(self, run: Runner, clock: Clock, watcher: Watcher, *, queue_rows: int, batch_rows: int) -> None:
        self._run = run
        self._clock = clock
        self._watcher = watcher
        self._queue_rows = queue_rows
        self._batch_rows = batch_rows
        # Ordered sets: who has left is taken out at once, with its windows, however long the pass under way may be.
        self._lanes: dict[ModelId, OrderedDict[Ticket, None]] = {}
        self._suspects: deque[list[Ticket]] = deque()
        self._open: dict[Ticket, Timer | None] = {}
        self._wake = asyncio.Event()
        self._closing = False
        self._died = False
        self._pass_began: float | None = None
        self._pass_s = 0.0
        self._work = 0
        """Passes still to be done, times their rows."""
        self.rows = 0
        """Accepted and not yet answered."""

    @property
    def died(self) -> bool:
        """Whether the loop ended by an error: nothing will ever run again."""
        return self._died

    @property
    def stalled_s(self) -> float:
        """How long the pass under way has been running."""
        return 0.0 if self._pass_began is None else self._clock.time() - self._pass_began

    def check(self, rows: int = 1) -> None:
        """Raise what `submit` would raise for that many rows, before anyone spends work on them."""
        if self._died:
            raise EngineDiedError("the engine has stopped; it takes no more work")
        if self._closing:
            raise DrainingError("the service is shutting down")
        if self.rows + rows > self._queue_rows:
            raise QueueFullError(
                f"{self.rows} rows are waiting, of at most {self._queue_rows}", retry_after_s=self._retry_after_s()
            )

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Queue all of them or none; QueueFullError, DrainingError or EngineDiedError at once."""
        self.check(sum(ticket.rows for ticket in tickets))
        now = self._clock.time()
        for ticket in tickets:
            ticket.submitted = now
            timer = None if ticket.deadline is None else self._clock.call_at(ticket.deadline, self._expire, ticket)
            self._open[ticket] = timer
            self.rows += ticket.rows
            self._work += ticket.rows * ticket.passes
            ticket.answer.add_done_callback(partial(self._leave, ticket))
            self._enqueue(ticket)
        self._wake.set()

    def close(self) -> None:
        """Refuse from now on, finish what was accepted; `serve` returns when that is done."""
        self._closing = True
        self._wake.set()

    async def serve(self) -> None:
        """Run passes until closed and drained. However it ends, nobody is left waiting."""
        try:
            while True:
                batch = self._next_batch()
                if batch:
                    await self._pass(batch)
                elif self._closing:
                    return
                else:
                    self._wake.clear()
                    await self._wake.wait()
        except BaseException as error:
            self._died = True
            if isinstance(error, Exception):
                log.exception("the scheduler's loop died")
            raise
        finally:
            for ticket in list(self._open):
                self._fail(ticket, EngineDiedError("the engine stopped before the forecast was done"))

    async def _pass(self, batch: list[Ticket]) -> None:
        self._pass_began = began = self._clock.time()
        for ticket in batch:
            if ticket.queued_s is None:
                ticket.queued_s = began - ticket.submitted
                self._watcher.waited(ticket.model, ticket.queued_s)
        try:
            parts = await self._run(batch)
        except DeviceLostError:
            # Every further pass would fail, at once, and draw all the traffic: the loop ends, and with it liveness.
            raise
        except Exception as error:  # noqa: BLE001  whatever a model raises fails its own rows, never the loop
            self._halve(batch, error)
        else:
            self._settle(batch, parts, self._clock.time() - began)
        finally:
            self._pass_began = None

    def _settle(self, batch: list[Ticket], parts: Sequence[Part], seconds: float) -> None:
        self._pass_s += 0.1 * (seconds - self._pass_s)
        self._watcher.passed(batch[0].model, sum(ticket.rows for ticket in batch), seconds)
        for ticket, part in zip(batch, parts, strict=True):
            if ticket.answer.done():
                continue
            ticket.parts.append(part)
            ticket.device_s += seconds
            self._work -= ticket.rows
            if ticket.finished:
                ticket.answer.set_result(None)
            else:
                self._enqueue(ticket)

    def _next_batch(self) -> list[Ticket]:
        """The live tickets of the next pass, all of one model; empty when there is nothing to do."""
        while self._suspects:
            batch = [ticket for ticket in self._suspects.popleft() if not ticket.answer.done()]
            if batch:
                return batch
        while self._lanes:
            # The lane that was served longest ago; it goes to the back if anything stays in it.
            model, lane = next(iter(self._lanes.items()))
            del self._lanes[model]
            batch = self._take(lane)
            if lane:
                self._lanes[model] = lane
            if batch:
                return batch
        return []

    def _take(self, lane: OrderedDict[Ticket, None]) -> list[Ticket]:
        batch: list[Ticket] = []
        rows = 0
        while lane:
            ticket = next(iter(lane))
            alive = not ticket.answer.done()
            if alive and batch and rows + ticket.rows > self._batch_rows:
                break
            del lane[ticket]
            if alive:
                batch.append(ticket)
                rows += ticket.rows
        return batch

    def _enqueue(self, ticket: Ticket) -> None:
        self._lanes.setdefault(ticket.model, OrderedDict())[ticket] = None

    def _halve(self, batch: list[Ticket], error: Exception) -> None:
        """One bad row fails alone: the halves of a failing pass run again, apart, before anything else."""
        if len(batch) > 1:
            middle = len(batch) // 2
            self._suspects.extendleft([batch[middle:], batch[:middle]])
            return
        log.error("a pass of %s failed", batch[0].model, exc_info=error)
        self._fail(batch[0], FailedError("the model failed on this window"))

    def _expire(self, ticket: Ticket) -> None:
        where = "while it was computed" if ticket.parts else "before it was begun"
        self._fail(ticket, DeadlineError(f"the deadline passed {where}"))

    def _fail(self, ticket: Ticket, error: ForetellError) -> None:
        if not ticket.answer.done():
            ticket.answer.set_exception(error)

    def _leave(self, ticket: Ticket, _answer: asyncio.Future[None]) -> None:
        self.rows -= ticket.rows
        self._work -= ticket.rows * (ticket.passes - len(ticket.parts))
        if ticket.model in self._lanes:
            self._lanes[ticket.model].pop(ticket, None)
        timer = self._open.pop(ticket)
        if timer is not None:
            timer.cancel()

    def _retry_after_s(self) -> int:
        return max(1, math.ceil(self._pass_s * self._work / self._batch_rows))
