"""Replicas request by request, with SimPy. In each of them runs the service's own scheduler, on a simulated clock:
who joins which pass, who is refused and who is dropped is decided by the code that decides it in production.

An HTTP process is one server with a queue, as an event loop is; an engine takes in what has come between two turns.
Processes share the cores evenly; the client of `Load.shares_cores` is one of them.
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import simpy

from app.device.scheduler import Scheduler
from app.errors import QueueFullError
from app.ticket import ModelId, Part, Ticket
from benchmarks.capacity.costs import Costs, Doubles, Kind, Mix, Service

Balancer = Literal["round_robin", "random", "two_choices", "least"]
Rate = Callable[[float], float]
"""Requests a second at a time."""

_MODEL = ModelId("simulated", 1, "0" * 64)
_WINDOWS = np.zeros((4096, 0, 0), np.float32)
_TIMES = np.zeros(4096, np.int64)
_Running = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked: Poisson arrivals of a mix of kinds, in an open loop."""

    rate: float | Rate
    mix: Mix
    peak: float = 0.0
    """The most that `rate` ever says, where it is a function."""
    connections: float = float("inf")
    """So many requests under way at most; others wait at the client, and their time counts."""
    shares_cores: bool = False
    """The client is a process on the cores of the (one) replica."""


@dataclass(slots=True)
class Request:
    kind: Kind
    due: float
    order: "Order | None" = None
    over: bool = False
    http: "_Http | None" = None


@dataclass(slots=True)
class Order:
    """A request at the engine."""

    request: Request
    tickets: list[Ticket] = field(default_factory=list)
    left: int = 0


