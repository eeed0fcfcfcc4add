"""Up to thousands of replicas in steps of a millisecond, each figure an array over the replicas.

Requests are counts in it, and follow the same rules as those of `events.py`, which it is checked against: newcomers
first, a bound on rows, refusals by expected time. Latencies are those of marked requests that travel with the counts:
each has a place in its replica's queue, and is in a pass when as many rows have gone before it.

What it leaves out: queues within a step, the order of rows of many passes where more wait than a pass has room for
(all of them get on equally), and calling off work whose deadline has passed.

Shapes: n replicas, k kinds, p passes left, m marked requests.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.capacity.costs import Costs, Doubles, Kind, Mix, Service

Balancer = Literal["round_robin", "random", "two_choices"]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

_KEPT = 0.9
"""As the scheduler's record of passes."""
_TINY = 1e-9
_PASSES_A_STEP = 8
_MARKED = 20
"""Requests marked in a step, at most."""
_RING = 4096
"""Steps that a request may spend in front of an HTTP process; those of more are told apart no further."""


@dataclass(slots=True)
class Counts:
    """Requests since the start."""

    arrived: float = 0.0
    answered: float = 0.0
    refused: float = 0.0
    lost: float = 0.0
    """In a replica that died."""


@dataclass(slots=True)
class Marked:
    """Of marked requests that were answered [m]."""

    due: list[Doubles] = field(default_factory=list)
    latency_s: list[Doubles] = field(default_factory=list)
    kind: list[Ints] = field(default_factory=list)

    def all(self) -> tuple[Doubles, Doubles, Ints]:
        if not self.due:
            return np.zeros(0), np.zeros(0), np.zeros(0, np.int64)
        return np.concatenate(self.due), np.concatenate(self.latency_s), np.concatenate(self.kind)


