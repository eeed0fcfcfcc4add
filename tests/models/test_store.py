"""The store: what publishing promises to readers, to other publishers and to whoever cleans up after a crash."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models import artifact
from models.store import ARCHIVE, INDEX, Index, Store, StoreError
from tests import builders

DIGEST = "sha256:" + "0" * 64
OTHER = "sha256:" + "1" * 64
ROOT = Path(__file__).parents[2]
PUBLISHER = """
import sys
from pathlib import Path
from models.store import Store

for _ in range(10):
    print(Store(Path(sys.argv[1])).publish("load", lambda version, folder: sys.argv[2]))
"""


def _writes(content: str = "model", *, digest: str = DIGEST) -> Callable[[int, Path], str]:
    def write(version: int, folder: Path) -> str:
        (folder / ARCHIVE).write_text(f"{content} {version}")
        return digest

    return write


def _fails(version: int, folder: Path) -> str:
    (folder / ARCHIVE).write_text("half of a mo")
    raise OSError("no space left")


def _publish_several(root: Path, times: int) -> list[int]:
    return [Store(root).publish("load", _writes()) for _ in range(times)]


def _tree(root: Path) -> dict[str, str]:
    """Every file's content, and every folder, but for the lock."""
    return {
        str(path.relative_to(root)): path.read_text() if path.is_file() else ""
        for path in root.rglob("*")
        if path.name != ".lock"
    }


def test_publishing_numbers_the_versions_of_each_model(tmp_path: Path) -> None:
    """Versions count up from one, each model on its own, and `write` is told the number it writes."""
    store = Store(tmp_path / "artifacts")

    assert [store.publish("load", _writes()), store.publish("load", _writes(digest=OTHER))] == [1, 2]
    assert store.publish("sales", _writes()) == 1
    assert store.archive("load", 2).read_text() == "model 2"
    assert store.index().models["load"].versions == {1: DIGEST, 2: OTHER}
    assert store.index().models["sales"].versions == {1: DIGEST}


def test_a_published_model_loads_by_the_index_alone(tmp_path: Path) -> None:
    """Index, folder and archive fit together: name, version and digest lead to a model that answers."""
    store = Store(tmp_path)
    version = builders.publish_tiny(store, "load", roles=("target", "future"))

    digest = store.index().models["load"].versions[version]
    loaded = artifact.load(store.archive("load", version), digest=digest)

    assert (loaded.spec.name, loaded.spec.version) == ("load", version)


def test_a_folder_without_an_index_is_an_empty_store(tmp_path: Path) -> None:
    """Reading needs no store to be there, and makes none."""
    assert Store(tmp_path / "nowhere").index() == Index()
    assert list(tmp_path.iterdir()) == []


def test_a_failure_in_write_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    """Of a version that could not be written nothing stays behind, and the next one takes its number."""
    store = Store(tmp_path)
    store.publish("load", _writes())
    before = _tree(tmp_path)

    for name in ("load", "sales"):
        with pytest.raises(OSError, match="no space left"):
            store.publish(name, _fails)

    assert _tree(tmp_path) == before
    assert store.publish("load", _writes()) == 2


@pytest.mark.parametrize("digest", ["", "0" * 64, "sha256:short", "md5:" + "0" * 64])
def test_what_is_no_digest_is_not_published(tmp_path: Path, digest: str) -> None:
    """A version that no reader could verify is refused before it appears."""
    with pytest.raises(StoreError, match=r"models\.load\.versions\.1: "):
        Store(tmp_path).publish("load", _writes(digest=digest))

    assert _tree(tmp_path) == {}


def test_an_unlisted_folder_is_never_overwritten(tmp_path: Path) -> None:
    """What a publisher left that died before listing it keeps its number, and what is in it."""
    store = Store(tmp_path)
    store.publish("load", _writes())
    left = store.archive("load", 2)
    left.parent.mkdir()
    left.write_text("unlisted")

    assert store.publish("load", _writes()) == 3
    assert left.read_text() == "unlisted"
    assert store.index().models["load"].versions.keys() == {1, 3}


def test_a_listed_version_without_a_folder_keeps_its_number(tmp_path: Path) -> None:
    """A number once given away stands for one digest for ever, even where the folder is gone."""
    store = Store(tmp_path)
    store.publish("load", _writes())
    store.archive("load", 1).unlink()
    store.archive("load", 1).parent.rmdir()

    assert store.publish("load", _writes(digest=OTHER)) == 2


def test_publishers_in_threads_get_different_versions(tmp_path: Path) -> None:
    """Publishers of one process do not lose each other's versions."""
    with ThreadPoolExecutor(8) as pool:
        lists = list(pool.map(_publish_several, [tmp_path] * 8, [5] * 8))

    assert sorted(version for versions in lists for version in versions) == list(range(1, 41))
    assert sorted(Store(tmp_path).index().models["load"].versions) == list(range(1, 41))


def test_publishers_in_processes_get_different_versions(tmp_path: Path) -> None:
    """Publishers of several processes do not lose each other's versions either."""
    command = [sys.executable, "-c", PUBLISHER, str(tmp_path), DIGEST]
    publishers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = [publisher.communicate()[0] for publisher in publishers]

    assert sorted(int(version) for text in printed for version in text.split()) == list(range(1, 31))
    assert sorted(Store(tmp_path).index().models["load"].versions) == list(range(1, 31))


