"""The simulated service obeys what theory says of queues, what a hand works out, and itself."""

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import simpy

from benchmarks.capacity import events, pictures
from benchmarks.capacity.__main__ import main
from benchmarks.capacity.autoscaler import Autoscaler, Followed, Point, Policy, burst, daily, day, follow
from benchmarks.capacity.costs import Costs, Engine, Kind, Service, capacity, engine_s, fitted, mix_of
from benchmarks.capacity.fleet import Fleet, steady
from benchmarks.capacity.limits import Shared, core_hours_a_million, first_limit, limits

INFINITE = float("inf")
COSTS = Costs(
    {"predict": Kind("predict", 60e-6, 50e-6), "forecast": Kind("forecast", 60e-6, 60e-6, passes=24)},
    Engine(pass_s=300e-6, begin_s=40e-6, row_s=80e-6, wake_s=100e-6),
    http_wake_s=30e-6,
    refusal_s=50e-6,
    others={"series": 238.0, "redis_ops_a_request": 2.0, "redis_s_an_op": 1e-5, "redis_connections": 33.0},
    about="made up",
)
PREDICT = {"predict": 1.0}
MIX = {"predict": 0.9, "forecast": 0.1}
ENDLESS = Service(queue_rows=10**9, max_wait_s=INFINITE)


def one_by_one(service_s: float) -> Costs:
    """An engine that takes each row by itself, and HTTP for nothing."""
    return Costs({"one": Kind("one", 0.0, 0.0)}, Engine(service_s, 0.0, 0.0))


@pytest.mark.parametrize("busy", [0.5, 0.8])
def test_an_engine_that_batches_nothing_is_a_queue_with_one_server(busy: float) -> None:
    """M/D/1: one waits s * rho / (2 * (1 - rho)) on average (Pollaczek and Khinchine)."""
    service_s = 1e-3
    expected = service_s + service_s * busy / (2 * (1 - busy))
    service = dataclasses.replace(ENDLESS, batch_rows=1)

    found = events.simulate(
        one_by_one(service_s), events.Load(busy / service_s, {"one": 1.0}), service, seconds=30.0, seed=1
    )

    assert found.all_latencies().mean() == pytest.approx(expected, rel=0.04)
    assert found.engine_s / 30 == pytest.approx(busy, rel=0.02)


def test_a_process_is_a_queue_with_one_server() -> None:
    """The same of a process by itself, which takes a millisecond for each of 700 a second."""
    env = simpy.Environment()
    server = events.Server(env, events.Cores(env, 2))
    dice = random.Random(2)
    took: list[float] = []

    def arrive() -> events._Running:
        while True:
            yield env.timeout(dice.expovariate(700.0))
            server.do(1e-3, lambda came=float(env.now): took.append(env.now - came))  # type: ignore[misc]

    env.process(arrive())
    env.run(until=30.0)

    assert np.mean(took) == pytest.approx(1e-3 + 1e-3 * 0.7 / (2 * 0.3), rel=0.04)


def test_as_many_are_there_as_come_while_one_stays() -> None:
    """Little's law, with batches, several passes, and a client on the same cores."""
    kinds = {name: dataclasses.replace(kind, client_s=50e-6) for name, kind in COSTS.kinds.items()}
    costs = dataclasses.replace(COSTS, kinds=kinds)

    found = events.simulate(costs, events.Load(2000.0, MIX, shares_cores=True), Service(), seconds=6.0, seed=3)

    there = found.in_system_s / (found.seconds - found.warm_up)
    assert there == pytest.approx(found.rate * found.all_latencies().mean(), rel=0.03)


@pytest.mark.parametrize(("rate", "deadline_s"), [(3000.0, INFINITE), (12_000.0, INFINITE), (5000.0, 0.05)])
def test_no_request_is_lost_or_made(rate: float, deadline_s: float) -> None:
    """Whoever came was answered, refused or late, or is still there; and equal seeds give equal runs."""
    mix = MIX if rate < 10_000 else PREDICT
    service = Service(deadline_s=deadline_s, http_processes=2, cores=2)
    runs = [
        events.simulate(
            COSTS,
            events.Load(rate, mix),
            service,
            replicas=2,
            balancer="two_choices",
            seconds=0.8,
            warm_up=0.1,
            seed=seed,
        )
        for seed in (4, 4, 5)
    ]

    for run in runs:
        assert run.arrived == run.answered + run.refused + run.late + run.waiting
    assert runs[0] == runs[1]
    assert runs[0].latencies != runs[2].latencies


