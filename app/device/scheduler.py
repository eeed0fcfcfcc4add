"""Decides which tickets run in the next pass. Knows no tensor, no socket and no HTTP; its clock and its runner are
given to it.

Scheduling is per pass, not per request: between two passes finished tickets leave, waiting ones join, and those that
nobody waits for are dropped (docs/decisions/0003). Tickets of bulk work give way to all others between any two passes,
and do not age: they run when nothing else waits, or beside it where a pass has room that nobody else wants.

Of one model's tickets, one that has had no pass goes before those that have, so that a short forecast does not wait
for long ones, however many they are; and while only such wait as have had one, those in a pass keep their places for
some passes in a row, so that what surrounds a pass is paid once. Newcomers go before those who have begun since as
many rows were served as wait of these: so no flood of them keeps anybody waiting for ever, and none of them waits for
a second pass of anybody.

Models share a device by its time, whatever a pass of each costs: start-time fair queueing (Goyal, Vin and Cheng,
SIGCOMM 1996) with a pass for a packet and equal weights. Of two models that both have work, neither gets ahead of the
other by more than a pass of each.
"""

import heapq
import logging
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Protocol

from app.errors import DeviceLostError, FailedError, ForetellError, QueueFullError, UnavailableError
from app.link.frames import SHARE, Busy
from app.ticket import ModelId, NoRoomError, Part, Ticket

log = logging.getLogger(__name__)

Runner = Callable[[Sequence[Ticket]], Sequence[Part]]
"""Takes tickets of one model through one pass, or several in a row, and gives their parts, in the same order."""

Clock = Callable[[], float]
"""Seconds, monotonic."""

Split = Callable[[Ticket], Sequence[Ticket]]
"""Gives two tickets in place of one of several rows."""

Failing = Callable[[ModelId, str], None]
"""Told which model fails again and again, and how."""

_KEPT = 0.9
"""How much of what was measured a further pass leaves: the last ten or so count."""
TURN_S = 0.004
"""For so long at most those in a pass keep their places while others wait for them."""
_GOOD_PASSES = 50
"""After so many full passes in a row a model whose passes did not fit into memory gets room for one row more."""


class Watcher(Protocol):
    """Who wants to know what happens (the metrics)."""

    def waited(self, model: ModelId, seconds: float) -> None:
        """A ticket entered its first pass after that long."""

    def passed(self, model: ModelId, rows: int, seconds: float) -> None:
        """A pass of that many rows took that long."""

    def out_of_memory(self, model: ModelId) -> None:
        """A pass did not fit into the device's memory."""


class _Lane:
    """What one model has waiting in a queue, and how much of the device's time it has had."""

    __slots__ = ("begun", "fresh", "going", "record", "rows", "served", "start", "work")

    def __init__(self, record: "_Record") -> None:
        self.record = record
        # By key, in order: who has left is taken out at once, with its windows, however long the queue may be.
        self.fresh: OrderedDict[Ticket, int] = OrderedDict()
        """Those who wait for their first pass, each with the count of `served` at which it is due."""
        self.going: OrderedDict[Ticket, int] = OrderedDict()
        """Those who wait for a further one, likewise. Who is in a pass is in neither."""
        self.begun = 0
        """Rows of these."""
        self.served = 0
        """Rows that have been taken from here, whether for a pass or for several in a row."""
        self.rows = 0
        """Accepted and not yet through."""
        self.work = 0
        """Passes still to be done, times their rows."""
        self.start = 0.0
        """The virtual time at which its next pass starts: it grows by the seconds of each of its passes."""

    def part(self, ticket: Ticket) -> bool:
        """Have it wait no longer; whether it did."""
        if not ticket.done:
            return self.fresh.pop(ticket, None) is not None
        if self.going.pop(ticket, None) is None:
            return False
        self.begun -= ticket.rows
        return True

    def in_turn(self) -> Iterable[Ticket]:
        """Those who wait, in the order of their next passes."""
        if not self.going:
            return self.fresh
        if not self.fresh:
            return self.going
        return (ticket for ticket, _ in heapq.merge(self.fresh.items(), self.going.items(), key=itemgetter(1)))


