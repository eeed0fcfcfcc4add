"""The clock of deadlines and durations."""

import asyncio
import time
from collections.abc import Callable


class MonotonicClock:
    """The machine's monotonic clock, with the running loop's timers.

    Not the loop's own `time`, which uvloop keeps to whole milliseconds: many a pass is shorter.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def time(self) -> float:
        """Seconds, monotonic."""
        return time.monotonic()

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        """Call back once this clock has reached `when`."""
        return self._loop.call_later(when - time.monotonic(), callback, *args)