def test_a_reader_sees_whole_versions_only(tmp_path: Path) -> None:
    """While versions appear and an alias moves, every index read is whole and every archive it lists is there."""
    store = Store(tmp_path)
    done = threading.Event()

    def publish() -> None:
        try:
            for _ in range(40):
                store.point("load", "production", store.publish("load", _writes()))
        finally:
            done.set()

    seen: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(publish)
        while not done.is_set():
            versions = store.index().models["load"].versions if store.index().models else {}
            assert all(store.archive("load", version).read_text() == f"model {version}" for version in versions)
            seen.append(len(versions))
        publishing.result()

    assert seen == sorted(seen)
    assert len(store.index().models["load"].versions) == 40


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("", "Invalid JSON"),
        ('{"models": {', "Invalid JSON"),
        ("[]", "object"),
        ('{"models": {"load": {"versions": {"1": "sha256:00"}}}}', r"models\.load\.versions\.1: "),
        ('{"models": {"load": {"versions": {"0": "' + DIGEST + '"}}}}', r"models\.load\.versions\.0"),
        ('{"models": {"../x": {}}}', r"models\.\.\./x"),
        ('{"models": {"load": {"aliases": {"latest": 1}}}}', r"models\.load\.aliases\.latest"),
        ('{"model": {}}', "model: "),
    ],
)
def test_a_damaged_index_is_named_with_the_place(tmp_path: Path, content: str, place: str) -> None:
    """Neither a reader nor a publisher goes on with an index that is damaged, and none repairs it unasked."""
    path = tmp_path / INDEX
    path.write_text(content)
    reason = rf"{INDEX}: .*{place}"

    with pytest.raises(StoreError, match=reason):
        Store(tmp_path).index()
    with pytest.raises(StoreError, match=reason):
        Store(tmp_path).publish("load", _writes())
    assert _tree(tmp_path) == {INDEX: content}


def test_an_index_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """What the system says of the file is said with the file's name."""
    (tmp_path / INDEX).mkdir()

    with pytest.raises(StoreError, match=rf"{INDEX}: Is a directory"):
        Store(tmp_path).index()


def test_an_alias_stands_for_a_version_and_can_move(tmp_path: Path) -> None:
    """An alias points where it was last pointed, and publishing does not move it."""
    store = Store(tmp_path)
    store.publish("load", _writes())
    store.point("load", "production", 1)
    store.publish("load", _writes())
    assert store.index().models["load"].aliases == {"production": 1}

    store.point("load", "production", 2)
    store.point("load", "canary", 1)
    assert store.index().models["load"].aliases == {"production": 2, "canary": 1}
    assert store.index().models["load"].versions.keys() == {1, 2}


@pytest.mark.parametrize(("name", "version"), [("load", 2), ("load", 0), ("sales", 1)])
def test_an_alias_cannot_stand_for_what_is_not_there(tmp_path: Path, name: str, version: int) -> None:
    """Pointing at a version that is not published is refused, naming it."""
    store = Store(tmp_path)
    store.publish("load", _writes())
    before = _tree(tmp_path)

    with pytest.raises(StoreError, match=f"{name} has no version {version}"):
        store.point(name, "production", version)
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("alias", ["latest", "", "7", "Production", "a b", "../x", "a\n"])
def test_refuses_a_bad_alias(tmp_path: Path, alias: str) -> None:
    """`latest` always means the newest version, and a number always means itself."""
    store = Store(tmp_path)
    store.publish("load", _writes())
    before = _tree(tmp_path)

    with pytest.raises(StoreError, match=r"models\.load\.aliases"):
        store.point("load", alias, 1)
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("name", ["../x", "A", "", "a/b", ".hidden", "a\n"])
def test_refuses_a_bad_model_name(tmp_path: Path, name: str) -> None:
    """No name leads out of the store, and nothing is written under one that would."""
    root = tmp_path / "artifacts"

    with pytest.raises(StoreError, match="cannot be a model's name"):
        Store(root).publish(name, _writes())
    assert list(tmp_path.iterdir()) == []


def test_the_index_is_a_document_for_people_too(tmp_path: Path) -> None:
    """The index is indented JSON, one line a version, so that a diff shows what was published."""
    store = Store(tmp_path)
    store.publish("load", _writes())
    store.point("load", "production", 1)

    text = (tmp_path / INDEX).read_text()

    assert json.loads(text) == {"models": {"load": {"versions": {"1": DIGEST}, "aliases": {"production": 1}}}}
    assert f'"1": "{DIGEST}"' in text.splitlines()[4]


def test_others_may_read_what_is_published(tmp_path: Path) -> None:
    """A service that runs as another user can open the index and enter a version's folder."""
    store = Store(tmp_path)
    store.publish("load", _writes())

    assert (tmp_path / INDEX).stat().st_mode & 0o777 == 0o644
    assert store.archive("load", 1).parent.stat().st_mode & 0o777 == 0o755
