"""Administration: what may be changed while the service runs, by whom, and what they are told."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.administration import administrator as administrator_module
from app.administration.administrator import Administrator
from app.errors import ConflictError, ForetellError, UnavailableError, UnknownModelError, UnknownVersionError
from app.forecasts.catalogue import Catalogue, Model, Version
from app.ticket import ModelId
from models.store import Store, Traffic
from tests.app.keys import Keys, bearing
from tests.app.serving import serving
from tests.builders import network, publish_tiny, spec_for

pytestmark = pytest.mark.anyio

ADMIN = "an administrator's key"
DIGEST = "sha256:" + "0" * 64
SPEC = spec_for(network())


class FakeNews:
    """Counts what it was told."""

    def __init__(self) -> None:
        self.told = 0

    def tell(self) -> None:
        self.told += 1


class World:
    """A store with three versions of `load`, and a service that follows it as far as it can.

    What stands for the registry loads whatever is asked for, at once, but for what is `broken` or `slow`.
    """

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        for _ in range(3):
            self.store.publish("load", lambda number, _: DIGEST)
        self.broken: set[int] = set()
        self.slow: set[int] = set()
        self.deaf = False
        self.news = FakeNews()
        versions = {n: Version(ModelId("load", n, DIGEST), "unloaded") for n in (1, 2, 3)}
        self.catalogue = Catalogue({"load": Model(versions)}, settled=True)
        self.ready(1)
        self.administrator = Administrator(self.store, self.catalogue, self.changed, self.news)

    def ready(self, number: int) -> None:
        version = self.catalogue.models["load"].versions[number]
        version.state, version.spec = "ready", SPEC

    def changed(self) -> None:
        if not self.deaf:
            asyncio.get_running_loop().call_later(0.001, self.follow)

    def follow(self) -> None:
        entry, model = self.store.index().models["load"], self.catalogue.models["load"]
        for number in entry.versions:
            model.versions.setdefault(number, Version(ModelId("load", number, DIGEST), "unloaded"))
        model.aliases, model.traffic = dict(entry.aliases), dict(entry.traffic)
        for number, tries in entry.wanted.items():
            version = model.versions[number]
            if not tries:
                version.state, version.reason = "unloaded", "unloaded by hand"
            elif tries != version.tries and number in self.broken:
                version.state, version.reason = "failed", f"broken for the {tries}. time"
            elif tries != version.tries and number in self.slow:
                version.state = "loading"
            elif tries != version.tries:
                self.ready(number)
            version.tries = tries

    def publish(self) -> None:
        """A version that the service has not noticed."""
        self.store.publish("load", lambda number, _: DIGEST)

    async def point(self, version: str, *, within_s: float = 60.0, **more: Any) -> object:  # noqa: ANN401
        said = {"split": {}, "shadow": None, **more}
        return await self.administrator.point("load", "production", version, **said, by="me", within_s=within_s)

    @property
    def actions(self) -> list[str]:
        return [f"{line['action']} {line.get('version', '')}" for line in self.store.audit(100)[3:]]


@pytest.fixture
def w(tmp_path: Path) -> World:
    """A fresh one."""
    return World(tmp_path)


# With fakes around it


async def test_alias_moves_once_its_versions_are_ready(w: World) -> None:
    """All that it needs is loaded before; what is ready is not asked for; others are told of every change."""
    pointed = await w.administrator.point("load", "production", "1", split={2: 10}, shadow=3, by="me", within_s=60)

    assert w.actions == ["load 2", "load 3", "point 1"]
    assert pointed == ("load", "production", 1, 1, Traffic(split={2: 10}, shadow=3))
    assert w.news.told == 3
    assert {line["by"] for line in w.store.audit(3)} == {"me"}
    assert (await w.point("latest"))[2:4] == (3, 3)  # type: ignore[index]  # a Pointed
    assert (await w.point("production"))[2] == 3  # type: ignore[index]


@pytest.mark.parametrize("said", [{"version": "2"}, {"version": "1", "split": {2: 5}}, {"version": "1", "shadow": 2}])
async def test_alias_stays_where_a_version_does_not_load(w: World, said: dict[str, Any]) -> None:
    """With the reason; one that takes too long is told as such."""
    await w.point("1")
    w.broken.add(2)
    with pytest.raises(ConflictError, match=r"load version 2 does not load: broken for the 1\. time"):
        await w.point(**said)
    w.broken.clear()
    w.slow.add(2)
    with pytest.raises(UnavailableError, match="load version 2 is still loading; production stays as it is"):
        await w.point(**said, within_s=0.01)
    assert w.store.index().models["load"].aliases == {"production": 1}
    assert w.store.index().models["load"].traffic == {}


async def test_version_that_was_published_a_moment_ago(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is known as soon as somebody asks for it, though nobody has looked; where that does not help it is unknown."""
    w.publish()
    assert (await w.point("4"))[2:4] == (4, 4)  # type: ignore[index]  # a Pointed
    w.publish()
    assert (await w.administrator.load("load", "5", by="me", within_s=60)).state == "ready"
    w.publish()
    w.deaf = True
    monkeypatch.setattr(administrator_module, "_NOTICED_S", 0.01)
    with pytest.raises(UnknownVersionError, match="load has no version '6'"):
        await w.administrator.load("load", "6", by="me", within_s=60)


