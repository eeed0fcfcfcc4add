"""What may go wrong far away: locks of the dead, answers that do not come, objects that are not what they were."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from models import bucket
from models.bucket import LOCK, Bucket
from models.place import INDEX, UncertainError
from models.store import ARCHIVE, REPORT, Store, StoreBrokenError, StoreError, digest_of
from tests.app.serving import wait_until
from tests.far import S3Server, memory, s3_server
from tests.patience import PATIENCE_S

SECRET = "s3cret"


def write(version: int, folder: Path) -> str:
    """An archive."""
    (folder / ARCHIVE).write_text(f"model {version}")
    return digest_of(folder / ARCHIVE)


class Faulty:
    """A store in memory whose driver does as it is told, before what it would do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.address = memory()
        self.system = MemoryFileSystem()
        self.root = self.address.removeprefix("memory:/")
        self._monkeypatch = monkeypatch
        self.store = Store(self.address)
        self.store.publish("load", write)

    def before(self, method: str, act: Callable[..., Any]) -> None:
        """Call `act` with the path, and go on only where it gives nothing."""
        real = getattr(MemoryFileSystem, method)

        def called(system: MemoryFileSystem, path: str, *given: Any, **named: Any) -> Any:  # noqa: ANN401  a driver's
            done = act(path, *given, **named)
            return real(system, path, *given, **named) if done is None else done

        self._monkeypatch.setattr(MemoryFileSystem, method, called)

    def mend(self) -> None:
        """All is as it should be."""
        self._monkeypatch.undo()

    def put(self, name: str, content: bytes) -> None:
        """As somebody else."""
        self.system.pipe_file(f"{self.root}/{name}", content)

    def names(self) -> set[str]:
        """All objects, but those of the audit log."""
        return {
            name for path in self.system.find(self.root) if not (name := path[len(self.root) + 1 :]).startswith("audit")
        }


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Faulty:
    """One with a version."""
    return Faulty(monkeypatch)


class Strangers(dict[str, threading.Lock]):
    """No two of them have a lock in common."""

    def setdefault(self, key: str, default: threading.Lock) -> threading.Lock:  # type: ignore[override]
        del key
        return default


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store in memory makes an object exclusively, but for threads that come between its look and its making."""
    real, turn = MemoryFileSystem.pipe_file, threading.Lock()

    def alone(*given: Any, **named: Any) -> object:  # noqa: ANN401  a driver's
        with turn:
            return real(*given, **named)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", alone)


# The lock


def test_a_lock_of_somebody_who_died_is_taken_over(far: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its lease; of several who wait for that, one after the other gets it."""
    far.put(LOCK, b'{"by": "a publisher that died"}')
    monkeypatch.setattr(bucket, "LEASE_S", 2.0)

    # Not in turn, as threads of one process are, but as several processes.
    monkeypatch.setattr(bucket, "_ours", Strangers())
    one_by_one(monkeypatch)
    others = [
        threading.Thread(target=Store(far.address).want, args=("load", 1), kwargs={"loaded": True}) for _ in range(3)
    ]
    for other in others:
        other.start()
    for other in others:
        other.join()

    assert far.store.index().models["load"].wanted == {1: 3}
    assert far.names() == {INDEX, "load/1/model.pt"}


