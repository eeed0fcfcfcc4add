"""Any order of events keeps the scheduler's promises: a hypothesis state machine over a fake clock and runner."""

from collections import Counter

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from app.errors import FailedError, QueueFullError
from app.scheduler import Scheduler
from app.ticket import ModelId, Ticket
from tests.app.fakes import MODEL, OTHER, FakeClock, FakeRunner, FakeWatcher, is_right, ticket

QUEUE_ROWS, BATCH_ROWS = 12, 4
LONGEST_WAIT = 4 * QUEUE_ROWS
"""Turns between two passes of a ticket: of two models, each row ahead at most once, and once more in halves."""

SIZES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, BATCH_ROWS), st.booleans()), min_size=1, max_size=4)
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
        self.scheduler = Scheduler(self.runner, self.clock, FakeWatcher(), queue_rows=QUEUE_ROWS, batch_rows=BATCH_ROWS)

    @property
    def waiting(self) -> list[Ticket]:
        """Accepted, and neither through nor dropped."""
        return [t for t in self.tickets if t not in self.dropped and t not in self.through]

    @rule(sizes=SIZES, model=st.sampled_from([MODEL, OTHER]))
    def submit(self, sizes: list[tuple[int, int, bool]], model: ModelId) -> None:
        tickets = [
            ticket(100 * len(self.tickets) + 10 * number, passes=passes, rows=rows, model=model)
            for number, (passes, rows, _) in enumerate(sizes)
        ]
        rows = sum(one.rows for one in [*self.waiting, *tickets])
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
            for one in batch:
                del self.waited[one]
        self.waited.update(self.waiting)
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
        assert self.scheduler.rows == sum(t.rows for t in waiting)
        assert self.scheduler._work == sum(t.rows * (t.passes - len(t.parts)) for t in waiting)
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
        assert self.scheduler.rows == self.scheduler.backlog_s == 0
        assert not self.waiting
        self.keeps_its_promises()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=80, stateful_step_count=40)