@dataclass(slots=True)
class Outcome:
    """Of a run; counts are of requests over all of it, latencies of those that were due after the warm-up."""

    seconds: float
    warm_up: float
    arrived: int = 0
    answered: int = 0
    refused: int = 0
    late: int = 0
    """Whose deadline passed."""
    in_time: int = 0
    """Answered between the warm-up and the end."""
    waiting: int = 0
    """At the end."""
    passes: int = 0
    rows: int = 0
    http_s: float = 0.0
    engine_s: float = 0.0
    in_system_s: float = 0.0
    """Integral of the requests in the system after the warm-up."""
    latencies: dict[str, list[float]] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Answers a second after the warm-up."""
        return self.in_time / (self.seconds - self.warm_up)

    @property
    def batch_rows(self) -> float:
        """Mean rows of a pass."""
        return self.rows / max(1, self.passes)

    def all_latencies(self) -> Doubles:
        return np.array(list(itertools.chain.from_iterable(self.latencies.values())))

    def quantile_s(self, share: float, kind: str | None = None) -> float:
        found = self.all_latencies() if kind is None else np.array(self.latencies.get(kind, []))
        return float(np.quantile(found, share)) if len(found) else float("nan")


class Cores:
    """Processor sharing: everybody who works runs equally fast, at most at full speed."""

    def __init__(self, env: simpy.Environment, count: int) -> None:
        self._env = env
        self._count = count
        self._jobs: list[tuple[float, int, simpy.Event]] = []
        """By the progress at which each is done."""
        self._numbers = itertools.count()
        self._progress = 0.0
        self._at = 0.0
        self._plan = 0

    def work(self, seconds: float) -> simpy.Event:
        """Done when so many seconds of a core have been had."""
        self._advance()
        done = self._env.event()
        heapq.heappush(self._jobs, (self._progress + seconds, next(self._numbers), done))
        self._schedule()
        return done

    @property
    def _speed(self) -> float:
        return min(1.0, self._count / len(self._jobs))

    def _advance(self) -> None:
        now = self._env.now
        if self._jobs:
            self._progress += (now - self._at) * self._speed
        self._at = now

    def _schedule(self) -> None:
        self._plan += 1
        if self._jobs:
            wait = max(0.0, (self._jobs[0][0] - self._progress) / self._speed)
            self._env.timeout(wait, self._plan).callbacks.append(self._due)

    def _due(self, event: simpy.Event) -> None:
        if event.value != self._plan:
            return  # somebody has come or gone meanwhile
        self._advance()
        self._progress = max(self._progress, self._jobs[0][0])
        while self._jobs and self._jobs[0][0] <= self._progress:
            heapq.heappop(self._jobs)[2].succeed()
        self._schedule()


class Server:
    """A process with one thread that does one thing after the other."""

    def __init__(self, env: simpy.Environment, cores: Cores, wake_s: float = 0.0) -> None:
        self._env = env
        self._cores = cores
        self._wake_s = wake_s
        self._inbox: deque[tuple[float, Callable[[], None]]] = deque()
        self._bell: simpy.Event | None = None
        self.busy_s = 0.0
        env.process(self._run())

    def do(self, seconds: float, then: Callable[[], None]) -> None:
        self._inbox.append((seconds, then))
        if self._bell is not None:
            self._bell.succeed()
            self._bell = None

    def _run(self) -> _Running:
        extra_s = self._wake_s
        while True:
            if not self._inbox:
                self._bell = self._env.event()
                yield self._bell
                extra_s = self._wake_s
            seconds, then = self._inbox.popleft()
            seconds += extra_s
            extra_s = 0.0
            if seconds:
                yield self._cores.work(seconds)
                self.busy_s += seconds
            then()


class _Http(Server):
    """An HTTP process."""


class Nobody:
    """A watcher of the scheduler that wants to know nothing."""

    def waited(self, model: ModelId, seconds: float) -> None:
        pass

    def passed(self, model: ModelId, rows: int, seconds: float) -> None:
        pass

    def out_of_memory(self, model: ModelId) -> None:
        pass


class Replica:
    """HTTP processes and an engine on some cores."""

    def __init__(
        self,
        env: simpy.Environment,
        costs: Costs,
        service: Service,
        over: Callable[[Request, str], None],
        dice: random.Random,
    ) -> None:
        self._env = env
        self._costs = costs
        self._service = service
        self._over = over
        self._dice = dice
        self.cores = Cores(env, service.cores)
        self.https = [_Http(env, self.cores, costs.http_wake_s) for _ in range(service.http_processes)]
        self._held = 0
        """Rows that the HTTP processes have sent to the engine and that are not answered."""
        self.outstanding = 0
        """Requests, as a balancer sees them."""
        self.passes = self.rows = 0
        self.engine_s = 0.0
        self._ahead = 0.0
        """How far the engine's clock is ahead in a turn: the scheduler runs a pass in no time of the simulation."""
        self._came: list[Order] = []
        self._dropped: list[Order] = []
        self._bell: simpy.Event | None = None
        self._scheduler = Scheduler(
            self._pass,
            lambda: self._env.now + self._ahead,
            Nobody(),
            queue_rows=service.queue_rows,
            batch_rows=service.batch_rows,
            bulk_batch_rows=service.batch_rows,
            max_wait_s=service.max_wait_s,
        )
        env.process(self._engine())

    def arrive(self, request: Request) -> None:
        """A request has reached one of the HTTP processes, by its connection."""
        self.outstanding += 1
        request.http = http = self.https[0] if len(self.https) == 1 else self._dice.choice(self.https)
        if self._service.deadline_s < np.inf:
            timer = self._env.timeout(max(0.0, request.due + self._service.deadline_s - self._env.now))
            timer.callbacks.append(lambda _: self._expire(request))
        if self._admits(request):
            http.do(request.kind.read_s, lambda: self._submit(request))
        else:
            http.do(self._costs.refusal_s, lambda: self._end(request, "refused"))

    def _admits(self, request: Request) -> bool:
        """As `Link.check`, before anything is parsed; what it heard of the engine last is never old here."""
        if self._held + request.kind.rows > self._service.queue_rows:
            return False
        patience_s = request.due + self._service.deadline_s - self._env.now
        busy = self._scheduler.busy(_MODEL)
        try:
            if busy.rows:
                busy.check(request.kind.rows, request.kind.passes, patience_s, self._service.max_wait_s)
        except QueueFullError:
            return False
        return True

    def _submit(self, request: Request) -> None:
        if request.over:
            return
        request.order = Order(request)
        self._held += request.kind.rows
        self._came.append(request.order)
        self._ring()

    def _ring(self) -> None:
        if self._bell is not None:
            self._bell.succeed()
            self._bell = None

    def _engine(self) -> _Running:
        scheduler = self._scheduler
        while True:
            if scheduler.idle and not self._came:
                self._bell = self._env.event()
                yield self._bell
                if self._costs.engine.wake_s:
                    yield self.cores.work(self._costs.engine.wake_s)
                    self.engine_s += self._costs.engine.wake_s
            self._take_in()
            through = scheduler.turn()
            seconds, self._ahead = self._ahead, 0.0
            if seconds:
                yield self.cores.work(seconds)
                self.engine_s += seconds
            for ticket in through:
                order: Order = ticket.owner
                order.left -= 1
                if not order.left and not order.request.over:
                    self._answer(order.request)

    def _take_in(self) -> None:
        for order in self._dropped:
            for ticket in order.tickets:
                self._scheduler.drop(ticket)
        self._dropped.clear()
        came, self._came = self._came, []
        for order in came:
            request = order.request
            if request.over:
                continue
            kind, most = request.kind, self._service.batch_rows
            order.tickets = [
                Ticket(_MODEL, _WINDOWS[:rows], _TIMES[:rows], _WINDOWS[:rows], kind.passes, attention=False)
                for rows in (min(most, kind.rows - start) for start in range(0, kind.rows, most))
            ]
            for ticket in order.tickets:
                ticket.owner = order
            order.left = len(order.tickets)
            patience_s = request.due + self._service.deadline_s - self._env.now
            try:
                self._scheduler.submit(order.tickets, patience_s)
            except QueueFullError:
                self._held -= kind.rows
                request.order = None
                self._http_of(request).do(self._costs.refusal_s, partial(self._end, request, "refused"))

    def _pass(self, tickets: Sequence[Ticket]) -> list[Part]:
        """The scheduler's runner: time passes, numbers do not come."""
        rows = sum(ticket.rows for ticket in tickets)
        begun = sum(ticket.rows for ticket in tickets if not ticket.done)
        most = min(ticket.passes - ticket.done for ticket in tickets)
        count = 1
        self._ahead += self._costs.engine.seconds(begun, rows)
        while count < most and not self._scheduler.undisturbed and self._scheduler.stays():
            self._ahead += self._costs.engine.seconds(0, rows)
            count += 1
        self.passes += count
        self.rows += rows * count
        return [Part(_WINDOWS[: ticket.rows], None, count) for ticket in tickets]

    def _answer(self, request: Request) -> None:
        self._held -= request.kind.rows
        self._http_of(request).do(request.kind.write_s, lambda: self._end(request, "answered"))

    def _expire(self, request: Request) -> None:
        if request.over:
            return
        if request.order is not None and (not request.order.tickets or request.order.left):
            self._held -= request.kind.rows
            self._dropped.append(request.order)
        self._end(request, "late")

    def _end(self, request: Request, how: str) -> None:
        if not request.over:
            request.over = True
            self.outstanding -= 1
            self._over(request, how)

    def _http_of(self, request: Request) -> _Http:
        assert request.http is not None
        return request.http


