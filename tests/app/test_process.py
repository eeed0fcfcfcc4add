"""The real process from its start to its end: settings, signals, what is under way meanwhile, and what it logs."""

import json
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from models.store import Store
from tests.app.asking import BOUNDED, ask, check_end, is_right, load, window_of
from tests.app.serving import Process, process, running_of, wait_until
from tests.builders import publish_tiny
from tests.patience import PATIENCE_S

in_each_way = pytest.mark.parametrize("processes", [0, 2])
"""Everything in one process, and an engine with two HTTP processes."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny model."""
    root = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root), **BOUNDED)
    return root


# The start


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PROT", "1", "FORETELL_PROT: unknown setting; did you mean FORETELL_PORT?"),
        ("PORT", "70000", "FORETELL_PORT=70000: Input should be less than or equal to 65535"),
        ("REDIS_URL", "http://user:secret@host", "FORETELL_REDIS_URL=http://...@host: "),
    ],
)
def test_wrong_setting_ends_the_start(store: Path, name: str, value: str, says: str) -> None:
    """An unknown variable or a value out of bounds is named in one line, and the status is 2."""
    with process(store, ready=False, **{name: value}) as service:
        status = service.wait()

    assert status == 2
    (line,) = service.output.splitlines()
    assert line.startswith("foretell: ")
    assert says in line
    assert "secret" not in line


