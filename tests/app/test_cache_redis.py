"""The cache of all replicas against a real Redis: shared, and gone, hanging, refusing or full of rubbish."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.forecasts import cache_redis
from app.forecasts.cache import Answer
from app.forecasts.cache_redis import Breaker, RedisCache, _seal
from models.store import Store
from tests.app.serving import RedisServer, metric, redis_server, serving, until
from tests.builders import publish_tiny

pytestmark = pytest.mark.anyio

PATIENT_MS = 10_000
"""Longer than any pause of a busy machine, where the test is not about Redis being slow."""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one model, short of attention: its answers depend on the window alone."""
    root = tmp_path / "store"
    publish_tiny(Store(root), seed=1)
    return root


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that runs."""
    with redis_server(tmp_path) as server:
        yield server


def body(number: int) -> dict[str, object]:
    """A window of its own for every number."""
    return {"window": [[float(number % (row + 2))] for row in range(8)]}


async def answers(root: Path, count: int) -> list[object]:
    """What is right for the bodies 0 to `count`: asked of a service without any cache."""
    async with serving(root, cache_bytes=0) as client:
        return [(await client.post("/predict", json=body(number))).json() for number in range(count)]


def with_redis(store: Path, url: str, timeout_ms: int = PATIENT_MS, **settings: object) -> Any:  # noqa: ANN401
    """A service whose cache is that Redis."""
    return serving(store, redis_url=url, redis_timeout_ms=timeout_ms, **settings)


async def kept(server: RedisServer, count: int) -> None:
    """Wait until so many answers lie in Redis: they are written in their own time."""

    async def written() -> bool:
        return await asyncio.to_thread(server.client.dbsize) == count

    await until(written)


async def figure(client: httpx.AsyncClient, result: str) -> float:
    """How many look-ups ended like that."""
    return metric((await client.get("/metrics")).text, "foretell_cache_total", result=result)


# Redis is well


async def test_replicas_share_answers(store: Path, server: RedisServer) -> None:
    """What one replica has answered is a hit in another, with the same body."""
    async with with_redis(store, server.url) as one, with_redis(store, server.url) as other:
        first = await one.post("/predict", json=body(1))
        await kept(server, 1)
        second = await other.post("/predict", json=body(1))
        third = await other.post("/predict", json=body(2))
        hits = await figure(other, "hit")

    assert [response.headers["x-cache"] for response in (first, second, third)] == ["miss", "hit", "miss"]
    assert first.content == second.content
    assert hits == 1


async def test_answers_outlive_the_replica(store: Path, server: RedisServer) -> None:
    """A replica that starts anew finds what was kept before."""
    async with with_redis(store, server.url) as client:
        await client.post("/predict", json=body(1))
        await kept(server, 1)
    async with with_redis(store, server.url) as client:
        again = await client.post("/predict", json=body(1))

    assert again.headers["x-cache"] == "hit"


async def test_kept_answers_expire(store: Path, server: RedisServer) -> None:
    """Every key has the time to live that is set, and after it the answer is computed again."""
    async with with_redis(store, server.url, cache_ttl_s=300) as client:
        await client.post("/predict", json=body(1))
        await kept(server, 1)
        (key,) = server.client.keys()
        lives_s = server.client.ttl(key)
        server.client.pexpire(key, 1)
        await kept(server, 0)
        again = await client.post("/predict", json=body(1))

    assert key.startswith(b"foretell:1:")
    assert 0 < lives_s <= 300
    assert again.headers["x-cache"] == "miss"


async def test_refusals_are_not_kept(store: Path, server: RedisServer) -> None:
    """Neither a wrong window nor a forecast that is not finite leaves anything in Redis."""
    async with with_redis(store, server.url) as client:
        wrong = await client.post("/predict", json={"window": [[1.0]]})
        wild = await client.post("/predict", json={"window": [[3e38 * (-1) ** row] for row in range(8)]})
        await client.post("/predict", json=body(1))
        await kept(server, 1)

    assert (wrong.status_code, wild.status_code) == (422, 422)


async def test_more_requests_at_once_than_connections(store: Path, server: RedisServer) -> None:
    """Two hundred requests at once are all answered and none of them counts as a fault of Redis."""
    async with with_redis(store, server.url) as client:
        responses = await asyncio.gather(*(client.post("/predict", json=body(n)) for n in range(200)))
        errors = await figure(client, "error")

    assert {response.status_code for response in responses} == {200}
    assert errors == 0


@pytest.mark.parametrize(
    "rubbish",
    [
        b"",
        b"x",
        b"rubbish that is longer than a header, and no multiple of four",
        b"\0" * 20,
        b"\0" * 24,
        b"\xff" * 400,
        Answer(np.ones((1, 2, 1), np.float32), None).pack(),
        Answer(np.ones((2, 1, 1), np.float32), None).pack(),
        Answer(np.ones((1, 1, 3), np.float32), None).pack(),
        Answer(np.ones((1, 1, 1), np.float32), np.ones((1, 1, 8), np.float32)).pack(),
        Answer(np.full((1, 1, 1), np.nan, np.float32), None).pack(),
    ],
    ids=[
        "nothing", "a byte", "text", "zeros", "more zeros", "ones", "steps", "windows", "targets", "attention", "NaN",
    ],
)  # fmt: skip
@pytest.mark.parametrize("sealed", [False, True])
async def test_foreign_bytes_are_a_miss(store: Path, server: RedisServer, rubbish: bytes, sealed: bool) -> None:
    """Whatever lies under a key that is no answer to this request is as good as nothing, and is replaced."""
    (right,) = await answers(store, 1)

    async with with_redis(store, server.url) as client:
        await client.post("/predict", json=body(0))
        await kept(server, 1)
        (key,) = server.client.keys()
        server.client.set(key, _seal(key.decode(), rubbish) + rubbish if sealed else rubbish)
        response = await client.post("/predict", json=body(0))

        async def replaced() -> bool:
            return (await client.post("/predict", json=body(0))).headers["x-cache"] == "hit"

        await until(replaced)

    assert (response.status_code, response.headers["x-cache"]) == (200, "miss")
    assert response.json() == right


async def test_damaged_or_exchanged_values_are_a_miss(store: Path, server: RedisServer) -> None:
    """A bit that was flipped, or the answer to another request, has the right shape and is no answer."""
    right = await answers(store, 2)

    async with with_redis(store, server.url) as client:
        for number in range(2):
            await client.post("/predict", json=body(number))
        await kept(server, 2)
        first, second = server.client.keys()
        values = {key: server.client.get(key) for key in (first, second)}
        server.client.set(first, values[second])
        server.client.set(second, values[second][:-1] + bytes([values[second][-1] ^ 1]))
        found = [await client.post("/predict", json=body(number)) for number in range(2)]

    assert [response.headers["x-cache"] for response in found] == ["miss", "miss"]
    assert [response.json() for response in found] == right


async def test_value_of_another_kind_is_a_miss(store: Path, server: RedisServer) -> None:
    """A list under the key makes Redis answer with an error; the request is answered all the same."""
    (right,) = await answers(store, 1)

    async with with_redis(store, server.url) as client:
        await client.post("/predict", json=body(0))
        await kept(server, 1)
        (key,) = server.client.keys()
        server.client.delete(key)
        server.client.rpush(key, "x")
        response = await client.post("/predict", json=body(0))
        errors = await figure(client, "error")

    assert response.json() == right
    assert errors == 1


# Redis is not well


async def test_absent_at_the_start(store: Path, tmp_path: Path) -> None:
    """With no Redis where it should be, the service starts, is ready, answers, and soon stops asking."""
    right = await answers(store, 10)

    async with with_redis(store, f"unix://{tmp_path}/nothing.sock") as client:
        responses = [await client.post("/predict", json=body(number)) for number in range(10)]
        errors, misses = await figure(client, "error"), await figure(client, "miss")

    assert [response.json() for response in responses] == right
    assert {response.headers["x-cache"] for response in responses} == {"miss"}
    assert errors == 3
    assert misses == 10


async def test_wrong_password(store: Path, tmp_path: Path) -> None:
    """A Redis that refuses the password is one more that does not answer."""
    (right,) = await answers(store, 1)

    with redis_server(tmp_path, "--requirepass", "right") as server:
        url = server.url.replace("unix://", "unix://:wrong@")
        async with with_redis(store, url) as client:
            responses = [await client.post("/predict", json=body(0)) for _ in range(5)]
            errors = await figure(client, "error")

    assert [response.json() for response in responses] == [right] * 5
    assert errors == 3


async def test_right_password(store: Path, tmp_path: Path) -> None:
    """The password of the URL is used."""
    with redis_server(tmp_path, "--requirepass", "right") as server:
        async with with_redis(store, server.url.replace("unix://", "unix://:right@")) as client:

            async def shared() -> bool:
                return (await client.post("/predict", json=body(0))).headers["x-cache"] == "hit"

            await until(shared)
            errors = await figure(client, "error")

    assert errors == 0


async def test_killed_under_load_and_back(store: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis dies among requests: every answer stays right, the breaker opens; when Redis is back, so are the hits."""
    monkeypatch.setattr(cache_redis, "_OPEN_S", 0.05)
    right = await answers(store, 20)
    wrong: list[object] = []
    turns = 0

    async with with_redis(store, server.url) as client:

        async def ask_on(stopped: asyncio.Event) -> None:
            nonlocal turns
            while not stopped.is_set():
                for number in range(20):
                    response = await client.post("/predict", json=body(number))
                    if response.status_code != 200 or response.json() != right[number]:
                        wrong.append(response.text)
                turns += 1

        async def turned(count: int) -> None:
            end = turns + count

            async def enough() -> bool:
                return turns >= end

            await until(enough)

        async def grows(result: str) -> None:
            before = await figure(client, result)

            async def grown() -> bool:
                return await figure(client, result) > before

            await until(grown)

        stopped = asyncio.Event()
        asking = [asyncio.create_task(ask_on(stopped)) for _ in range(3)]
        await grows("hit")
        server.kill()
        await grows("error")
        await turned(3)
        dead = await figure(client, "hit")
        await turned(3)
        still_dead = await figure(client, "hit")
        await asyncio.to_thread(server.start)
        await grows("hit")
        stopped.set()
        await asyncio.gather(*asking)

    assert wrong == []
    assert dead == still_dead


