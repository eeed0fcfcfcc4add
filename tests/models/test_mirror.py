"""A mirror: what is in it is verified, and what is far away may be gone."""

import os
import threading
import time
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from models.mirror import Mirror
from models.store import ARCHIVE, INDEX, REPORT, Store, StoreBrokenError, StoreError, digest_of
from tests.far import memory


def write(version: int, folder: Path) -> str:
    """An archive with a report."""
    (folder / ARCHIVE).write_text(f"model {version}")
    (folder / REPORT).mkdir()
    (folder / REPORT / "report.md").write_text(f"report {version}")
    return digest_of(folder / ARCHIVE)


class World:
    """A store in memory with two versions, and a mirror of it."""

    def __init__(self, below: Path) -> None:
        self.address = memory()
        self.far = Store(self.address)
        for _ in range(2):
            self.far.publish("load", write)
        self.below = below
        self.mirror = Mirror(self.far, below)

    def fetch(self, version: int) -> Path:
        """Pull, fetch, and where it then lies."""
        self.mirror.pull()
        self.mirror.fetch("load", version, self.far.index().models["load"].versions[version])
        return self.mirror.store.archive("load", version)

    def put(self, name: str, content: bytes) -> None:
        """As somebody who may write there."""
        MemoryFileSystem().pipe_file(f"{self.address.removeprefix('memory:/')}/{name}", content)

    def forget(self, version: int) -> None:
        """As where a store is replaced by another one."""
        index = self.far.index()
        del index.models["load"].versions[version]
        self.put(INDEX, index.model_dump_json().encode())


@pytest.fixture
def w(tmp_path: Path) -> World:
    """A fresh one."""
    return World(tmp_path)


def test_it_has_the_index_and_what_was_fetched(w: World) -> None:
    """And nothing else: who reads it finds a store."""
    assert w.mirror.is_empty
    archive = w.fetch(2)

    assert not w.mirror.is_empty
    assert w.mirror.store.index() == w.far.index()
    assert archive.read_text() == "model 2"
    assert (archive.parent / REPORT / "report.md").read_text() == "report 2"
    assert not w.mirror.store.archive("load", 1).exists()
    assert not list(w.mirror.store.root.glob(".fetching-*"))


def test_it_follows_and_stands_still_where_nothing_changes(w: World) -> None:
    """Its own revision is another one only when the index is."""
    w.mirror.pull()
    before = w.mirror.store.revision()
    w.mirror.pull()
    assert w.mirror.store.revision() == before

    w.far.point("load", "production", 1)
    w.mirror.pull()
    assert w.mirror.store.revision() != before
    assert w.mirror.store.index().models["load"].aliases == {"production": 1}


@pytest.mark.parametrize("content", [b"mod", b"another model", b""])
def test_an_object_that_is_another_is_refused(w: World, content: bytes) -> None:
    """It never comes into the mirror, nor takes the place of what is right."""
    right = w.fetch(1)
    w.put("load/2/model.pt", content)
    w.put("load/1/model.pt", content)

    for _ in range(2):
        with pytest.raises(StoreBrokenError, match=r"load/2/model\.pt: digest is sha256:\w+, expected sha256:"):
            w.fetch(2)
    assert not w.mirror.store.archive("load", 2).exists()
    assert w.fetch(1).read_text() == right.read_text() == "model 1"

    w.put("load/2/model.pt", b"model 2")
    assert w.fetch(2).read_text() == "model 2"


def test_an_archive_that_was_damaged_here_is_fetched_again(w: World) -> None:
    """What the engine would refuse is no reason to keep it."""
    w.fetch(2).write_text("mod")
    assert w.fetch(2).read_text() == "model 2"


