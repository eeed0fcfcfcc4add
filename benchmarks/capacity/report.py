"""From one machine to a thousand replicas: the tables and pictures of `python -m benchmarks.capacity simulate`."""

import argparse
import dataclasses
import functools
import math
from pathlib import Path

from benchmarks.capacity import events
from benchmarks.capacity.autoscaler import Followed, Point, Policy, burst, daily, day, follow
from benchmarks.capacity.costs import Costs, Service, capacity, engine_s, http_s, mix_of
from benchmarks.capacity.fleet import Measured, steady
from benchmarks.capacity.limits import Shared, core_hours_a_million, first_limit, limits
from benchmarks.serving.bench import say
from benchmarks.serving.report import Table, number

_REFUSED = 0.001
"""Share of requests that may be refused at a sustainable rate."""
_SOUGHT_ON = 10
"""Replicas on which the sustainable rate is sought."""
_BISECTIONS = 7
_OVERLOAD = 1.5
_BURST_BASE = 4
_BURST_S = 360
_BURST_STEP_S = 0.005
_LOADS = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2)
_DEADLINES_S = (math.inf, 1.0, 0.25, 0.1, 0.05)
_BALANCERS: tuple[events.Balancer, ...] = ("random", "round_robin", "two_choices", "least")
_DAY_PEAK = 6.0
"""Of the day, in what a replica sustains."""
_SWING = 4.0
_BURSTS = ((10.5 * 3600, 2.0), (20 * 3600, 2.0))


