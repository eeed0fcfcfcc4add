"""Forecasts of more windows than one request should ask for: part by part, as bulk work, in order.

Shapes: B windows, L window, N steps, T targets, R attention rows a pass.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import NamedTuple

from app.asked.query import Query
from app.errors import DeadlineError, DrainingError, ForetellError, InvalidError, UnavailableError
from app.forecasts.predictor import Choice, Forecast, Predictor
from app.spans import part

_PARTS = 4
"""On their way, so that the device always has the next."""
_NUMBERS = 20_000
"""Of the answer of a part, about: some milliseconds of an event loop, to write them."""
_PAUSE_S = 1.0
"""Before what was refused for want of an engine is asked again;"""
_TRIES = 60
"""so often: a device that was lost is back sooner, or not at all."""


class Answered(NamedTuple):
    """What came of some windows that follow each other."""

    start: int
    """How many windows there are before them."""
    names: Sequence[str] | None
    """What they are called, where they have names."""
    result: Forecast | ForetellError
    """An error is of one window."""


class Batch:
    """One batch: windows of one or several queries."""

    def __init__(
        self,
        predictor: Predictor,
        queries: Sequence[Query],
        choice: Choice,
        *,
        rows: int,
        deadline_s: float | None = None,
    ) -> None:
        """At most `rows` windows are on their way at a time; all is done within so many seconds, where that is said."""
        self._predictor = predictor
        self._queries = queries
        self._choice = choice
        loop = asyncio.get_running_loop()
        self._deadline = math.inf if deadline_s is None else loop.time() + deadline_s
        spec = choice.meant.spec
        weights = math.ceil(choice.steps * spec.attention_rows / spec.horizon) if choice.attention != "none" else 0
        levels = 2 * len(choice.wanted.levels) if choice.wanted is not None else 0
        numbers = choice.steps * len(spec.targets) * (1 + levels) + weights * spec.window
        self._rows = rows
        self._most = max(1, min(rows // _PARTS, _NUMBERS // numbers, predictor.row_steps // choice.steps))

    @property
    def windows(self) -> int:
        """B, of all queries together."""
        return sum(len(query.windows) for query in self._queries)

    async def answers(self) -> AsyncGenerator[Answered, None]:
        """Of all windows in their order; what is wrong with a window is its answer, what is wrong with the request, or
        with the service, is raised. Whoever closes it early calls off what is under way.
        """
        parts = self._parts()
        under_way: deque[tuple[int, asyncio.Task[list[Answered]]]] = deque()
        rows = 0
        try:
            while True:
                while rows <= self._rows - self._most and (part := next(parts, None)) is not None:
                    start, query = part
                    rows += len(query.windows)
                    under_way.append((len(query.windows), asyncio.create_task(self._answered(start, query))))
                if not under_way:
                    break
                found = await under_way[0][1]
                rows -= under_way.popleft()[0]
                for one in found:
                    yield one
        finally:
            for _, task in under_way:
                task.cancel()
            await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)

    def _parts(self) -> Iterator[tuple[int, Query]]:
        before = 0
        for query in self._queries:
            windows = len(query.windows)
            for start in range(0, windows, self._most):
                end = min(start + self._most, windows)
                yield before + start, query if windows == end - start else query.part(start, end)
            before += windows

    async def _answered(self, start: int, query: Query) -> list[Answered]:
        windows = len(query.windows)
        try:
            return [Answered(start, query.series, await self._forecast(query))]
        except (UnavailableError, DeadlineError):
            raise
        except ForetellError as error:
            if isinstance(error, InvalidError) and all(place.startswith("query.") for place, _ in error.places):
                raise
            if windows == 1:
                return [Answered(start, query.series, error)]
        # One of them is to blame, and the others are not to pay for it.
        middle = windows // 2
        found = await self._answered(start, query.part(0, middle))
        return found + await self._answered(start + middle, query.part(middle, windows))

    async def _forecast(self, query: Query) -> Forecast:
        """Waits where others have filled the queue of bulk work, and while an engine is replaced."""
        tries = 0
        while True:
            try:
                with part("windows", windows=len(query.windows)):
                    return await self._predictor.forecast(query, self._choice, within_s=self._left_s())
            except DrainingError:
                raise
            except UnavailableError as error:
                tries += 1
                if error.slug != "queue-full" and tries > _TRIES:
                    raise
                pause_s = max(_PAUSE_S, float(error.headers["Retry-After"]))
                await asyncio.sleep(min(pause_s, self._left_s()))

    def _left_s(self) -> float:
        left_s = self._deadline - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise DeadlineError("the deadline passed before the batch was done")
        return left_s
