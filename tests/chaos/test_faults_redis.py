"""Redis away, hung, slow, full, locked, replaced or with rubbish in it, under a load that judges every answer."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from models.store import Store
from tests.app.asking import BOUNDED
from tests.app.serving import Process, RedisServer, process, redis_server, wait_until
from tests.builders import publish_tiny
from tests.chaos import faults
from tests.chaos.client import Load, load
from tests.chaos.faults import Fault, Proxy, Scene
from tests.chaos.questions import Oracle, Question, forecasts


class Surroundings(NamedTuple):
    """A service whose Redis is behind a proxy."""

    service: Process
    redis: RedisServer
    proxy: Proxy


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny model."""
    root = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root), **BOUNDED)
    return root


@pytest.fixture(scope="module")
def asked(store: Path) -> list[Question]:
    """Questions with their answers; few, so that most answers come out of the cache."""
    return forecasts(Oracle(store), count=16)


@pytest.fixture(scope="module")
def shared(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Surroundings]:
    """A service for all these faults."""
    folder = tmp_path_factory.mktemp("redis")
    with redis_server(folder) as redis:
        proxy = Proxy(folder / "proxy.sock", folder / "redis.sock")
        with process(store, HTTP_PROCESSES=2, REDIS_URL=proxy.url) as service:
            yield Surroundings(service, redis, proxy)
            # It is an optimisation: whatever happens to it is no error.
            assert [line["message"] for line in service.logs if line["level"] in ("ERROR", "CRITICAL")] == []
        proxy.close()


def hits(service: Process) -> float:
    """Answers that came out of Redis so far."""
    return service.metric("foretell_cache_total", result="hit")


def go_on_until_hit(service: Process, asking: Load) -> None:
    """Wait until Redis is of use again."""
    before = hits(service)

    def is_hit() -> bool:
        asking.wait_for_right(5)
        return hits(service) > before

    wait_until(is_hit)


@pytest.mark.parametrize("fault", faults.OF_REDIS, ids=lambda fault: fault.__name__)
def test_redis_is_an_optimisation(shared: Surroundings, asked: list[Question], fault: Fault) -> None:
    """Every answer is right all the time, none is refused, and once Redis is well it is of use again."""
    with load(shared.service.address, asked) as asking:
        go_on_until_hit(shared.service, asking)
        with fault(Scene(shared.service, asking, shared.redis, shared.proxy)):
            asking.wait_for_right(150)
        go_on_until_hit(shared.service, asking)
    report = asking.report()

    assert report.verdicts.keys() == {"right"}, (report.refusals, report.faults)


def test_redis_comes_later(store: Path, asked: list[Question], tmp_path: Path) -> None:
    """Absent at the start it is not missed; it is used once it is there."""
    redis = RedisServer(tmp_path, [])
    try:
        with (
            process(store, HTTP_PROCESSES=1, REDIS_URL=redis.url) as service,
            load(service.address, asked) as asking,
        ):
            asking.wait_for_right(100)
            assert hits(service) == 0
            redis.start()
            go_on_until_hit(service, asking)
        report = asking.report()
    finally:
        redis.close()

    assert report.verdicts.keys() == {"right"}, (report.refusals, report.faults)


def test_flipped_bit_in_redis(shared: Surroundings, asked: list[Question]) -> None:
    """A value of the right shape with other numbers in it is no answer."""
    with load(shared.service.address, asked) as asking:
        go_on_until_hit(shared.service, asking)
        with faults.redis_flips_bits(Scene(shared.service, asking, shared.redis, shared.proxy)):
            asking.wait_for_any(200)
    report = asking.report()

    assert report.verdicts.keys() == {"right"}, (report.refusals, report.faults)
