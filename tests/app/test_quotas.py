"""Quotas: the algorithm, the count that all processes of a machine share, the one that all machines share in Redis."""

import fcntl
import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.access import quotas as quotas_module
from app.access.quotas import SharedQuotas
from app.access.quotas_redis import RedisQuotas
from app.access.rates import Rate, counted
from models.store import Store
from tests.app.counting import KEY, count
from tests.app.keys import Keys, bearing
from tests.app.serving import RedisServer, process, redis_server, serving
from tests.builders import publish_tiny
from tests.patience import PATIENCE_S

BODY = {"window": [[10.0 + row] for row in range(8)]}
PATIENT_S = 10.0
"""For Redis, where the test is not about its being slow."""


class Clock:
    """Says what it is told."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that runs."""
    with redis_server(tmp_path) as server:
        yield server


def identity(number: int) -> str:
    """A key's id."""
    return f"{number:012x}"


# The algorithm


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("600/minute", (600, 60.0, 600)),
        ("1/second", (1, 1.0, 1)),
        ("10/hour burst 3", (10, 3600.0, 3)),
        ("5/day burst 50", (5, 86400.0, 50)),
    ],
)
def test_rates_as_written(text: str, rate: tuple[int, float, int]) -> None:
    """The burst is the count where nothing else is said."""
    assert Rate.parse(text) == rate


