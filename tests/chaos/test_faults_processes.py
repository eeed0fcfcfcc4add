"""Processes that die, hang, run out of descriptors, or have their clock set, under a load that judges every answer."""

import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import httpx
import pytest

from models.store import Store
from tests.app.asking import BOUNDED
from tests.app.serving import Process, process, running_of, wait_until
from tests.builders import publish_tiny
from tests.chaos import faults
from tests.chaos.client import Report, load
from tests.chaos.faults import Fault, MissingError, Scene
from tests.chaos.questions import Oracle, Question, forecasts

SETTINGS = {"HTTP_PROCESSES": 2, "STALL_S": 2, "CACHE_BYTES": 0, "DEADLINE_MS": 10_000}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny model."""
    root = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root), **BOUNDED)
    return root


@pytest.fixture(scope="module")
def asked(store: Path) -> list[Question]:
    """Questions with their answers."""
    return forecasts(Oracle(store))


@pytest.fixture(scope="module")
def shared(store: Path) -> Iterator[Process]:
    """A service for faults that leave it whole."""
    with process(store, **SETTINGS) as service:
        yield service
        assert all({"time", "level", "logger", "message"} <= line.keys() for line in service.logs)


@pytest.fixture
def service(shared: Process) -> Process:
    """The same, once it is ready."""
    wait_until(shared.is_ready)
    return shared


def errors(service: Process, since: int = 0) -> list[str]:
    """What the log has called an error after so many lines of it."""
    return [str(line["message"]) for line in service.logs[since:] if line["level"] in ("ERROR", "CRITICAL")]


def felt(service: Process, asked: list[Question], fault: Fault) -> tuple[Report, list[str]]:
    """What a load with a fault in its middle sees, and what the log calls an error meanwhile."""
    lines = len(service.logs)
    with load(service.address, asked) as asking:
        with fault(Scene(service, asking)):
            asking.wait_for_right()
        asking.wait_for_right(100)
    return asking.report(), errors(service, lines)


@pytest.mark.parametrize(
    ("fault", "refusals", "says"),
    [
        (faults.engine_killed, {"503 engine-died", "503 not-ready"}, "engine-0 ended with status -9"),
        (faults.engine_hangs, {"503 engine-died", "503 not-ready", "504 deadline"}, "engine-0 has not answered for"),
        (faults.http_killed, set(), "http-0 ended with status -9"),
        (faults.http_hangs, set(), "http-0 has not answered for"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_process_is_mended(
    service: Process, asked: list[Question], fault: Fault, refusals: set[str], says: str
) -> None:
    """Nobody gets a wrong answer or none, but whose connection died with its process; then all is as before."""
    report, told = felt(service, asked, fault)

    assert report.bad == {}, report.faults
    assert set(report.refusals) <= refusals
    assert any(says in line for line in told)
    assert all(line.startswith(("engine-0 ", "http-0 ")) for line in told), told


def test_supervisor_killed(store: Path, asked: list[Question]) -> None:
    """Whoever was being answered gets the answer, nobody a wrong one; then nobody is there, and no process is left."""
    with process(store, **SETTINGS) as service:
        with load(service.address, asked) as asking:
            children = service.children
            service.signal(signal.SIGKILL)
            service.wait()
            wait_until(lambda: not running_of(children.values()))
        report = asking.report()

    assert report.verdicts["wrong"] + report.verdicts["hung"] + report.verdicts["late"] == 0, report.faults
    assert report.verdicts["lost"] == 0, report.faults
    assert report.verdicts["unreachable"] > 0
    assert not report.refusals


# What it may open


def descriptors(service: Process) -> dict[str, int]:
    """How many each process has open."""
    pids = {"supervisor": service.running.pid, **service.children}
    return {name: len(os.listdir(f"/proc/{pid}/fd")) for name, pid in pids.items()}  # noqa: PTH208


def threads(service: Process) -> dict[str, int]:
    """How many each process has."""
    pids = {"supervisor": service.running.pid, **service.children}
    return {name: len(os.listdir(f"/proc/{pid}/task")) for name, pid in pids.items()}  # noqa: PTH208


def test_descriptors_run_out(service: Process, asked: list[Question]) -> None:
    """Connections that are there are served on; new ones wait, and are taken once there is room again."""
    lines = len(service.logs)
    with load(service.address, asked) as asking:
        scene = Scene(service, asking)
        with faults.descriptors_run_out(scene), faults.many_connections(scene, 20):
            asking.wait_for_right(200)
        asking.wait_for_right(100)
    report = asking.report()
    wait_until(service.is_ready)

    assert report.verdicts.keys() == {"right"}, report.faults
    assert len(errors(service, lines)) < 20


def test_silent_crowd(service: Process, asked: list[Question]) -> None:
    """Six hundred clients that connect and say nothing take nothing from the others, and leave nothing behind."""
    with load(service.address, asked) as asking:
        # Everybody is connected to everybody by now.
        asking.wait_for_right(100)
        before, ran = descriptors(service), threads(service)
        with faults.many_connections(Scene(service, asking)):
            asking.wait_for_right(200)
        asking.wait_for_right(50)
    report = asking.report()

    assert report.verdicts.keys() == {"right"}, report.faults
    wait_until(lambda: all(number <= before[name] + 1 for name, number in descriptors(service).items()))
    assert all(number <= ran[name] + 1 for name, number in threads(service).items())


# Time


def test_clock_is_set(store: Path, asked: list[Question], tmp_path: Path) -> None:
    """An hour back, an hour ahead, and to the truth again: nobody is late, and nothing is taken for a hang."""
    try:
        with (
            faults.settable_clock(tmp_path) as clock,
            process(store, **{**SETTINGS, "CACHE_BYTES": 1 << 20, "CACHE_TTL_S": 60}) as service,
            load(service.address, asked) as asking,
        ):
            children = service.children
            for seconds in (-3600, 3600, 0, 86_400 * 365, 0):
                clock.set(seconds)
                asking.wait_for_right(100)
                wait_until(partial(_is_off, service, seconds))
            asking.wait_for_right(100)
            assert service.children == children
            told = errors(service)
    except MissingError as missing:
        pytest.skip(f"this machine has no {missing}")
    report = asking.report()

    assert report.verdicts.keys() == {"right"}, report.faults
    assert told == []


def _is_off(service: Process, seconds: int) -> bool:
    """Whether the service's log bears that time."""
    httpx.get(f"{service.url}/health/live")
    stamp = datetime.fromisoformat(str(service.logs[-1]["time"]))
    return abs((stamp - datetime.now(UTC)).total_seconds() - seconds) < 1800
