"""What a forecast of 500 steps that is always running does to the latency of one-step requests.

    python benchmarks/scheduling.py [--model weather] [--rounds 7] [--seconds 3]

Starts the service as a process of its own (cache off), then alternates between an idle phase and one in which a second
client asks for 500 steps again and again. One client sends one-step requests, one after the other, in both. Prints the
medians of each round and the median of the rounds' ratios.
"""

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def service(artifacts: Path, model: str) -> Iterator[int]:
    port = free_port()
    environment = os.environ | {
        "FORETELL_PORT": str(port),
        "FORETELL_ARTIFACTS": str(artifacts),
        "FORETELL_CACHE_BYTES": "0",
        "FORETELL_LOG_LEVEL": "warning",
        "FORETELL_GRACE_S": "0",
    }
    process = subprocess.Popen([sys.executable, "-m", "app"], cwd=ROOT, env=environment)
    try:
        patience = time.monotonic() + 60
        while not is_ready(port, model):
            if process.poll() is not None or time.monotonic() > patience:
                raise SystemExit(f"the service does not serve {model!r}")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def get(port: int, path: str) -> Any:  # noqa: ANN401  JSON
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", path)
    return json.loads(connection.getresponse().read())


def ready_version(port: int, model: str) -> int | None:
    listed = {entry["name"]: entry["versions"] for entry in get(port, "/models")["models"]}
    return next((entry["version"] for entry in listed.get(model, []) if entry["state"] == "ready"), None)


def is_ready(port: int, model: str) -> bool:
    with suppress(OSError):
        return bool(get(port, "/health/ready")["ready"]) and ready_version(port, model) is not None
    return False


def post(connection: http.client.HTTPConnection, path: str, body: bytes) -> bytes:
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise SystemExit(f"{response.status}: {answer.decode()}")
    return answer


def body_and_answer(port: int, model: str) -> tuple[bytes, list[float]]:
    """The model's own example, and the first step that it must give."""
    example = get(port, f"/models/{model}/versions/latest")["spec"]["example"]
    body = {name: example[name] for name in ("window", "start") if example[name] is not None}
    return json.dumps(body).encode(), example["forecast"][0]


def one_step_ms(port: int, model: str, body: bytes, expected: list[float], seconds: float) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    taken, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        answer = post(connection, f"/predict?model={model}&attention=none", body)
        taken.append((time.perf_counter() - began) * 1e3)
        found = json.loads(answer)["prediction"]
        if any(abs(a - b) > 1e-3 * max(1.0, abs(b)) for a, b in zip(found, expected, strict=False)):
            raise SystemExit(f"wrong answer: {found}, expected {expected}")
    return taken


@contextmanager
def long_forecasts(port: int, model: str, body: bytes) -> Iterator[list[int]]:
    """Another client that asks for 500 steps without a pause; yields how many it has got."""
    done = threading.Event()
    count = [0]

    def run() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while not done.is_set():
            post(connection, f"/forecast?model={model}&steps=500&attention=none", body)
            count[0] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield count
    finally:
        done.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=Path, default=ROOT / "artifacts")
    parser.add_argument("--model", default="weather")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    with service(options.artifacts.resolve(), options.model) as port:
        body, expected = body_and_answer(port, options.model)
        one_step_ms(port, options.model, body, expected, 1.0)
        ratios = []
        for number in range(options.rounds):
            idle = statistics.median(one_step_ms(port, options.model, body, expected, options.seconds))
            with long_forecasts(port, options.model, body) as count:
                busy_ms = one_step_ms(port, options.model, body, expected, options.seconds)
            busy = statistics.median(busy_ms)
            p99 = statistics.quantiles(busy_ms, n=100)[98]
            ratios.append(busy / idle)
            print(
                f"round {number + 1}: idle p50 {idle:.2f} ms; beside {count[0]} forecasts of 500 steps "
                f"p50 {busy:.2f} ms, p99 {p99:.2f} ms; ratio {busy / idle:.2f}"
            )
    print(f"median ratio: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
