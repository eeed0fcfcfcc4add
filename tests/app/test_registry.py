"""The registry: which versions load, and which one a request means."""

from pathlib import Path

import pytest

from app.errors import InvalidError, NotReadyError, UnknownModelError, UnknownVersionError
from app.registry import Registry
from app.settings import Policy
from app.ticket import ModelId
from models.artifact import ArtifactError
from models.spec import Spec
from models.store import Store
from tests.builders import network, publish_tiny, spec_for

pytestmark = pytest.mark.anyio


class FakeEngine:
    """Loads anything but what it is told to fail at."""

    def __init__(self, failing: dict[tuple[str, int], Exception] | None = None) -> None:
        self.failing = failing or {}
        self.loaded: list[tuple[str, int]] = []
        self.specs = spec_for(network())

    async def load(self, model: ModelId, archive: Path) -> Spec:
        error = self.failing.get((model.name, model.version))
        if error is not None:
            raise error
        self.loaded.append((model.name, model.version))
        return self.specs.model_copy(update={"name": model.name, "version": model.version})

    def unload(self, model: ModelId) -> None:
        if (model.name, model.version) in self.loaded:
            self.loaded.remove((model.name, model.version))


async def registry(root: Path, policy: str = "latest", engine: FakeEngine | None = None) -> Registry:
    made = Registry(Store(root), engine or FakeEngine(), Policy.parse(policy))  # type: ignore[arg-type]  # a fake
    await made.load()
    return made


def publish(root: Path, **versions: int) -> Store:
    store = Store(root)
    for name, count in versions.items():
        for seed in range(count):
            publish_tiny(store, name, seed=seed)
    return store


async def test_newest_ready_version_serves(tmp_path: Path) -> None:
    """Without a wish, the newest version is meant; older ones are listed as not loaded."""
    publish(tmp_path, a=3)
    found = await registry(tmp_path)
    assert found.resolve(None, None)[0].version == 3
    assert [version.state for version in found.versions()] == ["unloaded", "unloaded", "ready"]
    with pytest.raises(NotReadyError, match="version 1 is unloaded"):
        found.resolve("a", "1")


async def test_version_that_fails_leaves_the_older_one_serving(tmp_path: Path) -> None:
    """`latest` means the newest that is ready, and the failed one says why it is out."""
    publish(tmp_path, a=2)
    found = await registry(tmp_path, "all", FakeEngine({("a", 2): ArtifactError("the example fails")}))
    assert found.resolve("a", None)[0].version == 1
    assert found.find("a", 2).reason == "the example fails"
    with pytest.raises(NotReadyError, match="version 2 is failed: the example fails"):
        found.resolve("a", "2")


async def test_older_version_steps_in_for_a_broken_newest(tmp_path: Path) -> None:
    """With the latest alone asked for, one that does not load is replaced by the newest that does."""
    publish(tmp_path, a=4)
    failing = {("a", 4): ArtifactError("digest"), ("a", 3): ArtifactError("digest")}
    found = await registry(tmp_path, "latest", FakeEngine(failing))
    assert found.resolve("a", None)[0].version == 2
    assert [version.state for version in found.versions()] == ["unloaded", "ready", "failed", "failed"]


async def test_unreadable_archive_is_a_reason_too(tmp_path: Path) -> None:
    """A file that is not there fails its version, not the service."""
    publish(tmp_path, a=1, b=1)
    found = await registry(tmp_path, engine=FakeEngine({("a", 1): FileNotFoundError(2, "No such file", "/secret")}))
    assert found.find("a", 1).reason == "No such file"
    assert found.resolve(None, None)[0].name == "b"


async def test_archive_of_another_model_is_not_served(tmp_path: Path) -> None:
    """What the spec inside says must be what the index says, or the version stays out."""
    publish(tmp_path, a=1)
    engine = FakeEngine()
    engine.load = _always(engine.specs)  # type: ignore[method-assign]
    found = await registry(tmp_path, engine=engine)
    assert found.find("a", 1).state == "failed"
    assert found.find("a", 1).reason == "the archive is of tiny version 1"


def _always(spec: Spec):  # type: ignore[no-untyped-def]  # noqa: ANN202
    async def load(model: ModelId, archive: Path) -> Spec:
        return spec

    return load


async def test_name_is_needed_where_several_are_served(tmp_path: Path) -> None:
    """The refusal lists them."""
    publish(tmp_path, a=1, b=1)
    found = await registry(tmp_path)
    with pytest.raises(InvalidError, match="a, b"):
        found.resolve(None, None)


async def test_unknown_names(tmp_path: Path) -> None:
    """A model, a version, an alias that is not there."""
    publish(tmp_path, a=1)
    found = await registry(tmp_path)
    with pytest.raises(UnknownModelError):
        found.resolve("b", None)
    for wanted in ("2", "canary", "01", "-1", "1e3", ""):
        with pytest.raises(UnknownVersionError):
            found.resolve("a", wanted)


async def test_aliases(tmp_path: Path) -> None:
    """An alias stands for its version, is loaded whatever the policy, and `production` is the default."""
    store = publish(tmp_path, a=3)
    store.point("a", "canary", 2)
    assert (await registry(tmp_path)).resolve("a", None)[0].version == 3
    store.point("a", "production", 1)
    found = await registry(tmp_path)
    assert found.resolve("a", None)[0].version == 1
    assert found.resolve("a", "canary")[0].version == 2
    assert found.resolve("a", "latest")[0].version == 3


async def test_empty_store_is_not_ready(tmp_path: Path) -> None:
    """Nothing published: not ready, and a request is told so."""
    found = await registry(tmp_path)
    assert not found.ready
    with pytest.raises(NotReadyError):
        found.resolve(None, None)


async def test_ready_only_when_all_have_been_tried(tmp_path: Path) -> None:
    """While a chosen version is on its way the service is not ready, even if another is warm."""
    publish(tmp_path, a=1, b=1)
    engine, seen = FakeEngine(), []
    load = engine.load

    async def watched(model: ModelId, archive: Path) -> Spec:
        seen.append(found.ready)
        return await load(model, archive)

    engine.load = watched  # type: ignore[method-assign]
    found = Registry(Store(tmp_path), engine, Policy.parse("latest"))  # type: ignore[arg-type]  # a fake
    await found.load()
    assert seen == [False, False]
    assert found.ready


async def test_damaged_index_is_told(tmp_path: Path) -> None:
    """An index that cannot be read serves nothing and says why."""
    (tmp_path / "index.json").write_text("{")
    found = await registry(tmp_path)
    assert not found.ready
    assert "index.json" in (found.trouble or "")