async def test_failed_version_is_loaded_again(w: World) -> None:
    """What is told is what came of this time, not of the last, and at once."""
    w.broken.add(2)
    for tries in (1, 2, 3):
        with pytest.raises(ConflictError, match=rf"broken for the {tries}\. time"):
            await w.administrator.load("load", "2", by="me", within_s=60)
    w.broken.clear()
    assert (await w.administrator.load("load", "2", by="me", within_s=60)).state == "ready"
    assert (await w.administrator.load("load", "2", by="me", within_s=60)).state == "ready"
    assert w.actions == ["load 2"] * 5


async def test_nobody_waits_longer_than_they_want(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version may still be loading; and where the change is not noticed, they are told not to make it again."""
    w.slow.add(2)
    assert (await w.administrator.load("load", "2", by="me", within_s=0)).state == "loading"
    w.deaf = True
    monkeypatch.setattr(administrator_module, "_NOTICED_S", 0.01)
    for change in (
        w.administrator.load("load", "3", by="me", within_s=0),
        w.administrator.unload("load", "1", by="me"),
        w.point("1"),
    ):
        with pytest.raises(UnavailableError, match="the change is made, and is not seen here yet"):
            await change
    assert w.store.index().models["load"].aliases == {"production": 1}


async def test_alias_is_rolled_back_and_dropped(w: World) -> None:
    """Each is seen when the answer is there."""
    await w.point("1")
    await w.point("2", split={1: 50}, shadow=3)
    alone = ("load", "production", 2, 2, Traffic(previous=(1,)))
    assert await w.administrator.roll_back("load", "production", by="me") == alone
    assert await w.administrator.roll_back("load", "production", by="me") == ("load", "production", 1, 1, Traffic())
    with pytest.raises(ConflictError, match="production has stood for nothing but version 1"):
        await w.administrator.roll_back("load", "production", by="me")
    await w.administrator.drop("load", "production", by="me")
    assert w.catalogue.models["load"].aliases == {}
    assert [line["action"] for line in await w.administrator.audit(3)] == ["drop", "roll back", "roll back"]


async def test_what_serves_for_an_alias_is_shown(w: World) -> None:
    """Another version where its own is not ready, or none."""
    await w.point("1")
    version = w.catalogue.models["load"].versions[1]
    version.state = "failed"
    assert w.administrator.shown("load", "production").serves is None
    w.ready(2)
    w.catalogue.models["load"].traffic["production"] = Traffic(previous=(2,))
    assert w.administrator.shown("load", "production").serves == 2


UNKNOWN: list[tuple[Callable[[Administrator], Any], type[ForetellError]]] = [
    (lambda a: a.load("sales", "1", by="", within_s=1), UnknownModelError),
    (lambda a: a.load("load", "9", by="", within_s=1), UnknownVersionError),
    (lambda a: a.unload("sales", "1", by=""), UnknownModelError),
    (lambda a: a.unload("load", "canary", by=""), UnknownVersionError),
    (lambda a: a.point("load", "x", "9", split={}, shadow=None, by="", within_s=1), UnknownVersionError),
    (lambda a: a.point("load", "x", "1", split={9: 1}, shadow=None, by="", within_s=1), UnknownVersionError),
    (lambda a: a.point("load", "x", "1", split={}, shadow=9, by="", within_s=1), UnknownVersionError),
    (lambda a: a.point("sales", "x", "1", split={}, shadow=None, by="", within_s=1), UnknownModelError),
    (lambda a: a.roll_back("load", "x", by=""), UnknownVersionError),
    (lambda a: a.roll_back("sales", "x", by=""), UnknownModelError),
    (lambda a: a.drop("load", "x", by=""), UnknownVersionError),
    (lambda a: a.drop("sales", "x", by=""), UnknownModelError),
    (lambda a: a.point("load", "latest", "1", split={}, shadow=None, by="", within_s=1), ConflictError),
    (lambda a: a.point("load", "x", "1", split={1: 5}, shadow=None, by="", within_s=1), ConflictError),
]


@pytest.mark.parametrize(("ask", "error"), UNKNOWN)
async def test_what_is_not_there_changes_nothing(
    w: World, ask: Callable[[Administrator], Any], error: type[ForetellError]
) -> None:
    """It is told, and nothing is logged."""
    with pytest.raises(error):
        await ask(w.administrator)
    assert w.actions == []


async def test_store_knows_less_than_the_catalogue(w: World) -> None:
    """Where it was replaced a moment ago, what is gone is told as unknown."""
    (w.store.root / "index.json").write_text('{"models": {"load": {"versions": {}}}}')
    with pytest.raises(UnknownVersionError, match="load has no version 2"):
        await w.administrator.load("load", "2", by="", within_s=1)
    (w.store.root / "index.json").write_text('{"models": {}}')
    with pytest.raises(UnknownModelError, match="there is no model 'load'"):
        await w.administrator.unload("load", "1", by="")


async def test_store_that_is_broken_is_told(w: World) -> None:
    """As a 503, for whatever is asked."""
    (w.store.root / "index.json").write_text("{")
    (w.store.root / "audit.jsonl").unlink()
    (w.store.root / "audit.jsonl").mkdir()
    asked: tuple[Callable[[], Any], ...] = (
        lambda: w.administrator.load("load", "2", by="", within_s=1),
        lambda: w.point("1"),
        lambda: w.administrator.audit(5),
    )
    for ask in asked:
        with pytest.raises(UnavailableError):
            await ask()
    assert w.news.told == 0


# Over HTTP


@asynccontextmanager
async def administered(root: Path, **settings: object) -> AsyncIterator[httpx.AsyncClient]:
    """A service that looks at its store by itself almost never, and a client with the key of its administrator."""
    async with serving(root, admin_key=ADMIN, poll_s=3600, versions="latest:1", **settings) as client:
        client.headers.update(bearing(ADMIN))
        yield client


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions of `load`; the second was damaged."""
    root = tmp_path_factory.mktemp("published")
    for seed in range(3):
        publish_tiny(Store(root), "load", seed=seed)
    Store(root).archive("load", 2).write_bytes(b"rubbish")
    return root


@pytest.fixture
def store(published: Path, tmp_path: Path) -> Store:
    """A copy of it, to change."""
    root = tmp_path / "store"
    root.mkdir()
    (root / "index.json").write_bytes((published / "index.json").read_bytes())
    (root / "load").symlink_to(published / "load")
    return Store(root)


async def said(asking: Any, status: int) -> dict[str, Any]:  # noqa: ANN401  an awaitable response
    """The answer, which has that status; a refusal is a problem."""
    response: httpx.Response = await asking
    assert response.status_code == status, response.text
    kind = "application/json" if status < 400 else "application/problem+json"
    assert response.headers["content-type"] == kind
    found: dict[str, Any] = response.json()
    assert status < 400 or (found["status"] == status and found["request_id"] == response.headers["x-request-id"])
    return found


PRODUCTION = "/models/load/aliases/production"


async def test_life_of_a_version(store: Store) -> None:
    """Promoted, split, shadowed, rolled back, dropped: what answers is what was said, from the answer on."""
    body = {"window": [[10.0 + row] for row in range(8)]}
    alias: Mapping[str, object] = {"model": "load", "alias": "production", "split": {}, "shadow": None, "previous": []}

    async with administered(store.root) as client:

        async def version(**headers: str) -> int:
            return int((await client.post("/predict", json=body, headers=headers)).json()["version"])

        assert await version() == 3
        shown = await said(client.put(PRODUCTION, json={"version": 1}), 200)
        assert shown == {**alias, "version": 1, "serves": 1}
        assert shown == await said(client.get(PRODUCTION), 200)
        assert await version() == 1
        shown = await said(client.put(PRODUCTION, json={"version": 1, "split": {"3": 50}, "shadow": 3}), 200)
        assert shown == {**alias, "version": 1, "serves": 1, "split": {"3": 50.0}, "shadow": 3}
        found = [[await version(**{"X-Client-ID": str(one)}) for one in range(20)] for _ in range(2)]
        assert found[0] == found[1]
        assert set(found[0]) == {1, 3}
        shown = await said(client.put(PRODUCTION, json={"version": "latest"}), 200)
        assert shown == {**alias, "version": 3, "serves": 3, "previous": [1]}
        assert await version() == 3
        shown = await said(client.post(f"{PRODUCTION}/rollback"), 200)
        assert shown == {**alias, "version": 1, "serves": 1}
        assert await version() == 1
        assert (await client.get("/models")).json()["models"][0]["aliases"] == {"production": 1}
        assert (await client.delete(PRODUCTION)).status_code == 204
        await said(client.get(PRODUCTION), 404)
        await said(client.delete(PRODUCTION), 404)
        await said(client.post(f"{PRODUCTION}/rollback"), 404)
        assert await version() == 3
        audit = await said(client.get("/audit", params={"last": 2}), 200)
    assert [(line["by"], line["action"], line["from"]) for line in audit["changes"]] == [
        ("admin", "drop", 1),
        ("admin", "roll back", 3),
    ]


async def test_versions_are_loaded_and_unloaded(store: Store) -> None:
    """By number or `latest`; what does not load says why; what an alias needs stays."""
    async with administered(store.root) as client:
        found = await said(client.post("/models/load/versions/1/load"), 200)
        assert (found["state"], found["version"], found["reason"]) == ("ready", 1, None)
        assert found["spec"]["name"] == "load"
        broken = await said(client.post("/models/load/versions/2/load"), 409)
        assert "load version 2 does not load: " in broken["detail"]
        refused = await said(client.put(PRODUCTION, json={"version": 2}), 409)
        assert refused["detail"] == broken["detail"]
        await said(client.put(PRODUCTION, json={"version": 1}), 200)
        in_use = await said(client.post("/models/load/versions/1/unload"), 409)
        assert in_use["detail"] == "load version 1 is in use by the alias production; point that elsewhere first"
        found = await said(client.post("/models/load/versions/latest/unload"), 200)
        assert (found["version"], found["state"], found["reason"]) == (3, "unloaded", "unloaded by hand")
        # What was told of it a moment ago is still answered; then it is gone, and comes back when it is asked for.
        assert (await client.post("/models/load/versions/3/load")).json()["state"] == "ready"
        # Who does not wait is told where it stands: that it has failed, or that it is tried again.
        told = await client.post("/models/load/versions/2/load", params={"wait_s": 0})
        assert told.status_code in (202, 409)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/models/sales/versions/1/load", None, 404),
        ("POST", "/models/load/versions/9/load", None, 404),
        ("POST", "/models/load/versions/1/load?wait_s=-1", None, 422),
        ("POST", "/models/load/versions/1/load?wait_s=1e9", None, 422),
        ("POST", "/models/load/versions/canary/unload", None, 404),
        ("PUT", PRODUCTION, None, 422),
        ("PUT", PRODUCTION, {}, 422),
        ("PUT", PRODUCTION, {"version": 0}, 422),
        ("PUT", PRODUCTION, {"version": 9}, 404),
        ("PUT", PRODUCTION, {"version": 3, "sahdow": 1}, 422),
        ("PUT", PRODUCTION, {"version": 3, "split": {"1": 101}}, 422),
        ("PUT", PRODUCTION, {"version": 3, "split": {"one": 1}}, 422),
        ("PUT", PRODUCTION, {"version": 3, "split": {"3": 1}}, 409),
        ("PUT", PRODUCTION, {"version": 3, "shadow": 0}, 422),
        ("PUT", "/models/load/aliases/latest", {"version": 3}, 422),
        ("PUT", "/models/load/aliases/A%20b", {"version": 3}, 422),
        ("PUT", PRODUCTION, {"version": True}, 422),
        ("PUT", PRODUCTION, {"version": 3, "split": {"2": True}}, 422),
        ("PUT", PRODUCTION, {"version": 3, "split": {"2": "10"}}, 422),
        ("PUT", "/models/sales/aliases/production", {"version": 3}, 404),
        ("GET", "/models/sales/aliases/production", None, 404),
        ("GET", PRODUCTION, None, 404),
        ("GET", "/audit?last=0", None, 422),
        ("GET", "/audit?last=1001", None, 422),
        ("POST", PRODUCTION, None, 405),
    ],
)
async def test_mistakes_are_told(store: Store, method: str, path: str, body: object, status: int) -> None:
    """As problems; the store is as it was."""
    async with administered(store.root) as client:
        await said(client.request(method, path, json=body), status)
    assert store.audit(10) == []


