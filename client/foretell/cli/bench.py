"""A load on a service with real requests: the model's own example, each time a little different, so that no cache
has it.

Closed loop: so many connections, each asking again as soon as it has its answer. Open loop: requests leave when they
are due, whether or not earlier ones were answered, and their latency counts from then on.
"""

import asyncio
import json
import math
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from foretell.answers import Forecast, Version
from foretell.clients import AsyncClient
from foretell.errors import DataError, ForetellError, NotNowError, ProblemError

_MOST_AT_ONCE = 1000
_TOLERANCE = 1e-3
"""Relative, and of a target's standard deviation: an example was made on another processor, maybe."""
_BUSY = 0.7
_MOVED = 0.05
"""Standard deviations, at most."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do."""

    steps: int
    seconds: float
    warm_up_s: float
    connections: int
    rate: float | None
    """Requests a second of an open loop; None closes it."""


@dataclass(slots=True)
class Tally:
    """What came of it."""

    latencies_s: list[float] = field(default_factory=list)
    """Of right answers."""
    late_s: list[float] = field(default_factory=list)
    """How long after it was due a request left, in an open loop."""
    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    hits: int = 0
    """Answers from the cache."""
    unsent: int = 0
    """Requests that were due while too many were on their way."""
    seconds: float = 0.0
    cpu_s: float = 0.0
    """What the generator took of a core."""

    @property
    def right(self) -> int:
        """How many answers were."""
        return len(self.latencies_s)

    def quantile_ms(self, share: float) -> float | None:
        """Of the latencies of right answers."""
        return quantile_ms(self.latencies_s, share)


def quantile_ms(seconds: list[float], share: float) -> float | None:
    """The nearest rank, in milliseconds; None of nothing."""
    ranked = sorted(seconds)
    return 1000 * ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else None


class Questions:
    """Requests made of a version's example: its window with the last row moved a little."""

    def __init__(self, version: Version, seed: int | None = None) -> None:
        if version.spec is None:
            raise DataError(f"{version.name} {version.version} is {version.state}: {version.reason or 'not ready'}")
        spec = version.spec
        example = spec["example"]
        self.steps = int(example["steps"])
        self.targets = len(spec["targets"])
        self._expected = example["forecast"]
        features = [one for one in spec["features"] if one["role"] != "static"]
        self._moved = [
            (place, float(one["statistics"]["std"]) or 1.0)
            for place, one in enumerate(features)
            if one["role"] in ("target", "past")
        ]
        self._spreads = [
            next(float(one["statistics"]["std"]) for one in features if one["name"] == target) or 1.0
            for target in spec["targets"]
        ]
        self._window = example["window"]
        names = [one["name"] for one in spec["features"] if one["role"] == "static"]
        static = example.get("static")
        beside = {
            "start": example["start"],
            "future": example["future"],
            "static": None if static is None else dict(zip(names, static, strict=True)),
        }
        self._beside = {name: value for name, value in beside.items() if value is not None}
        rows = ",".join(json.dumps(row) for row in self._window[:-1])
        self._before = '{"window":[' + (rows + "," if rows else "")
        self._behind = (
            "]" + "".join(f",{json.dumps(name)}:{json.dumps(one)}" for name, one in self._beside.items()) + "}"
        )
        self._random = random.Random(seed)  # noqa: S311  no secret

    def example(self) -> dict[str, Any]:
        """The one whose answer is known."""
        return {"window": self._window, **self._beside}

    def another(self) -> bytes:
        """One that nobody has asked."""
        row = list(self._window[-1])
        for place, spread in self._moved:
            row[place] = (row[place] or 0.0) + spread * self._random.uniform(-_MOVED, _MOVED)
        return (self._before + json.dumps(row) + self._behind).encode()

    def is_expected(self, forecast: Forecast) -> bool:
        """Whether the example's answer is the one that its archive has."""
        return all(
            math.isclose(float(found), float(wanted), rel_tol=_TOLERANCE, abs_tol=_TOLERANCE * spread)
            for row, told in zip(forecast.values, self._expected, strict=True)
            for found, wanted, spread in zip(row, told[: self.targets], self._spreads, strict=True)
        )

    def is_complete(self, forecast: Forecast, steps: int) -> bool:
        """Whether an answer has a finite number wherever one belongs."""
        numbers = [float(number) for row in forecast.values for number in row]
        return len(numbers) == steps * self.targets and all(map(math.isfinite, numbers))


async def measured(url: str, key: str | None, patience_s: float, version: Version, plan: Plan) -> Tally:
    """Ask the example, then load the service; ForetellError where not even the example is answered rightly."""
    questions = Questions(version)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    transport = httpx.AsyncHTTPTransport(limits=limits)
    async with AsyncClient(url, key, timeout=patience_s, retries=0, transport=transport) as client:
        told = await client.forecast(
            questions.example(), questions.steps, model=version.name, version=version.version, attention="none"
        )
        if not questions.is_expected(told):
            raise ForetellError(f"{version.name} {version.version} answers its own example with other numbers")
        load = _Load(client, questions, version, plan)
        return await (load.closed() if plan.rate is None else load.open(plan.rate))


