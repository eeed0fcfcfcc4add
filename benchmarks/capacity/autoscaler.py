"""A HorizontalPodAutoscaler as deploy/kubernetes has it, what it sees late, and a fleet that follows it.

By the windows that wait in a replica, and by the processor time of its cores; of the two the greater wish counts.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.capacity.costs import Costs, Mix, Service
from benchmarks.capacity.fleet import Balancer, Fleet


@dataclass(frozen=True, slots=True)
class Policy:
    """deploy/kubernetes/base/autoscaler.yaml and adapter/values.yaml; the times are Kubernetes' own defaults."""

    least: int = 2
    most: int = 10
    waiting_rows: float | None = 128.0
    """Of a replica, which is aimed at; None leaves it out."""
    cpu: float | None = 0.75
    """Of the cores that a replica asks for."""
    every_s: float = 15.0
    tolerance: float = 0.1
    waiting_mean_s: float = 60.0
    """The adapter's query averages for so long."""
    cpu_mean_s: float = 15.0
    """The metrics server's."""
    metric_delay_s: float = 15.0
    """From the moment that a figure is about to the autoscaler: a scrape."""
    up_factor: float = 2.0
    up_every_s: float = 30.0
    down_count: int = 1
    down_every_s: float = 60.0
    down_wait_s: float = 300.0
    start_s: float = 30.0
    """Until a new replica is sent requests."""


@dataclass(slots=True)
class Autoscaler:
    """Is told how full the replicas are, second by second, and says how many there should be."""

    policy: Policy
    count: int
    _seen: deque[tuple[float, float, float]] = field(default_factory=deque)
    _wishes: deque[tuple[float, int]] = field(default_factory=deque)
    _changes: deque[tuple[float, int]] = field(default_factory=deque)
    """When, and by how many."""
    _next: float = 0.0

    def see(self, now: float, waiting_rows: float, cpu: float) -> None:
        """Means over the replicas that are ready."""
        self._seen.append((now, waiting_rows, cpu))
        oldest = now - self.policy.metric_delay_s - max(self.policy.waiting_mean_s, self.policy.cpu_mean_s)
        while self._seen[0][0] < oldest:
            self._seen.popleft()

    def decide(self, now: float, ready: int) -> int:
        """How many replicas there should be; looks every `every_s` only."""
        if now + 1e-9 < self._next:
            return self.count
        self._next = now + self.policy.every_s
        wish = self._wish(now, max(1, ready))
        self._wishes.append((now, wish))
        while self._wishes[0][0] < now - self.policy.down_wait_s:
            self._wishes.popleft()
        if wish < self.count:
            # Down to no fewer than were wished for at any time of the quiet that this takes.
            wish = min(self.count, max(one for _, one in self._wishes))
        self._set(now, self._limited(now, wish))
        return self.count

    def _wish(self, now: float, ready: int) -> int:
        policy = self.policy
        wishes = [
            self._by(now, 1, policy.waiting_rows, policy.waiting_mean_s, ready),
            self._by(now, 2, policy.cpu, policy.cpu_mean_s, ready),
        ]
        return max((wish for wish in wishes if wish is not None), default=self.count)

    def _by(self, now: float, place: int, target: float | None, mean_s: float, ready: int) -> int | None:
        end = now - self.policy.metric_delay_s
        seen = [one[place] for one in self._seen if end - mean_s < one[0] <= end]
        if target is None or not seen:
            return None
        ratio = sum(seen) / len(seen) / target
        return self.count if abs(ratio - 1) <= self.policy.tolerance else math.ceil(ready * ratio - 1e-9)

    def _limited(self, now: float, wish: int) -> int:
        policy = self.policy
        while self._changes and self._changes[0][0] <= now - max(policy.up_every_s, policy.down_every_s):
            self._changes.popleft()
        if wish > self.count:
            added = sum(by for at, by in self._changes if by > 0 and at > now - policy.up_every_s)
            wish = min(wish, max(self.count, math.floor((self.count - added) * policy.up_factor)))
        elif wish < self.count:
            taken = -sum(by for at, by in self._changes if by < 0 and at > now - policy.down_every_s)
            wish = max(wish, min(self.count, self.count + taken - policy.down_count))
        return min(policy.most, max(policy.least, wish))

    def _set(self, now: float, count: int) -> None:
        if count != self.count:
            self._changes.append((now, count - self.count))
            self.count = count