def test_a_lock_that_somebody_keeps_is_told(far: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """With who has it and since when, and it is left alone."""
    held = json.dumps({"by": "alice at desk", "since": "2026-01-01T00:00:00+00:00"}).encode()
    far.put(LOCK, held)
    monkeypatch.setattr(bucket, "PATIENCE_S", 0.1)

    reason = "has been locked for 0.1 s, by alice at desk since 2026-01-01T00:00:00"
    with pytest.raises(StoreBrokenError, match=reason.replace("+", r"\+")):
        far.store.point("load", "production", 1)
    assert far.system.cat_file(f"{far.root}/{LOCK}") == held
    assert far.store.index().models["load"].aliases == {}


def test_nobody_writes_without_the_lock(far: Faulty) -> None:
    """Where another has taken it over meanwhile, the change is not made, and the other keeps it."""
    place = far.store._place
    far.before("pipe_file", lambda path, *_, **__: far.put(LOCK, b"theirs") if "/audit/" in path else None)

    with pytest.raises(StoreBrokenError, match="the lock was lost to somebody else meanwhile; nothing is changed"):
        far.store.point("load", "production", 1)
    assert far.store.index().models["load"].aliases == {}
    assert isinstance(place, Bucket)
    assert far.system.cat_file(f"{far.root}/{LOCK}") == b"theirs"


def test_a_store_that_makes_nothing_exclusively_is_not_changed(far: Faulty) -> None:
    """Two who write at once would lose what one of them wrote."""
    far.before("pipe_file", lambda path, content, mode="": far.put(LOCK, content) or True if mode == "create" else None)

    with pytest.raises(StoreBrokenError, match="can be read but not changed: of two who make the same object"):
        Store(far.address).point("load", "production", 1)
    assert far.names() == {INDEX, "load/1/model.pt"}


# Answers


def test_nothing_waits_for_ever(far: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not answer is told so, and is not asked more and more while it still has not."""
    monkeypatch.setattr(bucket, "ANSWER_S", 0.05)
    answer, asked = threading.Event(), []

    def hang(path: str, **_: object) -> None:
        asked.append(path)
        answer.wait(PATIENCE_S)

    far.before("cat_file", hang)
    for _ in range(6):
        with pytest.raises(StoreBrokenError, match=r"store-\d+/models (has not answered for 0.05 s|does not answer)"):
            far.store.index()
    assert len(asked) == 4

    def answers() -> bool:
        try:
            return far.store.index().models["load"].versions.keys() == {1}
        except StoreBrokenError:  # those that hung are about to end
            return False

    answer.set()
    wait_until(answers)


def test_a_change_whose_answer_is_lost_is_uncertain(
    far: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may arrive later: what is published stays, and nobody else writes as long as that may be."""
    arrive = threading.Event()
    real = bucket._time_for
    monkeypatch.setattr(bucket, "_time_for", lambda size: real(size) if not slow else 0.05)
    slow: list[str] = []

    def hang(path: str, *_: object, **__: object) -> None:
        if path.endswith(INDEX):
            slow.append(path)
            arrive.wait(PATIENCE_S)

    def soon(index: str, line: str) -> None:
        slow.append("")
        write_it(index, line)

    write_it = far.store._place.write
    monkeypatch.setattr(far.store._place, "write", soon)
    far.before("pipe_file", hang)
    with pytest.raises(UncertainError, match="whether the change is made, look before you repeat it"):
        far.store.publish("load", write)
    assert {"load/2/model.pt", LOCK} <= far.names()

    arrive.set()
    wait_until(lambda: 2 in far.store.index().models["load"].versions)
    assert far.store.take("load", 2, far.store.index().models["load"].versions[2], tmp_path).read_text() == "model 2"


@pytest.mark.parametrize("what", ["load/2/model.pt", "load/2/report/report.md", INDEX])
def test_a_put_that_fails_leaves_nothing(far: Faulty, what: str) -> None:
    """Whichever it is: what was put before it goes again, and the next one takes the number."""

    def refuse(path: str, *_: object, **__: object) -> None:
        if path.endswith(what):
            raise PermissionError(13, "Access Denied")

    def with_report(version: int, folder: Path) -> str:
        (folder / REPORT).mkdir()
        (folder / REPORT / "report.md").write_text("report")
        return write(version, folder)

    far.before("pipe_file", refuse)
    with pytest.raises(StoreBrokenError, match=r"store-\d+/models: .*Access Denied"):
        far.store.publish("load", with_report)
    assert far.names() == {INDEX, "load/1/model.pt"}
    far.mend()
    assert far.store.publish("load", with_report) == 2


def test_what_arrives_cut_short_is_not_listed(far: Faulty) -> None:
    """Whatever is put is read back."""

    done: list[str] = []

    def cut(path: str, content: bytes, **_: object) -> bool | None:
        if not path.endswith(ARCHIVE) or done:
            return None
        done.append(path)
        far.put("load/2/model.pt", content[:-1])
        return True

    far.before("pipe_file", cut)
    with pytest.raises(StoreBrokenError, match=r"load/2/model\.pt is not what was sent"):
        far.store.publish("load", write)
    assert far.names() == {INDEX, "load/1/model.pt"}


def test_what_somebody_else_has_put_is_not_replaced(far: Faulty) -> None:
    """A publisher that died has left an archive there: its number is passed over."""
    far.put("load/2/model.pt", b"left")
    assert far.store.publish("load", write) == 3
    assert far.system.cat_file(f"{far.root}/load/2/model.pt") == b"left"


def test_of_a_report_only_files_of_its_own_are_taken(far: Faulty, tmp_path: Path) -> None:
    """No name leads out of the folder, and no object fills the disk."""
    for name in ("report.md", ".hidden", "a b", "deep/file.md"):
        far.put(f"load/1/report/{name}", b"x")
    far.store.take_report("load", 1, tmp_path)
    assert [path.name for path in (tmp_path / REPORT).iterdir()] == ["report.md"]

    far.put("load/1/report/huge.png", bytes(17 * 2**20))
    (tmp_path / "other").mkdir()
    with pytest.raises(StoreBrokenError, match=r"huge\.png has 17825792 bytes, more than is taken"):
        far.store.take_report("load", 1, tmp_path / "other")


def test_the_log_of_a_folder_that_was_copied_here_counts(far: Faulty) -> None:
    """What was done to it before comes first."""
    far.put("audit.jsonl", b'{"action": "first"}\n{"action": "second"}\n')
    assert [line["action"] for line in far.store.audit(9)] == ["first", "second", "publish"]
    assert [line["action"] for line in far.store.audit(2)] == ["second", "publish"]
    assert [line["action"] for line in far.store.audit(1)] == ["publish"]


# Secrets


@pytest.mark.parametrize(
    "address",
    [
        f"memory://user:{SECRET}@host/models",
        f"memory://{SECRET}@host/models?sig={SECRET}",
        f"memory://user:{SECRET}%2F@host/models",
    ],
)
def test_no_message_tells_a_secret(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the store's own nor what a driver says."""
    caplog.set_level(logging.DEBUG)
    store = Store(address)
    password = urlsplit(address).password or "nothing"

    def refuse(*_: object, **__: object) -> bytes:
        raise ValueError(f"cannot ask {address} as user with {password} or {unquote(password)}")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    with pytest.raises(StoreError) as caught:
        store.index()
    told = f"{caught.value} {store.name} {store.where('load', 1)} {caught.value.__cause__}"
    assert "cannot ask memory://...@host/models" in told
    assert SECRET not in told
    assert address not in caplog.text


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """A server for the tests below."""
    with s3_server() as server:
        yield server


def test_a_server_that_is_away_is_told_and_comes_back(s3: S3Server) -> None:
    """A change while it is away is an error, and nothing of it is there later."""
    store = Store(s3.fresh())
    store.publish("load", write)
    s3.stop()
    try:
        for ask in (store.index, lambda: store.point("load", "production", 1), lambda: store.publish("load", write)):
            with pytest.raises(StoreBrokenError, match=f"{store.name}: Could not connect"):
                ask()
    finally:
        s3.start()

    assert store.index().models["load"].aliases == {}
    assert store.publish("load", write) == 2


def test_a_bucket_that_is_not_there_is_told(s3: S3Server) -> None:
    """By whoever wants to write to it; to read there is nothing."""
    store = Store("s3://nobodys-bucket/models")
    assert store.index().models == {}
    with pytest.raises(StoreBrokenError, match="bucket does not exist"):
        store.publish("load", write)
