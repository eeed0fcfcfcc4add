"""The service on a real Ray cluster of this machine: Ray Serve with two replicas, and bulk scoring that is killed."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from app.lifecycle import Lifecycle
from app.main import create_app
from app.processes.backend import Local
from app.settings import Settings, SettingsError
from foretell import Client
from foretell.errors import FailedError
from models.store import Store
from tests.app.asking import BOUNDED, right, window_of
from tests.app.calibrated import publish
from tests.app.keys import Keys, bearing
from tests.app.serving import ROOT, metric, running_of, serving, wait_until
from tests.builders import publish_tiny
from tests.patience import PATIENCE_S

ray = pytest.importorskip("ray", reason="ray is not installed")
pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
if find_spec("ray.serve") is None:
    pytest.skip("ray is installed without Serve", allow_module_level=True)

pytestmark = [
    # Of Ray's own source, as it is imported.
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning"),
]

PAUSE_S = 0.05
"""Between an answer and the next question: the processes that start need the cores more."""
APPLICATION = "foretell"


class Cluster:
    """Where it is."""

    def __init__(self, folder: Path, address: str, figures: int) -> None:
        self.folder = folder
        self.address = address
        self.figures = figures
        """The port at which the node shows its figures."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two processors, nothing but what the tests take, all of it in a folder that goes again."""
    folder = Path(tempfile.mkdtemp(prefix="r-"))
    with pytest.MonkeyPatch.context() as patch:
        # Ray would tell its makers of us, and leave a secret in the home folder.
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Serve kills a proxy that is not ready by then, and its own start ends after a minute: beside other tests five
        # seconds are not enough for the one, and sixty may not be for the other.
        patch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", f"{PATIENCE_S}")
        patch.setattr("ray.serve._private.api.HTTP_PROXY_TIMEOUT", PATIENCE_S)
        try:
            ray.init(
                num_cpus=2,
                num_gpus=0,
                object_store_memory=80 * 2**20,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                _temp_dir=str(folder),
                # Ray would have its workers give way to whatever else runs, which here is most of the other tests.
                _system_config={"metrics_report_interval_ms": 500, "worker_niceness": 0},
            )
            (node,) = ray.nodes()
            yield Cluster(folder, ray.get_runtime_context().gcs_address, node["MetricsExportPort"])
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


class Service:
    """The application on Ray Serve."""

    def __init__(self, url: str, key: str, limited: str, store: Path) -> None:
        self.url = url
        self.key = key
        self.limited = limited
        """A key for one request a minute."""
        self.store = store

    def ask(self, method: str, path: str, **given: Any) -> httpx.Response:
        """With the key."""
        return httpx.request(method, f"{self.url}{path}", headers=bearing(self.key), timeout=PATIENCE_S, **given)

    @property
    def replicas(self) -> dict[str, int]:
        """The process of every replica that runs, by its name."""
        from ray.serve.context import _get_global_client

        deployment = _get_global_client().get_serve_details()["applications"][APPLICATION]["deployments"]["Foretell"]
        return {one["replica_id"]: one["pid"] for one in deployment["replicas"] if one["state"] == "RUNNING"}


@pytest.fixture(scope="module")
def service(cluster: Cluster) -> Iterator[Service]:
    """Two replicas of what `deploy/ray/serve.py` has, each with half a processor."""
    from ray import serve

    from deploy.ray.serve import ACTOR, Replica

    store = cluster.folder / "models"
    publish_tiny(Store(store), **BOUNDED)
    keys = Keys(cluster.folder)
    key, limited = keys.add("tests", "predict", "read", "admin"), keys.add("limited", "read", quota="1/minute")
    settings = {
        "FORETELL_ARTIFACTS": str(store),
        "FORETELL_DEVICE": "cpu",
        "FORETELL_KEYS_FILE": str(keys.file),
        "OMP_NUM_THREADS": "1",
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**ACTOR["runtime_env"]["env_vars"], **settings}
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(
            Replica.options(
                num_replicas=2,
                autoscaling_config=None,
                health_check_period_s=1,
                ray_actor_options={"num_cpus": 0.5, "runtime_env": {"env_vars": environment}},
            ).bind(),
            name=APPLICATION,
        )
        yield Service(f"http://127.0.0.1:{port}", key, limited, store)
    finally:
        serve.shutdown()