class _Load:
    def __init__(self, client: AsyncClient, questions: Questions, version: Version, plan: Plan) -> None:
        self._client = client
        self._questions = questions
        self._version = version
        self._plan = plan
        self._tally = Tally()
        self._began = time.perf_counter()
        self._counts_from = self._began + plan.warm_up_s
        self._ends = self._counts_from + plan.seconds

    async def closed(self) -> Tally:
        """Until the time is over; what is under way then is waited for and counts."""
        began = asyncio.create_task(self._warm())
        await asyncio.gather(*(self._asking() for _ in range(self._plan.connections)))
        return self._counted(*await began)

    async def _warm(self) -> tuple[float, float]:
        """Processor time and time of when it begins to count."""
        await asyncio.sleep(self._plan.warm_up_s)
        return time.process_time(), time.perf_counter()

    def _counted(self, cpu_s: float, wall_s: float) -> Tally:
        self._tally.cpu_s = time.process_time() - cpu_s
        self._tally.seconds = time.perf_counter() - wall_s
        return self._tally

    async def _asking(self) -> None:
        while (now := time.perf_counter()) < self._ends:
            if not await self._ask(now):
                await asyncio.sleep(0.01)  # a refusal costs the service next to nothing, and this would spin

    async def open(self, rate: float) -> Tally:
        """At a rate, whatever becomes of it."""
        began = asyncio.create_task(self._warm())
        under_way: set[asyncio.Task[bool]] = set()
        planned = math.ceil((self._ends - self._began) * rate)
        for number in range(planned):
            due = self._began + number / rate
            if time.perf_counter() >= self._ends:
                # More than this generator can send: it ends when it was to end, and says so.
                self._tally.unsent += planned - number
                break
            if (ahead := due - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
            if len(under_way) >= _MOST_AT_ONCE:
                self._tally.unsent += due >= self._counts_from
                await asyncio.sleep(0)
                continue
            task = asyncio.create_task(self._ask(due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)
        return self._counted(*await began)

    async def _ask(self, due: float) -> bool:
        """Ask once, and note what came of it; whether it was right."""
        version, plan, tally = self._version, self._plan, self._tally
        question = self._questions.another()
        left = time.perf_counter()
        counts = due >= self._counts_from
        try:
            told = await self._client.forecast(
                question, plan.steps, model=version.name, version=version.version, attention="none"
            )
        except NotNowError as error:
            tally.refused[f"{error.status} {error.slug}"] += counts
            return False
        except ForetellError as error:
            name = f"{error.status} {error.slug}" if isinstance(error, ProblemError) else type(error).__name__
            tally.failed[name] += counts
            return False
        done = time.perf_counter()
        if not self._questions.is_complete(told, plan.steps):
            tally.failed["incomplete"] += counts
            return False
        if counts:
            tally.latencies_s.append(done - due)
            tally.late_s.append(left - due)
            tally.hits += told.cache == "hit"
        return True


def report_of(tally: Tally, version: Version, plan: Plan, *, here: bool) -> str:
    """What people read."""
    loop = f"{plan.connections} connections" if plan.rate is None else f"{plan.rate:g} requests/s due"
    spent = f"{tally.seconds:.1f} s after {plan.warm_up_s:g} s"
    lines = [
        f"{version.name} {version.version}, {plan.steps} steps, {loop}, {spent}",
        f"right    {tally.right:8}   {tally.right / tally.seconds:.1f}/s" if tally.seconds else "right    0",
        f"refused  {tally.refused.total():8}   {_named(tally.refused)}".rstrip(),
        f"failed   {tally.failed.total():8}   {_named(tally.failed)}".rstrip(),
    ]
    if tally.unsent:
        lines.append(f"unsent   {tally.unsent:8}   due while {_MOST_AT_ONCE} were on their way, or after the end")
    if tally.right:
        quantiles = ", ".join(f"p{share} {tally.quantile_ms(share / 100):.1f}" for share in (50, 90, 99))
        since = "from the moment that they were due" if plan.rate else "from sending"
        lines.append(f"latency  {quantiles}, max {tally.quantile_ms(1):.1f} ms, of right answers, {since}")
        lines.append(f"cache    {tally.hits:8}   hits; every request is another, so there should be none")
        lines.append(f"checked  the example by its numbers; the others: {plan.steps} finite rows each")
    busy = tally.cpu_s / tally.seconds if tally.seconds else 0.0
    where = " of a core, of the machine that the service runs on" if here else " of a core"
    lines.append(f"generator {busy:7.2f}  {where}")
    if plan.rate is not None and tally.late_s:
        lines.append(f"          requests left {quantile_ms(tally.late_s, 0.99):.1f} ms late or less in 99 %")
    if busy > _BUSY:
        lines.append("          it was busy itself: these figures are as much its own as the service's; ask for less")
    return "\n".join(lines) + "\n"


def _named(counts: Counter[str]) -> str:
    return ", ".join(f"{number} x {what}" for what, number in counts.most_common() if number)