class World:
    """A client, a balancer and replicas."""

    def __init__(
        self, costs: Costs, load: Load, service: Service, replicas: int, balancer: Balancer, seed: int
    ) -> None:
        self.env = simpy.Environment()
        self._load = load
        self._dice = random.Random(seed)
        self._balancer = balancer
        self._turn = 0
        self.replicas = [Replica(self.env, costs, service, self._over, self._dice) for _ in range(replicas)]
        self._kinds = [costs.kinds[name] for name in load.mix]
        self._shares = list(load.mix.values())
        self._client = Server(self.env, self.replicas[0].cores) if load.shares_cores else None
        self._under_way = 0
        self._held_back: deque[Request] = deque()
        self._in_system = 0
        self._since = 0.0
        self.outcome = Outcome(0.0, 0.0)

    def run(self, seconds: float, warm_up: float, drain_s: float) -> Outcome:
        """From an empty start; nobody comes after `seconds`."""
        self.outcome = outcome = Outcome(seconds, warm_up, latencies={kind.name: [] for kind in self._kinds})
        self._since = warm_up
        self.env.process(self._arrivals(seconds))
        self.env.run(until=seconds + drain_s)
        self._count(0)
        outcome.waiting = self._in_system
        outcome.passes = sum(replica.passes for replica in self.replicas)
        outcome.rows = sum(replica.rows for replica in self.replicas)
        outcome.engine_s = sum(replica.engine_s for replica in self.replicas)
        outcome.http_s = sum(http.busy_s for replica in self.replicas for http in replica.https)
        return outcome

    def _arrivals(self, seconds: float) -> _Running:
        load, dice = self._load, self._dice
        peak = load.rate if isinstance(load.rate, int | float) else load.peak
        while peak:
            yield self.env.timeout(dice.expovariate(peak))
            now = self.env.now
            if now > seconds:
                return
            # Thinned, where the rate changes.
            if not isinstance(load.rate, int | float) and dice.random() * peak >= load.rate(now):
                continue
            kind = self._kinds[0] if len(self._kinds) == 1 else dice.choices(self._kinds, self._shares)[0]
            request = Request(kind, now)
            self.outcome.arrived += 1
            self._count(1)
            if self._under_way < load.connections:
                self._send(request)
            else:
                self._held_back.append(request)

    def _send(self, request: Request) -> None:
        self._under_way += 1
        replica = self._choose()
        if self._client is None:
            replica.arrive(request)
        else:
            self._client.do(request.kind.client_s / 2, lambda: replica.arrive(request))

    def _choose(self) -> Replica:
        replicas, dice = self.replicas, self._dice
        if len(replicas) == 1:
            return replicas[0]
        if self._balancer == "random":
            return dice.choice(replicas)
        if self._balancer == "round_robin":
            self._turn = (self._turn + 1) % len(replicas)
            return replicas[self._turn]
        among = dice.choices(replicas, k=2) if self._balancer == "two_choices" else replicas
        return min(among, key=lambda replica: replica.outstanding)

    def _over(self, request: Request, how: str) -> None:
        if self._client is None:
            self._told(request, how)
        else:
            self._client.do(request.kind.client_s / 2, lambda: self._told(request, how))

    def _told(self, request: Request, how: str) -> None:
        outcome, now = self.outcome, self.env.now
        self._under_way -= 1
        self._count(-1)
        if how == "answered":
            outcome.answered += 1
            outcome.in_time += outcome.warm_up <= now <= outcome.seconds
            if request.due >= outcome.warm_up:
                outcome.latencies[request.kind.name].append(now - request.due)
        elif how == "refused":
            outcome.refused += 1
        else:
            outcome.late += 1
        if self._held_back and self._under_way < self._load.connections:
            self._send(self._held_back.popleft())

    def _count(self, change: int) -> None:
        now = self.env.now
        if now > self._since:
            self.outcome.in_system_s += self._in_system * (now - self._since)
            self._since = now
        self._in_system += change


def simulate(
    costs: Costs,
    load: Load,
    service: Service,
    *,
    replicas: int = 1,
    balancer: Balancer = "random",
    seconds: float = 10.0,
    warm_up: float = 1.0,
    drain_s: float = 0.0,
    seed: int = 0,
) -> Outcome:
    """One run; equal arguments give equal outcomes. With `drain_s`, those who came are waited for as long."""
    return World(costs, load, service, replicas, balancer, seed).run(seconds, warm_up, drain_s)