async def test_store_that_cannot_be_written(store: Store) -> None:
    """A 503 that says so; what serves does so on."""
    async with administered(store.root) as client:
        (store.root / "audit.jsonl").mkdir()
        refused = await said(client.put(PRODUCTION, json={"version": 3}), 503)
        assert "cannot be written to" in refused["detail"]
        await said(client.get("/audit"), 503)
        assert (await client.get("/health/ready")).status_code == 200


async def test_only_administrators_may(store: Store, tmp_path: Path) -> None:
    """Without any key it is off; with one, others are told which it takes. The log has the key's name."""
    keys = Keys(tmp_path)
    reader, operator = keys.add("reader", "read", "predict"), keys.add("operator", "admin")
    places = [
        ("PUT", PRODUCTION, {"version": 3}),
        ("DELETE", PRODUCTION, None),
        ("POST", f"{PRODUCTION}/rollback", None),
        ("POST", "/models/load/versions/3/load", None),
        ("POST", "/models/load/versions/3/unload", None),
        ("GET", "/audit", None),
    ]
    async with serving(store.root) as client:
        for method, path, body in places:
            await said(client.request(method, path, json=body), 403)
    async with serving(store.root, keys_file=keys.file) as client:
        for key, status in ((None, 401), ("wrong", 401), (reader, 403)):
            headers = {} if key is None else bearing(key)
            for method, path, body in places:
                await said(client.request(method, path, json=body, headers=headers), status)
        assert store.audit(10) == []
        await said(client.put(PRODUCTION, json={"version": 3}, headers=bearing(operator)), 200)
    assert store.audit(1)[0]["by"] == "operator"


