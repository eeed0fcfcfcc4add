"""A store that is damaged, before the start and while it is served, and networks that misbehave, under a load."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from models.store import Store
from tests.app.asking import BOUNDED, window_of
from tests.app.serving import Process, process, wait_until
from tests.builders import publish_tiny
from tests.chaos import archives, faults
from tests.chaos.archives import CRASHES, GIVES_NAN, HANGS, RAISES, SLEEPS, TAKES_MEMORY
from tests.chaos.client import Report, load
from tests.chaos.faults import Fault, MissingError, Scene
from tests.chaos.questions import Oracle, Question, forecasts
from tests.patience import PATIENCE_S

SETTINGS = {"HTTP_PROCESSES": 1, "STALL_S": 3, "CACHE_BYTES": 0, "DEADLINE_MS": 10_000}


def test_damaged_versions_stay_out(tmp_path: Path) -> None:
    """Each says what is wrong with it, none takes the service down, and the version before it answers."""
    store = Store(tmp_path)
    says = archives.publish_damaged(store)
    oracle = Oracle(tmp_path, versions=frozenset({1}))
    asked = [question for name in says for question in forecasts(oracle, name, count=8)]

    with process(tmp_path, **SETTINGS) as service:
        with load(service.address, asked) as asking:
            asking.wait_for_right(len(asked))
        report = asking.report()
        out = {name: httpx.get(f"{service.url}/models/{name}/versions/2").json() for name in says}
        children = service.children

    assert report.verdicts.keys() == {"right"}, report.faults
    assert {name: version["state"] for name, version in out.items()} == dict.fromkeys(says, "failed")
    assert [name for name, text in says.items() if text not in out[name]["reason"]] == [], out
    assert not any("Traceback" in str(version["reason"]) or "\n" in version["reason"] for version in out.values())
    assert set(children) == {"engine-0", "http-0"}


# What the store does while it is served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Process, list[Question]]]:
    """A store, a service on it that looks at it often, and questions with their answers."""
    store = Store(tmp_path_factory.mktemp("store"))
    for seed in range(2):
        publish_tiny(store, **BOUNDED, seed=seed)
    with process(store.root, POLL_S=0.2, **SETTINGS) as service:
        yield store, service, forecasts(Oracle(store.root))


@pytest.mark.parametrize("fault", faults.OF_THE_INDEX, ids=lambda fault: fault.__name__)
def test_index_is_damaged_while_served(served: tuple[Store, Process, list[Question]], fault: Fault) -> None:
    """What is loaded is served on, and the service stays ready: who has lost the index cannot mean to unload it all."""
    store, service, asked = served
    with load(service.address, asked, rate=100) as asking:
        with fault(Scene(service, asking, store=store.root)):
            # At that rate, several looks at the store.
            asking.wait_for_right(150)
            assert service.is_ready()
            assert service.metric("foretell_store_followed") == 0
        asking.wait_for_right(50)
    report = asking.report()

    assert report.verdicts.keys() == {"right"}, (report.refusals, report.faults)
    assert service.is_ready()
    wait_until(lambda: service.metric("foretell_store_followed") == 1)


def test_archive_rots_while_served(tmp_path: Path) -> None:
    """What is in memory is served on; an engine that has to read it again leaves it out, and the one before answers."""
    store = Store(tmp_path)
    for seed in range(2):
        publish_tiny(store, **BOUNDED, seed=seed)
    asked = forecasts(Oracle(tmp_path))
    path = store.archive("tiny", 2)

    with process(tmp_path, **SETTINGS) as service:
        with load(service.address, asked) as asking:
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
            asking.wait_for_right(100)
            before = asking.counts["right"]
            with faults.engine_killed(Scene(service, asking)):
                pass
            asking.wait_for_right(100)
        report = asking.report()
        out = httpx.get(f"{service.url}/models/tiny/versions/2").json()

    assert before >= 100
    assert report.bad == {}, report.faults
    assert set(report.refusals) <= {"503 engine-died", "503 not-ready"}
    assert out["state"] == "failed"
    assert "digest" in out["reason"]


# Disks


def test_temporary_folder_is_full(tmp_path: Path) -> None:
    """Answers go on to be right, also of what was not asked before, and afterwards processes that die are mended."""
    report, metrics, status = _felt_with_full_disk(tmp_path, dies_meanwhile=False)

    assert status is None
    assert report.bad == {}, report.faults
    assert set(report.refusals) <= {"503 engine-died", "503 not-ready"}
    assert metrics == 200


def test_death_on_a_full_disk(tmp_path: Path) -> None:
    """Whoever dies meanwhile is replaced all the same: figures may be missing, answers may not."""
    report, metrics, status = _felt_with_full_disk(tmp_path, dies_meanwhile=True)

    assert status is None
    assert report.bad == {}, report.faults
    assert metrics == 200


def _felt_with_full_disk(folder: Path, *, dies_meanwhile: bool) -> tuple[Report, int, int | None]:
    """What a load sees, the status of /metrics afterwards, and that of the service where it has ended."""
    publish_tiny(Store(folder / "store"), **BOUNDED)
    asked = forecasts(Oracle(folder / "store"))
    try:
        with (
            faults.small_disk(folder / "disk", "64m") as disk,
            process(folder / "store", temporary=disk / "tmp", **SETTINGS) as service,
        ):
            with load(service.address, asked) as asking:
                scene = Scene(service, asking, disk=disk)
                with faults.disk_full(scene):
                    # What has not been counted before needs room.
                    for path in ("/", "/docs", "/models", "/models/none", "/nothing", "/metrics", "/openapi.json"):
                        httpx.get(f"{service.url}{path}", timeout=PATIENCE_S)
                    asking.wait_for_right(100)
                    if dies_meanwhile:
                        _kill_both(scene)
                _kill_both(scene)
                asking.wait_for_right(50)
            metrics = httpx.get(f"{service.url}/metrics").status_code
            return asking.report(), metrics, service.running.poll()
    except MissingError as missing:
        pytest.skip(f"this machine has no {missing}")


def _kill_both(scene: Scene) -> None:
    for fault in (faults.engine_killed, faults.http_killed):
        with fault(scene):
            pass


def test_store_is_read_only(tmp_path: Path) -> None:
    """Serving writes nothing there: it starts, serves, and reads everything again after an engine's death."""
    try:
        with faults.small_disk(tmp_path / "store", "8m") as root:
            publish_tiny(Store(root), **BOUNDED)
            asked = forecasts(Oracle(root))
            with faults.read_only(root), process(root, **SETTINGS) as service:
                with load(service.address, asked) as asking, faults.engine_killed(Scene(service, asking)):
                    asking.wait_for_right()
                report = asking.report()
    except MissingError as missing:
        pytest.skip(f"this machine has no {missing}")

    assert report.bad == {}, report.faults


