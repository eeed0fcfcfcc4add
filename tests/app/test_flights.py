"""Single-flight: equal work is done once, called off when nobody waits, and each who waits has their own deadline."""

import asyncio
import gc
import weakref
from collections.abc import Callable

import pytest

from app.errors import DeadlineError, FailedError, ForetellError, QueueFullError
from app.link.flights import Flights, Tell
from tests.app.fakes import settle
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.anyio

NEVER = PATIENCE_S


class Answer:
    """A result that can be looked for."""


class Work:
    """Counts its starts and is told how it ends by the test."""

    def __init__(self) -> None:
        self.tells: list[Tell[Answer]] = []
        self.called_off: list[int] = []

    @property
    def starts(self) -> int:
        return len(self.tells)

    def __call__(self, tell: Tell[Answer]) -> Callable[[], None]:
        number = len(self.tells)
        self.tells.append(tell)
        return lambda: self.called_off.append(number)

    def end(self, result: Answer | ForetellError) -> None:
        """The last that was started is done."""
        self.tells[-1](result)


class World:
    def __init__(self) -> None:
        self.flights, self.work = Flights[Answer](), Work()

    async def join(self, key: str | None = "a", within_s: float = NEVER) -> "asyncio.Task[Answer]":
        """Somebody who waits."""
        joined = asyncio.create_task(self.flights.join(key, self.work, within_s))
        await settle()
        return joined

    def join_together(self, *within_s: float) -> "list[asyncio.Task[Answer]]":
        """Several who begin to wait in the same turn, before any of them can be out of time."""
        return [asyncio.create_task(self.flights.join("a", self.work, seconds)) for seconds in within_s]


@pytest.fixture
def w() -> World:
    return World()


async def failure_of(task: "asyncio.Task[Answer]") -> BaseException | None:
    await asyncio.wait([task], timeout=PATIENCE_S)
    return task.exception()


async def test_equal_keys_share_one_start(w: World) -> None:
    """Three who ask for the same get the result of one piece of work, also who comes while it is under way."""
    waiting = [await w.join() for _ in range(3)]
    answer = Answer()
    w.work.end(answer)
    assert await asyncio.gather(*waiting) == [answer] * 3
    assert w.work.starts == 1
    assert w.work.called_off == []


async def test_other_keys_do_not(w: World) -> None:
    """Different keys are different work with results of their own."""
    first, second = await w.join("a"), await w.join("b")
    one, two = Answer(), Answer()
    w.work.tells[0](one)
    w.work.tells[1](two)
    assert (await first, await second) == (one, two)


async def test_finished_key_starts_anew(w: World) -> None:
    """A flight keeps no results: who comes after its end starts another."""
    first = await w.join()
    w.work.end(Answer())
    await first
    second = await w.join()
    answer = Answer()
    w.work.end(answer)
    assert await second is answer
    assert w.work.starts == 2


async def test_without_a_key_nobody_joins(w: World) -> None:
    """Each who gives no key has work of their own, which ends and is called off by itself."""
    first, second = await w.join(None), await w.join(None)
    assert w.work.starts == 2
    first.cancel()
    await settle()
    assert w.work.called_off == [0]
    answer = Answer()
    w.work.tells[1](answer)
    assert await second is answer
    assert w.flights._under_way == {}


async def test_who_leaves_does_not_take_the_others_along(w: World) -> None:
    """Whoever hangs up, first or not, the rest still get the answer."""
    waiting = [await w.join() for _ in range(3)]
    waiting[0].cancel()
    waiting[2].cancel()
    await settle()
    assert w.work.called_off == []
    answer = Answer()
    w.work.end(answer)
    assert await waiting[1] is answer


async def test_who_is_just_leaving_keeps_no_answer_from_the_others(w: World) -> None:
    """In the turn in which one hangs up and another is out of time, the answer reaches the rest."""
    gone, late, stays = await w.join(), await w.join(within_s=0), await w.join()
    gone.cancel()
    w.work.end(answer := Answer())
    assert await stays is answer
    results = await asyncio.gather(gone, late, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)


async def test_deadline_and_answer_in_one_turn(w: World) -> None:
    """Who is told of the deadline first stays with that, and the rest get the answer."""
    late, stays = w.join_together(0, NEVER)
    await asyncio.sleep(0)
    # Behind the timer of the first, ahead of its hearing of it.
    asyncio.get_running_loop().call_later(0, w.work.end, answer := Answer())
    assert await stays is answer
    assert await failure_of(late) is None or isinstance(late.exception(), DeadlineError)


async def test_last_who_leaves_calls_it_off(w: World) -> None:
    """With nobody left the work is called off, once, and who comes after starts it anew."""
    waiting = [await w.join() for _ in range(2)]
    for one in waiting:
        assert w.work.called_off == []
        one.cancel()
        await settle()
    assert w.work.called_off == [0]
    late = await w.join()
    answer = Answer()
    w.work.end(answer)
    assert await late is answer
    assert (w.work.starts, w.work.called_off) == (2, [0])


async def test_who_joins_as_the_last_leaves_keeps_it(w: World) -> None:
    """One who joins before the last has quite left is a last of their own: nothing is called off."""
    first = await w.join()
    first.cancel()
    late = asyncio.create_task(w.flights.join("a", w.work, NEVER))
    await settle()
    w.work.end(answer := Answer())
    assert await late is answer
    assert (w.work.starts, w.work.called_off) in ((1, []), (2, [0]))