class Fleet:
    """Replicas, of which some are there."""

    def __init__(
        self,
        costs: Costs,
        mix: Mix,
        service: Service,
        *,
        room: int,
        balancer: Balancer = "random",
        step_s: float = 0.001,
        seed: int = 0,
    ) -> None:
        """Of at most `room` replicas; all of them are there until `there` says otherwise."""
        self.costs, self.service, self.step_s = costs, service, step_s
        self.kinds: list[Kind] = [costs.kinds[name] for name in mix]
        self._shares = np.array(list(mix.values()))
        self._rows = np.array([kind.rows for kind in self.kinds], np.float64)
        self._passes = np.array([kind.passes for kind in self.kinds], np.float64)
        self._read = np.array([kind.read_s for kind in self.kinds])
        self._write = np.array([kind.write_s for kind in self.kinds])
        self._balancer = balancer
        self._dice = np.random.default_rng(seed)
        kinds = len(self.kinds)
        self.now = 0.0
        self._step = 0
        self.there: Flags = np.ones(room, np.bool_)
        """Who is sent requests."""
        self.running: Flags = np.ones(room, np.bool_)
        """Who does something."""
        self.http: Doubles = np.zeros(room)
        """Seconds of work in front of the HTTP processes."""
        self._coming: Doubles = np.zeros((_RING, room, kinds))
        """Requests by the step at which they get to the engine."""
        self._on_way: Doubles = np.zeros((room, kinds))
        """Sums of these."""
        self.fresh: Doubles = np.zeros((room, kinds))
        """Rows that wait for their first pass."""
        self._going: list[Doubles] = [np.zeros((room, kind.passes - 1)) for kind in self.kinds]
        """By kind, rows with 1, 2, ... passes left."""
        self._begun: Doubles = np.zeros((room, kinds))
        """Rows that are in their first pass."""
        self._served: Doubles = np.zeros(room)
        """Share of those that are going which the pass under way takes along."""
        self._busy: Flags = np.zeros(room, np.bool_)
        self._left: Doubles = np.zeros(room)
        """Seconds of the pass under way."""
        self._entered: Doubles = np.zeros(room)
        """Rows that have come to the engine."""
        self._started: Doubles = np.zeros(room)
        """Rows that have had their first pass begun."""
        self._record: Doubles = np.zeros((3, room))
        """Seconds, rows and passes of the last passes, of which each leaves `_KEPT`."""
        self._turn: Ints = np.zeros(kinds, np.int64)
        self.counts = Counts()
        self.marked = Marked()
        self.passes = self.pass_rows = 0.0
        self.engine_s: Doubles = np.zeros(room)
        """Seconds of cores that each has used, by part."""
        self.http_s: Doubles = np.zeros(room)
        self._m_replica: Ints = np.zeros(0, np.int64)
        self._m_kind: Ints = np.zeros(0, np.int64)
        self._m_due: Doubles = np.zeros(0)
        self._m_enters: Ints = np.zeros(0, np.int64)
        """The step at which it gets to the engine."""
        self._m_place: Doubles = np.zeros(0)
        """Its last row is the so manieth of its replica's; infinite before it is there."""
        self._m_done: Doubles = np.zeros(0)
        """Passes that it has had."""

    @property
    def rows(self) -> Doubles:
        """Rows at each engine [n]."""
        going = sum((left.sum(1) for left in self._going), np.zeros(len(self.http)))
        found: Doubles = self.fresh.sum(1) + self._begun.sum(1) + going
        return found

    @property
    def waiting(self) -> float:
        """Requests that are accepted and not answered."""
        return float(self._on_way.sum() + self._at_engine().sum())

    def _at_engine(self) -> Doubles:
        """Requests [n, k]."""
        going = np.stack([left.sum(1) for left in self._going], 1)
        return np.asarray((self.fresh + self._begun + going) / self._rows)

    def run(self, seconds: float, rate: Callable[[float], float] | float) -> None:
        """Go on for so long under so many requests a second."""
        for _ in range(round(seconds / self.step_s)):
            self.step(rate(self.now) if callable(rate) else rate)

    def step(self, rate: float) -> None:
        """One step."""
        speed = self._speeds()
        self._work_http(speed)
        self._enter()
        asked = self._arrivals(rate)
        self._admit(asked)
        self._run_engines(speed)
        self.now += self.step_s
        self._step += 1

    def kill(self, replica: int) -> None:
        """It dies with all that it holds."""
        self.counts.lost += float(self._on_way[replica].sum() + self._at_engine()[replica].sum())
        self.running[replica] = self.there[replica] = False
        for part in (self._coming[:, replica], self._on_way, self.fresh, self._begun, *self._going):
            part[... if part.ndim == 2 and part.shape[0] == _RING else replica] = 0.0
        self.http[replica] = self._left[replica] = self._served[replica] = 0.0
        self._busy[replica] = False
        self._started[replica] = self._entered[replica]
        self._keep(self._m_replica != replica)

    def _speeds(self) -> Doubles:
        """How fast everybody is who works, where there are more of them than cores [n]."""
        service = self.service
        if service.http_processes + 1 <= service.cores:
            return np.ones(len(self.http))
        wanting = np.minimum(service.http_processes, self.http / self.step_s) + self._busy
        found: Doubles = np.minimum(1.0, service.cores / np.maximum(wanting, _TINY))
        return found

    def _work_http(self, speed: Doubles) -> None:
        done = np.minimum(self.http, self.service.http_processes * self.step_s * speed)
        self.http -= done
        self.http_s += done

    def _enter(self) -> None:
        place = self._step % _RING
        came = self._coming[place]
        rows = came * self._rows
        self.fresh += rows
        self._on_way -= came
        before = self._entered.copy()
        total = rows.sum(1)
        self._entered += total
        self._coming[place] = 0.0
        if len(self._m_due):
            due = (self._m_enters == self._step) & np.isinf(self._m_place)
            at = self._m_replica[due]
            # Anywhere among those that came with it.
            self._m_place[due] = before[at] + np.ceil(self._dice.random(len(at)) * total[at])

    def _arrivals(self, rate: float) -> Ints:
        """Requests by replica and kind [n, k]."""
        routable = np.flatnonzero(self.there)
        asked = np.zeros(self.fresh.shape, np.int64)
        expected = rate * self.step_s * self._shares
        count = len(routable)
        if not count:
            arrived = self._dice.poisson(expected)
            self.counts.arrived += float(arrived.sum())
            self.counts.refused += float(arrived.sum())
            return asked
        if self._balancer == "random":
            asked[routable] = self._dice.poisson(expected / count, (count, len(expected)))
        else:
            for kind, total in enumerate(self._dice.poisson(expected)):
                if self._balancer == "round_robin":
                    each, more = divmod(int(total), count)
                    found = np.full(count, each)
                    found[(self._turn[kind] + np.arange(more)) % count] += 1
                    self._turn[kind] = (self._turn[kind] + more) % count
                else:
                    held = (self._on_way.sum(1) + self._at_engine().sum(1))[routable]
                    one, other = self._dice.integers(0, count, (2, total))
                    found = np.bincount(np.where(held[one] <= held[other], one, other), minlength=count)
                asked[routable, kind] = found
        self.counts.arrived += float(asked.sum())
        return asked

    def _admit(self, asked: Ints) -> None:
        """Accept what there is room and time for; the HTTP processes pay for both."""
        if not asked.any():
            return
        service, costs = self.service, self.costs
        held = self.rows + self._on_way @ self._rows
        wanted = asked @ self._rows
        share = np.clip((service.queue_rows - held) / np.maximum(wanted, 1), 0, 1)
        accepted = np.where(share[:, None] >= 1, asked, np.floor(asked * share[:, None]))
        accepted *= self._in_time()
        refused = asked - accepted
        self.counts.refused += float(refused.sum())
        before = self.http.copy()
        lump = accepted @ self._read + refused.sum(1) * costs.refusal_s
        lump += (before <= 0) * (lump > 0) * costs.http_wake_s
        self.http += lump
        self._mark(accepted, before, lump)
        delay = (before + lump) / service.http_processes
        at = self._step + np.clip(np.ceil(delay / self.step_s), 1, _RING - 1).astype(np.int64)
        self._coming[at % _RING, np.arange(len(delay))] += accepted
        self._on_way += accepted

    def _in_time(self) -> Flags:
        """Whether a request of each kind would be done in time, as the service expects it [n, k]."""
        service = self.service
        seconds, rows, passes = self._record
        row_s = np.where(rows > 0, seconds / np.maximum(rows, _TINY), 0.0)
        pass_s = np.where(passes > 0, seconds / np.maximum(passes, _TINY), 0.0)
        there = self.rows
        work = (self.fresh + self._begun) @ self._passes
        for left in self._going:
            work = work + left @ np.arange(1, left.shape[1] + 1)
        # Rows that are on their way to the engine have been counted, too.
        wait_s = (there + self._on_way @ self._rows) * row_s
        backlog_s = (work + self._on_way @ (self._rows * self._passes)) * row_s
        lasts = np.minimum(backlog_s[:, None], self._passes * wait_s[:, None]) + self._passes * np.minimum(
            self._rows * row_s[:, None], pass_s[:, None]
        )
        patience = service.deadline_s - (self.http / service.http_processes)[:, None]
        return np.asarray((there <= 0)[:, None] | ((wait_s[:, None] <= service.max_wait_s) & (lasts <= patience)))

    def _mark(self, accepted: Doubles, before: Doubles, lump: Doubles) -> None:
        """Some of those that were accepted, each as likely as any other."""
        flat = accepted.ravel().cumsum()
        count = min(_MARKED, int(flat[-1]))
        if not count:
            return
        chosen = np.searchsorted(flat, self._dice.random(count) * flat[-1], side="right")
        replica, kind = np.divmod(chosen, accepted.shape[1])
        inside = self._dice.random(count)
        delay = (before[replica] + lump[replica]) / self.service.http_processes
        enters = self._step + np.clip(np.ceil(delay / self.step_s), 1, _RING - 1).astype(np.int64)
        self._m_replica = np.concatenate([self._m_replica, replica])
        self._m_kind = np.concatenate([self._m_kind, kind])
        # It came at any moment of the step.
        self._m_due = np.concatenate([self._m_due, self.now + inside * self.step_s])
        self._m_enters = np.concatenate([self._m_enters, enters])
        self._m_place = np.concatenate([self._m_place, np.full(count, np.inf)])
        self._m_done = np.concatenate([self._m_done, np.zeros(count)])

    def _run_engines(self, speed: Doubles) -> None:
        self._left[self._busy] -= self.step_s * speed[self._busy]
        idle = ~self._busy
        # A pass may be shorter than a step, and the next one too.
        for _ in range(_PASSES_A_STEP):
            ended = self._busy & (self._left <= _TINY)
            if ended.any():
                self._finish(ended)
            starts = ~self._busy & self.running & (self.rows > _TINY)
            if starts.any():
                self._start(np.flatnonzero(starts), idle)
            if not ended.any():
                return

    def _finish(self, ended: Flags) -> None:
        """Passes end: rows move on, and those that are through are written."""
        at = np.flatnonzero(ended)
        share = self._served[at]
        through = np.zeros((len(at), len(self.kinds)))
        for kind, left in enumerate(self._going):
            begun = self._begun[at, kind]
            if not left.shape[1]:
                through[:, kind] = begun
                continue
            going = left[at]
            moved = going * share[:, None]
            going -= moved
            going[:, :-1] += moved[:, 1:]
            going[:, -1] += begun
            left[at] = going
            through[:, kind] = moved[:, 0]
        requests = through / self._rows
        self.counts.answered += float(requests.sum())
        lump = requests @ self._write
        before = self.http[at].copy()
        # A process that has nothing else to do is woken.
        self.http[at] += lump + (before <= 0) * (lump > 0) * self.costs.http_wake_s
        self._begun[at] = 0.0
        self._busy[at] = False
        # What is left is what its next pass is early by, where it has one.
        self._go_on(ended, before, lump, at)

    def _go_on(self, ended: Flags, before: Doubles, lump: Doubles, at: Ints) -> None:
        """The marked ones that were in these passes."""
        if not len(self._m_due):
            return
        was_in = ended[self._m_replica] & (self._m_place <= self._started[self._m_replica] + 1e-6)
        first = was_in & (self._m_done == 0)
        later = was_in & ~first
        self._m_done[first] = 1.0
        self._m_done[later] += self._served[self._m_replica[later]]
        over = was_in & (self._m_done >= self._passes[self._m_kind] - 1e-6)
        if not over.any():
            return
        where = np.searchsorted(at, self._m_replica[over])
        queued = before[where] + self._dice.random(len(where)) * lump[where]
        kind = self._m_kind[over]
        ends = self.now + self._left[self._m_replica[over]]
        latency = ends + (queued + self._write[kind]) / self.service.http_processes - self._m_due[over]
        self.marked.due.append(self._m_due[over])
        self.marked.latency_s.append(latency)
        self.marked.kind.append(kind)
        self._keep(~over)

    def _start(self, at: Ints, idle: Flags) -> None:
        """The next passes."""
        engine, most = self.costs.engine, float(self.service.batch_rows)
        fresh = self.fresh[at]
        total = fresh.sum(1)
        # Kinds in the proportion in which they wait, where not all fit.
        begun = fresh * np.minimum(1.0, most / np.maximum(total, _TINY))[:, None]
        begun_rows = begun.sum(1)
        going = np.zeros(len(at))
        for left in self._going:
            going += left[at].sum(1)
        share = np.minimum(1.0, (most - begun_rows) / np.maximum(going, _TINY))
        rows = begun_rows + going * share
        seconds = engine.pass_s + engine.begin_s * begun_rows + engine.row_s * rows
        fresh_start = idle[at]
        seconds += fresh_start * engine.wake_s
        self._left[at] = np.where(fresh_start, seconds, np.maximum(self._left[at], -self.step_s) + seconds)
        self.fresh[at] -= begun
        self._begun[at] = begun
        self._served[at] = share
        self._started[at] += begun_rows
        self._busy[at] = True
        self.engine_s[at] += seconds
        self._record[:, at] = _KEPT * self._record[:, at] + np.stack([seconds, rows, np.ones(len(at))])
        self.passes += len(at)
        self.pass_rows += float(rows.sum())

    def _keep(self, kept: Flags) -> None:
        """These marked ones go on."""
        self._m_replica, self._m_kind, self._m_due = self._m_replica[kept], self._m_kind[kept], self._m_due[kept]
        self._m_enters, self._m_place, self._m_done = self._m_enters[kept], self._m_place[kept], self._m_done[kept]


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of a steady load."""

    rate: float
    """Asked a second."""
    answered: float
    """A second."""
    refused: float
    """Share."""
    good: float
    """Answers a second within the limit."""
    p50_s: float
    p99_s: float
    batch_rows: float
    waiting_rows: float
    """Of a replica, at the end."""
    cores: float
    """Of a replica, busy on average."""


def steady(
    costs: Costs,
    mix: Mix,
    service: Service,
    replicas: int,
    rate: float,
    *,
    limit_s: float,
    seconds: float = 6.0,
    warm_up: float = 2.0,
    balancer: Balancer = "random",
    step_s: float = 0.001,
    seed: int = 0,
) -> Measured:
    """A fleet under a load that stays; latencies and rates of the time after the warm-up."""
    fleet = Fleet(costs, mix, service, room=replicas, balancer=balancer, step_s=step_s, seed=seed)
    fleet.run(warm_up, rate)
    before = fleet.counts.arrived, fleet.counts.answered, fleet.counts.refused
    used, passes, rows = fleet.engine_s.sum() + fleet.http_s.sum(), fleet.passes, fleet.pass_rows
    fleet.run(seconds, rate)
    due, latency, _ = fleet.marked.all()
    # Those that are on their way at the end are the late ones: they count with the time that they have waited.
    there = fleet._m_due >= warm_up  # noqa: SLF001  of this module
    found = np.concatenate([latency[due >= warm_up], (fleet.now - fleet._m_due)[there]])  # noqa: SLF001
    answered = (fleet.counts.answered - before[1]) / seconds
    good = float((latency[due >= warm_up] <= limit_s).mean()) if (due >= warm_up).any() else 0.0
    return Measured(
        rate=rate,
        answered=answered,
        refused=(fleet.counts.refused - before[2]) / max(1.0, fleet.counts.arrived - before[0]),
        good=answered * good,
        p50_s=float(np.quantile(found, 0.5)) if len(found) else float("nan"),
        p99_s=float(np.quantile(found, 0.99)) if len(found) else float("nan"),
        batch_rows=(fleet.pass_rows - rows) / max(1.0, fleet.passes - passes),
        waiting_rows=float(fleet.rows.mean()),
        cores=float(fleet.engine_s.sum() + fleet.http_s.sum() - used) / seconds / replicas,
    )