@dataclass(slots=True)
class Followed:
    """A fleet that an autoscaler changed, second by second."""

    at_s: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    good: list[float] = field(default_factory=list)
    """Answers within the limit."""
    p99_s: list[float] = field(default_factory=list)
    """Of the requests that were due in that second."""
    waiting_rows: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    deaths: int = 0

    @property
    def replica_hours(self) -> float:
        """Of those that were wanted, since one that starts costs as much as one that serves."""
        return sum(self.wanted) / 3600

    @property
    def bad_share(self) -> float:
        """Of all requests, those that were refused, lost or not answered within the limit."""
        return 1 - sum(self.good) / max(1.0, sum(self.answered) + sum(self.refused) + sum(self.lost))


def follow(
    costs: Costs,
    mix: Mix,
    service: Service,
    rate: Callable[[float], float],
    seconds: int,
    *,
    policy: Policy | None,
    start: int,
    limit_s: float,
    deaths_an_hour: float = 0.0,
    balancer: Balancer = "two_choices",
    step_s: float = 0.002,
    seed: int = 0,
) -> Followed:
    """`rate` for so many seconds on `start` replicas at first, which stay as many where there is no policy."""
    room = start if policy is None else max(start, policy.most)
    fleet = Fleet(costs, mix, service, room=room, balancer=balancer, step_s=step_s, seed=seed)
    fleet.there[start:] = fleet.running[start:] = False
    scaler = None if policy is None else Autoscaler(policy, start)
    start_s = (policy or Policy()).start_s
    dice = np.random.default_rng(seed + 1)
    starting: list[float] = []
    found = Followed()
    before = (0.0, 0.0, 0.0)
    for second in range(seconds):
        used = fleet.engine_s + fleet.http_s
        fleet.run(1.0, rate)
        ready = np.flatnonzero(fleet.there)
        cpu = float((fleet.engine_s + fleet.http_s - used)[ready].mean()) / service.cores if len(ready) else 0.0
        waiting = float(fleet.rows[ready].mean()) if len(ready) else 0.0
        found.at_s.append(second + 1.0)
        found.rate.append(rate(float(second)))
        found.answered.append(fleet.counts.answered - before[0])
        found.refused.append(fleet.counts.refused - before[1])
        found.lost.append(fleet.counts.lost - before[2])
        # Who dies from now on is of the next second.
        before = fleet.counts.answered, fleet.counts.refused, fleet.counts.lost
        found.waiting_rows.append(waiting)
        found.cpu.append(cpu)
        now = second + 1.0
        for replica in ready:
            if dice.random() < deaths_an_hour / 3600:
                fleet.kill(int(replica))
                found.deaths += 1
                starting.append(now + start_s)
        wanted = len(np.flatnonzero(fleet.there)) + len(starting)
        if scaler is not None:
            scaler.see(now, waiting, cpu)
            wanted = scaler.decide(now, len(ready))
        _adjust(fleet, starting, wanted, now, start_s)
        found.ready.append(len(ready))
        found.wanted.append(wanted)
    _tell_latencies(found, fleet, seconds, limit_s)
    return found