@pytest.mark.anyio
async def test_answers_are_those_of_the_application(service: Service) -> None:
    """JSON, CSV, an array and a stream, field by field, from whichever replica."""
    window = window_of(1)
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/forecast?steps=5", {"json": {"window": window}}),
        ("/predict", {"json": {"windows": [window, window_of(2)]}}),
        ("/forecast?steps=4", {"json": {"window": window}, "headers": {"Accept": "text/csv"}}),
        ("/forecast?steps=40", {"json": {"window": window}, "headers": {"Accept": "application/x-ndjson"}}),
        ("/v2/models/tiny", {}),
        ("/models", {}),
    ]
    async with serving(service.store, device="cpu") as client, httpx.AsyncClient(timeout=PATIENCE_S) as outside:
        for path, given in bodies:
            method = "POST" if "json" in given else "GET"
            expected = await client.request(method, path, **given)
            headers = {**given.pop("headers", {}), **bearing(service.key)}
            for _ in range(4):
                answer = await outside.request(method, f"{service.url}{path}", headers=headers, **given)
                assert answer.status_code == expected.status_code == 200, answer.text
                assert _told(answer) == _told(expected)
                assert answer.headers["content-type"] == expected.headers["content-type"]


def _told(answer: httpx.Response) -> object:
    """What an answer says; of a stream all but how it was cut and what it took, which the moment decides."""
    if answer.headers["content-type"] != "application/x-ndjson":
        return answer.text
    lines = [json.loads(line) for line in answer.text.splitlines()]
    return [row for line in lines for row in line.get("forecast", [])], sorted(lines[0])


def test_refusals_keep_their_status(service: Service) -> None:
    """With the problem, the id of the request, once, and the header that says when to come again."""
    good = {"window": window_of(0)}
    cases = [
        (service.ask("POST", "/forecast?steps=3", json={"window": [[1.0]]}), 422, "invalid"),
        (service.ask("POST", "/forecast?steps=3", content=b"{"), 400, "malformed"),
        (service.ask("POST", "/forecast?steps=3&model=none", json=good), 404, "unknown-model"),
        (service.ask("GET", "/forecast"), 405, "method-not-allowed"),
        (service.ask("POST", "/predict", content=b" " * (3 * 2**20)), 413, "body-too-large"),
        (httpx.post(f"{service.url}/predict", json=good, timeout=PATIENCE_S), 401, "unauthorized"),
        (
            httpx.get(f"{service.url}/models?x=1", headers=bearing("fk_" + "0" * 60), timeout=PATIENCE_S),
            401,
            "unauthorized",
        ),
    ]
    limited = [
        httpx.get(f"{service.url}/models", headers=bearing(service.limited), timeout=PATIENCE_S) for _ in range(3)
    ]
    # Each replica counts by itself, and there are two.
    refused = next(answer for answer in limited if answer.status_code != 200)
    cases.append((refused, 429, "over-quota"))

    for answer, status, slug in cases:
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == f"urn:foretell:problem:{slug}"
        assert answer.headers.get_list("x-request-id") == [answer.json()["request_id"]]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert int(refused.headers["retry-after"]) > 0


def test_an_alias_reaches_every_replica(service: Service) -> None:
    """Whichever was told of it: the store says so to all."""
    assert service.ask("PUT", "/models/tiny/aliases/canary", json={"version": 1}).status_code == 200

    wait_until(
        lambda: all(
            service.ask("POST", "/predict?version=canary", json={"window": window_of(0)}).status_code == 200
            for _ in range(8)
        )
    )


def test_every_replica_tells_its_figures(service: Service, cluster: Cluster) -> None:
    """Through the node's agent, by the service's own names, each with the replica that it is of."""

    def told() -> dict[str, float]:
        exposition = httpx.get(f"http://127.0.0.1:{cluster.figures}/metrics", timeout=PATIENCE_S).text
        name = "ray_foretell_requests_total"
        return {
            replica: metric(exposition, name, replica=replica, route="/models", status="200")
            for replica in service.replicas
        }

    for _ in range(16):
        service.ask("GET", "/models")

    wait_until(lambda: sum(told().values()) >= 16 and min(told().values()) > 0)


def test_a_killed_replica_costs_no_answer(service: Service) -> None:
    """Clients that ask again get the right answer to every request; the replica comes back."""
    before = service.replicas
    assert len(before) == 2
    numbers, stopped = count(), threading.Event()
    answered: list[int] = []
    faults: Counter[str] = Counter()

    def ask() -> None:
        with Client(service.url, service.key, retries=20, timeout=PATIENCE_S) as client:
            while not stopped.wait(PAUSE_S):
                number = next(numbers)
                window = window_of(number)
                while True:
                    try:
                        found = client.forecast(window, steps=20)
                    except FailedError as error:
                        # Ray's proxy, of what was under way in the process that died; it is none of our problems.
                        faults[error.slug or "broken off"] += 1
                    else:
                        break
                assert np.allclose(found.values, right(window, 20), rtol=1e-4, atol=1e-4)
                answered.append(number)

    def go_on() -> None:
        asked = len(answered)
        wait_until(lambda: len(answered) > asked + 20 or any(one.done() for one in asking))

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            go_on()
            victim = next(iter(before))
            os.kill(before[victim], signal.SIGKILL)
            wait_until(lambda: len({*service.replicas} - {victim}) == 2)
            go_on()
        finally:
            stopped.set()
        for one in asking:
            one.result()

    assert len(answered) > 40
    assert running_of(service.replicas.values()) == {*service.replicas.values()}
    assert not running_of([before[victim]])
    # At most what four clients had under way.
    assert {*faults} <= {"broken off"}
    assert faults["broken off"] <= 4


