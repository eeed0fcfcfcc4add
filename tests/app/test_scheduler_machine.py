"""Any order of events keeps the scheduler's promises: a hypothesis state machine over a fake clock and runner."""

from collections import Counter

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from app.device.scheduler import Scheduler
from app.errors import FailedError, QueueFullError
from app.ticket import ModelId, Ticket
from tests.app.fakes import MODEL, OTHER, FakeClock, FakeRunner, FakeWatcher, is_right, ticket

QUEUE_ROWS, BATCH_ROWS, BULK_BATCH_ROWS = 12, 4, 3
LONGEST_WAIT = 4 * QUEUE_ROWS
"""Turns between two passes of a ticket: of two models, each row ahead at most once, and once more in halves. Of bulk
work those turns count in which nobody else waited."""

SIZES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, BULK_BATCH_ROWS), st.booleans()), min_size=1, max_size=4)
"""Passes, rows, and whether the model fails on it, of tickets that come together."""


class SchedulerMachine(RuleBasedStateMachine):
    """Clients come and go; passes end well or badly; nothing is lost, doubled, forgotten or mixed up."""

    @initialize()
    def begin(self) -> None:
        self.clock = FakeClock()
        self.runner = FakeRunner(self.clock)
        self.tickets: list[Ticket] = []
        self.dropped: set[Ticket] = set()
        self.through: list[Ticket] = []
        self.waited: Counter[Ticket] = Counter()
        self.scheduler = Scheduler(
            self.runner,
            self.clock,
            FakeWatcher(),
            queue_rows=QUEUE_ROWS,
            batch_rows=BATCH_ROWS,
            bulk_batch_rows=BULK_BATCH_ROWS,
        )

    @property
    def waiting(self) -> list[Ticket]:
        """Accepted, and neither through nor dropped."""
        return [t for t in self.tickets if t not in self.dropped and t not in self.through]

    def waiting_of(self, *, bulk: bool) -> list[Ticket]:
        """Those of a priority."""
        return [t for t in self.waiting if t.bulk == bulk]

    @rule(sizes=SIZES, model=st.sampled_from([MODEL, OTHER]), bulk=st.booleans())
    def submit(self, sizes: list[tuple[int, int, bool]], model: ModelId, bulk: bool) -> None:
        tickets = [
            ticket(100 * len(self.tickets) + 10 * number, passes=passes, rows=rows, model=model, bulk=bulk)
            for number, (passes, rows, _) in enumerate(sizes)
        ]
        rows = sum(one.rows for one in [*self.waiting_of(bulk=bulk), *tickets])
        try:
            self.scheduler.submit(tickets)
        except QueueFullError:
            assert rows > QUEUE_ROWS
        else:
            assert rows <= QUEUE_ROWS
            self.tickets += tickets
            self.runner.bad |= {one for one, (_, _, bad) in zip(tickets, sizes, strict=True) if bad}

    @rule(seconds=st.floats(0, 3))
    def turn(self, seconds: float) -> None:
        before, waiting = len(self.runner.passes), self.waiting
        hasty = self.waiting_of(bulk=False)
        self.runner.takes_s = seconds
        through = self.scheduler.turn()
        assert len(set(through)) == len(through)
        assert not set(through) & {*self.through, *self.dropped}
        self.through += through
        batches = self.runner.passes[before:]
        # Work-conserving: somebody waits, so exactly one pass ran.
        assert len(batches) == bool(waiting)
        assert waiting or self.scheduler.idle
        for batch in batches:
            assert sum(t.rows for t in batch) <= BATCH_ROWS
            assert len({t.model for t in batch}) == 1
            assert len(set(batch)) == len(batch)
            assert set(batch) <= set(waiting)
            # Whoever is in a hurry goes first, and is joined only while nobody else of them waits.
            assert not hasty or not batch[0].bulk
            if batch[-1].bulk:
                assert sum(t.rows for t in batch) <= BULK_BATCH_ROWS
                assert {t for t in hasty if t not in batch} == set()
            for one in batch:
                del self.waited[one]
        self.waited.update(self.waiting_of(bulk=bool(waiting) and not hasty))
        assert all(self.waited[one] <= LONGEST_WAIT for one in self.waiting)

    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        """Also of those who have left already."""
        if self.tickets:
            one = data.draw(st.sampled_from(self.tickets))
            self.scheduler.drop(one)
            if one not in self.through:
                self.dropped.add(one)

    @invariant()
    def keeps_its_promises(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        waiting = self.waiting
        for queue, of in zip(self.scheduler._queues, (False, True), strict=True):
            mine = self.waiting_of(bulk=of)
            assert queue.rows == sum(t.rows for t in mine)
            assert queue.work == sum(t.rows * (t.passes - len(t.parts)) for t in mine)
        assert [t.gone for t in self.tickets] == [t not in waiting for t in self.tickets]
        assert not (self.scheduler.idle and waiting)
        for one in self.through:
            assert isinstance(one.error, FailedError) if one in self.runner.bad else is_right(one)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(10_000):
            if self.scheduler.idle:
                break
            self.turn(0.0)
        assert self.scheduler.idle
        assert self.scheduler.rows == self.scheduler.bulk_rows == self.scheduler.backlog_s == 0
        assert not self.waiting
        self.keeps_its_promises()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=80, stateful_step_count=40)
