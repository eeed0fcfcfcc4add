"""Decides which tickets run in the next pass. Knows no tensor, no socket and no HTTP; its clock and its runner are
given to it.

Scheduling is per pass, not per request: between two passes finished tickets leave, waiting ones join, and those that
nobody waits for are dropped (docs/decisions/0003).
"""

import logging
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Protocol

from app.errors import DeviceLostError, FailedError, QueueFullError
from app.ticket import ModelId, Part, Ticket

log = logging.getLogger(__name__)

Runner = Callable[[Sequence[Ticket]], Sequence[Part]]
"""Takes tickets of one model through one pass, or several in a row, and gives their parts, in the same order."""

Clock = Callable[[], float]
"""Seconds, monotonic."""


class Watcher(Protocol):
    """Who wants to know what happens (the metrics)."""

    def waited(self, model: ModelId, seconds: float) -> None:
        """A ticket entered its first pass after that long."""

    def passed(self, model: ModelId, rows: int, seconds: float) -> None:
        """A pass of that many rows took that long."""


class Scheduler:
    """One queue, one pass at a time: `submit` tickets, then `turn` until it is idle."""

    def __init__(self, run: Runner, clock: Clock, watcher: Watcher, *, queue_rows: int, batch_rows: int) -> None:
        self._run = run
        self._clock = clock
        self._watcher = watcher
        self._queue_rows = queue_rows
        self._batch_rows = batch_rows
        # Ordered sets: who has left is taken out at once, with its windows, however long the queue may be.
        self._lanes: dict[ModelId, OrderedDict[Ticket, None]] = {}
        self._suspects: deque[list[Ticket]] = deque()
        self._pass_s = 0.0
        self._work = 0
        """Passes still to be done, times their rows."""
        self.rows = 0
        """Accepted and not yet through."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._lanes and not self._suspects

    @property
    def backlog_s(self) -> float:
        """How long what has been accepted will take, as passes went lately."""
        return self._pass_s * self._work / self._batch_rows

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Queue all of them or none; QueueFullError at once."""
        rows = sum(ticket.rows for ticket in tickets)
        if self.rows + rows > self._queue_rows:
            raise QueueFullError(
                f"{self.rows} rows are waiting, of at most {self._queue_rows}",
                retry_after_s=max(1, math.ceil(self.backlog_s)),
            )
        now = self._clock()
        self.rows += rows
        for ticket in tickets:
            ticket.submitted = now
            self._work += ticket.rows * ticket.passes
            self._enqueue(ticket)

    def drop(self, ticket: Ticket) -> None:
        """Nobody waits for it any more: it costs no further pass."""
        if not ticket.gone:
            self._leave(ticket)

    def turn(self) -> list[Ticket]:
        """Run one pass; the tickets that are through with it, those that failed with their `error`.

        DeviceLostError where the device itself has failed: every further pass would, too.
        """
        batch = self._next_batch()
        if not batch:
            return []
        began = self._clock()
        for ticket in batch:
            if ticket.queued_s is None:
                ticket.queued_s = began - ticket.submitted
                self._watcher.waited(ticket.model, ticket.queued_s)
        try:
            parts = self._run(batch)
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001  whatever a model raises fails its own rows, never the loop
            return self._halve(batch, error)
        return self._settle(batch, parts, self._clock() - began)

    def _settle(self, batch: list[Ticket], parts: Sequence[Part], seconds: float) -> list[Ticket]:
        passes = parts[0].passes if parts else 1
        self._pass_s += 0.1 * (seconds / passes - self._pass_s)
        through = []
        rows = 0
        for ticket, part in zip(batch, parts, strict=True):
            rows += ticket.rows
            ticket.take(part)
            ticket.device_s += seconds
            self._work -= ticket.rows * passes
            if ticket.finished:
                self._leave(ticket)
                through.append(ticket)
            else:
                self._enqueue(ticket)
        for _ in range(passes):
            self._watcher.passed(batch[0].model, rows, seconds / passes)
        return through

    def _next_batch(self) -> list[Ticket]:
        """The live tickets of the next pass, all of one model; empty when there is nothing to do."""
        while self._suspects:
            batch = [ticket for ticket in self._suspects.popleft() if not ticket.gone]
            if batch:
                return batch
        if not self._lanes:
            return []
        # The lane that was served longest ago; it goes to the back if anything stays in it.
        model, lane = next(iter(self._lanes.items()))
        del self._lanes[model]
        batch = self._take(lane)
        if lane:
            self._lanes[model] = lane
        return batch

    def _take(self, lane: OrderedDict[Ticket, None]) -> list[Ticket]:
        batch: list[Ticket] = []
        rows = 0
        for ticket in lane:
            if batch and rows + ticket.rows > self._batch_rows:
                break
            batch.append(ticket)
            rows += ticket.rows
        for ticket in batch:
            del lane[ticket]
        return batch

    def _enqueue(self, ticket: Ticket) -> None:
        lane = self._lanes.get(ticket.model)
        if lane is None:
            lane = self._lanes[ticket.model] = OrderedDict()
        lane[ticket] = None

    def _halve(self, batch: list[Ticket], error: Exception) -> list[Ticket]:
        """One bad row fails alone: the halves of a failing pass run again, apart, before anything else."""
        if len(batch) > 1:
            middle = len(batch) // 2
            self._suspects.extendleft([batch[middle:], batch[:middle]])
            return []
        (ticket,) = batch
        log.error("a pass of %s failed", ticket.model, exc_info=error)
        ticket.error = FailedError("the model failed on this window")
        self._leave(ticket)
        return batch

    def _leave(self, ticket: Ticket) -> None:
        ticket.gone = True
        self.rows -= ticket.rows
        self._work -= ticket.rows * (ticket.passes - ticket.done)
        lane = self._lanes.get(ticket.model)
        if lane is not None and ticket in lane:
            del lane[ticket]
            if not lane:
                del self._lanes[ticket.model]
