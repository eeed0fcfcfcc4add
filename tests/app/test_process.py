"""The real process from its start to its end: settings, signals, what is under way meanwhile, and what it logs."""

import json
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from models.store import Store
from tests.app.serving import Process, process, wait_until
from tests.builders import network, publish_tiny

BOUNDED: dict[str, Any] = {"architecture": "lstm", "config": {"hidden": 4, "layers": 1, "residual": False}}
"""Its forecasts stay finite however far they go."""
EAGER = network(**BOUNDED)
# Made once: making it seeds torch's one generator, and the clients below are threads.


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny model."""
    root = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root), **BOUNDED)
    return root


def window_of(seed: int) -> list[list[float]]:
    """Plausible rows."""
    return np.random.default_rng(seed).normal(10, 1, (8, 1)).astype(np.float32).tolist()


def right(window: list[list[float]], steps: int) -> np.ndarray:
    """What the network itself says."""
    with torch.inference_mode():
        nothing = torch.zeros(1, steps, 0)
        forecast, _ = EAGER.rollout(torch.tensor([window]), torch.zeros(1, dtype=torch.int64), nothing, steps)
    return forecast[0].numpy()


def is_right(response: httpx.Response, window: list[list[float]], steps: int) -> bool:
    """Whether a forecast came, and the one that it should be."""
    if response.status_code != 200:
        return False
    return np.allclose(response.json()["forecast"], right(window, steps), rtol=1e-4, atol=1e-4)


# The start


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PROT", "1", "FORETELL_PROT: unknown setting; did you mean FORETELL_PORT?"),
        ("PORT", "70000", "FORETELL_PORT=70000: Input should be less than or equal to 65535"),
        ("DEVICE", "cuda:99", "there is no device 'cuda:99' here"),
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


def test_port_in_use_ends_the_start(store: Path) -> None:
    """Where the port is taken the process says so in its log and fails."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with process(store, ready=False, PORT=taken.getsockname()[1]) as service:
            status = service.wait()

    assert status not in (0, 2)
    assert any(line["level"] == "ERROR" and "address already in use" in str(line["message"]) for line in service.logs)


# The end


class Load:
    """Threads that ask for forecasts, one after the other on kept connections, and keep what went wrong."""

    def __init__(self, url: str) -> None:
        self.faults: list[str] = []
        self.done = 0
        self._url = url
        self._stopped = threading.Event()
        self._numbers = count()

    def run(self) -> None:
        """Ask until told to stop, or until nobody listens any more."""
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self._stopped.is_set():
                window, steps = window_of(next(self._numbers)), 40
                try:
                    response = client.post("/forecast", json={"window": window}, params={"steps": steps})
                except httpx.TransportError as error:
                    self.faults.append(repr(error))
                    return
                if not is_right(response, window, steps):
                    self.faults.append(response.text)
                self.done += 1

    def stop(self) -> None:
        """Finish the request under way and ask no more."""
        self._stopped.set()


@contextmanager
def load(service: Process, threads: int = 3) -> Iterator[Load]:
    """A load that is under way."""
    asking = Load(service.url)
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(asking.run) for _ in range(threads)]
        try:
            wait_until(lambda: asking.done >= threads)
            yield asking
        finally:
            asking.stop()
            for future in futures:
                future.result()


def test_sigterm_under_load(store: Path) -> None:
    """Ready turns false at once, whoever comes in the grace period is still served, and only then it ends."""
    with process(store, GRACE_S=2) as service, load(service) as asking:
        service.signal(signal.SIGTERM)
        wait_until(lambda: not service.is_ready())
        before = asking.done
        late = httpx.post(f"{service.url}/forecast?steps=3", json={"window": window_of(0)})
        live = httpx.get(f"{service.url}/health/live")
        wait_until(lambda: asking.done >= before + 10)
        assert service.running.poll() is None
        asking.stop()
        service.wait()

    assert is_right(late, window_of(0), 3)
    assert live.status_code == 200
    assert asking.faults == []
    assert [line["message"] for line in service.logs].count(
        "SIGTERM: not ready from now on, serving for another 2 s"
    ) == 1
    assert not [line for line in service.logs if line["level"] in ("ERROR", "CRITICAL")]


