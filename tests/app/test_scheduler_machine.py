"""Any order of events keeps the scheduler's promises: a hypothesis state machine over a fake clock and runner."""

import asyncio

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.errors import DeadlineError, FailedError, QueueFullError
from app.scheduler import Scheduler
from app.ticket import Ticket
from tests.app.fakes import MODEL, OTHER, FakeClock, FakeRunner, SilentWatcher, is_right, settle, ticket

QUEUE_ROWS, BATCH_ROWS = 12, 4


class SchedulerMachine(RuleBasedStateMachine):
    """Clients come, go and run out of time; passes end well or badly; nothing is lost, doubled or mixed up."""

    @initialize()
    def begin(self) -> None:
        self.events = asyncio.new_event_loop()
        self.runner, self.clock = FakeRunner(), FakeClock()
        self.tickets: list[Ticket] = []
        self.poisoned: set[Ticket] = set()
        self.seen = 0
        self.scheduler = Scheduler(
            self.runner, self.clock, SilentWatcher(), queue_rows=QUEUE_ROWS, batch_rows=BATCH_ROWS
        )
        self.loop = self.events.create_task(self.scheduler.serve())
        self.events.run_until_complete(settle())

    @rule(
        passes=st.integers(1, 5),
        rows=st.integers(1, BATCH_ROWS),
        patience=st.none() | st.floats(0.5, 5),
        model=st.sampled_from([MODEL, OTHER]),
        poison=st.integers(0, 9),
    )
    def submit(self, passes: int, rows: int, patience: float | None, model: object, poison: int) -> None:
        async def act() -> None:
            deadline = None if patience is None else self.clock.now + patience
            one = ticket(len(self.tickets), passes=passes, rows=rows, deadline=deadline, model=model)  # type: ignore[arg-type]
            waiting = sum(t.rows for t in self.tickets if not t.answer.done())
            try:
                self.scheduler.submit([one])
            except QueueFullError:
                assert waiting + rows > QUEUE_ROWS
            else:
                assert waiting + rows <= QUEUE_ROWS
                self.tickets.append(one)
                if poison == 0:
                    self.poisoned.add(one)
            await settle()

        self.events.run_until_complete(act())

    @precondition(lambda self: self.runner.running)
    @rule()
    def end_pass(self) -> None:
        bad = any(t in self.poisoned for t in self.runner.passes[-1])
        self.events.run_until_complete(self.runner.finish(ValueError("poison") if bad else None))

    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        waiting = [t for t in self.tickets if not t.answer.done()]
        if waiting:
            data.draw(st.sampled_from(waiting)).answer.cancel()
            self.events.run_until_complete(settle())

    @rule(seconds=st.floats(0.1, 3))
    def let_time_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.events.run_until_complete(settle())

    @invariant()
    def keeps_its_promises(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        waiting = [t for t in self.tickets if not t.answer.done()]
        assert self.scheduler.rows == sum(t.rows for t in waiting)
        assert self.scheduler._work == sum(t.rows * (t.passes - len(t.parts)) for t in waiting)
        # Work-conserving: somebody waits only while a pass is running.
        assert self.runner.running or not waiting
        assert all(t.deadline is None or t.deadline > self.clock.now for t in waiting)
        for batch in self.runner.passes[self.seen :]:
            assert sum(t.rows for t in batch) <= BATCH_ROWS
            assert len({t.model for t in batch}) == 1
            assert len(set(batch)) == len(batch)
            assert all(len(t.parts) < t.passes or t.answer.done() for t in batch)
        self.seen = len(self.runner.passes)
        for t in self.tickets:
            if t.answer.done() and not t.answer.cancelled():
                self.is_answered_right(t)

    def is_answered_right(self, one: Ticket) -> None:
        error = one.answer.exception()
        if error is None:
            assert one not in self.poisoned
            assert is_right(one)
        elif isinstance(error, FailedError):
            assert one in self.poisoned
        else:
            assert isinstance(error, DeadlineError)
            assert one.deadline is not None
            assert one.deadline <= self.clock.now

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.close()
        for _ in range(10_000):
            if self.loop.done():
                break
            if self.runner.running:
                self.end_pass()
            else:
                self.events.run_until_complete(settle())
        assert self.loop.done()
        assert all(t.answer.done() for t in self.tickets)
        self.keeps_its_promises()
        self.events.run_until_complete(self.loop)
        self.events.close()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=40)