@in_each_way
def test_wrong_device_ends_the_start(store: Path, processes: int) -> None:
    """A device that is not there is named in one line, and the status is 2, whichever process looks for it."""
    with process(store, ready=False, HTTP_PROCESSES=processes, DEVICE="cuda:99") as service:
        status = service.wait()

    assert status == 2
    (line,) = service.output.splitlines()
    assert line.startswith("foretell: there is no device 'cuda:99' here")


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_port_in_use_ends_the_start(store: Path, processes: int) -> None:
    """Where the port is taken the process says so in its log and fails."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with process(store, ready=False, HTTP_PROCESSES=processes, PORT=taken.getsockname()[1]) as service:
            status = service.wait()
            left = list(service.temporary.iterdir())

    assert status == 1
    assert any(line["level"] == "ERROR" and "address already in use" in str(line["message"]) for line in service.logs)
    assert left == []


@in_each_way
def test_ipv6(store: Path, processes: int) -> None:
    """An IPv6 address is as good as another, and the log has a URL that works."""
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no ::1")

    with process(store, HTTP_PROCESSES=processes, HOST="::1") as service:
        answer = ask(service, 0)

    assert is_right(answer, window_of(0), 3)
    assert service.url.startswith("http://[::1]:")


# The end


@in_each_way
def test_sigterm_under_load(store: Path, processes: int) -> None:
    """Ready turns false at once, whoever comes in the grace period is still served, and only then it ends."""
    with process(store, HTTP_PROCESSES=processes, GRACE_S=2) as service, load(service) as asking:
        children = service.children
        service.signal(signal.SIGTERM)
        wait_until(service.is_unready)
        before = asking.done
        late = ask(service, 0)
        live = httpx.get(f"{service.url}/health/live")
        wait_until(lambda: asking.done >= before + 10)
        assert service.running.poll() is None
        asking.stop()
        check_end(service, children)

    assert is_right(late, window_of(0), 3)
    assert live.status_code == 200
    assert asking.faults == []
    assert [line["message"] for line in service.logs].count(
        "SIGTERM: not ready from now on, serving for another 2 s"
    ) == 1


@in_each_way
@pytest.mark.parametrize(
    ("signals", "grace_s"), [([signal.SIGTERM], 0), ([signal.SIGTERM, signal.SIGTERM], 600), ([signal.SIGINT], 600)]
)
def test_accepted_work_is_finished(store: Path, processes: int, signals: list[signal.Signals], grace_s: int) -> None:
    """Without a grace period, at a second SIGTERM or at Ctrl-C it ends at once, but what was accepted is answered."""
    steps = 4000
    settings = {"HTTP_PROCESSES": processes, "GRACE_S": grace_s, "MAX_STEPS": steps}

    with process(store, **settings) as service, ThreadPoolExecutor(1) as pool:
        children = service.children
        under_way = pool.submit(ask, service, 5, steps)
        wait_until(lambda: service.metric("foretell_waiting_rows") == 1)
        for number in signals[:-1]:
            service.signal(number)
            wait_until(lambda: "SIGTERM: not ready" in service.output)
        service.signal(signals[-1])
        answer = under_way.result()
        check_end(service, children)

    assert is_right(answer, window_of(5), steps)
    assert service.logs[-1]["message"].startswith("Finished server process")


def test_sigterm_while_models_load(tmp_path: Path) -> None:
    """Everything in one process ends as well while a model is still on its way."""
    for _ in range(2):  # seconds of work each, so that the signal comes before the last is ready
        publish_tiny(Store(tmp_path), architecture="lstm", config={"hidden": 768, "layers": 3, "residual": False})

    with process(tmp_path, ready=False, HTTP_PROCESSES=0, GRACE_S=0, VERSIONS="all") as service:
        wait_until(lambda: bool(service.url))
        service.signal(signal.SIGTERM)
        check_end(service, {})

    assert service.output.count("is ready after") < 2


@in_each_way
def test_work_that_does_not_end_is_told_so(store: Path, processes: int) -> None:
    """Work that outlasts the drain is answered with a 503 problem, not with a broken connection."""
    settings = {"GRACE_S": 0, "DRAIN_S": 0.5, "MAX_STEPS": 10**6, "MAX_ROW_STEPS": 10**8, "DEADLINE_MS": 10**8}

    with process(store, HTTP_PROCESSES=processes, **settings) as service, ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(ask, service, 0, 10**6)
        wait_until(lambda: service.metric("foretell_waiting_rows") == 1)
        service.signal(signal.SIGTERM)
        answer = under_way.result()
        status = service.wait()

    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert status == 0


@in_each_way
def test_kill_leaves_nothing_odd(store: Path, processes: int) -> None:
    """Killed in the middle of its work, nothing of it is left, and the next one on its port and store is whole."""
    settings = {"HTTP_PROCESSES": processes, "MAX_STEPS": 10**6, "MAX_ROW_STEPS": 10**8, "DRAIN_S": 1}

    with process(store, **settings) as first, socket.create_connection(first.address) as connection:
        connection.sendall(long_request())
        wait_until(lambda: first.metric("foretell_waiting_rows") == 1)
        children = first.children
        first.signal(signal.SIGKILL)
        first.wait()
        wait_until(lambda: not running_of(children.values()))
        port = first.address[1]

        with process(store, HTTP_PROCESSES=processes, PORT=port) as second:
            answer = ask(second, 1)

    assert is_right(answer, window_of(1), 3)


# Its work


def long_request() -> bytes:
    """A forecast that outlasts any test, for who does not wait for it."""
    body = json.dumps({"window": window_of(0)}).encode()
    return b"POST /forecast?steps=1000000 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@pytest.fixture(scope="module", params=[0, 2])
def service(request: pytest.FixtureRequest, store: Path) -> Iterator[Process]:
    """A process for tests that leave it running."""
    with process(store, HTTP_PROCESSES=request.param, MAX_STEPS=10**6, MAX_ROW_STEPS=10**8) as service:
        yield service


def test_long_and_short_forecasts_at_the_same_time(service: Process) -> None:
    """One-step requests are answered while a forecast of 500 steps goes on, and all of them rightly."""
    asked = [(window_of(seed), 500 if seed % 10 == 0 else 1) for seed in range(60)]

    with httpx.Client(base_url=service.url, timeout=PATIENCE_S) as client, ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda a: client.post("/forecast", json={"window": a[0]}, params={"steps": a[1]}), asked)
        )

    assert all(is_right(answer, *request) for answer, request in zip(answers, asked, strict=True))


def test_short_forecast_overtakes_a_long_one(service: Process) -> None:
    """A one-step request is answered while a long one that came before it is still under way."""
    with socket.create_connection(service.address) as connection:
        connection.sendall(long_request())
        wait_until(lambda: service.metric("foretell_waiting_rows") == 1)
        answers = [ask(service, n, 1) for n in range(100, 105)]
        assert service.metric("foretell_waiting_rows") >= 1  # the last answer is told before its row is taken off
    wait_until(lambda: service.metric("foretell_waiting_rows") == 0)

    assert all(is_right(answer, window_of(n), 1) for n, answer in enumerate(answers, 100))


def test_logs_are_json_lines(service: Process) -> None:
    """Whatever happens, each line on the standard streams is one JSON object with time, level, logger and message."""
    httpx.post(f"{service.url}/predict", content=b"\x00\xff")
    httpx.get(f"{service.url}/%0A%22")
    with socket.create_connection(service.address) as connection:
        connection.sendall(b"this is not HTTP\r\n\r\n")
        connection.recv(1000)
    httpx.get(f"{service.url}/models", headers={"X-Request-ID": "the-last"})
    wait_until(lambda: '"the-last"' in service.output)

    assert all({"time", "level", "logger", "message"} <= line.keys() for line in service.logs)
    assert "\x1b" not in service.output


@in_each_way
def test_warnings_are_json_lines_too(store: Path, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a library warns of (torch does, when asked for everything) goes to the log as well."""
    monkeypatch.setenv("PYTHONWARNINGS", "always")

    with process(store, HTTP_PROCESSES=processes) as service:
        assert [line for line in service.logs if line["logger"] == "py.warnings"]
