"""A forecast that is told while it is computed.

Shapes: B windows, L window, H steps a pass, N steps, T targets, Q quantiles, R attention rows a pass, P passes.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np

from app.errors import DeadlineError, ForetellError
from app.forecasts.bands import Banding, Intervals
from app.forecasts.job import Computed, Job, check_finite
from app.ticket import Floats
from models.intervals import Bounds

_MOST_NUMBERS = 20_000
"""Of one piece, about: some milliseconds of an event loop, to write them."""


class Piece(NamedTuple):
    """Steps that follow each other."""

    start: int
    """How many steps there are before them."""
    forecast: Floats
    """[B, n, T]"""
    attention: Mapping[int, Floats]
    """[B, L] by the number of steps before the first that it is of: the rows that begin within these steps."""
    intervals: Intervals | None
    """[B, n, T] of each level."""


class _Part(NamedTuple):
    outputs: Floats
    """[B, n, T + Q * T]"""
    attention: Floats | None


class Stream:
    """One forecast. Who computes it adds parts and then the whole; who reads it gets pieces, once.

    Whoever stops reading calls it off.
    """

    def __init__(
        self,
        job: Job,
        banding: Banding | None,
        attention: Literal["all", "last", "none"],
        cache: Literal["hit", "miss"] | None,
        layout_s: float,
        cache_s: float,
    ) -> None:
        self.job = job
        self.wants_attention = attention != "none"
        self.cache = cache
        self.layout_s = layout_s
        self.cache_s = cache_s
        self.computed: Computed | None = None
        """Once all of it is."""
        self.call_off: Callable[[], None] = lambda: None
        self.then: Callable[[Floats], None] = lambda _: None
        """Told the forecast [B, N, T + Q * T] once it is whole."""
        self._banding = banding
        self._only_last = attention == "last"
        self._deadline = asyncio.get_running_loop().time() + job.patience_s
        self._told: asyncio.Queue[_Part | Computed | ForetellError] = asyncio.Queue()
        # Intervals are of each step by itself, so those of the steps that are not there yet may be of anything.
        self._outputs = np.zeros((job.windows, job.steps, job.spec.outputs), np.float32)

    # Who computes it

    def add(self, passes: int, numbers: Floats) -> None:
        """What so many passes p more gave: forecast [B, p * H, T + Q * T] and attention [B, p * R, L]."""
        spec, windows = self.job.spec, self.job.windows
        split = windows * passes * spec.horizon * spec.outputs
        outputs = numbers[:split].reshape(windows, passes * spec.horizon, spec.outputs)
        attention = None
        if self.job.attention:
            attention = numbers[split:].reshape(windows, passes * spec.attention_rows, spec.window)
        self._told.put_nowait(_Part(outputs, attention))

    def end(self, result: Computed | ForetellError) -> None:
        """All of it, or why there is no more."""
        self.call_off = lambda: None
        self._told.put_nowait(result)

    # Who reads it

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """All steps, in order; any ForetellError, DeadlineError where what is left is not computed in time."""
        done = 0
        try:
            while self.computed is None:
                told = await self._next()
                if isinstance(told, ForetellError):
                    raise told
                if isinstance(told, Computed):
                    self.computed = told
                    told = self._rest(told, done)
                    self.then(self.computed.answer.forecast)
                check_finite(told.outputs, self.job, before=done)
                for piece in self._pieces(told, done):
                    yield piece
                done += told.outputs.shape[1]
        finally:
            self.call_off()

    async def _next(self) -> _Part | Computed | ForetellError:
        if not self._told.empty():
            return self._told.get_nowait()  # however slowly it is read
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._told.get()
        except TimeoutError:
            raise DeadlineError("the deadline passed before the forecast was done") from None

    def _rest(self, computed: Computed, done: int) -> _Part:
        outputs, attention = computed.answer
        rows = self._rows(done)
        return _Part(outputs[:, done:], attention if attention is None else attention[:, rows:])

    def _pieces(self, part: _Part, done: int) -> Iterator[Piece]:
        steps = part.outputs.shape[1]
        self._outputs[:, done : done + steps] = part.outputs
        intervals = None
        if self._banding is not None:
            intervals = self._banding.around(self.job.layout.windows, self._outputs)
        weights = 0 if part.attention is None else part.attention.size
        bounds = 0 if intervals is None else 2 * len(intervals.bounds)
        numbers = (part.outputs.size * (1 + bounds) + weights) / max(steps, 1)
        most = max(1, int(_MOST_NUMBERS / numbers))
        for start in range(done, done + steps, most):
            end = min(start + most, done + steps)
            yield Piece(
                start,
                part.outputs[:, start - done : end - done, : len(self.job.spec.targets)],
                self._attention(part, done, start, end),
                None if intervals is None else _cut(intervals, start, end),
            )

    def _attention(self, part: _Part, done: int, start: int, end: int) -> dict[int, Floats]:
        if part.attention is None:
            return {}
        spec, before = self.job.spec, self._rows(done)
        first = self.job.attention_rows - 1 if self._only_last else 0
        return {
            row * spec.horizon // spec.attention_rows: part.attention[:, row - before]
            for row in range(max(first, self._rows(start)), self._rows(end))
        }

    def _rows(self, steps: int) -> int:
        """How many attention rows begin within so many steps."""
        return math.ceil(steps * self.job.spec.attention_rows / self.job.spec.horizon)


def _cut(intervals: Intervals, start: int, end: int) -> Intervals:
    bounds = intervals.bounds.items()
    cut = {level: Bounds(lower[:, start:end], upper[:, start:end]) for level, (lower, upper) in bounds}
    return intervals._replace(bounds=cut)