@pytest.mark.parametrize("text", ["", "600", "0/minute", "6/week", "1.5/second", "5/minute burst 0", "5/minute\n"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    """And the message says how one is written."""
    with pytest.raises(ValueError, match="600/minute"):
        Rate.parse(text)


def test_a_burst_then_one_an_interval() -> None:
    """After a rest as many as the burst at once; from then on one whenever an interval has passed, and the refusal
    says when."""
    rate, now = Rate.parse("60/minute burst 3"), 1000.0
    even, told = 0.0, []
    for _ in range(5):
        even, verdict = counted(rate, even, now)
        told.append((verdict.allowed, verdict.remaining, round(verdict.wait_s, 3)))
    even, early = counted(rate, even, now + 0.5)
    even, right = counted(rate, even, now + 1.0)
    even, again = counted(rate, even, now + 1.0)

    assert told == [(True, 2, 0.0), (True, 1, 0.0), (True, 0, 1.0), (False, 0, 1.0), (False, 0, 1.0)]
    assert (early.allowed, round(early.wait_s, 3)) == (False, 0.5)
    assert (right.allowed, again.allowed) == (True, False)


@given(
    st.lists(st.floats(0, 30, allow_nan=False), min_size=1, max_size=200),
    st.integers(1, 50),
    st.integers(1, 20),
)
def test_never_more_than_the_rate_and_a_burst(pauses: list[float], count: int, burst: int) -> None:
    """However requests come, in any span no more get through than the rate allows for it and a burst."""
    rate = Rate(count, 60.0, burst)
    now, even, through = 1000.0, 0.0, []
    for pause in pauses:
        now += pause
        even, verdict = counted(rate, even, now)
        if verdict.allowed:
            through.append(now)
        else:
            assert verdict.wait_s > 0
            _, after = counted(rate, even, now + verdict.wait_s + 1e-3)
            assert after.allowed
    for first, begin in enumerate(through):
        for last in range(first, len(through)):
            assert last - first + 1 <= burst + (through[last] - begin) / rate.interval_s + 1e-3


# Of a machine


def test_processes_that_share_a_folder_share_the_count(tmp_path: Path) -> None:
    """What one has counted the other knows; another key has its own count."""
    clock, rate = Clock(), Rate.parse("3/minute")
    one, other = SharedQuotas(tmp_path / "kept", clock), SharedQuotas(tmp_path / "kept", clock)
    told = [quotas.count(KEY, rate).allowed for quotas in (one, other, one, other, one)]

    assert told == [True, True, True, False, False]
    assert other.count(identity(7), rate).remaining == 2


def test_processes_in_parallel_admit_exactly_the_quota(tmp_path: Path) -> None:
    """Four processes ask for twice as much as there is, all at once: all of it is given, and nothing more."""
    context = multiprocessing.get_context("spawn")
    together, told = context.Barrier(4), context.SimpleQueue()
    asking = [context.Process(target=count, args=(tmp_path, "200/day", 100, together, told)) for _ in range(4)]
    for one in asking:
        one.start()
    counts = [told.get() for _ in asking]
    for one in asking:
        one.join()

    assert sum(counts) == 200


def test_a_process_that_holds_the_lock_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that was stopped with it in its hand: the others count on, and say so."""
    quotas = SharedQuotas(tmp_path)
    held = os.open(tmp_path / "quotas", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    with caplog.at_level(logging.WARNING):
        told = [quotas.count(KEY, Rate.parse("2/day")).allowed for _ in range(3)]
    os.close(held)

    assert told == [True, True, False]
    assert "goes on without it" in caplog.text


def test_places_are_taken_over_from_keys_that_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More keys than the table has places, in the course of time: those that rested make room, the others stay, and a
    process that knew who was where finds out."""
    monkeypatch.setattr(quotas_module, "_SLOTS", 64)
    clock, rate = Clock(), Rate.parse("1/minute")
    one, other = SharedQuotas(tmp_path, clock), SharedQuotas(tmp_path, clock)
    slow = Rate.parse("1/day")
    assert one.count(KEY, slow).allowed
    assert all(one.count(identity(number), rate).allowed for number in range(5))
    assert all(other.count(identity(number), rate).allowed for number in range(5, 63))
    assert not one.count(identity(3), rate).allowed
    clock.s += 61
    assert all(other.count(identity(number), rate).allowed for number in range(1000, 1040))
    assert all(one.count(identity(number), rate).allowed for number in range(5))

    assert not any(other.count(identity(number), rate).allowed for number in range(1000, 1040))
    assert not any(other.count(identity(number), rate).allowed for number in range(5))
    assert not other.count(KEY, slow).allowed


@pytest.mark.parametrize("step_s", [-1e6, 1e6])
def test_a_clock_that_is_another_costs_a_burst_at_most(tmp_path: Path, step_s: float) -> None:
    """Backwards, nobody waits longer than a whole burst takes; forwards, nobody gets more than one."""
    clock, rate = Clock(), Rate.parse("60/minute burst 5")
    quotas = SharedQuotas(tmp_path, clock)
    clock.s = 2e6
    spent = [quotas.count(KEY, rate).allowed for _ in range(6)]
    clock.s += step_s
    first = quotas.count(KEY, rate)
    clock.s += 5
    after = [quotas.count(KEY, rate).allowed for _ in range(6)]

    assert spent == [True] * 5 + [False]
    assert first.allowed == (step_s > 0)
    assert first.wait_s <= 5
    assert after == [True] * 5 + [False]


# Of all machines


def with_redis(
    server: RedisServer, folder: Path, clock: Clock | None = None, timeout_s: float = PATIENT_S
) -> RedisQuotas:
    """Those of a machine whose Redis that is; its own clock stands still by default."""
    return RedisQuotas(server.url, SharedQuotas(folder, clock or Clock()), timeout_s=timeout_s)


@pytest.mark.anyio
async def test_machines_share_the_count_in_redis(server: RedisServer, tmp_path: Path) -> None:
    """Two machines that ask at once admit together what the key may, and not one more."""
    machines = [with_redis(server, tmp_path / name) for name in ("one", "other")]
    allowed = []

    async def ask(machine: RedisQuotas) -> None:
        for _ in range(50):
            allowed.append((await machine.take(KEY, Rate.parse("60/day"))).allowed)  # noqa: PERF401  asynchronous

    async with anyio.create_task_group() as group:
        for machine in machines:
            group.start_soon(ask, machine)
    for machine in machines:
        await machine.close()

    assert sum(allowed) == 60
    assert len(allowed) == 100


@pytest.mark.anyio
async def test_redis_says_what_the_machine_would(server: RedisServer, tmp_path: Path) -> None:
    """The script and the file give the same verdicts on the same requests; and what is kept expires."""
    quotas, rate = with_redis(server, tmp_path / "kept"), Rate.parse("4/day")
    local = SharedQuotas(tmp_path / "local", Clock())
    told = [await quotas.take(KEY, rate) for _ in range(6)]
    wanted = [local.count(KEY, rate) for _ in range(6)]
    lives_ms = server.client.pttl(f"foretell:1:quota:{KEY}")
    await quotas.close()

    assert [verdict.allowed for verdict in told] == [verdict.allowed for verdict in wanted]
    # Some seconds of the test's own, of a day's.
    assert [verdict.wait_s for verdict in told] == pytest.approx([verdict.wait_s for verdict in wanted], abs=120)
    assert 0 < lives_ms <= 86_400_000


@pytest.mark.anyio
@pytest.mark.parametrize("kept", [b"9" * 18, b"rubbish", b"-5", b"nan", b"inf"])
async def test_nobody_is_shut_out_by_what_lies_in_redis(server: RedisServer, tmp_path: Path, kept: bytes) -> None:
    """Whatever is there, the wait is that of a burst at most, and the next one is counted rightly again."""
    server.client.set(f"foretell:1:quota:{KEY}", kept)
    quotas, rate = with_redis(server, tmp_path / "kept"), Rate.parse("1000/second burst 2")
    first = await quotas.take(KEY, rate)
    await anyio.sleep(first.wait_s)
    second = await quotas.take(KEY, rate)
    await quotas.close()

    assert first.wait_s <= 0.002 + 1e-6
    assert second.allowed


@pytest.mark.anyio
@pytest.mark.parametrize("trouble", ["gone", "hanging", "of another kind"])
async def test_without_redis_the_machine_counts(server: RedisServer, tmp_path: Path, trouble: str) -> None:
    """Gone, hanging, or with something else under the key: neither unlimited nor refusing everything."""
    quotas, rate = with_redis(server, tmp_path / "kept", timeout_s=0.2), Rate.parse("3/day")
    if trouble == "gone":
        server.kill()
    elif trouble == "hanging":
        server.hang()
    else:
        server.client.rpush(f"foretell:1:quota:{KEY}", "x")
    told = [(await quotas.take(KEY, rate)).allowed for _ in range(5)]
    await quotas.close()
    server.go_on() if trouble == "hanging" else None

    assert told == [True, True, True, False, False]


# Over HTTP


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny model."""
    root = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root))
    return root


@pytest.mark.anyio
async def test_over_the_quota_is_429(store: Path, tmp_path: Path) -> None:
    """With when to come again and what is left, before the body is read; health and other keys go on."""
    keys = Keys(tmp_path)
    key, other = keys.add("client", "predict", quota="2/day"), keys.add("other", "predict", quota="2/day")
    async with serving(store, keys_file=keys.file) as client:
        answers = [await client.post("/predict", json=BODY, headers=bearing(key)) for _ in range(2)]
        refused = await client.post("/predict", content=b"not JSON", headers=bearing(key))
        served = await client.post("/predict", json=BODY, headers=bearing(other))
        health = await client.get("/health/ready", headers=bearing(key))

    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].headers["ratelimit-policy"] == '"key";q=2;w=86400'
    assert answers[0].headers["ratelimit"] == '"key";r=1;t=43200'
    assert refused.status_code == 429
    assert refused.json()["type"] == "urn:foretell:problem:over-quota"
    assert 43100 <= int(refused.headers["retry-after"]) <= 43200
    assert refused.headers["ratelimit"].startswith('"key";r=0;t=')
    assert (served.status_code, health.status_code) == (200, 200)


def test_http_processes_share_the_quota(store: Path, tmp_path: Path) -> None:
    """Several HTTP processes of the real service, asked over many connections at once: exactly the quota is served."""
    keys = Keys(tmp_path)
    key = keys.add("client", "predict", quota="40/day")
    with process(store, HTTP_PROCESSES=2, KEYS_FILE=keys.file) as service:

        def ask(_: int) -> int:
            return httpx.post(f"{service.url}/predict", json=BODY, headers=bearing(key), timeout=PATIENCE_S).status_code

        with ThreadPoolExecutor(4) as pool:
            statuses = list(pool.map(ask, range(60)))

    assert sorted(statuses) == [200] * 40 + [429] * 20
