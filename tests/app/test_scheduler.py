"""The scheduler's promises (design §2), with a fake clock and a fake runner: no torch, no sleeping."""

import asyncio
import math
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from app.errors import DeadlineError, DrainingError, EngineDiedError, FailedError, QueueFullError
from app.scheduler import Scheduler
from app.ticket import Ticket
from tests.app.fakes import OTHER, FakeClock, FakeRunner, SilentWatcher, is_right, settle, ticket

pytestmark = pytest.mark.anyio


@dataclass
class World:
    scheduler: Scheduler
    runner: FakeRunner
    clock: FakeClock
    watcher: SilentWatcher
    loop: asyncio.Task[None]
    submitted: list[Ticket] = field(default_factory=list)

    async def submit(self, *tickets: Ticket) -> None:
        self.scheduler.submit(tickets)
        self.submitted.extend(tickets)
        await settle()


@asynccontextmanager
async def world(*, queue_rows: int = 100, batch_rows: int = 4) -> AsyncIterator[World]:
    runner, clock, watcher = FakeRunner(), FakeClock(), SilentWatcher()
    scheduler = Scheduler(runner, clock, watcher, queue_rows=queue_rows, batch_rows=batch_rows)
    loop = asyncio.create_task(scheduler.serve())
    await settle()
    made = World(scheduler, runner, clock, watcher, loop)
    try:
        yield made
    finally:
        for left in made.submitted:
            left.answer.cancel()
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


async def test_idle_device_starts_at_once() -> None:
    """A lone ticket runs without waiting for company."""
    async with world() as w:
        one = ticket(1)
        await w.submit(one)
        assert w.runner.passes == [[one]]
        await w.runner.finish()
        assert one.answer.done()
        assert is_right(one)


async def test_waits_without_polling() -> None:
    """With nothing to do no pass runs and no timer is set; the loop sleeps until it is woken."""
    async with world() as w:
        await settle()
        assert w.runner.passes == []
        assert w.clock.timers == []


async def test_batch_grows_while_device_is_busy() -> None:
    """Tickets that arrive during a pass run together in the next."""
    async with world() as w:
        first, second, third = ticket(1), ticket(2), ticket(3)
        await w.submit(first)
        await w.submit(second)
        await w.submit(third)
        await w.runner.finish()
        assert w.runner.passes[1] == [second, third]


async def test_one_step_joins_long_neighbour_between_passes() -> None:
    """A one-step ticket leaves after one pass although its neighbour goes on for many more."""
    async with world() as w:
        long, short = ticket(1, passes=500), ticket(2)
        await w.submit(long)
        await w.submit(short)
        await w.runner.finish()
        assert set(w.runner.passes[1]) == {long, short}
        await w.runner.finish()
        assert short.answer.done()
        assert w.runner.passes[2] == [long]
        assert len(long.parts) == 2


async def test_long_tickets_cannot_keep_others_out() -> None:
    """With more long rows than fit into a pass, a newcomer still gets its turn within a few passes."""
    async with world(batch_rows=4) as w:
        await w.submit(*(ticket(tag, passes=500) for tag in range(8)))
        newcomer = ticket(99)
        await w.submit(newcomer)
        for _ in range(4):
            await w.runner.finish()
        assert newcomer.answer.done()


async def test_batch_is_full_by_rows() -> None:
    """A ticket of several rows counts as so many, and the order of arrival is kept."""
    async with world(batch_rows=4) as w:
        blocker, wide, second, third = ticket(0), ticket(1, rows=3), ticket(2, rows=2), ticket(3)
        await w.submit(blocker)
        await w.submit(wide, second, third)
        await w.runner.finish()
        assert w.runner.passes[1] == [wide]
        await w.runner.finish()
        assert w.runner.passes[2] == [second, third]
        assert w.watcher.rows == [1, 3]


async def test_models_take_turns() -> None:
    """A pass is of one model, and a busy model does not starve another."""
    async with world() as w:
        mine = [ticket(tag, passes=3) for tag in range(2)]
        others = [ticket(tag, passes=3, model=OTHER) for tag in range(2)]
        await w.submit(*mine)
        await w.submit(*others)
        for _ in range(6):
            await w.runner.finish()
        models = [batch[0].model for batch in w.runner.passes]
        assert all(len({t.model for t in batch}) == 1 for batch in w.runner.passes)
        assert models[1] != models[2] != models[3]
        assert all(is_right(t) for t in [*mine, *others])


