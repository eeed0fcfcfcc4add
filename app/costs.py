"""What a request asks of a model and what that takes, and these added up until the metrics are told.

To count in a file that processes share takes a microsecond, and a request has a dozen figures.
"""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from app.ticket import ModelId

Result = Literal["computed", "cached", "failed"]
STAGES = ("parse", "cache_hit", "cache_miss", "queue", "compute", "write")
_SETTLED_S = 0.05
"""So long after the first of them, requests are told together."""
_RIGHT = 200


@dataclass(slots=True)
class Cost:
    """Of one request; filled in on its way."""

    model: ModelId
    windows: int = 0
    cache: Literal["hit", "miss"] | None = None
    parse_s: float = 0.0
    """From bytes to an order."""
    cache_s: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0
    write_s: float = 0.0
    """From numbers to bytes."""


@dataclass(slots=True)
class Requests:
    """How long requests took that had the same result: how many took up to each of the bounds, and all together."""

    buckets: list[int]
    seconds: float = 0.0


@dataclass(slots=True)
class Tally:
    """The requests for one version since it was told last."""

    results: dict[Result, Requests]
    last: float = 0.0
    """When the last was answered, in epoch seconds."""
    windows: dict[Result, int] = field(default_factory=lambda: {"computed": 0, "cached": 0})
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))


@dataclass(slots=True)
class Figures:
    """Of one version, what all processes have counted together."""

    requests: dict[str, int] = field(default_factory=dict)
    """By result;"""
    seconds: dict[str, float] = field(default_factory=dict)
    """and how long these took."""
    windows: dict[str, int] = field(default_factory=dict)
    """By where their forecasts came from: `computed` or `cached`."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage, of requests that were answered."""
    passes: int = 0
    """On devices, for whatever."""
    last: float = 0.0
    """When the last request was answered, in epoch seconds; 0 where there was none."""


class Tallies:
    """Adds requests up, and tells what they come to soon after."""

    def __init__(self, bounds: Sequence[float], tell: Callable[[ModelId, Tally], None]) -> None:
        self._bounds = bounds
        self._tell = tell
        self._tallies: dict[ModelId, Tally] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, cost: Cost, status: int, seconds: float) -> None:
        """A request was answered; from an event loop."""
        tally = self._tallies.get(cost.model)
        if tally is None:
            tally = self._tally(cost.model)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SETTLED_S, self.settle)
        if status != _RIGHT:
            requests = tally.results["failed"]
        else:
            stages = tally.stages
            stages["parse"] += cost.parse_s
            stages["write"] += cost.write_s
            if cost.cache == "hit":
                requests = tally.results["cached"]
                tally.windows["cached"] += cost.windows
                stages["cache_hit"] += cost.cache_s
            else:
                requests = tally.results["computed"]
                tally.windows["computed"] += cost.windows
                stages["cache_miss"] += cost.cache_s
                stages["queue"] += cost.queue_s
                stages["compute"] += cost.compute_s
        tally.last = time.time()
        requests.seconds += seconds
        requests.buckets[bisect_left(self._bounds, seconds)] += 1

    def settle(self) -> None:
        """Tell what there is now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        told, self._tallies = self._tallies, {}
        for model, tally in told.items():
            self._tell(model, tally)

    def _tally(self, model: ModelId) -> Tally:
        results: tuple[Result, ...] = ("computed", "cached", "failed")
        tally = Tally({result: Requests([0] * (len(self._bounds) + 1)) for result in results})
        self._tallies[model] = tally
        return tally