class _Queue:
    """What waits of one priority: a lane for each model, and the halves of passes that failed."""

    def __init__(self) -> None:
        self.lanes: dict[ModelId, _Lane] = {}
        self.waiting: dict[ModelId, _Lane] = {}
        """Those with tickets; of equals, the one that was served longest ago is the first."""
        self.suspects: deque[list[Ticket]] = deque()
        self.rows = 0
        """Accepted and not yet through."""
        self._now = 0.0
        """The virtual time: the start of the last pass."""
        self._last = 0.0
        """The latest start there is."""

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return not self.waiting and not self.suspects

    def suspected(self) -> list[Ticket]:
        """The live tickets of a half that is to run again; empty where there is none."""
        while self.suspects:
            batch = [ticket for ticket in self.suspects.popleft() if not ticket.gone]
            if batch:
                return batch
        return []

    def first(self) -> ModelId:
        """Whose turn it is: the model that has had least of the device since it has had work."""
        waiting = self.waiting
        model = next(iter(waiting)) if len(waiting) == 1 else min(waiting, key=lambda one: waiting[one].start)
        self._now = waiting[model].start
        return model

    def take(self, model: ModelId, room: int, company: Sequence[Ticket] = ()) -> list[Ticket]:
        """The first tickets of a model's lane, as far as they fit into a pass of `room` rows beside their company.

        One that no pass has room for is taken all the same where it is alone. A lane that was served goes to the back.
        """
        lane = self.waiting.get(model)
        if lane is None:
            return []
        batch: list[Ticket] = []
        rows = sum(ticket.rows for ticket in company)
        for ticket in lane.in_turn():
            if (batch or company) and rows + ticket.rows > room:
                break
            batch.append(ticket)
            rows += ticket.rows
        if batch:
            for ticket in batch:
                lane.part(ticket)
                lane.served += ticket.rows
            del self.waiting[model]
            if lane.fresh or lane.going:
                self.waiting[model] = lane
        return batch

    def accept(self, tickets: Sequence[Ticket], record: "_Record") -> None:
        """Take in new tickets of one model, of which that is known."""
        if not self.rows:
            # Nobody has waited, so nobody is behind: whoever had much of an idle device owes nothing for it.
            self._now = self._last
        model = tickets[0].model
        lane = self.lanes.get(model)
        if lane is None:
            lane = self.lanes[model] = _Lane(record)
        self._awake(model, lane)
        due = lane.served - lane.begun
        for ticket in tickets:
            rows = ticket.rows
            self.rows += rows
            lane.rows += rows
            lane.work += rows * ticket.passes
            ticket.lane = lane
            lane.fresh[ticket] = due

    def back(self, ticket: Ticket) -> None:
        """A ticket that has had a pass waits for its next."""
        lane: _Lane = ticket.lane
        self._awake(ticket.model, lane)
        lane.going[ticket] = lane.served
        lane.begun += ticket.rows

    def _awake(self, model: ModelId, lane: _Lane) -> None:
        """A ticket of the lane is about to wait."""
        if not lane.fresh and not lane.going:
            self.waiting[model] = lane
            if lane.start < self._now:
                lane.start = self._now

    def remove(self, ticket: Ticket) -> None:
        """With all that it still had to do, wherever it is."""
        lane: _Lane = ticket.lane
        rows = ticket.rows
        self.rows -= rows
        lane.rows -= rows
        lane.work -= rows * (ticket.passes - ticket.done)
        if lane.part(ticket) and not lane.fresh and not lane.going:
            del self.waiting[ticket.model]

    def charge(self, lane: _Lane, seconds: float) -> None:
        """A pass of that lane's model took so long."""
        lane.start += seconds
        if lane.start > self._last:
            self._last = lane.start