def test_a_full_queue_refuses() -> None:
    """Twice what a replica can do: it goes on at full speed, and what is too much is turned away."""
    most, _ = capacity(COSTS, PREDICT, Service())

    # Refusing takes the HTTP process next to nothing, or it would be what ends first.
    costs = dataclasses.replace(COSTS, refusal_s=5e-6)

    found = events.simulate(costs, events.Load(2 * most, PREDICT), Service(), seconds=1.5, warm_up=0.5, seed=6)

    assert found.refused > 0.3 * found.arrived
    assert found.rate > 0.9 * most
    assert found.batch_rows > 60


def passes_of(*requests: tuple[float, int], batch_rows: int = 64) -> list[float]:
    """When each of (arrival, passes) is answered, where a pass takes 1 s and half a second for each row."""
    costs = Costs({}, Engine(1.0, 0.0, 0.5))
    env = simpy.Environment()
    ends: dict[float, float] = {}
    service = dataclasses.replace(ENDLESS, batch_rows=batch_rows)
    replica = events.Replica(
        env, costs, service, lambda one, _how: ends.__setitem__(one.due, env.now), random.Random(0)
    )

    def arrive() -> events._Running:
        for at, passes in requests:
            yield env.timeout(at - env.now)
            replica.arrive(events.Request(Kind("one", 0.0, 0.0, passes=passes), at))

    env.process(arrive())
    env.run()
    return [ends[at] for at, _ in requests]


def test_a_batch_forms_while_the_engine_is_busy() -> None:
    """The first goes alone, for 1.5 s; the two that came meanwhile go together, for 2 s."""
    assert passes_of((0.0, 1), (0.1, 1), (0.2, 1)) == pytest.approx([1.5, 3.5, 3.5])


def test_newcomers_join_the_next_pass() -> None:
    """A of three passes: 1.5 s alone, 2.5 s with B and C, 1.5 s alone."""
    assert passes_of((0.0, 3), (0.1, 1), (0.2, 1)) == pytest.approx([5.5, 4.0, 4.0])


def test_a_pass_has_room_for_so_many() -> None:
    """With room for one, each has a pass of its own, in the order in which they came."""
    assert passes_of((0.0, 1), (0.1, 1), (0.2, 1), batch_rows=1) == pytest.approx([1.5, 3.0, 4.5])


def test_processes_share_the_cores() -> None:
    """Three that want a second each of two cores, of which the third comes half a second later."""
    env = simpy.Environment()
    cores = events.Cores(env, 2)
    ends: list[float] = []

    def work(at: float) -> events._Running:
        yield env.timeout(at)
        yield cores.work(1.0)
        ends.append(float(env.now))

    for at in (0.0, 0.0, 0.5):
        env.process(work(at))
    env.run()

    # From 0.5 on at two thirds of the speed, until the first two are done at 1.25; the third has had a half by then.
    assert ends == pytest.approx([1.25, 1.25, 1.75])


@pytest.mark.parametrize(("mix", "share"), [(PREDICT, 0.85), (MIX, 0.7)])
def test_steps_agree_with_single_requests(mix: dict[str, float], share: float) -> None:
    """Four replicas in both models: rates, percentiles, batches and the use of the cores."""
    most, _ = capacity(COSTS, mix, Service())
    rate = 4 * share * most

    exact = events.simulate(COSTS, events.Load(rate, mix), Service(), replicas=4, seconds=2.0, warm_up=0.5, seed=7)
    found = steady(COSTS, mix, Service(), 4, rate, limit_s=0.1, seconds=1.5, warm_up=0.5, seed=8)

    assert found.answered == pytest.approx(exact.rate, rel=0.03)
    assert found.p50_s == pytest.approx(exact.quantile_s(0.5), rel=0.25)
    assert found.p99_s == pytest.approx(exact.quantile_s(0.99), rel=0.2)
    assert found.batch_rows == pytest.approx(exact.batch_rows, rel=0.25)
    assert found.cores == pytest.approx((exact.http_s + exact.engine_s) / 4 / 2.0, rel=0.1)