async def test_crowded_model_does_not_starve_another() -> None:
    """A model with more rows than fit into a pass gives way to another between its passes all the same."""
    async with world(batch_rows=2) as w:
        await w.submit(*(ticket(tag, passes=50) for tag in range(6)))
        other = ticket(99, model=OTHER)
        await w.submit(other)
        await w.runner.finish()
        await w.runner.finish()
        await w.runner.finish()
        assert other.answer.done()


async def test_full_queue_refuses_at_once() -> None:
    """Rows beyond the bound are refused in the call itself, with a time to come back, and room is made by answers."""
    async with world(queue_rows=2) as w:
        await w.submit(ticket(1), ticket(2))
        with pytest.raises(QueueFullError) as refusal:
            w.scheduler.submit([ticket(3)])
        assert int(refusal.value.headers["Retry-After"]) >= 1
        await w.runner.finish()
        assert w.scheduler.rows == 0
        w.scheduler.submit([ticket(4)])


async def test_submission_is_all_or_nothing() -> None:
    """Of tickets that do not all fit none is queued."""
    async with world(queue_rows=2) as w:
        with pytest.raises(QueueFullError):
            w.scheduler.submit([ticket(1), ticket(2), ticket(3)])
        assert w.scheduler.rows == 0
        await settle()
        assert w.runner.passes == []


async def test_deadline_is_answered_while_device_is_busy() -> None:
    """A ticket in the queue is told at its deadline, not when the device comes free, and then costs no pass."""
    async with world() as w:
        busy, late = ticket(1), ticket(2, deadline=5.0)
        await w.submit(busy)
        await w.submit(late)
        w.clock.advance(5.0)
        with pytest.raises(DeadlineError, match="before it was begun"):
            await late.answer
        await w.runner.finish()
        assert w.runner.passes == [[busy]]


async def test_deadline_in_the_middle_of_a_forecast() -> None:
    """A ticket under way leaves at its deadline; no further pass is spent on it."""
    async with world() as w:
        late = ticket(1, passes=10, deadline=5.0)
        await w.submit(late)
        await w.runner.finish()
        w.clock.advance(5.0)
        with pytest.raises(DeadlineError, match="while it was computed"):
            await late.answer
        await w.runner.finish()
        assert len(w.runner.passes) == 2
        assert w.scheduler.rows == 0


async def test_answered_ticket_leaves_no_timer() -> None:
    """The timer of a deadline goes with its ticket."""
    async with world() as w:
        await w.submit(ticket(1, deadline=5.0))
        await w.runner.finish()
        assert all(timer.cancelled for timer in w.clock.timers)


async def test_hang_up_in_the_queue_costs_no_pass() -> None:
    """A cancelled answer is dropped before it runs, and its rows are free at once."""
    async with world(queue_rows=2) as w:
        busy, gone = ticket(1), ticket(2)
        await w.submit(busy)
        await w.submit(gone)
        gone.answer.cancel()
        await settle()
        assert w.scheduler.rows == 1
        await w.runner.finish()
        assert w.runner.passes == [[busy]]


async def test_hang_up_in_the_middle_costs_no_further_pass() -> None:
    """A client that leaves during a pass of a long forecast is not computed for again."""
    async with world() as w:
        gone, stays = ticket(1, passes=100), ticket(2, passes=3)
        await w.submit(gone, stays)
        gone.answer.cancel()
        await w.runner.finish()
        await w.runner.finish()
        assert w.runner.passes[1:] == [[stays], [stays]]


async def test_who_leaves_during_a_long_pass_leaves_nothing_behind() -> None:
    """However long a pass takes, tickets that come and go meanwhile are not kept."""
    async with world(queue_rows=2) as w:
        await w.submit(ticket(0))
        for tag in range(1, 100):
            gone = ticket(tag)
            await w.submit(gone)
            gone.answer.cancel()
            await settle()
            left = weakref.ref(gone.window)
            w.submitted.remove(gone)
            del gone
            assert left() is None


async def test_time_to_come_back_counts_all_that_is_left_to_do() -> None:
    """With long forecasts waiting, the Retry-After of a refusal is that of their passes, not of their number."""
    async with world(queue_rows=1) as w:
        await w.submit(ticket(1, passes=1000))
        w.clock.advance(1)
        await w.runner.finish()
        with pytest.raises(QueueFullError) as refusal:
            w.scheduler.submit([ticket(2)])
        # One pass took a second, of which the running mean has seen a tenth; 999 are left, in batches of four.
        assert refusal.value.headers["Retry-After"] == str(math.ceil(0.1 * 999 / 4))


