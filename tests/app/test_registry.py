"""The registry: which versions load on which device, and what becomes of those that do not."""

import asyncio
from pathlib import Path

import pytest

from app.errors import NotReadyError
from app.forecasts.catalogue import Catalogue
from app.link.engine import EngineStoppedError, LoadError
from app.processes.registry import Registry
from app.settings import Policy
from app.ticket import ModelId
from models.spec import Spec
from models.store import Store
from tests.app.fakes import settle
from tests.builders import network, publish_tiny, spec_for

pytestmark = pytest.mark.anyio

Number = tuple[str, int]


class FakeLink:
    """Loads anything but what it is told to fail at, and can end."""

    def __init__(self, *, failing: dict[Number, str] | None = None, killers: set[Number] | None = None) -> None:
        self.failing = failing or {}
        self.killers = killers or set()
        """Loading any of these ends it."""
        self.asked: list[Number] = []
        self.loaded: list[Number] = []
        self.archives: list[Path] = []
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.hold: asyncio.Event | None = None

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
        if number in self.failing:
            raise LoadError(self.failing[number])
        self.archives.append(archive)
        self.loaded.append(number)
        return SPEC.model_copy(update={"name": model.name, "version": model.version})

    def unload(self, model: ModelId) -> None:
        if (model.name, model.version) in self.loaded:
            self.loaded.remove((model.name, model.version))


SPEC = spec_for(network())


class World:
    """A registry of a store, and how often it told of a change."""

    def __init__(self, root: Path, policy: str = "latest", **versions: int) -> None:
        self.store = Store(root)
        for name, count in versions.items():
            for seed in range(count):
                publish_tiny(self.store, name, seed=seed)
        self.told: list[str] = []
        self.registry = Registry(self.store, Policy.parse(policy), self._changed)

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
    link = FakeLink(failing={("a", 2): "the example fails"})
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
    link = FakeLink(failing={("a", 4): "digest", ("a", 3): "digest"})
    await w.load_on(link)
    assert w.states == "a: urff"
    assert link.loaded == [("a", 2)]
    assert w.catalogue.find("a", "2").reason is None


async def test_as_many_step_in_as_the_policy_wants(tmp_path: Path) -> None:
    """`latest:N` means N versions that load, as long as there are any."""
    w = World(tmp_path, "latest:2", a=4)
    w.registry.read()
    await w.load_on(FakeLink(failing={("a", 4): "digest"}))
    assert w.states == "a: urrf"
    w = World(tmp_path / "none", "latest:2", a=2)
    w.registry.read()
    await w.load_on(FakeLink(failing={("a", 1): "digest", ("a", 2): "digest"}))
    assert w.states == "a: ff"


async def test_listed_version_that_fails_is_not_replaced(tmp_path: Path) -> None:
    """Where versions are named, no other is served instead."""
    w = World(tmp_path, "a:2", a=2)
    w.registry.read()
    await w.load_on(FakeLink(failing={("a", 2): "digest"}))
    assert w.states == "a: uf"


async def test_every_change_is_told(tmp_path: Path) -> None:
    """Whoever shows the catalogue hears of what is published, and of each version as it gets ready or fails."""
    w = World(tmp_path, "all", a=3)
    w.registry.read()
    assert w.told == ["a: lll"]
    await w.load_on(link := FakeLink(failing={("a", 2): "digest"}))
    assert w.told == ["a: lll", "a: rll", "a: rfl", "a: rfr"]
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
    assert seen == [False, False, True]


# Several devices


async def test_second_device_gets_what_the_first_has(tmp_path: Path) -> None:
    """Every device loads all that serves; what has failed is not tried again."""
    w = World(tmp_path, "latest:2", a=3)
    w.registry.read()
    first, second = FakeLink(failing={("a", 3): "digest"}), FakeLink()
    await w.load_on(first, second)
    assert set(first.loaded) == set(second.loaded) == {("a", 1), ("a", 2)}
    assert ("a", 3) not in second.asked
    assert w.states == "a: rrf"


async def test_what_fails_on_one_device_is_on_none(tmp_path: Path) -> None:
    """A version that the second device does not load is unloaded on the first, and an older one steps in on both."""
    w = World(tmp_path, a=2)
    w.registry.read()
    first, second = FakeLink(), FakeLink(failing={("a", 2): "no memory"})
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
    first, second, third = FakeLink(failing={("a", 2): "digest"}), FakeLink(), FakeLink()
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