def test_a_store_that_is_away_changes_nothing(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fetched is there, from the start on; what was not is told."""
    w.fetch(2)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *_, **__: 1 / 0)
    again = Mirror(Store(w.address), w.below)

    with pytest.raises(StoreBrokenError, match="division by zero"):
        again.pull()
    versions = again.store.index().models["load"].versions
    again.fetch("load", 2, versions[2])
    with pytest.raises(StoreBrokenError, match="division by zero"):
        again.fetch("load", 1, versions[1])


@pytest.mark.parametrize("content", [b"", b"{", b'{"models": {"../x": {}}}'])
def test_an_index_that_is_damaged_does_not_come_here(w: World, content: bytes) -> None:
    """The one of before stays."""
    w.mirror.pull()
    before = w.mirror.store.index()
    w.put(INDEX, content)
    with pytest.raises(StoreBrokenError, match=INDEX):
        w.mirror.pull()
    assert w.mirror.store.index() == before


def test_an_index_that_is_gone_takes_nothing_away(w: World) -> None:
    """Who deletes a bucket unloads no model; where there never was one, there is nothing."""
    w.mirror.pull()
    MemoryFileSystem().rm_file(f"{w.address.removeprefix('memory:/')}/{INDEX}")
    with pytest.raises(StoreBrokenError, match="has no index any more"):
        w.mirror.pull()
    assert w.mirror.store.index().models.keys() == {"load"}

    nothing = Mirror(Store(memory()), w.below)
    nothing.pull()
    assert nothing.is_empty


def test_what_is_listed_no_more_goes_in_time(w: World) -> None:
    """So do the remains of a process that died; what is young may be known to another service alone."""
    for version in (1, 2):
        w.fetch(version)
    left = w.mirror.store.root / ".fetching-left"
    left.mkdir()
    w.forget(1)
    w.mirror.pull()
    assert w.mirror.store.archive("load", 1).exists()

    old = time.time() - 7200
    for path in (left, w.mirror.store.archive("load", 1).parent, w.mirror.store.archive("load", 2).parent):
        os.utime(path, (old, old))
    w.far.point("load", "production", 2)
    w.mirror.pull()
    assert sorted(path.name for path in w.mirror.store.root.rglob("*") if path.is_dir()) == ["2", "load", "report"]


def test_several_may_have_one_mirror(w: World) -> None:
    """Each finds whole files at every moment, whoever puts them there."""
    digest = w.far.index().models["load"].versions[2]
    mirrors = [Mirror(Store(w.address), w.below) for _ in range(4)]
    failed: list[BaseException] = []

    def follow(mirror: Mirror) -> None:
        try:
            for _ in range(5):
                mirror.pull()
                mirror.fetch("load", 2, digest)
                assert digest_of(mirror.store.archive("load", 2)) == digest
        except BaseException as error:  # noqa: BLE001  told below
            failed.append(error)

    threads = [threading.Thread(target=follow, args=(mirror,)) for mirror in mirrors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert (w.mirror.store.archive("load", 2).parent / REPORT / "report.md").exists()


def test_each_store_has_a_mirror_of_its_own(tmp_path: Path) -> None:
    """In one folder for all, and without what is secret in its name."""
    roots = {
        Mirror(Store(address), tmp_path).store.root.name
        for address in ("memory://a/models", "memory://a-models", "memory://user:s3cret@a/models")
    }
    assert len(roots) == 3
    assert not any("s3cret" in root for root in roots)


def test_a_report_that_cannot_be_had_keeps_no_version_out(w: World, caplog: pytest.LogCaptureFixture) -> None:
    """The log says so, and the next one who asks tries again."""
    w.put("load/2/report/huge.png", bytes(17 * 2**20))
    archive = w.fetch(2)
    assert archive.read_text() == "model 2"
    assert not (archive.parent / REPORT).exists()
    assert "the report of load version 2 is not to be had" in caplog.text

    w.put("load/2/report/huge.png", b"small")
    w.fetch(2)
    assert (archive.parent / REPORT / "huge.png").read_bytes() == b"small"


def test_nobody_is_asked_for_what_is_here(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor for a report that was never there: an engine that starts again waits for nothing far away."""
    w.far.publish("load", lambda version, folder: write_plain(folder))
    w.fetch(3)
    digest = w.far.index().models["load"].versions[3]
    for method in ("cat_file", "ls", "info"):
        monkeypatch.setattr(MemoryFileSystem, method, lambda *_, **__: 1 / 0)
    w.mirror.fetch("load", 3, digest)


def write_plain(folder: Path) -> str:
    """An archive without a report."""
    (folder / ARCHIVE).write_text("plain")
    return digest_of(folder / ARCHIVE)


def test_a_mirror_that_cannot_be_written_is_told(w: World, tmp_path: Path) -> None:
    """With the folder."""
    (tmp_path / "file").write_text("")
    mirror = Mirror(w.far, tmp_path / "file")
    with pytest.raises(StoreError, match="cannot be written to: Not a directory"):
        mirror.pull()
    with pytest.raises(StoreError, match="cannot be written to: Not a directory"):
        mirror.fetch("load", 1, w.far.index().models["load"].versions[1])
