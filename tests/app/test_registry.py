"""The registry: which versions load on which device, and what becomes of those that do not."""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.errors import NotReadyError
from app.forecasts.catalogue import Catalogue
from app.link.engine import EngineStoppedError, LoadError
from app.processes import registry as registry_module
from app.processes.registry import Registry
from app.settings import Policy
from app.ticket import ModelId
from models.signature import Signer, Trust
from models.spec import Spec
from models.store import Index, Store, StoreBrokenError
from tests.app.fakes import settle
from tests.app.serving import until
from tests.builders import network, spec_for
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.anyio

Number = tuple[str, int]


async def holds(condition: Callable[[], bool]) -> None:
    """Wait until it does."""

    async def is_true() -> bool:
        return condition()

    await until(is_true)


def digest_of(text: str) -> str:
    """Some digest."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def write_whole(path: Path, text: str) -> None:
    """By rename, as a store does."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)


class FakeLink:
    """Loads anything but what it is told to fail at, and can end."""

    def __init__(self, *, broken: dict[Number, str] | None = None, killers: set[Number] | None = None) -> None:
        self.broken = broken or {}
        self.killers = killers or set()
        """Loading any of these ends it."""
        self.asked: list[Number] = []
        self.loaded: list[Number] = []
        self.digests: list[str] = []
        """Of what is loaded."""
        self.log: list[str] = []
        self.archives: list[Path] = []
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.hold: asyncio.Event | None = None
        self.failing: Callable[[ModelId, str], None] = lambda model, reason: None
        self.bug = False

    @property
    def alive(self) -> bool:
        return not self.lost.done()

    def die(self) -> None:
        self.lost.set_result(None)

    async def load(self, model: ModelId, archive: Path) -> Spec:
        number = model.name, model.version
        self.asked.append(number)
        if self.alive and number in self.killers:
            self.die()
            await settle()
        if self.hold is not None:
            await self.hold.wait()
        if not self.alive:
            raise EngineStoppedError("the engine stopped")
        if self.bug:
            raise KeyError(number)
        if number in self.broken:
            raise LoadError(self.broken[number])
        self.archives.append(archive)
        self.log.append(f"loaded {model.name}:{model.version}")
        if model.digest not in self.digests:
            self.loaded.append(number)
            self.digests.append(model.digest)
        return SPEC.model_copy(update={"name": model.name, "version": model.version})

    def unload(self, model: ModelId) -> None:
        self.log.append(f"unloaded {model.name}:{model.version}")
        if model.digest in self.digests:
            self.loaded.remove((model.name, model.version))
            self.digests.remove(model.digest)


SPEC = spec_for(network())


class World:
    """A registry of a store, and how often it told of a change."""

    def __init__(
        self, root: Path, policy: str = "latest", *, trust: Trust | None = None, linger_s: float = 0.0, **versions: int
    ) -> None:
        self.store = Store(root)
        for name, count in versions.items():
            for _ in range(count):
                self.publish(name)
        self.told: list[str] = []
        self.registry = Registry(self.store, Policy.parse(policy), self._changed, trust=trust, linger_s=linger_s)

    def publish(self, name: str, signer: Signer | None = None) -> None:
        """One version more; its archive is for nobody to read here."""
        self.store.publish(name, lambda number, _: digest_of(f"{name}{number}"), signer=signer)

    def replace(self, name: str, number: int, by: str = "replaced") -> None:
        """The same version with another archive."""
        self.edit_index(lambda models: models[name]["versions"].update({str(number): digest_of(by)}))

    def edit_index(self, edit: Callable[[dict[str, Any]], object]) -> None:
        """What no store does."""
        path = self.store.root / "index.json"
        index = json.loads(path.read_text())
        edit(index["models"])
        write_whole(path, json.dumps(index))

    @asynccontextmanager
    async def following(self, every_s: float = 0.001) -> AsyncIterator[None]:
        """The index is followed, and looked at that often."""
        task = asyncio.create_task(self.registry.follow(every_s))
        try:
            yield
            assert not task.done()
        finally:
            task.cancel()

    @asynccontextmanager
    async def serving(self, *links: FakeLink, every_s: float = 0.001) -> AsyncIterator[FakeLink]:
        """All that is chosen is loaded, and followed; the first device, a fresh one where none is given."""
        self.registry.read()
        links = links or (FakeLink(),)
        await self.load_on(*links)
        async with self.following(every_s):
            yield links[0]

    def _changed(self) -> None:
        self.told.append(self.states)

    @property
    def catalogue(self) -> Catalogue:
        return self.registry.catalogue

    @property
    def states(self) -> str:
        """The first letter of every version's state: `a: fr, b: ul`."""
        return ", ".join(
            f"{name}: {''.join(model.versions[number].state[0] for number in sorted(model.versions))}"
            for name, model in self.catalogue.models.items()
        )

    async def load_on(self, *links: FakeLink) -> None:
        for link in links:
            await self.registry.load_on(link)  # type: ignore[arg-type]  # a fake


