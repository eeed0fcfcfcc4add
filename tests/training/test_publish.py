"""From a fitted network to a published version: what it says, what lies beside it, what a failure leaves."""

import hashlib
from pathlib import Path

import pytest

from models import artifact
from models.artifact import Artifact
from models.spec import Spec
from models.store import Index, Store
from tests.training import world
from tests.training.world import Made
from training.publishing.publish import Published, publish
from training.reporting import report


@pytest.fixture(scope="module")
def once(made: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Published]:
    """A store with one version, to be looked at alone."""
    store = Store(tmp_path_factory.mktemp("store"))
    return store, publish(*made, store)


def loaded(store: Store, version: int = 1) -> Artifact:
    digest = store.index().models["tiny"].versions[version]
    return artifact.load(store.archive("tiny", version), digest=digest)


def test_a_published_version_loads_and_knows_where_it_comes_from(made: Made, once: tuple[Store, Published]) -> None:
    """The archive passes its own example, and its spec has data, split, recipe, seed and libraries."""
    store, published = once

    spec = loaded(store).spec
    file = Path(made[0].data.files[0])

    assert (spec.name, spec.version, published.version) == ("tiny", 1, 1)
    assert spec.columns == list(world.COLUMNS)
    assert spec.targets == ["load", "heat"]
    assert spec.training.data[0].file == "rows.csv"
    assert spec.training.data[0].sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert spec.training.recipe == made[0].record()
    assert set(spec.training.libraries) == {"python", "torch", "lightning", "numpy", "polars"}
    assert spec.training.train.end == spec.training.validation.start
    assert (spec.example.steps, len(spec.example.attention)) == (3, 3)
    assert spec.metrics == published.metrics


def test_the_archive_tells_nothing_of_the_disk(made: Made, once: tuple[Store, Published]) -> None:
    """Neither the folder of the data nor that of the code is in its bytes."""
    _, published = once

    archive = published.archive.read_bytes()

    assert str(Path(made[0].data.files[0]).parent).encode() not in archive
    assert str(Path(artifact.__file__).parents[1]).encode() not in archive


def test_the_next_version_lies_beside_the_first(made: Made, tmp_path: Path) -> None:
    """Publishing again changes nothing of what is there."""
    store = Store(tmp_path)
    publish(*made, store)
    first = store.archive("tiny", 1).read_bytes()

    assert publish(*made, store).version == 2
    assert store.archive("tiny", 1).read_bytes() == first
    assert loaded(store, 2).spec.version == 2


def test_a_failure_leaves_the_store_as_it_was(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the report cannot be written, there is no version, no entry and nothing half-done."""

    def fail(folder: Path, spec: Spec, *rest: object) -> None:
        raise OSError(f"no room for {folder.name} of version {spec.version}")

    store = Store(tmp_path)
    publish(*made, store)
    monkeypatch.setattr(report, "write", fail)

    with pytest.raises(OSError, match="no room for report of version 2"):
        publish(*made, store)

    assert list(store.index().models["tiny"].versions) == [1]
    assert sorted(path.name for path in (tmp_path / "tiny").iterdir()) == ["1"]
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "audit.jsonl", "index.json", "tiny"}
    assert Index.model_validate_json((tmp_path / "index.json").read_text()) == store.index()
