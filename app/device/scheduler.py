"""Decides which tickets run in the next pass. Knows no tensor, no socket and no HTTP; its clock and its runner are
given to it.

Scheduling is per pass, not per request: between two passes finished tickets leave, waiting ones join, and those that
nobody waits for are dropped (docs/decisions/0003). Tickets of bulk work give way to all others between any two passes,
and do not age: they run when nothing else waits, or beside it where a pass has room that nobody else wants.
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


class _Queue:
    """What waits of one priority: a lane for each model, and the halves of passes that failed."""

    def __init__(self) -> None:
        # Ordered sets: who has left is taken out at once, with its windows, however long the queue may be.
        self.lanes: dict[ModelId, OrderedDict[Ticket, None]] = {}
        """The one that was served longest ago is the first."""
        self.suspects: deque[list[Ticket]] = deque()
        self.rows = 0
        """Accepted and not yet through."""
        self.work = 0
        """Passes still to be done, times their rows."""

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return not self.lanes and not self.suspects

    def suspected(self) -> list[Ticket]:
        """The live tickets of a half that is to run again; empty where there is none."""
        while self.suspects:
            batch = [ticket for ticket in self.suspects.popleft() if not ticket.gone]
            if batch:
                return batch
        return []

    def take(self, model: ModelId, room: int, company: Sequence[Ticket] = ()) -> list[Ticket]:
        """The first tickets of a model's lane, as far as they fit into a pass of `room` rows beside their company.

        One that no pass has room for is taken all the same where it is alone. A lane that was served goes to the back.
        """
        lane = self.lanes.get(model)
        if lane is None:
            return []
        batch: list[Ticket] = []
        rows = sum(ticket.rows for ticket in company)
        for ticket in lane:
            if (batch or company) and rows + ticket.rows > room:
                break
            batch.append(ticket)
            rows += ticket.rows
        if batch:
            for ticket in batch:
                del lane[ticket]
            del self.lanes[model]
            if lane:
                self.lanes[model] = lane
        return batch

    def add(self, ticket: Ticket) -> None:
        """At the end of its model's lane."""
        lane = self.lanes.get(ticket.model)
        if lane is None:
            lane = self.lanes[ticket.model] = OrderedDict()
        lane[ticket] = None

    def remove(self, ticket: Ticket) -> None:
        """With all that it still had to do, wherever it is."""
        self.rows -= ticket.rows
        self.work -= ticket.rows * (ticket.passes - ticket.done)
        lane = self.lanes.get(ticket.model)
        if lane is not None and ticket in lane:
            del lane[ticket]
            if not lane:
                del self.lanes[ticket.model]


class Scheduler:
    """One pass at a time, of those who wait: `submit` tickets, then `turn` until it is idle.

    There is room for `queue_rows` rows, and for as many again of bulk work, so that neither keeps the other out. A pass
    has at most `batch_rows` rows, and `bulk_batch_rows` where some of them are of bulk work: whoever comes in the
    middle of it waits for its end.
    """

    def __init__(
        self,
        run: Runner,
        clock: Clock,
        watcher: Watcher,
        *,
        queue_rows: int,
        batch_rows: int,
        bulk_batch_rows: int,
    ) -> None:
        self._run = run
        self._clock = clock
        self._watcher = watcher
        self._queue_rows = queue_rows
        self._batch_rows = batch_rows
        self._bulk_batch_rows = bulk_batch_rows
        self._queues = self._first, self._bulk = _Queue(), _Queue()
        """By `Ticket.bulk`."""
        self._pass_s = 0.0
        self._under_way: list[Ticket] = []

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._first.idle and self._bulk.idle

    @property
    def undisturbed(self) -> bool:
        """Whether nobody waits who would be in the next pass before those in the one under way, or along with them."""
        return self._first.idle and (self._bulk.idle or self._under_way[0].bulk)

    @property
    def rows(self) -> int:
        """Accepted and not yet through, but for those of bulk work."""
        return self._first.rows

    @property
    def bulk_rows(self) -> int:
        """Those of bulk work."""
        return self._bulk.rows

    @property
    def backlog_s(self) -> float:
        """How long what has been accepted will take, as passes went lately; whoever submits waits for no bulk work."""
        return self._pass_s * self._first.work / self._batch_rows

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Queue all of them, which are of one priority, or none; QueueFullError at once."""
        rows = sum(ticket.rows for ticket in tickets)
        queue = self._queues[tickets[0].bulk]
        if queue.rows + rows > self._queue_rows:
            backlog_s = self.backlog_s
            if queue is self._bulk:
                backlog_s += self._pass_s * queue.work / self._bulk_batch_rows
            raise QueueFullError(
                f"{queue.rows} rows are waiting, of at most {self._queue_rows}",
                retry_after_s=max(1, math.ceil(backlog_s)),
            )
        now = self._clock()
        queue.rows += rows
        for ticket in tickets:
            ticket.submitted = now
            queue.work += ticket.rows * ticket.passes
            queue.add(ticket)

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
        self._under_way = batch
        try:
            parts = self._run(batch)
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001  whatever a model raises fails its own rows, never the loop
            return self._halve(batch, error)
        finally:
            # Not kept: whoever is through is freed with its windows.
            self._under_way = []
        return self._settle(batch, parts, self._clock() - began)

    def _settle(self, batch: list[Ticket], parts: Sequence[Part], seconds: float) -> list[Ticket]:
        passes = parts[0].passes if parts else 1
        self._pass_s += 0.1 * (seconds / passes - self._pass_s)
        through = []
        rows = 0
        for ticket, part in zip(batch, parts, strict=True):
            queue = self._queues[ticket.bulk]
            rows += ticket.rows
            ticket.take(part)
            ticket.device_s += seconds
            queue.work -= ticket.rows * passes
            if ticket.finished:
                self._leave(ticket)
                through.append(ticket)
            else:
                queue.add(ticket)
        for _ in range(passes):
            self._watcher.passed(batch[0].model, rows, seconds / passes)
        return through

    def _next_batch(self) -> list[Ticket]:
        """The live tickets of the next pass, all of one model; empty when there is nothing to do."""
        first, bulk = self._queues
        batch = first.suspected()
        if batch:
            return batch
        if first.lanes:
            model = next(iter(first.lanes))
            batch = first.take(model, self._batch_rows)
            # Another model's rows would wait for the longer pass.
            return batch if first.lanes else batch + bulk.take(model, self._bulk_batch_rows, batch)
        batch = bulk.suspected()
        return batch or (bulk.take(next(iter(bulk.lanes)), self._bulk_batch_rows) if bulk.lanes else [])

    def _halve(self, batch: list[Ticket], error: Exception) -> list[Ticket]:
        """One bad row fails alone: the halves of a failing pass run again, apart, before anything of their priority.

        So that no half is of two priorities, a pass that was is cut where the bulk work in it begins.
        """
        if len(batch) > 1:
            ahead = sum(not ticket.bulk for ticket in batch)
            middle = ahead if 0 < ahead < len(batch) else len(batch) // 2
            for half in (batch[middle:], batch[:middle]):
                self._queues[half[0].bulk].suspects.appendleft(half)
            return []
        (ticket,) = batch
        log.error("a pass of %s failed", ticket.model, exc_info=error)
        ticket.error = FailedError("the model failed on this window")
        self._leave(ticket)
        return batch

    def _leave(self, ticket: Ticket) -> None:
        ticket.gone = True
        self._queues[ticket.bulk].remove(ticket)