def test_steps_lose_and_make_no_request() -> None:
    """Also where a replica dies, another takes no more, and the rest are asked for too much."""
    fleet = Fleet(COSTS, MIX, Service(), room=4, balancer="two_choices", seed=9)
    fleet.run(0.3, 20_000.0)
    fleet.kill(2)
    fleet.there[0] = False
    fleet.run(0.3, 20_000.0)

    counts = fleet.counts
    assert counts.lost > 0
    assert counts.refused > 0
    assert counts.arrived == pytest.approx(counts.answered + counts.refused + counts.lost + fleet.waiting)
    assert fleet.rows[0] == pytest.approx(0.0, abs=1e-6)


def test_steps_are_the_same_again() -> None:
    """For equal seeds."""
    found = [
        steady(COSTS, MIX, Service(), 3, 6000.0, limit_s=0.1, seconds=0.3, warm_up=0.1, seed=seed) for seed in (1, 1, 2)
    ]

    assert found[0] == found[1]
    assert found[0] != found[2]


def test_an_autoscaler_sees_a_step_late() -> None:
    """Four replicas at their target until 100 s and full from then on. Of the quarter minute that is seen at 120 s six
    seconds are, which asks for a fifth replica; of that at 135 s all, which asks for six.
    """
    scaler = Autoscaler(Policy(waiting_rows=None), 4)
    counts = {}
    for second in range(1, 150):
        scaler.see(second, 0.0, 0.75 if second < 100 else 1.0)
        counts[second] = scaler.decide(second, 4)

    assert {counts[second] for second in range(1, 120)} == {4}
    assert {counts[second] for second in range(121, 135)} == {5}
    assert counts[149] == 6


def test_an_autoscaler_doubles_at_most_and_comes_down_slowly() -> None:
    """Twice as many within 30 s; fewer after five quiet minutes, one a minute."""
    scaler = Autoscaler(Policy(cpu=None, waiting_mean_s=1.0, metric_delay_s=0.0, most=64), 2)
    counts: list[int] = []
    for second in range(1200):
        scaler.see(second, 5000.0 if second < 60 else 0.0, 0.0)
        counts.append(scaler.decide(second, counts[-1] if counts else 2))

    assert [counts[at] for at in (0, 29, 30, 59)] == [4, 4, 8, 8]
    falls = [at for at in range(1, 1200) if counts[at] < counts[at - 1]]
    assert 300 <= falls[0] - 60 <= 330
    assert min(np.diff(falls)) >= 60
    assert all(counts[at - 1] - counts[at] == 1 for at in falls)


def test_a_fleet_follows_its_autoscaler() -> None:
    """A step beyond two replicas: more come after the delay of the figures and their start, and then it is enough."""
    most, _ = capacity(COSTS, PREDICT, Service())
    rate = burst(0.8 * most, 3.0, 5.0, 1.0, 200.0)
    policy = Policy(start_s=10.0, every_s=5.0, metric_delay_s=5.0, cpu_mean_s=5.0, most=6)

    found = follow(COSTS, PREDICT, Service(), rate, 32, policy=policy, start=2, limit_s=0.1, step_s=0.01)
    alone = follow(COSTS, PREDICT, Service(), rate, 32, policy=None, start=2, limit_s=0.1, step_s=0.01)

    assert min(second for second, ready in zip(found.at_s, found.ready, strict=True) if ready > 2) >= 5 + 5 + 10
    assert found.refused[-1] == 0 < found.refused[15]
    assert set(alone.ready) == {2}
    assert alone.refused[-1] > 0
    assert found.bad_share < alone.bad_share


def test_replicas_that_die_are_replaced() -> None:
    """What they held is lost, and after the time of a start there are as many again."""
    found = follow(
        COSTS,
        PREDICT,
        Service(),
        lambda _: 15_000.0,
        20,
        policy=None,
        start=3,
        limit_s=0.1,
        deaths_an_hour=240.0,
        step_s=0.005,
    )

    assert found.deaths > 0
    assert sum(found.lost) > 0
    assert min(found.ready) < 3
    assert found.wanted == [3] * 20


