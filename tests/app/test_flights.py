"""Single-flight: equal work is done once, and called off only when nobody waits."""

import asyncio

import pytest

from app.flights import Flights
from tests.app.fakes import settle

pytestmark = pytest.mark.anyio


class Work:
    """Counts its starts and ends when told to."""

    def __init__(self) -> None:
        self.starts = 0
        self.cancelled = 0
        self.result: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> int:
        self.starts += 1
        try:
            return await asyncio.shield(self.result)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def test_equal_keys_share_one_start() -> None:
    """Three who ask for the same at once get the result of one piece of work."""
    flights, work = Flights[int](), Work()
    waiting = [asyncio.create_task(flights.join("a", work)) for _ in range(3)]
    await settle()
    work.result.set_result(7)
    assert await asyncio.gather(*waiting) == [7, 7, 7]
    assert work.starts == 1


async def test_other_keys_do_not() -> None:
    """Different keys are different work, and a finished key starts anew."""
    flights, work = Flights[int](), Work()
    work.result.set_result(7)
    await asyncio.gather(flights.join("a", work), flights.join("b", work))
    await flights.join("a", work)
    assert work.starts == 3


async def test_one_who_leaves_does_not_take_the_others_along() -> None:
    """The first to ask hangs up; the second still gets the answer."""
    flights, work = Flights[int](), Work()
    first, second = (asyncio.create_task(flights.join("a", work)) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    work.result.set_result(7)
    assert await second == 7
    assert work.cancelled == 0


async def test_last_who_leaves_calls_it_off() -> None:
    """With nobody left the work is cancelled, and who comes after starts it anew instead of joining a dead one."""
    flights, work = Flights[int](), Work()
    first = asyncio.create_task(flights.join("a", work))
    await settle()
    first.cancel()
    late = asyncio.create_task(flights.join("a", work))
    await settle()
    assert work.cancelled == 1
    work.result.set_result(7)
    assert await late == 7
    assert work.starts == 2


async def test_nobody_joins_what_has_ended() -> None:
    """In the moment between the end of the work and everybody's hearing of it, who asks starts anew."""
    flights, starts = Flights[int](), list[int]()

    async def work() -> int:
        starts.append(1)
        if len(starts) == 1:
            raise ValueError("no")
        return 7

    async def late() -> int:
        # One turn of the loop later: right behind the work, ahead of the news of its failure.
        await asyncio.sleep(0)
        return await flights.join("a", work)

    waiting = [asyncio.create_task(flights.join("a", work)) for _ in range(2)]
    results = await asyncio.gather(*waiting, asyncio.create_task(late()), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError, int]


async def test_failure_reaches_everyone() -> None:
    """All who wait get the error, and the next to ask starts anew."""
    flights, work = Flights[int](), Work()
    waiting = [asyncio.create_task(flights.join("a", work)) for _ in range(2)]
    await settle()
    work.result.set_exception(ValueError("no"))
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError]
    with pytest.raises(ValueError, match="no"):
        await flights.join("a", work)
    assert work.starts == 2
