"""Equal work under way is done once, and everyone who asked for it waits for the same result (single-flight)."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from app.errors import DeadlineError, ForetellError

T = TypeVar("T")

Tell = Callable[[T | ForetellError], None]
Start = Callable[[Tell[T]], Callable[[], None]]
"""Begins work: is given whom to tell its result, once, and gives what calls it off."""


class Flight(Generic[T]):
    """Work under way, and who waits for it.

    It is nobody's in particular, so it has no deadline: each who waits has their own.
    """

    __slots__ = ("call_off", "key", "over", "waiters")

    def __init__(self, key: str | None) -> None:
        self.key = key
        self.waiters: list[asyncio.Future[T]] = []
        self.over = False
        self.call_off: Callable[[], None] | None = None


class Flights(Generic[T]):
    """Joins by key. Work is called off when the last who waits for it leaves, never before."""

    def __init__(self) -> None:
        self._under_way: dict[str, Flight[T]] = {}

    async def join(self, key: str | None, start: Start[T], within_s: float) -> T:
        """The result of the work of that key, begun by `start` where it is not under way; DeadlineError after so long.

        Without a key nobody joins.
        """
        flight = self._under_way.get(key) if key is not None else None
        if flight is None:
            flight = self._take_off(key, start)
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[T] = loop.create_future()
        flight.waiters.append(waiter)
        timer = loop.call_later(within_s, _expire, waiter)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._leave(flight, waiter)
            # An error's traceback knows this frame, which must not know the error again.
            del waiter

    def _take_off(self, key: str | None, start: Start[T]) -> Flight[T]:
        flight: Flight[T] = Flight(key)
        flight.call_off = start(lambda result: self._land(flight, result))
        if key is not None:
            self._under_way[key] = flight
        return flight

    def _land(self, flight: Flight[T], result: T | ForetellError) -> None:
        self._end(flight)
        for waiter in flight.waiters:
            if waiter.done():
                continue
            if isinstance(result, ForetellError):
                waiter.set_exception(result)
            else:
                waiter.set_result(result)

    def _leave(self, flight: Flight[T], waiter: "asyncio.Future[T]") -> None:
        flight.waiters.remove(waiter)
        if waiter.done() and not waiter.cancelled():
            # Whoever was cancelled just when the error came never looks at it.
            waiter.exception()
        if not flight.waiters and not flight.over:
            # Off the board first: nobody may join what is being called off.
            self._end(flight)
            if flight.call_off is not None:
                flight.call_off()

    def _end(self, flight: Flight[T]) -> None:
        flight.over = True
        if flight.key is not None and self._under_way.get(flight.key) is flight:
            del self._under_way[flight.key]


def _expire(waiter: "asyncio.Future[T]") -> None:
    if not waiter.done():
        waiter.set_exception(DeadlineError("the deadline passed before the forecast was done"))