class _Record:
    """What is known of a model's passes, whatever the priority."""

    __slots__ = ("failed", "good", "pass_s", "passes", "room", "row_s", "rows", "seconds")

    def __init__(self, room: int) -> None:
        self.seconds = self.rows = self.passes = 0.0
        """Sums over the last passes, of which each further one leaves `_KEPT`."""
        self.row_s = 0.0
        """What a row's share of a pass takes."""
        self.pass_s = 0.0
        """What a pass takes."""
        self.room = room
        """Most rows of a pass that fits into the device's memory, as far as known."""
        self.good = 0
        """Full passes since that was last changed."""
        self.failed = 0
        """Tickets that failed since one last got through a pass."""

    def measure(self, rows: int, passes: int, seconds: float) -> None:
        """So many passes of so many rows took that long together."""
        self.seconds = _KEPT * self.seconds + seconds
        self.rows = _KEPT * self.rows + rows * passes
        self.passes = _KEPT * self.passes + passes
        self.row_s, self.pass_s = self.seconds / self.rows, self.seconds / self.passes


class Scheduler:
    """One pass at a time, of those who wait: `submit` tickets, then `turn` until it is idle.

    There is room for `queue_rows` rows, and for as many again of bulk work, so that neither keeps the other out; a
    model that holds less than its SHARE of them gets in although others have filled it, so that none locks another
    out. Whoever would wait longer than `max_wait_s` for the first pass, as passes went lately, or could not be done
    in time, is refused. A pass has at most `batch_rows` rows, and `bulk_batch_rows` where some of them are of bulk
    work: whoever comes in the middle of it waits for its end.

    `failing` is told of a model of which `failures` tickets in a row have failed; once, until `renew`.
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
        max_wait_s: float = math.inf,
        turn_s: float = TURN_S,
        failures: int = 5,
        failing: Failing = lambda _model, _reason: None,
        split: Split = Ticket.halves,
    ) -> None:
        self._run = run
        self._clock = clock
        self._watcher = watcher
        self._queue_rows = queue_rows
        self._batch_rows = batch_rows
        self._bulk_batch_rows = bulk_batch_rows
        self._max_wait_s = max_wait_s
        self._turn_s = turn_s
        self._failures = failures
        self._failing = failing
        self._split = split
        self._queues = self._first, self._bulk = _Queue(), _Queue()
        """By `Ticket.bulk`."""
        self._records: dict[ModelId, _Record] = {}
        self._under_way: list[Ticket] = []
        self._began = 0.0
        """When the pass under way did, or the first of several in a row."""
        self._stays = 0
        """How often those in it have kept their places while others waited."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._first.idle and self._bulk.idle

    @property
    def undisturbed(self) -> bool:
        """Whether nobody waits who would be in the next pass before those in the one under way, or along with them."""
        return self._first.idle and (self._bulk.idle or self._under_way[0].bulk)

    def stays(self) -> bool:
        """Whether those in the pass under way keep their places for one more, which counts, though others wait.

        As long as these are of the same model and have had a pass, and their wait for it stays short.
        """
        first, one = self._first, self._under_way[0]
        lane: _Lane = one.lane
        if one.bulk or first.suspects or len(first.waiting) > 1 or not lane.going or lane.fresh:
            return False
        self._stays += 1
        pass_s = lane.record.pass_s
        # By the clock and by what was learnt: on a GPU a pass takes its time after it was begun.
        return max(self._clock() - self._began, self._stays * pass_s) + pass_s <= self._turn_s

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
        return self._work_s(self._first)

    def holds(self, model: ModelId) -> bool:
        """Whether any accepted rows of that model are not yet through."""
        return any(model in queue.lanes and queue.lanes[model].rows for queue in self._queues)

    def room(self, model: ModelId) -> int:
        """Most rows of that model that a pass has room for."""
        record = self._records.get(model)
        return self._batch_rows if record is None else record.room

    def busy(self, model: ModelId | None) -> Busy:
        """What a newcomer of that model has before it; of a model that nothing is known of where it is None."""
        if not self._first.rows and model not in self._records:
            return Busy(0, 0.0, 0.0, 0.0, 0.0)
        record = None if model is None else self._records.get(model)
        row_s, pass_s = (0.0, 0.0) if record is None else (record.row_s, record.pass_s)
        return Busy(self._first.rows, self.backlog_s, self._wait_s(model), row_s, pass_s)

    def submit(self, tickets: Sequence[Ticket], patience_s: float = math.inf) -> None:
        """Queue all of them, which are of one model, one priority and one number of passes, or none.

        QueueFullError at once where there is no room, or where they would not be done within `patience_s`.
        """
        rows = sum(ticket.rows for ticket in tickets)
        model, bulk, passes = tickets[0].model, tickets[0].bulk, tickets[0].passes
        queue = self._queues[bulk]
        if queue.rows + rows > self._queue_rows:
            lane = queue.lanes.get(model)
            if (0 if lane is None else lane.rows) + rows > SHARE * self._queue_rows:
                backlog_s = self.backlog_s + (self._work_s(queue) if bulk else 0.0)
                raise QueueFullError(
                    f"{queue.rows} rows are waiting, of at most {self._queue_rows}",
                    retry_after_s=max(1, math.ceil(backlog_s)),
                )
        record = self._records.get(model)
        if record is None:
            record = self._records[model] = _Record(self._batch_rows)
        if queue.rows and not bulk:
            # Nobody waits longer than for all there is; nearly always that settles it.
            most_s = self.backlog_s
            if most_s > self._max_wait_s or most_s + passes * record.pass_s > patience_s:
                self.busy(model).check(rows, passes, patience_s, self._max_wait_s)
        now = self._clock()
        for ticket in tickets:
            ticket.submitted = now
        queue.accept(tickets, record)

    def drop(self, ticket: Ticket) -> None:
        """Nobody waits for it any more: it costs no further pass."""
        if not ticket.gone:
            self._leave(ticket)

    def renew(self, model: ModelId) -> None:
        """It was loaded again: nothing of what happened before tells how it fares."""
        record = self._records.get(model)
        if record is not None:
            record.room, record.good, record.failed = self._batch_rows, 0, 0

    def forget(self, model: ModelId) -> None:
        """It was unloaded, and nothing of it waits."""
        self._records.pop(model, None)
        for queue in self._queues:
            queue.lanes.pop(model, None)

    def turn(self) -> list[Ticket]:
        """Run one pass; the tickets that are through with it, those that failed with their `error`.

        DeviceLostError where the device itself has failed: every further pass would, too.
        """
        batch = self._next_batch()
        if not batch:
            return []
        self._began = began = self._clock()
        self._stays = 0
        for ticket in batch:
            if ticket.queued_s is None:
                ticket.queued_s = began - ticket.submitted
                self._watcher.waited(ticket.model, ticket.queued_s)
        self._under_way = batch
        try:
            parts = self._run(batch)
        except DeviceLostError:
            raise
        except NoRoomError as error:
            self._charge(batch, self._clock() - began)
            return self._make_room(batch, error)
        except Exception as error:  # noqa: BLE001  whatever a model raises fails its own rows, never the loop
            self._charge(batch, self._clock() - began)
            return self._halve(batch, error)
        finally:
            # Not kept: whoever is through is freed with its windows.
            self._under_way = []
        return self._settle(batch, parts, self._clock() - began)

    def _settle(self, batch: list[Ticket], parts: Sequence[Part], seconds: float) -> list[Ticket]:
        passes = parts[0].passes if parts else 1
        self._charge(batch, seconds)
        through = []
        rows = 0
        for ticket, part in zip(batch, parts, strict=True):
            queue = self._queues[ticket.bulk]
            rows += ticket.rows
            ticket.take(part)
            ticket.device_s += seconds
            ticket.lane.work -= ticket.rows * passes
            if ticket.finished:
                self._leave(ticket)
                through.append(ticket)
            else:
                queue.back(ticket)
        model = batch[0].model
        self._learn(batch[0].lane.record, rows, passes, seconds)
        for _ in range(passes):
            self._watcher.passed(model, rows, seconds / passes)
        return through

    def _learn(self, record: _Record, rows: int, passes: int, seconds: float) -> None:
        record.measure(rows, passes, seconds)
        record.failed = 0
        if rows >= record.room < self._batch_rows:
            record.good += passes
            if record.good >= _GOOD_PASSES:
                record.room, record.good = record.room + 1, 0

    def _charge(self, batch: Sequence[Ticket], seconds: float) -> None:
        """Bulk work that came along has cost nobody anything."""
        self._queues[batch[0].bulk].charge(batch[0].lane, seconds)

    def _work_s(self, queue: _Queue) -> float:
        work_s = 0.0
        for lane in queue.lanes.values():
            work_s += lane.work * lane.record.row_s
        return work_s

    def _wait_s(self, model: ModelId | None) -> float:
        """How long a newcomer of that model waits for its first pass.

        All rows of its own model have one first. Meanwhile each other model gets as much of the device, or one pass,
        and never more than it has waiting.
        """
        own = 0.0
        others = []
        for other, lane in self._first.lanes.items():
            if not lane.rows:
                continue
            if other == model:
                own = lane.rows * lane.record.row_s
            else:
                others.append((lane.work * lane.record.row_s, lane.record.pass_s))
        return own + sum(min(work_s, max(own, pass_s)) for work_s, pass_s in others)

    def _next_batch(self) -> list[Ticket]:
        """The live tickets of the next pass, all of one model; empty when there is nothing to do."""
        first, bulk = self._queues
        batch = first.suspected()
        if batch:
            return batch
        if first.waiting:
            model = first.first()
            room = first.waiting[model].record.room
            batch = first.take(model, room)
            # Another model's rows would wait for the longer pass.
            if first.waiting or not bulk.waiting:
                return batch
            return batch + bulk.take(model, min(room, self._bulk_batch_rows), batch)
        batch = bulk.suspected()
        if batch or not bulk.waiting:
            return batch
        model = bulk.first()
        return bulk.take(model, min(bulk.waiting[model].record.room, self._bulk_batch_rows))

    def _halve(self, batch: list[Ticket], error: Exception) -> list[Ticket]:
        """One bad row fails alone: the halves of a failing pass run again, apart, before anything of their priority.

        So that no half is of two priorities, a pass that was is cut where the bulk work in it begins.
        """
        if len(batch) > 1:
            ahead = sum(not ticket.bulk for ticket in batch)
            middle = ahead if 0 < ahead < len(batch) else len(batch) // 2
            self._suspect(batch[:middle], batch[middle:])
            return []
        (ticket,) = batch
        log.error("a pass of %s failed", ticket.model, exc_info=error)
        through = self._fail(ticket, FailedError("the model failed on this window"))
        record: _Record = ticket.lane.record
        record.failed += 1
        if record.failed == self._failures:
            self._failing(
                ticket.model, f"it failed {record.failed} times in a row while it served ({type(error).__name__})"
            )
        return through

    def _make_room(self, batch: list[Ticket], error: NoRoomError) -> list[Ticket]:
        """A pass that does not fit into memory runs in halves, down to single rows, and further ones have fewer."""
        model, rows = batch[0].model, sum(ticket.rows for ticket in batch)
        record: _Record = batch[0].lane.record
        record.room, record.good = max(1, min(record.room, rows // 2)), 0
        log.warning("a pass of %d rows of %s does not fit into memory: %s", rows, model, error)
        self._watcher.out_of_memory(model)
        if len(batch) > 1:
            return self._halve(batch, error)
        (ticket,) = batch
        if ticket.rows > 1:
            self._suspect(*([half] for half in self._split(ticket)))
            return []
        return self._fail(ticket, UnavailableError("the device has no memory left for this window"))

    def _suspect(self, *halves: list[Ticket]) -> None:
        """These run next of their priority, one after the other."""
        for half in reversed(halves):
            self._queues[half[0].bulk].suspects.appendleft(half)

    def _fail(self, ticket: Ticket, error: ForetellError) -> list[Ticket]:
        ticket.error = error
        self._leave(ticket)
        return [ticket]

    def _leave(self, ticket: Ticket) -> None:
        ticket.gone = True
        self._queues[ticket.bulk].remove(ticket)