# A network that misbehaves


@pytest.fixture(scope="module")
def armed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, list[Question]]]:
    """A service whose network does what it is told by the window, and questions that tell it nothing."""
    root = tmp_path_factory.mktemp("armed")
    archives.publish_armed(Store(root))
    with process(root, **SETTINGS, FAILURES=1000) as service:
        yield service, forecasts(Oracle(root))


def misdeed(service: Process, deed: float) -> httpx.Response:
    """Ask for it."""
    window = np.array(window_of(0))
    window[0, 0] = deed
    return httpx.post(f"{service.url}/predict", json={"window": window.tolist()}, timeout=PATIENCE_S)


@pytest.mark.parametrize(("deed", "status"), [(RAISES, 500), (GIVES_NAN, 422), (TAKES_MEMORY, 500), (SLEEPS, 200)])
def test_window_that_fails_fails_alone(armed: tuple[Process, list[Question]], deed: float, status: int) -> None:
    """Whatever the network does with it, everybody else in the same passes is answered rightly."""
    service, asked = armed
    wait_until(service.is_ready)
    with load(service.address, asked, connections=12) as asking:
        answers = [misdeed(service, deed) for _ in range(5)]
        asking.wait_for_right(50)
    report = asking.report()

    assert {answer.status_code for answer in answers} == {status}
    assert "as it was told" not in "".join(answer.text for answer in answers)
    assert report.verdicts.keys() == {"right"}, (report.refusals, report.faults)


@pytest.mark.parametrize("deed", [CRASHES, HANGS])
def test_window_that_kills_its_engine(armed: tuple[Process, list[Question]], deed: float) -> None:
    """Whoever is in the same pass is told to come again; then another engine answers. Of one that never ends the log
    says where it is.
    """
    service, asked = armed
    wait_until(service.is_ready)
    engine = service.children["engine-0"]
    with load(service.address, asked) as asking:
        answer = misdeed(service, deed)
        wait_until(lambda: service.children.get("engine-0", engine) != engine)
        wait_until(service.is_ready)
        asking.wait_for_right(50)
    report = asking.report()

    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert report.bad == {}, report.faults
    assert set(report.refusals) <= {"503 engine-died", "503 not-ready", "504 deadline"}
    told = "".join(line.get("stacks", "") for line in service.logs)
    assert ("device/runtime.py" in told) == (deed == HANGS)


def test_window_that_kills_every_engine_it_meets(tmp_path: Path) -> None:
    """A client that comes again with it, as it was told to, costs the version that it kills, and never the service."""
    publish_tiny(Store(tmp_path), **BOUNDED)
    archives.publish_armed(Store(tmp_path))
    asked = forecasts(Oracle(tmp_path))
    with process(tmp_path, **SETTINGS) as service:
        with load(service.address, asked) as asking:
            for _ in range(7):
                misdeed(service, CRASHES)
                wait_until(service.is_ready)
                asking.wait_for_right()
        report = asking.report()

    assert report.bad == {}, report.faults
    assert set(report.refusals) <= {"503 engine-died", "503 not-ready"}