async def test_store_is_lost_and_comes_back(store: Store) -> None:
    """What is loaded serves on while its index is gone, and nothing can be changed meanwhile."""
    path = store.root / "index.json"
    content = path.read_bytes()
    body = {"window": [[10.0 + row] for row in range(8)]}
    async with administered(store.root) as client:
        path.unlink()
        await said(client.put(PRODUCTION, json={"version": 3}), 404)
        await said(client.post("/models/load/versions/1/load"), 404)
        assert (await client.post("/predict", json=body)).status_code == 200
        assert (await client.get("/health/ready")).status_code == 200
        path.write_bytes(content)
        assert (await said(client.put(PRODUCTION, json={"version": 3}), 200))["serves"] == 3


async def test_openapi_has_all_of_it(store: Store) -> None:
    """With the key that it takes, and its refusals."""
    async with serving(store.root) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    alias = "/models/{name}/aliases/{alias}"
    for method, path in (
        ("put", alias),
        ("delete", alias),
        ("post", f"{alias}/rollback"),
        ("post", "/models/{name}/versions/{version}/load"),
        ("post", "/models/{name}/versions/{version}/unload"),
        ("get", "/audit"),
    ):
        operation = paths[path][method]
        assert operation["security"] == [{"key": []}]
        assert operation["summary"]
        assert operation["responses"].keys() >= {"401", "403", "429", "503"}
    assert "security" not in paths[alias]["get"]