@pytest.mark.parametrize(
    ("signals", "grace_s"), [([signal.SIGTERM], 0), ([signal.SIGTERM, signal.SIGTERM], 600), ([signal.SIGINT], 600)]
)
def test_accepted_work_is_finished(store: Path, signals: list[signal.Signals], grace_s: int) -> None:
    """Without a grace period, at a second SIGTERM or at Ctrl-C it ends at once, but what was accepted is answered."""
    window, steps = window_of(5), 2000

    with process(store, GRACE_S=grace_s, MAX_STEPS=steps) as service, ThreadPoolExecutor(1) as pool:
        url = f"{service.url}/forecast?steps={steps}"
        under_way = pool.submit(httpx.post, url, json={"window": window}, timeout=60)
        wait_until(lambda: service.metric("foretell_waiting_rows") == 1)
        for number in signals[:-1]:
            service.signal(number)
            wait_until(lambda: "SIGTERM: not ready" in service.output)
        service.signal(signals[-1])
        answer = under_way.result()
        service.wait()

    assert is_right(answer, window, steps)
    assert "Traceback" not in service.output
    assert service.logs[-1]["message"].startswith("Finished server process")


def test_sigint_ends_an_idle_service(store: Path) -> None:
    """Ctrl-C ends it in good order, with no traceback and a status that says so."""
    with process(store) as service:
        service.signal(signal.SIGINT)
        status = service.wait()

    assert status == 0
    assert service.logs[-1]["message"].startswith("Finished server process")


def test_work_that_does_not_end_is_told_so(store: Path) -> None:
    """Work that outlasts the drain is answered with a 503 problem, not with a broken connection."""
    settings = {"GRACE_S": 0, "DRAIN_S": 0.5, "MAX_STEPS": 10**6, "DEADLINE_MS": 600_000}

    with process(store, **settings) as service, ThreadPoolExecutor(1) as pool:
        url = f"{service.url}/forecast?steps={10**6}"
        under_way = pool.submit(httpx.post, url, json={"window": window_of(0)}, timeout=60)
        wait_until(lambda: service.metric("foretell_waiting_rows") == 1)
        service.signal(signal.SIGTERM)
        answer = under_way.result()
        service.wait()

    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"


def test_kill_leaves_nothing_odd(store: Path) -> None:
    """Killed in the middle of its work, the next one starts on the same port and store and answers the same."""
    with process(store, MAX_STEPS=10**6) as first, socket.create_connection(first.address) as connection:
        body = json.dumps({"window": window_of(0)}).encode()
        head = b"POST /forecast?steps=1000000 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body)
        wait_until(lambda: first.metric("foretell_waiting_rows") == 1)
        first.signal(signal.SIGKILL)
        first.wait()
        port = first.address[1]

        with process(store, PORT=port) as second:
            answer = httpx.post(f"{second.url}/forecast?steps=5", json={"window": window_of(1)})

    assert is_right(answer, window_of(1), 5)


# Its work


@pytest.fixture(scope="module")
def service(store: Path) -> Iterator[Process]:
    """A process for tests that leave it running."""
    with process(store) as service:
        yield service


def test_long_and_short_forecasts_at_the_same_time(service: Process) -> None:
    """One-step requests are answered while a forecast of 500 steps goes on, and all of them rightly."""
    asked = [(window_of(seed), 500 if seed % 10 == 0 else 1) for seed in range(60)]

    with httpx.Client(base_url=service.url, timeout=60) as client, ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda a: client.post("/forecast", json={"window": a[0]}, params={"steps": a[1]}), asked)
        )

    assert all(is_right(answer, *request) for answer, request in zip(answers, asked, strict=True))


def test_short_forecast_overtakes_a_long_one(store: Path) -> None:
    """A one-step request is answered while a long one that came before it is still under way."""
    with process(store, MAX_STEPS=10**6) as service, socket.create_connection(service.address) as connection:
        body = json.dumps({"window": window_of(0)}).encode()
        head = b"POST /forecast?steps=1000000 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body)
        wait_until(lambda: service.metric("foretell_waiting_rows") == 1)
        answers = [httpx.post(f"{service.url}/forecast?steps=1", json={"window": window_of(n)}) for n in range(5)]
        assert service.metric("foretell_waiting_rows") == 1

    assert all(is_right(answer, window_of(n), 1) for n, answer in enumerate(answers))


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


def test_warnings_are_json_lines_too(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a library warns of (torch does, when asked for everything) goes to the log as well."""
    monkeypatch.setenv("PYTHONWARNINGS", "always")

    with process(store) as service:
        assert [line for line in service.logs if line["logger"] == "py.warnings"]