def _adjust(fleet: Fleet, starting: list[float], wanted: int, now: float, start_s: float) -> None:
    """Begin to start some, send requests to those that are ready, or take some out, which finish what they have."""
    for _ in range(sum(at <= now for at in starting)):
        free = np.flatnonzero(~fleet.there)
        idle = free[fleet.rows[free] <= 0]
        place = int(idle[0]) if len(idle) else int(free[0])
        fleet.there[place] = fleet.running[place] = True
    starting[:] = [at for at in starting if at > now]
    there = np.flatnonzero(fleet.there)
    starting += [now + start_s] * (wanted - len(there) - len(starting))
    for _ in range(wanted, len(there) + len(starting)):
        if starting:
            starting.pop()
        else:
            fleet.there[np.flatnonzero(fleet.there)[-1]] = False


def _tell_latencies(found: Followed, fleet: Fleet, seconds: int, limit_s: float) -> None:
    due, latency, _ = fleet.marked.all()
    second = np.minimum(due.astype(np.int64), seconds - 1)
    for at in range(seconds):
        of = latency[second == at]
        found.p99_s.append(float(np.quantile(of, 0.99)) if len(of) else float("nan"))
        found.good.append(found.answered[at] * (float((of <= limit_s).mean()) if len(of) else 0.0))


def burst(base: float, factor: float, at_s: float, ramp_s: float, lasts_s: float) -> Callable[[float], float]:
    """A rate that rises `factor` times within `ramp_s`, stays for `lasts_s`, and falls as fast."""

    def rate(now: float) -> float:
        up = min(1.0, max(0.0, (now - at_s) / ramp_s))
        down = min(1.0, max(0.0, (now - at_s - ramp_s - lasts_s) / ramp_s))
        return base * (1 + (factor - 1) * (up - down))

    return rate


@dataclass(frozen=True, slots=True)
class Point:
    """A replica under a steady load: what of it the day needs."""

    rate: float
    waiting_rows: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Day:
    """A day of a fleet, second by second and without single requests."""

    requests: float
    bad: float
    """Share of them that were refused, or answered late."""
    replica_hours: float
    most: int


def day(
    curve: Sequence[Point], rate: Callable[[float], float], *, sustainable: float, policy: Policy | None, start: int
) -> Day:
    """86 400 seconds by what a replica does at each rate (`curve`, up to the most it can do).

    What is asked beyond that is refused; above `sustainable` requests a second and replica answers are late, all.
    """
    rates = np.array([point.rate for point in curve])
    waits, cpus = np.array([point.waiting_rows for point in curve]), np.array([point.cpu for point in curve])
    scaler = None if policy is None else Autoscaler(policy, start)
    ready, starting = start, deque[float]()
    requests = bad = seconds = 0.0
    most = start
    for second in range(86_400):
        now = float(second)
        while starting and starting[0] <= now:
            starting.popleft()
            ready += 1
        asked = rate(now)
        each = asked / ready
        requests += asked
        bad += asked if each > sustainable else 0.0
        wanted = ready + len(starting)
        if scaler is not None and policy is not None:
            scaler.see(now, float(np.interp(each, rates, waits)), float(np.interp(each, rates, cpus)))
            wanted = scaler.decide(now, ready)
            for _ in range(ready + len(starting), wanted):
                starting.append(now + policy.start_s)
            while ready + len(starting) > wanted:
                if starting:
                    starting.pop()
                else:
                    ready -= 1
        seconds += wanted
        most = max(most, wanted)
    return Day(requests, bad / requests, seconds / 3600, most)


def daily(peak: float, swing: float, bursts: Sequence[tuple[float, float]] = ()) -> Callable[[float], float]:
    """A rate that is `peak` at noon and `peak / swing` at midnight; `bursts` of (at, factor) rise within 30 s and
    last ten minutes.
    """
    low = peak / swing
    shapes = [burst(1.0, factor, at_s, 30.0, 600.0) for at_s, factor in bursts]

    def rate(now: float) -> float:
        found = low + (peak - low) * (1 - math.cos(2 * math.pi * now / 86_400)) / 2
        for shape in shapes:
            found *= shape(now)
        return found

    return rate