class Simulation:
    """The options with what was read for them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.costs = Costs.load(options.costs)
        self.mix = mix_of(options.mix, self.costs)
        self.service = Service(cores=options.cores, http_processes=options.http_processes)
        self.limit_s = options.limit_ms / 1000
        self.most, self.part = capacity(self.costs, self.mix, self.service)

    def steady(self, replicas: int, rate: float, warm_up: float = 2.0) -> Measured:
        """Of so many replicas under so many requests a second; many need not be watched for as long."""
        return steady(
            self.costs,
            self.mix,
            self.service,
            replicas,
            rate,
            limit_s=self.limit_s,
            warm_up=warm_up,
            seconds=4.0 if replicas <= 50 else 3.0 if replicas <= 100 else 1.5,
            balancer="random" if self.options.balancer == "least" else self.options.balancer,
            seed=self.options.seed,
        )

    def holds(self, found: Measured) -> bool:
        """Whether that was sustainable."""
        return found.p99_s <= self.limit_s and found.refused <= _REFUSED and found.answered >= 0.98 * found.rate

    @functools.cached_property
    def sustainable(self) -> float:
        """Most requests a second and replica."""
        low, high = 0.0, self.most
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            say(f"{middle:.0f} requests/s and replica")
            if self.holds(self.steady(_SOUGHT_ON, middle * _SOUGHT_ON)):
                low = middle
            else:
                high = middle
        return low


def simulate(options: argparse.Namespace) -> None:
    """Print everything that was asked for."""
    chosen = options.only or ("table", "overload", "load", "burst", "day")
    world = Simulation(options)
    print(
        f"Costs of {world.costs.about}. Mix: {options.mix}. A request takes the HTTP process "
        f"{1e6 * http_s(world.costs, world.mix):.0f} µs and, in full passes, the engine "
        f"{1e6 * engine_s(world.costs, world.mix, world.service.batch_rows):.0f} µs; a replica of "
        f"{world.service.cores} cores ends at {world.most:.0f} requests/s ({world.part}).\n"
    )
    for name in chosen:
        say(name)
        {"table": sizes, "overload": overload, "load": loads, "burst": bursts, "day": days}[name](world)


def sizes(world: Simulation) -> None:
    """1 to 1000 replicas."""
    options = world.options
    shared = Shared(
        proxy_requests_s=options.proxy_requests_s, store_requests_s=options.store_requests_s, series=options.series
    )
    columns = ["replicas", "sustained/s", "p99, ms", f"within the limit at {_OVERLOAD:g} times /s", "answered/s"]
    columns += ["refused", "core-hours a million", "fills up first"]
    if options.price_per_core_hour is not None:
        columns.insert(7, "price a million")
    rows = []
    for replicas in options.replicas:
        say(f"{replicas} replicas")
        rate = world.sustainable * replicas
        # Too much takes a while until it shows: first the queues have to fill.
        calm, much = world.steady(replicas, rate), world.steady(replicas, _OVERLOAD * rate, warm_up=4.0)
        hours = core_hours_a_million(rate, replicas * world.service.cores)
        line = [
            str(replicas),
            number(round(calm.answered)),
            number(1e3 * calm.p99_s),
            number(round(much.good)),
            number(round(much.answered)),
            f"{much.refused:.0%}",
            f"{hours:.3f}",
            first_limit(limits(world.costs, world.mix, world.service, replicas, shared, redis=options.redis)),
        ]
        if options.price_per_core_hour is not None:
            line.insert(7, f"{hours * options.price_per_core_hour:.3f}")
        rows.append(line)
    title = f"Replicas, of which each sustains {world.sustainable:.0f} requests/s with p99 <= {options.limit_ms:g} ms"
    print(Table(title, columns, rows).markdown(), end="\n\n")
    found = limits(world.costs, world.mix, world.service, 1000, shared, redis=True)
    lines = []
    for limit in found:
        by = "any rate" if math.isinf(limit.rate) else f"{limit.rate:.0f} requests/s"
        lines.append([limit.part, by, f"{limit.used:.0%}" if limit.used else "", _ends(limit.used, limit.rate, world)])
    columns = ["shared part", "full at", "used by 1000 replicas", "replicas that fill it"]
    print(Table("What replicas share", columns, lines).markdown(), end="\n\n")


def _ends(used: float, rate: float, world: Simulation) -> str:
    """The number of replicas at which a shared part is full: by being there, or by what they sustain."""
    return f"{1000 / used:.0f}" if used else f"{rate / world.sustainable:.0f}"


def overload(world: Simulation) -> None:
    """One replica, request by request, with deadlines and without; and balancers."""
    rows = []
    for deadline_s in _DEADLINES_S:
        service = dataclasses.replace(world.service, deadline_s=deadline_s)
        line = ["none" if math.isinf(deadline_s) else f"{1e3 * deadline_s:.0f} ms"]
        for factor in (0.9, _OVERLOAD):
            load = events.Load(factor * world.most, world.mix)
            found = events.simulate(world.costs, load, service, seconds=4.0, warm_up=1.0, seed=world.options.seed)
            asked = max(1, found.arrived)
            line += [
                f"{found.rate / world.most:.2f}",
                f"{found.refused / asked:.0%}, {found.late / asked:.0%}",
                _ms(found.quantile_s(0.99)),
            ]
        rows.append(line)
    head = [f"{what} at {factor:g} of capacity" for factor in (0.9, _OVERLOAD) for what in _OF_OVERLOAD]
    print(Table("Deadlines, one replica", ["deadline", *head], rows).markdown(), end="\n\n")
    rows = []
    for balancer in _BALANCERS:
        line = [balancer.replace("_", " ")]
        for share in (0.7, 0.9):
            load = events.Load(share * world.most * 10, world.mix)
            found = events.simulate(
                world.costs,
                load,
                world.service,
                replicas=10,
                balancer=balancer,
                seconds=3.0,
                seed=world.options.seed,
            )
            line += [number(1e3 * found.quantile_s(0.5)), number(1e3 * found.quantile_s(0.99))]
        rows.append(line)
    columns = ["balancer", "p50 at 0.7, ms", "p99 at 0.7, ms", "p50 at 0.9, ms", "p99 at 0.9, ms"]
    print(Table("Balancers, ten replicas", columns, rows).markdown(), end="\n\n")


def _ms(seconds: float) -> str:
    """Nothing where nobody was answered."""
    return "" if math.isnan(seconds) else number(1e3 * seconds)


_OF_OVERLOAD = ("answered : capacity", "refused, late", "p99 ms")


def loads(world: Simulation) -> None:
    """p99 and answers within the limit over the load: one replica request by request, ten in steps."""
    one, ten = [], []
    for share in _LOADS:
        say(f"load {share:g}")
        rate = share * world.most
        found = events.simulate(
            world.costs, events.Load(rate, world.mix), world.service, seconds=5.0, seed=world.options.seed
        )
        latencies = found.all_latencies()
        good = float((latencies <= world.limit_s).mean()) * found.rate if len(latencies) else 0.0
        one.append((share, found.quantile_s(0.99), good / world.most))
        steps = world.steady(10, 10 * rate)
        ten.append((share, steps.p99_s, steps.good / 10 / world.most))
    rows = [
        [f"{share:g}", number(1e3 * p99), f"{good:.2f}", number(1e3 * other), f"{others:.2f}"]
        for (share, p99, good), (_, other, others) in zip(one, ten, strict=True)
    ]
    columns = ["load : capacity", "p99 of one, ms", "within the limit : capacity", "p99 of ten, ms", "within the limit"]
    print(Table("Load", columns, rows).markdown(), end="\n\n")
    if world.options.pictures:
        from benchmarks.capacity import pictures

        pictures.loads(Path(world.options.pictures) / "capacity-load.png", one, ten, world.limit_s)


def bursts(world: Simulation) -> None:
    """Three times the load within 30 s, and an autoscaler."""
    base = 0.6 * world.sustainable * _BURST_BASE
    rate = burst(base, 3.0, 60.0, 30.0, 240.0)
    policy = Policy(start_s=world.options.start_s)
    policies = {
        "as in deploy/kubernetes": policy,
        "by waiting rows alone": dataclasses.replace(policy, cpu=None),
        "none, 4 replicas": None,
    }
    found: dict[str, Followed] = {}
    for name, one in policies.items():
        say(f"burst, {name}")
        found[name] = follow(
            world.costs,
            world.mix,
            world.service,
            rate,
            _BURST_S,
            policy=one,
            start=_BURST_BASE,
            limit_s=world.limit_s,
            deaths_an_hour=world.options.deaths,
            step_s=_BURST_STEP_S,
            seed=world.options.seed,
        )
    rows = []
    for name, seen in found.items():
        bad = [second for second, p99 in zip(seen.at_s, seen.p99_s, strict=True) if p99 > world.limit_s]
        asked = sum(seen.answered) + sum(seen.refused) + sum(seen.lost)
        rows.append(
            [
                name,
                str(max(seen.ready)),
                f"{len(bad)}",
                f"{sum(seen.refused) / asked:.1%}",
                f"{seen.bad_share:.1%}",
                f"{seen.replica_hours:.2f}",
            ]
        )
    columns = ["autoscaler", "most replicas", "seconds with p99 beyond the limit", "refused", "refused or late"]
    title = f"A burst from {base:.0f} to {3 * base:.0f} requests/s in 30 s, for 240 s, seen for {_BURST_S} s"
    print(Table(title, [*columns, "replica-hours"], rows).markdown(), end="\n\n")
    if world.options.pictures:
        from benchmarks.capacity import pictures

        pictures.bursts(Path(world.options.pictures) / "capacity-burst.png", found, world.limit_s)


def days(world: Simulation) -> None:
    """A day with a swing and two bursts: as many replicas as its peak takes, or an autoscaler."""
    curve = [Point(0.0, 0.0, 0.0)]
    for share in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1):
        found = world.steady(4, 4 * share * world.most)
        curve.append(Point(share * world.most, found.waiting_rows, found.cores / world.service.cores))
    rate = daily(_DAY_PEAK * world.sustainable, _SWING, _BURSTS)
    peak = max(rate(float(second)) for second in range(0, 86_400, 10))
    most = math.ceil(peak / world.sustainable - 1e-9)
    policy = Policy(start_s=world.options.start_s, most=2 * most)
    cases: dict[str, tuple[Policy | None, int]] = {
        "static, for the bursts": (None, most),
        "static, for the day without bursts": (None, math.ceil(_DAY_PEAK)),
        "autoscaled, as in deploy/kubernetes": (policy, 2),
        "autoscaled, CPU at 50 %": (dataclasses.replace(policy, cpu=0.5), 2),
        "autoscaled, by waiting rows alone": (dataclasses.replace(policy, cpu=None), 2),
    }
    rows = []
    for name, (one, start) in cases.items():
        found_day = day(curve, rate, sustainable=world.sustainable, policy=one, start=start)
        hours = found_day.replica_hours * world.service.cores / found_day.requests * 1e6
        line = [name, f"{found_day.most}", number(found_day.replica_hours), f"{hours:.3f}", f"{found_day.bad:.2%}"]
        if world.options.price_per_core_hour is not None:
            line.append(f"{hours * world.options.price_per_core_hour:.3f}")
        rows.append(line)
    columns = ["replicas", "most", "replica-hours a day", "core-hours a million", "refused or late"]
    if world.options.price_per_core_hour is not None:
        columns.append("price a million")
    low, high = rate(0.0), _DAY_PEAK * world.sustainable
    title = f"A day between {low:.0f} and {high:.0f} requests/s, with two bursts to twice as many"
    print(Table(title, columns, rows).markdown(), end="\n\n")