def test_bulk_scoring_goes_on_where_it_was_killed(cluster: Cluster, tmp_path: Path) -> None:
    """With SIGKILL in the middle: what was done stays as it is, and in the end every series is there once."""
    publish(tmp_path / "models")
    groups, rows = 120, 4
    values = np.random.default_rng(0).normal(10, 1, (groups * rows, 8)).astype(np.float32)
    table = pa.table({"id": list(range(groups * rows)), "target_0": list(values)})
    (tmp_path / "data").mkdir()
    for file in range(2):
        half = table.slice(file * len(values) // 2, len(values) // 2)
        pq.write_table(half, tmp_path / "data" / f"{file}.parquet", row_group_size=rows)
    parts = tmp_path / "out" / "forecasts"

    with _started(cluster, tmp_path) as first:
        wait_until(lambda: first.poll() is not None or (parts.is_dir() and any(parts.glob("*.parquet"))))
        first.kill()
    done = {file.name: file.stat().st_ino for file in parts.glob("*.parquet")}
    assert 0 < len(done) < groups, (tmp_path / "said").read_text()
    with _started(cluster, tmp_path) as second:
        assert second.wait(PATIENCE_S) == 0, (tmp_path / "said").read_text()

    assert f"{groups * rows} forecast, 0 rejected" in (tmp_path / "said").read_text()
    assert {name: (parts / name).stat().st_ino for name in done} == done
    told = pq.read_table(parts).sort_by([("id", "ascending"), ("step", "ascending")])
    assert told["id"].to_pylist() == [row for row in range(groups * rows) for _ in range(3)]
    with _started(cluster, tmp_path, "--level", "80") as other:
        assert other.wait(PATIENCE_S) == 2
    assert "levels was (), now ('80',); choose another folder" in (tmp_path / "said").read_text()


@contextmanager
def _started(cluster: Cluster, folder: Path, *more: str) -> "Iterator[subprocess.Popen[bytes]]":
    order = ["--model", "tiny", "--steps", "3", "--actors", "1", "--to", str(folder / "out"), *more]
    with (folder / "said").open("wb") as said:
        running = subprocess.Popen(
            [sys.executable, "-m", "deploy.ray.score", str(folder / "data"), *order],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": cluster.address, "FORETELL_ARTIFACTS": str(folder / "models")},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def test_the_configuration_is_what_ray_takes() -> None:
    """By its own schema, with the deployment that there is, options that it has, and settings that the service has."""
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import ServeDeploySchema

    from deploy.ray.serve import _OF_RAY, Replica

    config = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text()))

    (application,) = config.applications
    (deployment,) = application.deployments
    assert application.import_path == "deploy.ray.serve:app"
    assert deployment.name == Replica.name
    scaling = AutoscalingConfig.model_validate(deployment.autoscaling_config)
    assert 2 <= scaling.min_replicas <= scaling.max_replicas
    # The service refuses what waits too long, which it cannot where Ray keeps it back.
    assert deployment.max_ongoing_requests > Settings().max_queue_rows
    names = {name.removeprefix("FORETELL_").lower() for name in application.runtime_env["env_vars"]}
    assert names <= Settings.model_fields.keys() - _OF_RAY.keys()


@pytest.mark.parametrize("name", ["PORT", "TLS_CERT_FILE", "GRACE_S"])
def test_settings_of_what_ray_does_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Who gives one would rely on it."""
    from deploy.ray.serve import build

    monkeypatch.setenv("FORETELL_TLS_KEY_FILE" if name == "TLS_CERT_FILE" else "FORETELL_DEVICE", "cpu")
    monkeypatch.setenv(f"FORETELL_{name}", "1")

    with pytest.raises(SettingsError, match=f"FORETELL_{name}: not on Ray Serve; in its place is"):
        build()


@pytest.mark.anyio
async def test_a_replica_without_a_model_does_not_start(tmp_path: Path) -> None:
    """It says why, and Ray keeps those that it has."""
    from deploy.ray.serve import Whole

    settings, lifecycle, backend = (
        Settings.model_validate({"artifacts": tmp_path, "device": "cpu"}),
        Lifecycle(),
        Local(),
    )
    whole = Whole(create_app(settings, lifecycle, backend), settings, lifecycle, backend)
    asked, told = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]), list[Any]()

    async def receive() -> Any:
        return next(asked)

    async def send(message: Any) -> None:
        told.append(message)

    await whole({"type": "lifespan"}, receive, send)

    assert told[0]["type"] == "lifespan.startup.failed"
    assert "is ready: no model is published there" in told[0]["message"]
    assert lifecycle.draining
