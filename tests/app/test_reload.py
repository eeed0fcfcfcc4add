"""The life of a version against the real service: it comes, is promoted, rolled back and unloaded while clients ask."""

import subprocess
import sys
import threading
from collections import Counter
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

from models import artifact
from models.signature import Signer
from models.store import Store
from tests.app.keys import bearing
from tests.app.serving import ROOT, Process, process, redis_server, wait_until
from tests.builders import publish_tiny
from tests.patience import PATIENCE_S

ADMIN = "an administrator's key"
PUBLISHER = """
import sys
from pathlib import Path
from models.store import Store
from tests.builders import publish_tiny
publish_tiny(Store(Path(sys.argv[1])), seed=int(sys.argv[2]))
"""
STEPS = 3


class Oracle:
    """What each version of a store says, read without the service."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loaded: dict[int, artifact.Artifact] = {}
        self._lock = threading.Lock()

    def is_right(self, answer: dict[str, Any], window: list[list[float]]) -> bool:
        """Whether it is what the version that it names says."""
        with self._lock, torch.inference_mode():
            version = answer["version"]
            if version not in self._loaded:
                digest = self._store.index().models["tiny"].versions[version]
                self._loaded[version] = artifact.load(self._store.archive("tiny", version), digest=digest)
            nothing = torch.zeros(1, STEPS, 0)
            time = torch.zeros(1, dtype=torch.int64)
            right = self._loaded[version].module.rollout(torch.tensor([window]), time, nothing, STEPS)[0][0].numpy()
        return np.allclose(answer["forecast"], right, rtol=1e-4, atol=1e-4)


class Clients:
    """Ask one question after the other, on kept connections, and keep what was not right."""

    def __init__(self, url: str, oracle: Oracle) -> None:
        self.faults: list[str] = []
        self.versions: Counter[int] = Counter()
        self._url, self._oracle = url, oracle
        self._stopped = threading.Event()
        self._numbers = count()

    def run(self) -> None:
        """Until told to stop."""
        with httpx.Client(base_url=self._url, timeout=PATIENCE_S) as client:
            while not self._stopped.is_set():
                window = np.random.default_rng(next(self._numbers)).normal(10, 1, (8, 1)).tolist()
                try:
                    response = client.post("/forecast", json={"window": window}, params={"steps": STEPS})
                except httpx.TransportError as error:
                    self.faults.append(repr(error))
                    continue
                if response.status_code != 200 or not self._oracle.is_right(response.json(), window):
                    self.faults.append(f"{response.status_code} {response.text}")
                else:
                    self.versions[response.json()["version"]] += 1

    def see(self, version: int) -> None:
        """Wait until everybody gets that one: three times as many answers of it in a row as there are clients."""
        wait_until(lambda: self.versions[version] > 0)
        others = -1
        while others != (others := sum(self.versions.values()) - self.versions[version]):
            before = self.versions[version]
            wait_until(lambda before=before: self.versions[version] >= before + 10)

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()


@contextmanager
def asking(service: Process, store: Store) -> Iterator[Clients]:
    """Three clients that ask all the time; not one of them may see a fault."""
    clients = Clients(service.url, Oracle(store))
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(clients.run) for _ in range(3)]
        try:
            wait_until(lambda: sum(clients.versions.values()) >= 3)
            yield clients
        finally:
            clients.stop()
            for future in futures:
                future.result()
    assert clients.faults == []


def administer(service: Process, method: str, path: str, body: object = None) -> httpx.Response:
    """Ask the service to change what it serves."""
    headers = bearing(ADMIN)
    return httpx.request(method, f"{service.url}{path}", json=body, headers=headers, timeout=PATIENCE_S)


def versions_of(service: Process) -> set[int]:
    """Who answers, on connections enough to get to every HTTP process."""
    body = {"window": [[10.0]] * 8}
    return {httpx.post(f"{service.url}/predict", json=body, timeout=PATIENCE_S).json()["version"] for _ in range(12)}


def publish_elsewhere(store: Store, seed: int) -> None:
    """From another process, as a training would."""
    subprocess.run([sys.executable, "-c", PUBLISHER, str(store.root), str(seed)], cwd=ROOT, check=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """With one version."""
    store = Store(tmp_path / "store")
    publish_tiny(store, seed=0)
    return store


def test_versions_come_and_go_under_load(store: Store) -> None:
    """Published by another process, promoted, rolled back, unloaded, damaged: not one request fails, and each answer is
    right for the version that it names."""
    alias = "/models/tiny/aliases/production"
    settings = {"HTTP_PROCESSES": 2, "ADMIN_KEY": ADMIN, "VERSIONS": "latest:1", "POLL_S": 0.1}

    with process(store.root, **settings) as service, asking(service, store) as clients:
        publish_elsewhere(store, 1)
        clients.see(2)
        assert administer(service, "PUT", alias, {"version": 1}).json()["serves"] == 1
        clients.see(1)
        assert administer(service, "PUT", alias, {"version": 2}).json()["serves"] == 2
        clients.see(2)
        assert administer(service, "POST", f"{alias}/rollback").json()["version"] == 1
        clients.see(1)
        publish_tiny(store, seed=2)
        assert administer(service, "POST", "/models/tiny/versions/3/load").json()["state"] == "ready"
        assert administer(service, "DELETE", alias).status_code == 204
        clients.see(3)
        assert administer(service, "POST", "/models/tiny/versions/2/load").json()["state"] == "ready"
        assert administer(service, "POST", "/models/tiny/versions/3/unload").json()["state"] == "unloaded"
        clients.see(2)
        store.publish("tiny", lambda _, folder: (folder / "model.pt").write_bytes(b"rubbish") and f"sha256:{'0' * 64}")
        wait_until(lambda: state_of(service, 4)["state"] == "failed")
        assert "digest is" in state_of(service, 4)["reason"]
        clients.see(2)
        assert service.is_ready()
    assert set(clients.versions) == {1, 2, 3}


def state_of(service: Process, version: int) -> dict[str, Any]:
    """A version as it is shown; of no state where it is not known yet."""
    found: dict[str, Any] = httpx.get(f"{service.url}/models/tiny/versions/{version}").json()
    return {"state": None, **found}


@pytest.mark.parametrize("with_redis", [True, False])
def test_replicas_follow_each_other(store: Store, tmp_path: Path, with_redis: bool) -> None:
    """What is changed at one holds at the other: at once through Redis, else when it looks."""
    publish_tiny(store, seed=1)
    settings: dict[str, object] = {"HTTP_PROCESSES": 0, "ADMIN_KEY": ADMIN, "POLL_S": 0.1}
    with redis_server(tmp_path) as server:
        if with_redis:
            settings |= {"REDIS_URL": server.url, "POLL_S": 3600, "REDIS_TIMEOUT_MS": 10_000}
        with process(store.root, **settings) as first, process(store.root, **settings) as second:
            assert versions_of(first) == versions_of(second) == {2}
            for version, (told, other) in ((1, (first, second)), (2, (second, first))):
                administer(told, "PUT", "/models/tiny/aliases/production", {"version": version}).raise_for_status()
                assert versions_of(told) == {version}
                wait_until(lambda other=other, version=version: versions_of(other) == {version})


def test_unsigned_version_is_refused(store: Store, tmp_path: Path) -> None:
    """With a key to trust only what is signed serves; a key that is none ends the start with a line that names it."""
    signer = Signer.make(tmp_path / "key.pem")
    store.sign("tiny", 1, signer)
    publish_tiny(store, seed=1)

    with process(store.root, HTTP_PROCESSES=1, TRUSTED_KEY=signer.public) as service:
        assert versions_of(service) == {1}
        assert state_of(service, 2)["state"] == "failed"
        assert state_of(service, 2)["reason"] == "not signed, and FORETELL_TRUSTED_KEY asks for a signature"
    with process(store.root, ready=False, TRUSTED_KEY="rubbish") as service:
        assert service.wait() == 2
    (line,) = service.output.splitlines()
    assert "FORETELL_TRUSTED_KEY=rubbish: " in line
    assert "not an Ed25519 public key" in line