async def test_one_bad_row_fails_alone() -> None:
    """A failing pass is halved until the row that does it stands alone; the others get their answers."""
    async with world(batch_rows=8) as w:
        blocker = ticket(0)
        await w.submit(blocker)
        tickets = [ticket(tag) for tag in range(1, 6)]
        await w.submit(*tickets)
        await w.runner.finish()
        while w.runner.running:
            await w.runner.finish(ValueError("bad row") if tickets[2] in w.runner.passes[-1] else None)
        with pytest.raises(FailedError):
            await tickets[2].answer
        for good in (*tickets[:2], *tickets[3:]):
            assert good.answer.exception() is None
            assert is_right(good)


async def test_row_that_fails_in_the_middle_spares_its_neighbours_steps() -> None:
    """Rows at different steps go on from where they were after a failed pass was run again in halves."""
    async with world() as w:
        good, bad = ticket(1, passes=4), ticket(2, passes=4)
        await w.submit(good, bad)
        await w.runner.finish()
        while w.runner.running:
            batch = w.runner.passes[-1]
            await w.runner.finish(ValueError("bad row") if bad in batch else None)
        with pytest.raises(FailedError):
            await bad.answer
        assert is_right(good)


async def test_failing_pass_does_not_stop_the_loop() -> None:
    """After a pass that failed whole, the next ticket is served."""
    async with world() as w:
        bad, good = ticket(1), ticket(2)
        await w.submit(bad)
        await w.runner.finish(RuntimeError("device"))
        with pytest.raises(FailedError):
            await bad.answer
        await w.submit(good)
        await w.runner.finish()
        assert is_right(good)
        assert not w.scheduler.died


async def test_message_to_the_client_hides_the_cause() -> None:
    """What a model raised stays in the log."""
    async with world() as w:
        bad = ticket(1)
        await w.submit(bad)
        await w.runner.finish(RuntimeError("secret path"))
        with pytest.raises(FailedError) as failure:
            await bad.answer
        assert "secret" not in failure.value.detail


async def test_dead_loop_tells_everyone() -> None:
    """If the loop itself dies, all who wait are told, and nothing is accepted any more."""
    async with world() as w:
        running, waiting = ticket(1), ticket(2, model=OTHER)
        await w.submit(running)
        await w.submit(waiting)
        w.loop.cancel()
        await settle()
        for lost in (running, waiting):
            with pytest.raises(EngineDiedError):
                await lost.answer
        assert w.scheduler.died
        with pytest.raises(EngineDiedError):
            w.scheduler.submit([ticket(3)])


async def test_runner_that_breaks_the_contract_kills_nobody_silently() -> None:
    """A runner that gives fewer parts than tickets ends the loop, and everyone waiting is told."""
    clock, watcher = FakeClock(), SilentWatcher()

    async def short(tickets: object) -> list[object]:
        return []

    scheduler = Scheduler(short, clock, watcher, queue_rows=10, batch_rows=4)  # type: ignore[arg-type]
    loop = asyncio.create_task(scheduler.serve())
    lost = ticket(1)
    scheduler.submit([lost])
    with pytest.raises(EngineDiedError):
        await lost.answer
    assert scheduler.died
    with pytest.raises(ValueError, match="argument"):
        await loop


async def test_closing_drains_then_refuses() -> None:
    """Accepted work is finished, new work is refused from the moment of closing, and the loop ends by itself."""
    async with world() as w:
        accepted = ticket(1, passes=3)
        await w.submit(accepted)
        w.scheduler.close()
        with pytest.raises(DrainingError):
            w.scheduler.submit([ticket(2)])
        for _ in range(3):
            await w.runner.finish()
        assert is_right(accepted)
        await w.loop
        assert not w.scheduler.died


async def test_stall_is_visible() -> None:
    """How long the pass under way has been running can be seen from outside, for liveness."""
    async with world() as w:
        assert w.scheduler.stalled_s == 0
        await w.submit(ticket(1))
        w.clock.advance(40)
        assert w.scheduler.stalled_s == 40
        await w.runner.finish()
        assert w.scheduler.stalled_s == 0


async def test_times_are_kept_apart() -> None:
    """Time in the queue ends with the first pass; time on the device is the sum of the passes."""
    async with world() as w:
        busy, waits = ticket(1), ticket(2, passes=2)
        await w.submit(busy)
        await w.submit(waits)
        w.clock.advance(3)
        await w.runner.finish()
        w.clock.advance(2)
        await w.runner.finish()
        w.clock.advance(1)
        await w.runner.finish()
        assert waits.queued_s == 3
        assert waits.device_s == 3
        assert w.watcher.waits == [0, 3]
