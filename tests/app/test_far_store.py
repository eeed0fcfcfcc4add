"""A service whose store is far away: what is published there is served, and what is here goes on when it is gone."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from app.processes import registry as registry_module
from app.processes.registry import Registry
from app.settings import Policy, Settings, SettingsError, mirrors
from models.mirror import Mirror
from models.store import INDEX, Store
from tests.app.keys import bearing
from tests.app.serving import application, process, running, serving, until, wait_until
from tests.app.test_registry import FakeLink, holds
from tests.builders import publish_tiny
from tests.far import S3Server, memory, s3_server
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.anyio

ADMIN = "an administrator's key"
WINDOW = {"window": [[10.0]] * 8}


# What the registry does


class World:
    """A store in memory, and a registry of its mirror that loads on a fake."""

    def __init__(self, below: Path, monkeypatch: pytest.MonkeyPatch, versions: int = 1) -> None:
        monkeypatch.setattr(registry_module, "_FETCH_S", 0.01)
        self.address = memory()
        self.far = Store(self.address)
        for _ in range(versions):
            self.publish()
        self.below = below
        self.monkeypatch = monkeypatch
        self.link = FakeLink()
        self.start()

    def start(self) -> None:
        """A service that has not read anything yet."""
        mirror = Mirror(Store(self.address), self.below)
        self.registry = Registry(mirror.store, Policy.parse("latest:2"), mirror=mirror, linger_s=0.0)

    def publish(self) -> None:
        publish_tiny(self.far, "load", seed=len(self.far.index().models))

    def put(self, name: str, content: bytes) -> None:
        """As somebody who may write there."""
        MemoryFileSystem().pipe_file(f"{self.address.removeprefix('memory:/')}/{name}", content)

    def got(self, name: str) -> bytes:
        content: bytes = MemoryFileSystem().cat_file(f"{self.address.removeprefix('memory:/')}/{name}")
        return content

    def cut(self) -> None:
        """The store does not answer any more."""

        def refuse(*_: object, **__: object) -> bytes:
            raise OSError("no route to host")

        self.monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)

    def mend(self) -> None:
        """It does again."""
        self.monkeypatch.undo()
        self.monkeypatch.setattr(registry_module, "_FETCH_S", 0.01)

    @property
    def states(self) -> str:
        model = self.registry.catalogue.models.get("load")
        return "" if model is None else "".join(model.versions[number].state[0] for number in sorted(model.versions))

    def reason(self, number: int) -> str:
        """Why a version is out."""
        return self.registry.catalogue.models["load"].versions[number].reason or ""

    async def begin(self) -> "asyncio.Task[None]":
        """Load what there is, and follow."""
        await self.registry.begin()
        await self.registry.load_on(self.link)  # type: ignore[arg-type]  # a fake
        return asyncio.create_task(self.registry.follow(0.01))


async def test_versions_are_fetched_before_they_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are chosen; what is published later too, and aliases follow."""
    w = World(tmp_path, monkeypatch, versions=3)
    following = await w.begin()
    assert w.states == "urr"
    assert [path.exists() for path in w.link.archives] == [True, True]
    assert all(path.is_relative_to(tmp_path) for path in w.link.archives)
    assert not w.registry._store.archive("load", 1).exists()

    w.publish()
    w.far.point("load", "production", 1)
    await holds(lambda: w.states == "rurr")
    assert w.registry.catalogue.models["load"].aliases == {"production": 1}
    following.cancel()


async def test_a_damaged_object_stays_out_until_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the reason; what served before serves on, and nobody has to ask for another try."""
    w = World(tmp_path, monkeypatch)
    following = await w.begin()
    write = MemoryFileSystem.pipe_file

    def cut(system: MemoryFileSystem, path: str, content: bytes, **named: object) -> None:
        write(system, path, content, **named)
        if path.endswith(INDEX):
            write(system, path.replace(INDEX, "load/2/model.pt"), b"half of a mo")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", cut)
    w.publish()
    await holds(lambda: w.states == "rf")
    assert "load/2/model.pt: digest is sha256:" in w.reason(2)
    assert "load version 2 does not load: memory://" in caplog.text
    assert w.link.loaded == [("load", 1)]

    w.mend()
    other = Store(tmp_path / "same")
    publish_tiny(other, "load", seed=0)
    publish_tiny(other, "load", seed=1)
    w.put("load/2/model.pt", other.archive("load", 2).read_bytes())
    assert other.index().models["load"].versions[2] == w.far.index().models["load"].versions[2]
    await holds(lambda: w.states == "rr")
    following.cancel()


async def test_a_store_that_is_gone_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is loaded serves on, the log says why once, and nothing has to be started again."""
    caplog.set_level(logging.INFO)
    w = World(tmp_path, monkeypatch)
    following = await w.begin()
    w.cut()
    await holds(lambda: w.registry.catalogue.trouble is not None)
    assert "no route to host" in str(w.registry.catalogue.trouble)
    assert w.states == "r"

    w.start()  # a new process, while it is away: the mirror has what it takes
    following.cancel()
    w.link = FakeLink()
    following = await w.begin()
    assert (w.states, w.registry.catalogue.ready) == ("r", True)
    await asyncio.sleep(0.05)
    assert caplog.text.count("cannot be reached, and what is here serves on") == 2

    w.mend()
    w.publish()
    await holds(lambda: w.states == "rr")
    assert w.registry.catalogue.trouble is None
    assert "can be reached again" in caplog.text
    following.cancel()


