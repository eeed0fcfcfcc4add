"""Any order of events keeps the scheduler's promises: a hypothesis state machine over a fake clock and runner."""

from collections import Counter
from collections.abc import Sequence

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from app.device.scheduler import Scheduler
from app.errors import FailedError, QueueFullError
from app.ticket import ModelId, Part, Ticket
from tests.app.fakes import MODEL, OTHER, FakeClock, FakeRunner, FakeWatcher, is_right, ticket

QUEUE_ROWS, BATCH_ROWS, BULK_BATCH_ROWS = 16, 4, 3
EIGHTH = QUEUE_ROWS // 8
LONGEST_S, SHORTEST_S = 3, 1
MAX_WAIT_S = 30.0
TURN_S = 4.0
LONGEST_WAIT = 4 * QUEUE_ROWS * LONGEST_S
"""Turns between two passes of a ticket: each row ahead at most once, and once more in halves; meanwhile as much time of
another model, whose passes may be the shorter ones. Of bulk work those turns count in which nobody else waited."""

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
        self.had_s = {MODEL: 0.0, OTHER: 0.0}
        """The device's time since both models have had somebody waiting who is in a hurry."""
        self.even = True
        """No pass has failed yet: the halves of one that did run before their turn, and are owed for afterwards."""
        self.bounds: dict[Ticket, int] = {}
        """How many rows its model may have served, halves apart, by the time of the next pass of each who waits."""
        self.served = {MODEL: 0, OTHER: 0}
        """How many it has; passes of halves do not count."""
        self.scheduler = Scheduler(
            self.run,
            self.clock,
            FakeWatcher(),
            queue_rows=QUEUE_ROWS,
            batch_rows=BATCH_ROWS,
            bulk_batch_rows=BULK_BATCH_ROWS,
            max_wait_s=MAX_WAIT_S,
            turn_s=TURN_S,
            split=self.split,
        )

    def run(self, tickets: Sequence[Ticket]) -> Sequence[Part]:
        """A pass, and a look at who waits where its rows keep their places for another."""
        parts = self.runner(tickets)
        if self.scheduler.stays():
            others = [one for one in self.waiting_of(bulk=False) if one not in tickets]
            assert others
            assert all(one.model == tickets[0].model and one.parts for one in others)
            assert not tickets[0].bulk
            assert self.runner.takes_s < TURN_S
        return parts

    def split(self, one: Ticket) -> tuple[Ticket, Ticket]:
        """As a device does it: the halves are in its place."""
        halves = one.halves()
        self.tickets.remove(one)
        self.tickets += halves
        if one in self.runner.bad:
            self.runner.bad |= set(halves)
        return halves

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
        waiting = self.waiting_of(bulk=bulk)
        rows = sum(one.rows for one in [*waiting, *tickets])
        fits = rows <= QUEUE_ROWS or sum(one.rows for one in [*waiting, *tickets] if one.model == model) <= EIGHTH
        wait_s = self.scheduler.busy(model).wait_s
        try:
            self.scheduler.submit(tickets)
        except QueueFullError:
            assert not fits or (wait_s > MAX_WAIT_S and waiting and not bulk)
        else:
            assert fits
            assert rows <= QUEUE_ROWS + 2 * EIGHTH
            assert bulk or not waiting or wait_s <= MAX_WAIT_S
            # None waits for a second pass of anybody.
            if not bulk:
                before = sum(one.rows for one in waiting if one.model == model)
                for one in tickets:
                    before += one.rows
                    self.bounds[one] = self.served[model] + before
            self.tickets += tickets
            self.runner.bad |= {one for one, (_, _, bad) in zip(tickets, sizes, strict=True) if bad}

    @rule(most=st.sampled_from([None, None, 1, 2, 3]))
    def memory(self, most: int | None) -> None:
        """So many rows of a pass fit into it."""
        self.runner.most = most

    @rule(model=st.sampled_from([MODEL, OTHER]))
    def unload(self, model: ModelId) -> None:
        """A device forgets a model once nothing of it waits."""
        if not self.scheduler.holds(model):
            self.scheduler.forget(model)

    @rule(seconds=st.integers(SHORTEST_S, LONGEST_S))
    def turn(self, seconds: int) -> None:
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
            self.in_turn(batch)
            self.share(batch, {one.model for one in hasty}, seconds)
        self.waited.update(self.waiting_of(bulk=bool(waiting) and not hasty))
        assert all(self.waited[one] <= LONGEST_WAIT for one in self.waiting)

    def in_turn(self, batch: list[Ticket]) -> None:
        """A pass ran: whoever is in it was not overtaken by more rows than it may be."""
        if not self.even:
            return
        hasty = [one for one in batch if not one.bulk]
        if not hasty:
            return
        model = hasty[0].model
        self.served[model] += sum(one.rows for one in hasty)
        assert all(self.served[model] <= self.bounds[one] + BATCH_ROWS for one in hasty)
        for one in hasty:
            # All who wait, those who come while no more are served than have begun, and who comes with them.
            self.bounds[one] = self.served[model] + 3 * (QUEUE_ROWS + 2 * EIGHTH)

    def share(self, batch: list[Ticket], busy: set[ModelId], seconds: int) -> None:
        """A pass ran while these models had somebody waiting: none gets ahead of the other by more than a pass each."""
        most = self.runner.most
        self.even &= self.runner.bad.isdisjoint(batch) and (most is None or sum(t.rows for t in batch) <= most)
        still = {one.model for one in self.waiting_of(bulk=False)}
        if len(busy) == 2 and self.even:
            self.had_s[batch[0].model] += seconds
            assert abs(self.had_s[MODEL] - self.had_s[OTHER]) <= 2 * LONGEST_S
        if len(still) < 2:
            self.had_s = {MODEL: 0.0, OTHER: 0.0}

    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        """Also of those who have left already."""
        if self.tickets:
            one = data.draw(st.sampled_from(self.tickets))
            self.scheduler.drop(one)
            if one not in self.through:
                self.dropped.add(one)
            if len({one.model for one in self.waiting_of(bulk=False)}) < 2:
                self.had_s = {MODEL: 0.0, OTHER: 0.0}

    @invariant()
    def keeps_its_promises(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        waiting = self.waiting
        for queue, of in zip(self.scheduler._queues, (False, True), strict=True):
            mine = self.waiting_of(bulk=of)
            assert queue.rows == sum(t.rows for t in mine)
            for model in (MODEL, OTHER):
                of_it = [one for one in mine if one.model == model]
                lane = queue.lanes.get(model)
                left = sum(t.rows * (t.passes - len(t.parts)) for t in of_it)
                held = (0, 0) if lane is None else (lane.rows, lane.work)
                assert held == (sum(t.rows for t in of_it), left)
        for model in (MODEL, OTHER):
            assert self.scheduler.holds(model) == any(one.model == model for one in waiting)
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
            self.turn(SHORTEST_S)
        assert self.scheduler.idle
        assert self.scheduler.rows == self.scheduler.bulk_rows == self.scheduler.backlog_s == 0
        assert not self.waiting
        self.keeps_its_promises()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=80, stateful_step_count=40)