async def test_newest_is_loaded(tmp_path: Path) -> None:
    """What the policy chooses is loaded from its place in the store, and the others say that they were not chosen."""
    w = World(tmp_path, a=3)
    w.registry.read()
    link = FakeLink()
    await w.load_on(link)
    assert w.states == "a: uur"
    assert link.archives == [w.store.archive("a", 3).resolve()]
    assert w.catalogue.find("a", "1").reason == "not chosen by FORETELL_VERSIONS"
    assert w.catalogue.find("a", "3").spec == SPEC.model_copy(update={"name": "a", "version": 3})
    assert w.catalogue.ready


@pytest.mark.parametrize(
    ("policy", "states"),
    [("all", "a: rrr, b: r"), ("latest:2", "a: urr, b: r"), ("latest:9", "a: rrr, b: r"), ("a:1,a:3", "a: rur, b: u")],
)
async def test_policy_chooses(tmp_path: Path, policy: str, states: str) -> None:
    """Exactly what the policy names is loaded."""
    w = World(tmp_path, policy, a=3, b=1)
    w.registry.read()
    await w.load_on(FakeLink())
    assert w.states == states


async def test_listed_version_that_is_not_published(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that the policy lists and that is not there is told in the log; the others load."""
    w = World(tmp_path, "a:1,a:7,z:1", a=1)
    w.registry.read()
    await w.load_on(FakeLink())
    assert w.states == "a: r"
    assert [m for m in caplog.messages if "not published" in m] == [
        "FORETELL_VERSIONS asks for a:7, which is not published",
        "FORETELL_VERSIONS asks for z:1, which is not published",
    ]


async def test_aliased_version_is_loaded_whatever_the_policy(tmp_path: Path) -> None:
    """What an alias stands for was pointed there on purpose."""
    w = World(tmp_path, a=3)
    w.store.point("a", "canary", 1)
    w.registry.read()
    await w.load_on(FakeLink())
    assert w.states == "a: rur"
    assert w.catalogue.resolve("a", "canary")[0].version == 1


async def test_version_that_fails_says_why(tmp_path: Path) -> None:
    """It is out with the device's reason, on the device nothing of it is left, and the others serve."""
    w = World(tmp_path, "all", a=2, b=1)
    w.registry.read()
    link = FakeLink(broken={("a", 2): "the example fails"})
    await w.load_on(link)
    assert w.states == "a: rf, b: r"
    assert w.catalogue.find("a", "2").reason == "the example fails"
    assert w.catalogue.find("a", "2").spec is None
    with pytest.raises(NotReadyError, match="version 2 is failed: the example fails"):
        w.catalogue.resolve("a", "2")
    assert w.catalogue.ready


async def test_older_version_steps_in_for_a_broken_newest(tmp_path: Path) -> None:
    """With the latest alone asked for, one that does not load is replaced by the newest that does."""
    w = World(tmp_path, a=4)
    w.registry.read()
    link = FakeLink(broken={("a", 4): "digest", ("a", 3): "digest"})
    await w.load_on(link)
    assert w.states == "a: urff"
    assert link.loaded == [("a", 2)]
    assert w.catalogue.find("a", "2").reason is None


async def test_as_many_step_in_as_the_policy_wants(tmp_path: Path) -> None:
    """`latest:N` means N versions that load, as long as there are any."""
    w = World(tmp_path, "latest:2", a=4)
    w.registry.read()
    await w.load_on(FakeLink(broken={("a", 4): "digest"}))
    assert w.states == "a: urrf"
    w = World(tmp_path / "none", "latest:2", a=2)
    w.registry.read()
    await w.load_on(FakeLink(broken={("a", 1): "digest", ("a", 2): "digest"}))
    assert w.states == "a: ff"


async def test_listed_version_that_fails_is_not_replaced(tmp_path: Path) -> None:
    """Where versions are named, no other is served instead."""
    w = World(tmp_path, "a:2", a=2)
    w.registry.read()
    await w.load_on(FakeLink(broken={("a", 2): "digest"}))
    assert w.states == "a: uf"


async def test_every_change_is_told(tmp_path: Path) -> None:
    """Whoever shows the catalogue hears of what is published, and of each version as it gets ready or fails."""
    w = World(tmp_path, "all", a=3)
    w.registry.read()
    assert w.told == ["a: lll"]
    await w.load_on(link := FakeLink(broken={("a", 2): "digest"}))
    assert w.told == ["a: lll", "a: rll", "a: rfl", "a: rfr", "a: rfr"]
    link.die()
    await settle()
    assert w.told[-1] == "a: lfl"


async def test_ready_only_when_all_have_been_tried(tmp_path: Path) -> None:
    """While a chosen version is on its way the service is not ready, even if another is warm."""
    w = World(tmp_path, a=1, b=1)
    seen: list[bool] = []
    w.registry._changed = lambda: seen.append(w.catalogue.ready)
    w.registry.read()
    await w.load_on(FakeLink())
    assert seen == [False, False, False, True]


# Several devices


async def test_second_device_gets_what_the_first_has(tmp_path: Path) -> None:
    """Every device loads all that serves; what has failed is not tried again."""
    w = World(tmp_path, "latest:2", a=3)
    w.registry.read()
    first, second = FakeLink(broken={("a", 3): "digest"}), FakeLink()
    await w.load_on(first, second)
    assert set(first.loaded) == set(second.loaded) == {("a", 1), ("a", 2)}
    assert ("a", 3) not in second.asked
    assert w.states == "a: rrf"


async def test_what_fails_on_one_device_is_on_none(tmp_path: Path) -> None:
    """A version that the second device does not load is unloaded on the first, and an older one steps in on both."""
    w = World(tmp_path, a=2)
    w.registry.read()
    first, second = FakeLink(), FakeLink(broken={("a", 2): "no memory"})
    await w.load_on(first)
    assert w.states == "a: ur"
    await w.load_on(second)
    assert w.states == "a: rf"
    assert first.loaded == second.loaded == [("a", 1)]
    assert w.catalogue.find("a", "2").reason == "no memory"


async def test_devices_load_one_after_the_other(tmp_path: Path) -> None:
    """Two devices that come at once do not get into each other's way."""
    w = World(tmp_path, "all", a=2)
    w.registry.read()
    first, second = FakeLink(), FakeLink()
    first.hold = asyncio.Event()
    loading = [asyncio.create_task(w.load_on(link)) for link in (first, second)]
    await settle()
    assert (first.asked, second.asked) == ([("a", 1)], [])
    first.hold.set()
    await asyncio.gather(*loading)
    assert sorted(first.loaded) == sorted(second.loaded) == [("a", 1), ("a", 2)]


async def test_one_of_several_devices_ends(tmp_path: Path) -> None:
    """What the others have is still ready; the one in its place gets it, too."""
    w = World(tmp_path, "all", a=2)
    w.registry.read()
    first, second, third = FakeLink(), FakeLink(), FakeLink()
    await w.load_on(first, second)
    first.die()
    await settle()
    assert w.states == "a: rr"
    await w.load_on(third)
    assert third.loaded == [("a", 1), ("a", 2)]


async def test_last_device_ends(tmp_path: Path) -> None:
    """Without any device nothing is ready; all that was is loaded on the next, and what had failed is not."""
    w = World(tmp_path, "all", a=3)
    w.registry.read()
    first, second, third = FakeLink(broken={("a", 2): "digest"}), FakeLink(), FakeLink()
    await w.load_on(first, second)
    first.die()
    second.die()
    await settle()
    assert w.states == "a: lfl"
    assert not w.catalogue.ready
    with pytest.raises(NotReadyError, match="version 1 is loading"):
        w.catalogue.resolve("a", "1")
    await w.load_on(third)
    assert w.states == "a: rfr"
    assert w.catalogue.ready


# Devices that die while they load


async def test_device_that_dies_leaves_its_version_loading(tmp_path: Path) -> None:
    """It is not the version's fault, as it seems: the next device loads it."""
    w = World(tmp_path, "all", a=1, b=1)
    w.registry.read()
    await w.load_on(FakeLink(killers={("a", 1)}))
    assert w.states == "a: l, b: l"
    await w.load_on(FakeLink())
    assert w.states == "a: r, b: r"


async def test_version_that_kills_three_devices_fails(tmp_path: Path) -> None:
    """After three deaths it is out, and those that come after it, which killed nobody, load."""
    w = World(tmp_path, "all", a=1, b=2)
    w.registry.read()
    for _ in range(3):
        assert w.catalogue.find("a", "1").state == "loading"
        await w.load_on(FakeLink(killers={("a", 1)}))
    assert w.states == "a: f, b: ll"
    assert w.catalogue.find("a", "1").reason == "the engine died whenever it was loaded"
    await w.load_on(link := FakeLink(killers={("a", 1)}))
    assert w.states == "a: f, b: rr"
    assert link.alive


async def test_older_version_steps_in_for_a_killer(tmp_path: Path) -> None:
    """It is not ready before a device has loaded it: at the killer's last victim there is none."""
    w = World(tmp_path, a=2)
    w.registry.read()
    for _ in range(3):
        await w.load_on(FakeLink(killers={("a", 2)}))
    assert w.catalogue.find("a", "2").state == "failed"
    assert w.catalogue.find("a", "1").state != "ready"
    assert not w.catalogue.ready
    await w.load_on(link := FakeLink(killers={("a", 2)}))
    assert w.states == "a: rf"
    assert link.loaded == [("a", 1)]
    assert w.catalogue.resolve("a", None)[0].version == 1


async def test_dead_device_is_asked_nothing(tmp_path: Path) -> None:
    """One that is gone before its turn counts against no version, however often that happens."""
    w = World(tmp_path, "all", a=2)
    w.registry.read()
    for _ in range(5):
        link = FakeLink()
        link.die()
        await w.load_on(link)
        assert link.asked == []
    assert w.states == "a: ll"


async def test_deaths_that_are_long_ago_do_not_count(tmp_path: Path) -> None:
    """A version that has loaded since is not failed for the next death."""
    w = World(tmp_path, "all", a=1)
    w.registry.read()
    for _ in range(4):
        await w.load_on(FakeLink(killers={("a", 1)}))
        await w.load_on(link := FakeLink())
        assert w.states == "a: r"
        link.die()
        await settle()


# Stores


async def test_empty_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing published is told in the log, and is not ready."""
    w = World(tmp_path)
    w.registry.read()
    await w.load_on(FakeLink())
    assert not w.catalogue.ready
    assert "no models are published" in caplog.text


async def test_damaged_index_is_told(tmp_path: Path) -> None:
    """An index that cannot be read serves nothing and says why, also to whoever shows the catalogue."""
    (tmp_path / "index.json").write_text("{")
    w = World(tmp_path)
    w.registry.read()
    await w.load_on(FakeLink())
    assert not w.catalogue.ready
    assert "index.json" in (w.catalogue.trouble or "")
    assert w.told != []


async def test_index_is_lost_while_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Damaged or gone, what is loaded serves on and the trouble is shown; mended, what has come meanwhile is served."""
    w = World(tmp_path, a=1)
    index = tmp_path / "index.json"
    async with w.serving() as link:
        for damage in (lambda: index.write_text("{"), index.unlink):
            content = index.read_text()
            damage()
            await holds(lambda: w.catalogue.trouble is not None)
            assert w.states == "a: r"
            assert link.loaded == [("a", 1)]
            assert w.catalogue.ready
            write_whole(index, content)
            await holds(lambda: w.catalogue.trouble is None)
        w.publish("a")
        await holds(lambda: w.states == "a: ur")
    assert [m for m in caplog.messages if "cannot be read" in m] == [
        f"the model store cannot be read: {index}: Invalid JSON: EOF while parsing an object at line 1 column 1",
        f"the model store cannot be read: {tmp_path} has no index any more",
    ]


# Following


async def test_new_version_is_noticed_by_looking(tmp_path: Path) -> None:
    """It loads beside what serves, which leaves only once it is ready."""
    w = World(tmp_path, a=1)
    async with w.serving() as link:
        link.hold = asyncio.Event()
        w.publish("a")
        await holds(lambda: link.asked == [("a", 1), ("a", 2)])
        assert w.states == "a: rl"
        assert link.loaded == [("a", 1)]
        assert w.catalogue.ready
        link.hold.set()
        await holds(lambda: link.loaded == [("a", 2)])
    assert link.log == ["loaded a:1", "loaded a:2", "unloaded a:1"]
    assert w.states == "a: ur"
    assert w.catalogue.find("a", "1").spec is None


async def test_new_version_is_noticed_at_once_where_somebody_tells(tmp_path: Path) -> None:
    """Without waiting for the next look."""
    w = World(tmp_path, a=1)
    async with w.serving(every_s=3600) as link:
        w.publish("a")
        w.publish("b")
        w.registry.poke()
        await holds(lambda: w.states == "a: ur, b: r")
        w.store.point("a", "canary", 1)
        w.registry.poke()
        await holds(lambda: w.states == "a: rr, b: r")
    assert link.asked == [("a", 1), ("a", 2), ("b", 1), ("a", 1)]


async def test_end_comes_together_with_a_change(tmp_path: Path) -> None:
    """Following ends, whoever pokes in the same moment: asyncio.wait_for of Python 3.11 would go on."""
    w = World(tmp_path, a=1)
    following = asyncio.create_task(w.registry.follow(every_s=3600))
    await settle()
    w.registry.poke()
    following.cancel()
    await asyncio.wait([following], timeout=PATIENCE_S)
    assert following.cancelled()


async def test_what_leaves_stays_on_the_devices_for_a_while(tmp_path: Path) -> None:
    """Whoever was told of it a moment ago still finds it there; chosen again meanwhile, it stays."""
    w = World(tmp_path, a=2, linger_s=3600)
    async with w.serving() as link:
        w.publish("a")
        await holds(lambda: w.states == "a: uur")
        assert link.loaded == [("a", 2), ("a", 3)]
        assert set(w.registry._leaving) == {w.catalogue.find("a", "2").id}
        w.store.point("a", "production", 2)
        await holds(lambda: w.states == "a: urr")
        assert not w.registry._leaving
    assert [line for line in link.log if line.startswith("unloaded")] == []


async def test_version_that_fails_leaves_what_serves_alone(tmp_path: Path) -> None:
    """A broken new version is out with its reason; the one before serves on, also after further changes."""
    w = World(tmp_path, a=1)
    async with w.serving(FakeLink(broken={("a", 2): "the example fails"})) as link:
        w.publish("a")
        await holds(lambda: w.states == "a: rf")
        w.store.point("a", "canary", 1)
        await holds(lambda: w.catalogue.models["a"].aliases == {"canary": 1})
        w.registry.poke()
        await settle()
    assert link.log == ["loaded a:1"]
    assert link.asked == [("a", 1), ("a", 2)]
    assert w.catalogue.resolve("a", None).id.version == 1


async def test_new_version_that_kills_one_of_two_devices(tmp_path: Path) -> None:
    """As long as it has not been loaded, what serves stays, and the service ready."""
    w = World(tmp_path, a=1)
    second = FakeLink(killers={("a", 2)})
    async with w.serving(FakeLink(), second):
        ready: list[bool] = []
        w.registry._changed = lambda: ready.append(w.catalogue.ready)
        w.publish("a")
        await holds(lambda: w.states == "a: ur")
        assert not second.alive
        assert all(ready)


async def test_version_that_is_removed_from_the_index(tmp_path: Path) -> None:
    """It leaves, and with it a model of which nothing is left; what is unpublished before it has loaded, too."""
    w = World(tmp_path, "all", a=2, b=1)
    async with w.serving() as link:
        w.edit_index(lambda models: (models["a"]["versions"].pop("2"), models.pop("b")))
        await holds(lambda: link.loaded == [("a", 1)])
    assert w.states == "a: r"


async def test_replaced_archive_takes_over_once_it_is_ready(tmp_path: Path) -> None:
    """A number may stand for other bytes where a store is replaced by another; requests see no gap."""
    w = World(tmp_path, a=1)
    async with w.serving() as link:
        before = w.catalogue.find("a", "1").id
        link.hold = asyncio.Event()
        w.replace("a", 1)
        await holds(lambda: len(link.asked) == 2)
        assert w.catalogue.resolve("a", None).id == before
        link.hold.set()
        await holds(lambda: w.catalogue.find("a", "1").id != before)
        assert w.catalogue.resolve("a", None).id.digest == digest_of("replaced")
        await holds(lambda: link.digests == [digest_of("replaced")])
    assert w.states == "a: r"


async def test_replacement_that_is_broken_changes_nothing(tmp_path: Path) -> None:
    """What serves does so on, its reason tells of the other, which is tried once; a good one takes over."""
    w = World(tmp_path, a=1)
    async with w.serving() as link:
        before = w.catalogue.find("a", "1").id
        link.broken[("a", 1)] = "the digest differs"
        w.replace("a", 1)
        await holds(lambda: w.catalogue.find("a", "1").reason is not None)
        w.store.point("a", "canary", 1)
        await holds(lambda: w.catalogue.models["a"].aliases == {"canary": 1})
        assert w.catalogue.resolve("a", None).id == before
        assert w.catalogue.find("a", "1").reason == "it was replaced, and what is there now fails: the digest differs"
        assert link.asked == [("a", 1)] * 2
        assert link.digests == [before.digest]
        link.broken.clear()
        w.replace("a", 1, "again")
        await holds(lambda: link.digests == [digest_of("again")])
    assert w.catalogue.find("a", "1").reason is None


async def test_replaced_archive_is_removed_before_it_has_loaded(tmp_path: Path) -> None:
    """Then neither of the two is served, and the others are followed on."""
    w = World(tmp_path, "all", a=1, b=1)
    async with w.serving() as link:
        link.hold = asyncio.Event()
        w.replace("a", 1)
        w.registry.read()
        w.edit_index(lambda models: models["a"].update(versions={"2": digest_of("a2")}))
        link.hold.set()
        await holds(lambda: set(link.loaded) == {("a", 2), ("b", 1)})
    assert w.states == "a: r, b: r"


async def test_error_in_one_round_does_not_end_following(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it was: it is in the log and keeps that version out, and the next change is followed."""
    w = World(tmp_path, a=1)
    async with w.serving() as link:
        link.bug = True
        w.publish("a")
        await holds(lambda: "a version 2 does not load: it cannot be loaded" in caplog.text)
        assert w.states == "a: rf"
        link.bug = False
        w.publish("a")
        await holds(lambda: w.states == "a: ufr")


async def test_bug_in_one_round_does_not_end_following(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one of our own."""
    w = World(tmp_path, a=1)

    def stumble() -> None:
        raise KeyError("a bug")

    async with w.serving():
        with monkeypatch.context() as patched:
            patched.setattr(w.registry, "_tell_fallbacks", stumble)
            w.publish("a")
            await holds(lambda: "the model store cannot be followed" in caplog.text)
        w.publish("a")
        await holds(lambda: w.states == "a: uur")


async def test_load_that_does_not_end_keeps_nothing_else_out(tmp_path: Path) -> None:
    """It is called off in its time; meanwhile aliases move among what is there."""
    w = World(tmp_path, "all", a=2)
    w.store.point("a", "production", 1)
    w.registry._load_s = 0.5
    async with w.serving() as link:
        link.hold = asyncio.Event()
        w.publish("a")
        await holds(lambda: link.asked[-1] == ("a", 3))
        w.store.point("a", "production", 2)
        w.registry.poke()
        await holds(lambda: w.catalogue.resolve("a", None)[0].version == 2)
        assert w.states == "a: rrl"
        await holds(lambda: w.states == "a: rrf")
        assert w.catalogue.find("a", "3").reason == "it has not loaded within 0.5 s"
        link.hold = None
        w.publish("b")
        await holds(lambda: w.states == "a: rrf, b: r")


async def test_index_that_could_not_be_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nothing about the file has changed since."""
    w = World(tmp_path, a=1)
    async with w.serving():
        with monkeypatch.context() as patched:

            def stumble() -> Index:
                raise StoreBrokenError("too many open files")

            patched.setattr(w.store, "index", stumble)
            w.registry._read = None
            w.registry.poke()
            await holds(lambda: w.catalogue.trouble == "too many open files")
        await holds(lambda: w.catalogue.trouble is None)
    assert w.states == "a: r"


async def test_without_any_device_the_catalogue_is_kept(tmp_path: Path) -> None:
    """What is published is known before the first device is there, and follows the index."""
    w = World(tmp_path, a=1)
    w.registry.read()
    async with w.following():
        w.publish("a")
        w.store.point("a", "production", 1)
        await holds(lambda: w.states == "a: ll")
        assert not w.catalogue.ready
    await w.load_on(FakeLink())
    assert w.states == "a: rr"
    assert w.catalogue.ready


# Aliases


async def test_all_that_an_alias_needs_is_loaded(tmp_path: Path) -> None:
    """Its version, those of its split, its shadow, and what it would be rolled back to, whatever the policy."""
    w = World(tmp_path, a=7)
    w.store.point("a", "production", 1)
    async with w.serving() as link:
        assert w.states == "a: ruuuuur"
        w.store.point("a", "production", 2, split={3: 5, 4: 5}, shadow=5)
        await holds(lambda: w.states == "a: rrrrrur")
        assert w.catalogue.models["a"].traffic["production"].shadow == 5
        assert [w.store.roll_back("a", "production") for _ in range(2)] == [2, 1]
        await holds(lambda: link.loaded == [("a", 7), ("a", 1)] or link.loaded == [("a", 1), ("a", 7)])
    assert w.states == "a: ruuuuur"


async def test_failing_version_is_taken_out_and_its_alias_falls_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """To what it stood for before; that is an error in the log, once, and to be seen from outside. Loaded anew by hand,
    it answers again."""
    w = World(tmp_path, a=3)
    w.store.point("a", "production", 2)
    w.store.point("a", "production", 3)
    async with w.serving() as link:
        assert list(w.catalogue.answering()) == [("a", "production", 3, 3)]
        link.failing(w.catalogue.find("a", "3").id, "five windows in a row failed")
        assert w.states == "a: urf"
        assert w.catalogue.find("a", "3").reason == "five windows in a row failed"
        assert list(w.catalogue.answering()) == [("a", "production", 3, 2)]
        assert w.catalogue.resolve("a", "production").id.version == 2
        await holds(lambda: link.loaded == [("a", 2)])
        link.failing(ModelId("a", 9, "sha256:9"), "it is not known")
        w.registry.poke()
        await settle()
        w.store.want("a", 3, loaded=True)
        await holds(lambda: w.states == "a: urr")
        assert list(w.catalogue.answering()) == [("a", "production", 3, 3)]
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == [
        "a version 3 is taken out: five windows in a row failed",
        "a: production stands for version 3, which is not ready; 2 answers instead",
    ]


async def test_older_version_steps_in_for_one_that_is_taken_out(tmp_path: Path) -> None:
    """Without any alias as well: the policy lacks one."""
    w = World(tmp_path, a=3)
    async with w.serving() as link:
        link.failing(w.catalogue.find("a", "3").id, "windows failed")
        await holds(lambda: w.states == "a: urf")
        assert link.loaded == [("a", 2)]
        w.publish("a")
        await holds(lambda: link.loaded == [("a", 4)])
    assert w.states == "a: uufr"


async def test_version_that_is_taken_out_while_it_loads_elsewhere_stays_out(tmp_path: Path) -> None:
    """A second device that has just loaded it makes it no better."""
    w = World(tmp_path, "a:1", a=1)
    second = FakeLink()
    async with w.serving() as link:
        second.hold = asyncio.Event()
        loading = asyncio.create_task(w.load_on(second))
        await holds(lambda: second.asked == [("a", 1)])
        link.failing(w.catalogue.find("a", "1").id, "windows failed")
        second.hold.set()
        await loading
        assert w.states == "a: f"
        assert link.loaded == second.loaded == []


async def test_only_version_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was taken out comes back by itself where nothing else answers for its model, and nowhere else."""
    monkeypatch.setattr(registry_module, "_REST_S", 0.01)
    w = World(tmp_path, "all", a=1, b=2)
    async with w.serving() as link:
        link.failing(w.catalogue.find("b", "2").id, "windows failed")
        for _ in range(3):
            link.failing(w.catalogue.find("a", "1").id, "windows failed")
            assert w.states == "a: f, b: rf"
            await holds(lambda: w.states == "a: r, b: rf")
    assert link.asked == [("a", 1), ("b", 1), ("b", 2), *[("a", 1)] * 3]


async def test_version_in_whose_passes_three_engines_die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is out, until somebody asks for it; deaths that are long ago, or of what is not known, count for nothing."""
    w = World(tmp_path, "all", a=2)
    async with w.serving():
        digest = w.catalogue.find("a", "2").id.digest
        assert not w.registry.died("sha256:unknown")
        now = [0.0]
        monkeypatch.setattr(registry_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
        for at in (0.0, 500.0, 601.0, 1101.5):
            now[0] = at
            assert w.registry.died(digest)
            assert w.states == "a: rr"
        now[0] = 1200.0
        assert w.registry.died(digest)
        assert w.states == "a: rf"
        assert w.catalogue.find("a", "2").reason == "the engine died 3 times in its passes"
        w.store.want("a", 2, loaded=True)
        await holds(lambda: w.states == "a: rr")
        assert w.registry.died(digest)
        assert w.states == "a: rr"


# By hand


async def test_loaded_and_unloaded_by_hand(tmp_path: Path) -> None:
    """Whatever the policy says, and what is unloaded says why."""
    w = World(tmp_path, a=3)
    async with w.serving() as link:
        w.store.want("a", 1, loaded=True)
        await holds(lambda: w.states == "a: rur")
        w.store.want("a", 3, loaded=False)
        await holds(lambda: w.states == "a: ruu")
        assert w.catalogue.find("a", "3").reason == "unloaded by hand"
        await holds(lambda: link.loaded == [("a", 1)])
        w.store.want("a", 1, loaded=False)
        await holds(lambda: w.states == "a: uuu")
        w.store.want("a", 3, loaded=True)
        await holds(lambda: w.states == "a: uur")


async def test_failed_version_is_tried_again_only_where_somebody_asks(tmp_path: Path) -> None:
    """As often as they do, and once each time, also after it was unloaded by hand."""
    w = World(tmp_path, a=2)
    async with w.serving(FakeLink(broken={("a", 2): "no memory"})) as link:
        version = w.catalogue.find("a", "2")
        for tries in (1, 2):
            assert w.store.want("a", 2, loaded=True) == tries
            await holds(lambda tries=tries: version.tries == tries)
            await holds(lambda: w.states == "a: rf")
            assert link.asked.count(("a", 2)) == tries + 1
        w.store.point("a", "canary", 1)
        await holds(lambda: w.catalogue.models["a"].aliases == {"canary": 1})
        w.store.want("a", 2, loaded=False)
        await holds(lambda: version.tries == 0)
        w.registry.poke()
        await settle()
        assert link.asked.count(("a", 2)) == 3
        link.broken.clear()
        w.store.want("a", 2, loaded=True)
        await holds(lambda: w.states == "a: rr")


async def test_way_back_may_be_unloaded_by_hand(tmp_path: Path) -> None:
    """What an alias only stood for before gives its memory back; a rollback loads it again."""
    w = World(tmp_path, a=3)
    w.store.point("a", "production", 1)
    w.store.point("a", "production", 3)
    async with w.serving() as link:
        assert w.states == "a: rur"
        w.store.want("a", 1, loaded=False)
        await holds(lambda: link.loaded == [("a", 3)])
        w.store.roll_back("a", "production")
        await holds(lambda: w.states == "a: rur")


# Signatures


async def test_only_what_is_vouched_for_is_opened(tmp_path: Path) -> None:
    """Where signatures are asked for, a version without a right one never gets to a device; once signed, it does."""
    signer = Signer.make(tmp_path / "key.pem")
    w = World(tmp_path / "store", "all", trust=Trust.parse(signer.public))
    w.publish("a", signer=signer)
    w.publish("a")
    w.publish("a", signer=Signer.make(tmp_path / "other.pem"))
    async with w.serving() as link:
        assert w.states == "a: rff"
        assert link.asked == [("a", 1)]
        assert w.catalogue.find("a", "2").reason == "not signed, and FORETELL_TRUSTED_KEY asks for a signature"
        assert w.catalogue.find("a", "3").reason == "its signature is not of FORETELL_TRUSTED_KEY"
        w.store.sign("a", 2, signer)
        w.store.want("a", 2, loaded=True)
        await holds(lambda: w.states == "a: rrf")


async def test_version_that_is_signed_afterwards_is_tried_again(tmp_path: Path) -> None:
    """What kept it out is mended, and nobody has to ask for it."""
    signer = Signer.make(tmp_path / "key.pem")
    w = World(tmp_path / "store", a=1)
    w.registry._trust = Trust.parse(signer.public)
    async with w.serving():
        assert w.states == "a: f"
        w.store.sign("a", 1, signer)
        await holds(lambda: w.states == "a: r")


async def test_changes_are_told_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What an alias stands for, before and now, and what is unloaded and why."""
    caplog.set_level(logging.INFO)
    w = World(tmp_path, a=2)
    async with w.serving():
        w.store.point("a", "canary", 1, split={2: 12.5}, shadow=2)
        await holds(lambda: w.states == "a: rr")
        w.store.drop("a", "canary")
        await holds(lambda: w.states == "a: ur")
    assert [message for message in caplog.messages if "canary" in message or "unloaded" in message] == [
        "a: canary now stands for version 1, 12.5 % for version 2, shadow 2, before for nothing",
        "a: canary now stands for nothing, before for version 1, 12.5 % for version 2, shadow 2",
        "a version 1 is unloaded: not chosen by FORETELL_VERSIONS",
    ]


async def test_versions_that_were_promoted_leave_again(tmp_path: Path) -> None:
    """However many have been, loaded are the newest, what an alias stands for, and what it stood for before."""
    w = World(tmp_path, a=1)
    w.store.point("a", "production", 1)
    async with w.serving() as link:
        for number in range(2, 8):
            w.publish("a")
            w.store.want("a", number, loaded=True)
            w.store.point("a", "production", number)
            await holds(lambda number=number: {("a", number - 1), ("a", number)} == set(link.loaded))  # type: ignore[misc]
