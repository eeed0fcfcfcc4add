"""Clients of the real process that know the right answer to each of their requests.

with load(service, threads=3) as asking: ...
"""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import count
from typing import Any

import httpx
import numpy as np
import torch

from tests.app.serving import Process, running_of, wait_until
from tests.builders import network
from tests.patience import PATIENCE_S

BOUNDED: dict[str, Any] = {"architecture": "lstm", "config": {"hidden": 4, "layers": 1, "residual": False}}
"""For `publish_tiny`. Its forecasts stay finite however far they go."""
EAGER = network(**BOUNDED)
# Made once: making it seeds torch's one generator, and the clients below are threads.
_STEPS = 40
"""Of the forecasts of a load: several passes."""
_TOGETHER = 64
"""Right answers that are computed at once: of a single one the network takes longer than the service that is asked."""
_PAUSE_S = 0.01
"""Between an answer and the next question of a thread: the processes that are tested need the cores more."""


def window_of(seed: int) -> list[list[float]]:
    """Plausible rows."""
    return np.random.default_rng(seed).normal(10, 1, (8, 1)).astype(np.float32).tolist()


def right(window: list[list[float]], steps: int) -> np.ndarray:
    """What the network itself says."""
    return _forecasts([window], steps)[0]


def _forecasts(windows: list[list[list[float]]], steps: int) -> np.ndarray:
    times, nothing = torch.zeros(len(windows), dtype=torch.int64), torch.zeros(len(windows), steps, 0)
    with torch.inference_mode():
        forecast, _ = EAGER.rollout(torch.tensor(windows), times, nothing, steps)
    return forecast.numpy()


@cache
def _known(block: int) -> np.ndarray:
    """The right answers to a block of the windows that loads ask about."""
    seeds = range(block * _TOGETHER, (block + 1) * _TOGETHER)
    return _forecasts([window_of(seed) for seed in seeds], _STEPS)


def is_right(response: httpx.Response, window: list[list[float]], steps: int) -> bool:
    """Whether a forecast came, and the one that it should be."""
    return _brings(response, right(window, steps))


def _brings(response: httpx.Response, forecast: np.ndarray) -> bool:
    return response.status_code == 200 and np.allclose(response.json()["forecast"], forecast, rtol=1e-4, atol=1e-4)


def is_refused(response: httpx.Response) -> bool:
    """Whether it is the 503 problem that tells a client to come again."""
    return (
        response.status_code == 503
        and response.headers["content-type"] == "application/problem+json"
        and int(response.headers["retry-after"]) > 0
        and response.json()["type"].removeprefix("urn:foretell:problem:") in ("engine-died", "not-ready")
    )


def ask(service: Process, seed: int, steps: int = 3) -> httpx.Response:
    """A forecast on a connection of its own."""
    return httpx.post(f"{service.url}/forecast?steps={steps}", json={"window": window_of(seed)}, timeout=PATIENCE_S)


def answers_rightly(service: Process, seed: int, steps: int = 3) -> bool:
    """Whether it does now."""
    return is_right(ask(service, seed, steps), window_of(seed), steps)


class Load:
    """Threads that ask for forecasts, one after the other on kept connections, and keep what was not right."""

    def __init__(self, url: str) -> None:
        self.done = 0
        """Right answers."""
        self.refused: list[str] = []
        """Problems that tell to come again."""
        self.broken: list[str] = []
        """Connections that ended before the answer."""
        self.wrong: list[str] = []
        """Whatever else came."""
        self._url = url
        self._stopped = threading.Event()
        self._numbers = count()
        self._lock = threading.Lock()

    @property
    def faults(self) -> list[str]:
        """Whatever was not a right answer."""
        return self.refused + self.broken + self.wrong

    def run(self) -> None:
        """Ask until told to stop, or until nobody listens any more."""
        with httpx.Client(base_url=self._url, timeout=PATIENCE_S) as client:
            while not self._stopped.wait(_PAUSE_S):
                number = next(self._numbers)
                try:
                    response = client.post(f"/forecast?steps={_STEPS}", json={"window": window_of(number)})
                except httpx.TransportError as error:
                    self.broken.append(repr(error))
                    if isinstance(error, httpx.ConnectError):
                        return
                    continue
                if _brings(response, _known(number // _TOGETHER)[number % _TOGETHER]):
                    with self._lock:
                        self.done += 1
                elif is_refused(response):
                    self.refused.append(response.text)
                else:
                    self.wrong.append(f"{response.status_code} {response.text}")

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


def check_end(service: Process, children: Mapping[str, int]) -> None:
    """It has ended as told: it found nothing wrong, and left no process, no socket and no file behind."""
    assert service.wait() == 0
    assert [line for line in service.logs if line["level"] in ("ERROR", "CRITICAL")] == []
    assert not running_of(children.values())
    assert list(service.temporary.iterdir()) == []