async def test_open_breaker_leaves_redis_alone(store: Path, server: RedisServer) -> None:
    """Once Redis has failed three times in a row, the requests of the next seconds do not wait for it."""
    right = await answers(store, 30)

    async with with_redis(store, server.url) as client:
        server.kill()
        responses = [await client.post("/predict", json=body(number)) for number in range(30)]
        errors = await figure(client, "error")

    assert [response.json() for response in responses] == right
    assert errors == 3


async def test_hanging_redis_is_waited_for_only_at_first(store: Path, server: RedisServer) -> None:
    """A Redis that hangs costs the first few requests the timeout, and the others nothing."""
    right = await answers(store, 30)

    async with with_redis(store, server.url, timeout_ms=50) as client:
        await client.post("/predict", json=body(99))
        server.hang()
        responses = [await client.post("/predict", json=body(number)) for number in range(30)]
        errors = await figure(client, "error")
        server.go_on()

    assert [response.json() for response in responses] == right
    # Reads and writes fault alike; each request that asked has done at most one of each.
    assert 3 <= errors <= 6


async def test_late_replies_go_to_nobody_else(
    store: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies that come after their request has given up are never taken for the reply to another one."""
    monkeypatch.setattr(cache_redis, "_OPEN_S", 0.0)
    right = await answers(store, 20)

    async with with_redis(store, server.url, timeout_ms=20) as client:

        async def ask_all() -> list[object]:
            responses = await asyncio.gather(*(client.post("/predict", json=body(number)) for number in range(20)))
            return [response.json() for response in responses]

        given = [await ask_all()]
        for _ in range(5):
            server.hang()
            given.append(await ask_all())
            server.go_on()
            given.append(await ask_all())

    assert given == [right] * 11


async def test_full_redis_still_answers(store: Path, server: RedisServer) -> None:
    """A Redis that takes no more writes goes on to answer reads."""
    async with with_redis(store, server.url) as client:
        await client.post("/predict", json=body(1))
        await kept(server, 1)
        server.client.config_set("maxmemory", 1)
        misses = [await client.post("/predict", json=body(number)) for number in range(2, 12)]
        hit = await client.post("/predict", json=body(1))

    assert {response.status_code for response in misses} == {200}
    assert hit.headers["x-cache"] == "hit"


# The breaker and the cache alone


class FakeClock:
    """Turned by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def failed(breaker: Breaker, times: int) -> None:
    """So many faults."""
    for _ in range(times):
        breaker.failed(ConnectionError())


def test_breaker_takes_two_faults_in_a_row() -> None:
    """It opens at the third, and a success between starts the count anew."""
    breaker = Breaker(FakeClock())

    failed(breaker, 2)
    breaker.succeeded()
    failed(breaker, 2)
    assert breaker.allows()
    failed(breaker, 1)
    assert not breaker.allows()


def test_open_breaker_allows_one_trial_at_a_time() -> None:
    """After a while one request may try; the next only a while later, if the first says nothing."""
    clock = FakeClock()
    breaker = Breaker(clock)
    failed(breaker, 3)

    clock.now += cache_redis._OPEN_S - 0.001
    assert not breaker.allows()
    clock.now += 0.001
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    clock.now += cache_redis._OPEN_S
    assert [breaker.allows() for _ in range(3)] == [True, False, False]


def test_failed_trial_keeps_the_breaker_open() -> None:
    """A trial that fails starts the wait anew."""
    clock = FakeClock()
    breaker = Breaker(clock)
    failed(breaker, 3)
    clock.now += cache_redis._OPEN_S

    assert breaker.allows()
    clock.now += 1
    failed(breaker, 1)
    clock.now += cache_redis._OPEN_S - 0.001
    assert not breaker.allows()
    clock.now += 0.001
    assert breaker.allows()


def test_successful_trial_closes_the_breaker() -> None:
    """After it everything may pass again, and it takes three new faults to open."""
    clock = FakeClock()
    breaker = Breaker(clock)
    failed(breaker, 7)
    clock.now += cache_redis._OPEN_S

    assert breaker.allows()
    breaker.succeeded()
    assert [breaker.allows() for _ in range(3)] == [True] * 3
    failed(breaker, 2)
    assert breaker.allows()


def test_breaker_tells_once(caplog: pytest.LogCaptureFixture) -> None:
    """One line when it opens and one when it closes, however many requests there are in between."""
    caplog.set_level("INFO")
    breaker = Breaker(FakeClock())

    failed(breaker, 10)
    breaker.succeeded()
    breaker.succeeded()

    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "ConnectionError" in caplog.text


class Counting:
    """Keeps what the cache tells."""

    def __init__(self) -> None:
        self.results: list[str] = []

    def cached(self, result: str) -> None:
        self.results.append(result)


class SilentRedis:
    """Takes every command and ends none until told."""

    def __init__(self) -> None:
        self.sets = 0
        self.answering = asyncio.Event()

    async def set(self, *_: object, **__: object) -> None:
        self.sets += 1
        await self.answering.wait()

    async def aclose(self) -> None:
        """Nothing to let go of."""


@asynccontextmanager
async def cache_of(redis: SilentRedis) -> AsyncIterator[RedisCache]:
    """A cache with that in the place of the client."""
    cache = RedisCache("unix:///nowhere", Counting(), ttl_s=1, timeout_s=60)
    cache._redis = redis  # type: ignore[assignment]
    yield cache
    await cache.close()


async def test_slow_redis_cannot_pile_up_writes() -> None:
    """Beyond a bound, writes are dropped instead of waiting in memory; closing calls off those that wait."""
    redis = SilentRedis()

    async with cache_of(redis) as cache:
        for number in range(1000):
            cache.put(str(number), b"x")
        await asyncio.sleep(0)
        under_way = redis.sets

    assert under_way == cache_redis._MAX_PUTS
    assert not cache._puts


async def test_dropped_writes_make_room() -> None:
    """Once the writes under way are through, others may follow."""
    redis = SilentRedis()

    async with cache_of(redis) as cache:
        for number in range(1000):
            cache.put(str(number), b"x")
        redis.answering.set()
        await until(lambda: _are_through(cache))
        cache.put("one more", b"x")
        await until(lambda: _are_through(cache))

    assert redis.sets == cache_redis._MAX_PUTS + 1


async def _are_through(cache: RedisCache) -> bool:
    return not cache._puts