async def test_with_nothing_here_and_nobody_there_nothing_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that knows of no versions has not tried them; it begins when it can."""
    w = World(tmp_path, monkeypatch, versions=2)
    w.cut()
    following = await w.begin()
    assert (w.states, w.registry.catalogue.settled) == ("", False)

    w.mend()
    await holds(lambda: w.registry.catalogue.ready)
    assert w.states == "rr"
    following.cancel()


async def test_what_takes_the_place_of_a_version_waits_until_it_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that serves does so until then."""
    w = World(tmp_path, monkeypatch)
    following = await w.begin()
    before = w.got("load/1/model.pt")
    other = Store(tmp_path / "other")
    publish_tiny(other, "load", seed=7)
    w.put(INDEX, (tmp_path / "other" / INDEX).read_bytes())
    await holds(lambda: "it was replaced, and what is there now is not here: " in w.reason(1))
    assert w.states == "r"
    assert w.got("load/1/model.pt") == before

    w.put("load/1/model.pt", other.archive("load", 1).read_bytes())
    digest = other.index().models["load"].versions[1]
    await holds(lambda: w.registry.catalogue.models["load"].versions[1].id.digest == digest)
    await holds(lambda: w.link.digests == [digest])
    following.cancel()


# What settings say of it


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("nowhere://user:s3cret@bucket/models", r"=nowhere://\.\.\.@bucket/models: .*no protocol of fsspec"),
        ("memory://", "lacks a place in it"),
        ("file://models", "takes a path from the root on"),
    ],
)
def test_an_address_that_is_none_stops_the_start(monkeypatch: pytest.MonkeyPatch, address: str, reason: str) -> None:
    """By the setting's name, and without what is secret in it."""
    monkeypatch.setenv("FORETELL_ARTIFACTS", address)
    with pytest.raises(SettingsError, match=f"FORETELL_ARTIFACTS{reason}" if reason[0] == "=" else reason) as caught:
        Settings.read()
    assert "s3cret" not in str(caught.value)


def test_a_mirror_lies_where_nobody_has_to_be_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the user's folder of caches, or where somebody says; a path of a file system is a folder like any other."""
    settings = Settings(artifacts="memory://user:s3cret@store/models")
    assert "s3cret" not in repr(settings)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert mirrors(settings) == tmp_path / "foretell"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert mirrors(settings) == Path("/home/somebody/.cache/foretell")
    assert mirrors(Settings(artifacts="memory://a", mirror=tmp_path)) == tmp_path
    assert Settings(artifacts=f"file://{tmp_path}/a%20b").artifacts == tmp_path / "a b"


# The service


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """A server for the tests below."""
    with s3_server() as server:
        yield server


async def test_a_service_outlives_its_store(s3: S3Server, tmp_path: Path) -> None:
    """It answers while the store is away, refuses changes with the reason, and makes them when it is back."""
    address = s3.fresh()
    store = Store(address)
    for seed in (1, 2):
        publish_tiny(store, seed=seed)
    settings = {"mirror": tmp_path, "poll_s": 0.05, "admin_key": ADMIN}
    async with serving(address, **settings) as client:
        assert (await client.post("/predict", json=WINDOW)).json()["version"] == 2
        assert (await client.get("/models/tiny/versions/2/report")).status_code == 404
        s3.stop()
        try:
            refused = await _point(client, 1)
            assert (refused.status_code, "Could not connect" in refused.text) == (503, True)
            assert (await client.post("/predict", json=WINDOW)).json()["version"] == 2
        finally:
            s3.start()
        assert (await _point(client, 1)).status_code == 200
        assert (await client.post("/predict", json=WINDOW)).json()["version"] == 1
        said = (await client.get("/audit", params={"last": 1}, headers=bearing(ADMIN))).json()
        assert "point" in str(said)

    assert store.index().models["tiny"].aliases == {"production": 1}
    s3.stop()
    try:
        async with running(application(address, **settings)) as client:  # type: ignore[arg-type]  # no path
            await until(lambda: _is_ready(client))
            assert (await client.post("/predict", json=WINDOW)).json()["version"] == 1
    finally:
        s3.start()


async def _point(client: httpx.AsyncClient, version: int) -> httpx.Response:
    return await client.put("/models/tiny/aliases/production", json={"version": version}, headers=bearing(ADMIN))


async def _is_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/health/ready")).status_code == 200


def test_the_real_service_follows_a_bucket(s3: S3Server, tmp_path: Path) -> None:
    """A version that is published there is served without a restart, and an alias moved here is moved there."""
    address = s3.fresh()
    store = Store(address)
    publish_tiny(store, seed=1)
    with process(address, MIRROR=tmp_path, POLL_S=0.1, ADMIN_KEY=ADMIN, GRACE_S=0) as service:
        assert _version(service.url) == 1
        publish_tiny(store, seed=2)
        wait_until(lambda: _version(service.url) == 2)

        path = f"{service.url}/models/tiny/aliases/production"
        moved = httpx.put(path, json={"version": 1}, headers=bearing(ADMIN), timeout=PATIENCE_S)
        assert moved.json()["serves"] == 1
        assert store.index().models["tiny"].aliases == {"production": 1}
        assert store.audit(1)[0]["action"] == "point"
        assert _version(service.url) == 1
        assert "s3cret" not in service.output
        service.running.terminate()
        assert service.wait() == 0
    assert not [line for line in service.output.splitlines() if "Traceback" in line]


def _version(url: str) -> int:
    return int(httpx.post(f"{url}/predict", json=WINDOW, timeout=PATIENCE_S).json()["version"])


async def test_secrets_of_an_address_are_in_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor in what is shown, nor in the name of a folder."""
    caplog.set_level(logging.DEBUG)
    w = World(tmp_path, monkeypatch)
    w.address = w.address.replace("//", "//user:s3cret@")
    w.start()
    w.cut()
    await w.registry.begin()
    assert "memory://...@store-" in caplog.text
    assert "s3cret" not in f"{caplog.text} {w.registry.catalogue} {w.registry._store.root.name}"