def test_a_day_costs_less_where_replicas_come_and_go() -> None:
    """And a static fleet for the peak refuses nobody."""
    curve = [Point(0.0, 0.0, 0.0), Point(1000.0, 200.0, 1.0)]
    rate = daily(6000.0, 4.0)
    static = day(curve, rate, sustainable=1000.0, policy=None, start=6)
    scaled = day(curve, rate, sustainable=1000.0, policy=Policy(waiting_rows=None, most=10), start=2)

    assert static.bad == 0
    assert static.replica_hours == pytest.approx(6 * 24)
    assert static.requests == pytest.approx(86_400 * (1500 + 6000) / 2, rel=0.01)
    assert scaled.replica_hours < static.replica_hours
    assert 8 <= scaled.most <= 9


def test_costs_are_found_again() -> None:
    """From what was spent in cells of other counts; a part that takes nothing gets nothing."""
    dice = np.random.default_rng(0)
    counts = dice.uniform(1, 1000, (12, 4))
    right = np.array([2e-3, 0.0, 5e-4, 1e-4])

    found, off = fitted(list(counts @ right), counts.tolist())

    assert found == pytest.approx(right, abs=1e-9)
    assert np.abs(off).max() < 1e-6


def test_what_ends_first_is_named() -> None:
    """The part of a replica that is full; of many, what they share."""
    most, part = capacity(COSTS, PREDICT, Service())
    assert part == "engine"
    assert most == pytest.approx(1 / engine_s(COSTS, PREDICT, 64))
    # A row of 120 µs and its part of a pass.
    assert engine_s(COSTS, PREDICT, 64) == pytest.approx(120e-6 + 300e-6 / 64)
    slow = dataclasses.replace(COSTS, kinds={"predict": Kind("predict", 200e-6, 100e-6)})
    assert capacity(slow, PREDICT, Service())[1] == "HTTP process"
    assert capacity(COSTS, PREDICT, Service(cores=1))[1] == "cores"

    few, many = (limits(COSTS, PREDICT, Service(), count, Shared(), redis=True) for count in (2, 500))
    assert first_limit(few).startswith("engine of the replicas")
    assert first_limit(many) == "Redis, connections (165% by being there)"
    without = limits(COSTS, PREDICT, Service(), 500, Shared(), redis=False)
    assert first_limit(without) == "proxy (50000/s)"
    assert core_hours_a_million(1000.0, 2.0) == pytest.approx(1e6 / 1000 * 2 / 3600)


def test_costs_are_kept_in_a_file(tmp_path: Path) -> None:
    """And a file that holds something else is named."""
    COSTS.save(tmp_path / "costs.json")
    (tmp_path / "other.json").write_text('{"kinds": 3}')

    assert Costs.load(tmp_path / "costs.json") == COSTS
    with pytest.raises(ValueError, match=r"other\.json holds no costs"):
        Costs.load(tmp_path / "other.json")
    with pytest.raises(SystemExit, match=r"benchmarks\.capacity: .*none\.json"):
        main(["simulate", "--costs", str(tmp_path / "none.json")])


def test_a_mix_is_of_kinds_that_were_measured() -> None:
    """Shares are made to add up to 1."""
    assert mix_of("predict=3,forecast=1", COSTS) == {"predict": 0.75, "forecast": 0.25}
    with pytest.raises(ValueError, match="'guess' is none of predict, forecast"):
        mix_of("guess=1", COSTS)
    with pytest.raises(ValueError, match="has no shares"):
        mix_of("predict=0", COSTS)


def test_pictures_are_equal_for_equal_figures(tmp_path: Path) -> None:
    """To the byte."""
    points = [(0.5, 0.01, 0.5), (1.0, 0.2, 0.8)]
    seen = Followed([1.0, 2.0], [5.0, 5.0], [2, 2], [2, 2], [5.0, 5.0], [0.0, 0.0], [0.0, 0.0], [5.0, 5.0], [0.1, 0.2])
    for turn in "ab":
        pictures.loads(tmp_path / f"load-{turn}.png", points, points, 0.1)
        pictures.bursts(tmp_path / f"burst-{turn}.png", {"one": seen}, 0.1)

    for name in ("load", "burst"):
        first = (tmp_path / f"{name}-a.png").read_bytes()
        assert first.startswith(b"\x89PNG")
        assert first == (tmp_path / f"{name}-b.png").read_bytes()