async def test_what_is_told_too_late_is_nothing(w: World) -> None:
    """A result of work that was called off reaches nobody, and least of all those of the work after it."""
    gone = await w.join()
    gone.cancel()
    await settle()
    late = await w.join()
    w.work.tells[0](Answer())
    await settle()
    assert not late.done()
    again = await w.join()
    assert w.work.starts == 2
    w.work.tells[1](answer := Answer())
    assert (await late, await again) == (answer, answer)


# Deadlines


async def test_each_has_their_own_deadline(w: World) -> None:
    """Who is out of time is told so; who has more waits on, and the work goes on for them."""
    patient, hasty = w.join_together(NEVER, 0.001)
    error = await failure_of(hasty)
    assert isinstance(error, DeadlineError)
    assert w.work.called_off == []
    w.work.end(answer := Answer())
    assert await patient is answer


async def test_first_ones_deadline_is_not_the_others(w: World) -> None:
    """Also where it is the one who began."""
    hasty, patient = w.join_together(0.001, NEVER)
    assert isinstance(await failure_of(hasty), DeadlineError)
    w.work.end(answer := Answer())
    assert await patient is answer
    assert w.work.starts == 1


async def test_last_ones_deadline_calls_it_off(w: World) -> None:
    """When the last is out of time nobody waits any more."""
    waiting = w.join_together(0.001, 0.002)
    assert [type(await failure_of(one)) for one in waiting] == [DeadlineError] * 2
    assert w.work.called_off == [0]


async def test_answered_leaves_no_timer(w: World) -> None:
    """The timer of a deadline goes with who waited, so that nothing is kept for its time."""
    joined = await w.join()
    w.work.end(answer := Answer())
    await joined
    left = weakref.ref(answer)
    w.work.tells.clear()
    del joined, answer
    await settle()
    gc.collect()
    assert left() is None


# Errors


async def test_failure_reaches_everyone(w: World) -> None:
    """All who wait get the error, and the next to ask starts anew."""
    waiting = [await w.join() for _ in range(3)]
    w.work.end(FailedError("no"))
    assert [type(await failure_of(one)) for one in waiting] == [FailedError] * 3
    assert w.work.called_off == []
    late = await w.join()
    w.work.end(answer := Answer())
    assert await late is answer


async def test_refused_start_reaches_who_asked(w: World) -> None:
    """Work that cannot begin leaves nothing to join: the next to ask begins it."""

    def refuse(_: Tell[Answer]) -> Callable[[], None]:
        raise QueueFullError("full")

    with pytest.raises(QueueFullError):
        await w.flights.join("a", refuse, NEVER)
    late = await w.join()
    w.work.end(answer := Answer())
    assert await late is answer


@pytest.mark.parametrize("count", [1, 2])
async def test_error_that_nobody_heard_is_retrieved(w: World, count: int, caplog: pytest.LogCaptureFixture) -> None:
    """Who is cancelled in the moment in which the error comes leaves no `exception was never retrieved` behind."""
    waiting = [await w.join() for _ in range(count)]
    w.work.end(FailedError("no"))
    for one in waiting:
        one.cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * count
    w.work.tells.clear()
    del waiting, results, one
    await settle()
    gc.collect()
    await settle()
    assert caplog.messages == []


async def test_deadline_that_nobody_heard_is_retrieved(w: World, caplog: pytest.LogCaptureFixture) -> None:
    """Nor does who is cancelled in the moment of their deadline."""
    joined = await w.join(within_s=0)
    joined.cancel()
    await asyncio.gather(joined, return_exceptions=True)
    del joined
    await settle()
    gc.collect()
    assert caplog.messages == []
    assert w.work.called_off == [0]


@pytest.mark.parametrize("how", ["failed", "deadline"])
async def test_error_keeps_nothing_alive(how: str) -> None:
    """Once an error has been seen, all that its traceback knew is freed, without the collector of circles."""
    flights, work = Flights[Answer](), Work()
    kept = Answer()
    left = weakref.ref(kept)

    def start(tell: Tell[Answer], kept: Answer = kept) -> Callable[[], None]:
        return work(tell)

    del kept
    gc.collect()
    gc.disable()
    try:
        joined = asyncio.create_task(flights.join("a", start, 0.001 if how == "deadline" else NEVER))
        del start
        await settle()
        if how == "failed":
            work.end(FailedError("no"))
        error = await failure_of(joined)
        assert isinstance(error, FailedError if how == "failed" else DeadlineError)
        work.tells.clear()
        assert left() is not None
        del joined, error
        await settle()
        assert left() is None
    finally:
        gc.enable()


async def test_answer_keeps_nothing_alive(w: World) -> None:
    """Nor does an answer stay once those who waited for it have gone."""
    gc.collect()
    gc.disable()
    try:
        waiting = [await w.join() for _ in range(2)]
        w.work.end(answer := Answer())
        await asyncio.gather(*waiting)
        w.work.tells.clear()
        left = weakref.ref(answer)
        del waiting, answer
        await settle()
        assert left() is None
    finally:
        gc.enable()
