"""A store keeps its promises wherever it lies: in a folder, in memory, on an S3 server."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models import bucket
from models.place import INDEX, Place
from models.signature import Signer, Trust
from models.store import (
    ARCHIVE,
    REPORT,
    Index,
    NothingSuchError,
    RefusedError,
    Store,
    StoreBrokenError,
    StoreError,
    Traffic,
    digest_of,
)
from tests.far import S3Server, memory, s3_server

ROOT = Path(__file__).parents[2]
POINTER = """
import sys
from models.store import Store

for _ in range(4):
    Store(sys.argv[1]).want("load", int(sys.argv[2]), loaded=True)
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """A server for all tests here."""
    with s3_server() as server:
        yield server


@pytest.fixture(params=["folder", "file", "memory", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store may lie; nothing is there yet."""
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3")
        return server.fresh()
    folder = tmp_path / "store"
    return {"folder": str(folder), "file": f"file://{folder}", "memory": memory()}[request.param]


@pytest.fixture
def store(address: str) -> Store:
    """The store there."""
    return Store(address)


def write(version: int, folder: Path) -> str:
    """An archive with a report."""
    (folder / ARCHIVE).write_text(f"model {version}")
    (folder / REPORT).mkdir()
    (folder / REPORT / "report.md").write_text(f"report {version}")
    return digest_of(folder / ARCHIVE)


def fail(version: int, folder: Path) -> str:
    """As where a training ends early."""
    write(version, folder)
    raise OSError("no space left")


def place_of(store: Store) -> Place:
    """What the store lies in."""
    return store._place


def contents(store: Store, name: str, version: int, folder: Path) -> tuple[str, str]:
    """Archive and report of a version, as they are read by whoever fetches them."""
    folder.mkdir()
    archive = store.take(name, version, store.index().models[name].versions[version], folder)
    store.take_report(name, version, folder)
    return archive.read_text(), (folder / REPORT / "report.md").read_text()


def test_what_is_published_is_there(store: Store, tmp_path: Path) -> None:
    """Versions count up, and archive and report are what was written."""
    assert store.index() == Index()
    assert store.audit(9) == []
    assert [store.publish("load", write), store.publish("load", write), store.publish("sales", write)] == [1, 2, 1]

    assert store.index().models["load"].versions.keys() == {1, 2}
    assert contents(store, "load", 2, tmp_path / "copy") == ("model 2", "report 2")
    with store.opened("load", 1) as archive:
        assert archive.read_text() == "model 1"
    assert store.where("load", 2).endswith(f"load/2/{ARCHIVE}")


def test_every_change_holds_and_leaves_a_line(store: Store) -> None:
    """Aliases, splits, rollbacks, wishes and signatures, and who made them."""
    for _ in range(3):
        store.publish("load", write, by="alice")
    store.point("load", "production", 1, by="bob")
    store.point("load", "production", 2, split={3: 10}, by="bob")
    assert store.index().models["load"].traffic_of("production") == Traffic(split={3: 10}, previous=(1,))
    assert [store.roll_back("load", "production", by="carol") for _ in range(2)] == [2, 1]
    assert [store.want("load", 3, loaded=True, by="dave") for _ in range(2)] == [1, 2]
    store.drop("load", "production", by="erin")

    assert store.index().models["load"].aliases == {}
    assert [(line["by"], line["action"]) for line in store.audit(20)] == [
        *[("alice", "publish")] * 3,
        *[("bob", "point")] * 2,
        *[("carol", "roll back")] * 2,
        *[("dave", "load")] * 2,
        ("erin", "drop"),
    ]
    assert [line["action"] for line in store.audit(2)] == ["load", "drop"]
    with pytest.raises(NothingSuchError, match="there is no model 'sales'"):
        store.point("sales", "production", 1)
    with pytest.raises(RefusedError, match="more than 100 percent"):
        store.point("load", "production", 1, split={2: 60, 3: 41})
    assert len(store.audit(99)) == 10


def test_a_failure_in_write_leaves_nothing(store: Store) -> None:
    """The next one takes the number."""
    with pytest.raises(OSError, match="no space left"):
        store.publish("load", fail)

    assert store.index() == Index()
    assert not place_of(store).has_versions()
    assert store.publish("load", write) == 1


def test_nothing_counts_before_the_index_lists_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the index cannot be written, the archive that is there already goes again, and no reader saw it."""
    store.publish("load", write)

    def refuses(index: str, line: str) -> None:
        assert store.index().models["load"].versions.keys() == {1}
        raise StoreBrokenError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(place_of(store), "write", refuses)
        with pytest.raises(StoreBrokenError, match="the disk is full"):
            store.publish("load", write)

    assert store.index().models["load"].versions.keys() == {1}
    assert store.publish("load", write) == 2


def test_who_publishes_at_the_same_time_gets_another_number(store: Store) -> None:
    """Also while an archive is being written, which blocks nobody."""
    store.publish("load", write)

    def slowly(version: int, folder: Path) -> str:
        assert store.publish("load", write) == version + 1
        store.point("load", "production", 1)
        return write(version, folder)

    assert store.publish("load", slowly) == 2
    assert store.index().models["load"].versions.keys() == {1, 2, 3}


def test_changes_of_several_threads_are_all_there(address: str) -> None:
    """None is lost, though each reads the whole index and writes it whole."""
    store = Store(address)
    store.publish("load", write)
    start = threading.Barrier(3)

    def change(_: int) -> None:
        start.wait()
        for _ in range(3):
            Store(address).want("load", 1, loaded=True)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(change, range(3)))

    assert store.index().models["load"].wanted == {1: 9}
    assert len(store.audit(99)) == 10


def test_changes_of_several_processes_are_all_there(s3: S3Server) -> None:
    """On a server too, where there is nothing but an object that only one can make."""
    address = s3.fresh()
    store = Store(address)
    store.publish("load", write)
    command = [sys.executable, "-c", POINTER, address, "1"]
    others = [subprocess.Popen(command, cwd=ROOT, env=dict(os.environ)) for _ in range(2)]

    assert [other.wait() for other in others] == [0, 0]
    assert store.index().models["load"].wanted == {1: 8}


@pytest.mark.parametrize("content", ["", "{", '{"models": {"load": {"versions": {"1": "sha256:00"}}}}'])
def test_a_damaged_index_is_named(store: Store, content: str) -> None:
    """With where it is, and neither read nor replaced."""
    store.publish("load", write)
    with place_of(store).locked():
        place_of(store).write(content, "{}")

    for ask in (store.index, store.text, lambda: store.publish("load", write)):
        with pytest.raises(StoreBrokenError, match=rf"{place_of(store).at(INDEX)}: "):
            ask()


def test_versions_move_between_stores(store: Store, tmp_path: Path) -> None:
    """With number, report and signature, verified; a second time nothing happens."""
    signer = Signer.make(tmp_path / "key.pem")
    staging = Store(tmp_path / "staging")
    staging.publish("load", write)
    staging.publish("load", write, signer=signer)

    assert staging.copy("load", 2, store, by="alice")
    assert not staging.copy("load", 2, store)
    entry = store.index().models["load"]
    assert (entry.versions, entry.signatures) == (
        {2: staging.index().models["load"].versions[2]},
        {2: staging.index().models["load"].signatures[2]},
    )
    Trust.parse(signer.public).check("load", 2, entry.versions[2], entry.signatures[2])
    assert contents(store, "load", 2, tmp_path / "copy") == ("model 2", "report 2")
    assert [(line["by"], line["action"]) for line in store.audit(9)] == [("alice", "publish")]

    assert store.copy("load", 2, Store(tmp_path / "back"), signer=signer)
    assert contents(Store(tmp_path / "back"), "load", 2, tmp_path / "again") == ("model 2", "report 2")


def test_a_copy_takes_nobodys_number(store: Store, tmp_path: Path) -> None:
    """Neither a version's with another digest, nor one that is not there; what does not fit its digest is not taken."""
    staging = Store(tmp_path / "staging")
    staging.publish("load", write)
    store.publish("load", lambda version, folder: write(7, folder))

    with pytest.raises(RefusedError, match="has another load version 1; versions do not change"):
        staging.copy("load", 1, store)
    for name, version in (("load", 2), ("sales", 1)):
        with pytest.raises(NothingSuchError, match=f"{name} has no version 2|there is no model 'sales'"):
            staging.copy(name, version, store)
    staging.publish("load", write)
    staging.archive("load", 2).write_text("something else")
    with pytest.raises(StoreBrokenError, match=r"load/2/model\.pt: digest is sha256:"):
        staging.copy("load", 2, store)
    assert store.index().models["load"].versions.keys() == {1}
    assert store.publish("load", write) == 2


def test_a_lost_index_is_not_made_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that listed a new version alone would take all others out of service."""
    store.publish("load", write)
    monkeypatch.setattr(place_of(store), "read", lambda: None)

    with pytest.raises(StoreBrokenError, match=r"has versions and no index\.json: put that back first"):
        store.publish("sales", write)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nowhere://bucket/models", "nowhere:// is no protocol of fsspec"),
        ("s3://", "s3:// lacks a place in it, such as s3://bucket/models"),
        ("file://models", "file:// takes a path from the root on"),
        ("simplecache::s3://bucket", "is no protocol of fsspec"),
    ],
)
def test_an_address_that_nothing_can_read_is_told(text: str, reason: str) -> None:
    """With what is wrong about it."""
    pytest.importorskip("s3fs")
    with pytest.raises(StoreError, match=reason):
        Store(text)


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """And how it comes here."""
    monkeypatch.setattr(bucket, "find_spec", lambda package: None)
    with pytest.raises(StoreError, match=r"^gs:// needs the package gcsfs: pip install gcsfs$"):
        Store("gs://bucket/models")


@pytest.mark.parametrize("ask", [lambda store: store.root, lambda store: store.archive("load", 1)])
def test_only_a_folder_has_paths(ask: Callable[[Store], object]) -> None:
    """Who asks an object store for one has made a mistake, and is told which."""
    with pytest.raises(StoreError, match=r"memory://there/models is not a folder"):
        ask(Store("memory://there/models"))
