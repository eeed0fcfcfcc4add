"""The store: what publishing promises to readers, to other publishers and to whoever cleans up after a crash."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from models import artifact, place
from models.signature import Signer, Trust
from models.store import (
    ARCHIVE,
    AUDIT,
    INDEX,
    Entry,
    Index,
    NothingSuchError,
    RefusedError,
    Store,
    StoreBrokenError,
    StoreError,
    Traffic,
)
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

DYING = """
import os, signal, sys
from pathlib import Path
from models.store import Store

def write(version, folder):
    (folder / "model.pt").write_text("half of a mo")
    os.kill(os.getpid(), signal.SIGKILL)

Store(Path(sys.argv[1])).publish("load", write)
"""
FULL = """
import resource, signal, sys
from pathlib import Path
from models.store import Store, StoreError

root, room, digest = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store(root)
changes = (
    lambda: store.point("load", "production", 2),
    lambda: store.want("load", 2, loaded=True),
    lambda: store.publish("load", lambda version, folder: digest),
)
with (root / "audit.jsonl").open("a") as file:
    file.write(" " * room)  # so that there is never room for more of it
resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
for change in changes:
    try:
        change()
    except StoreError as error:
        print(type(error).__name__)
        print(error, file=sys.stderr)
"""
HOLDER = """
import fcntl, sys
from pathlib import Path

with (Path(sys.argv[1]) / ".lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.read()
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

    with pytest.raises(StoreError, match=f"{name} has no version {version}|there is no model '{name}'"):
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


# Aliases with more to them


def _store_of(root: Path, versions: int = 4) -> Store:
    """`load` with so many versions."""
    store = Store(root)
    for _ in range(versions):
        store.publish("load", _writes())
    return store


def _entry(store: Store) -> Entry:
    return store.index().models["load"]


def _forget_version(store: Store, version: int) -> None:
    """As where the store is replaced by another one."""
    path = store.root / INDEX
    index = json.loads(path.read_text())
    del index["models"]["load"]["versions"][str(version)]
    path.write_text(json.dumps(index))


def test_an_index_without_anything_new_is_as_it_always_was(tmp_path: Path) -> None:
    """A reader from before splits, signatures and wishes finds what it knows, and its own index is read."""
    store = _store_of(tmp_path, 1)
    store.point("load", "production", 1)

    assert json.loads((tmp_path / INDEX).read_text())["models"]["load"].keys() == {"versions", "aliases"}
    assert (_entry(store).traffic, _entry(store).wanted, _entry(store).signatures) == ({}, {}, {})


def test_an_alias_is_split_and_shadowed_until_it_is_pointed_anew(tmp_path: Path) -> None:
    """What is said with an alias holds for it alone, and only as long as nothing else is said."""
    store = _store_of(tmp_path)
    store.point("load", "production", 1, split={2: 10, 3: 2.5}, shadow=4)
    store.point("load", "canary", 4)

    assert _entry(store).traffic_of("production") == Traffic(split={2: 10, 3: 2.5}, shadow=4)
    assert _entry(store).traffic_of("canary") == Traffic()
    assert _entry(store).in_use() == {1, 2, 3, 4}

    store.point("load", "production", 1)
    assert _entry(store).traffic == {}
    assert _entry(store).in_use() == {1, 4}


@pytest.mark.parametrize(
    ("version", "split", "shadow", "reason"),
    [
        (9, {}, None, "load has no version 9"),
        (1, {9: 10}, None, "load has no version 9"),
        (1, {}, 9, "load has no version 9"),
        (1, {1: 10}, None, "version 1 is what production stands for"),
        (1, {}, 1, "version 1 is what production stands for"),
        (1, {2: 60, 3: 41}, None, "more than 100 percent"),
        (1, {2: 0}, None, r"split\.2: .*greater than 0"),
        (1, {2: -5}, None, r"split\.2: .*greater than 0"),
        (1, {2: float("nan")}, None, r"split\.2: "),
        (1, {2: 100.5}, None, r"split\.2: .*less than or equal to 100"),
    ],
)
def test_refuses_traffic_that_makes_no_sense(
    tmp_path: Path, version: int, split: dict[int, float], shadow: int | None, reason: str
) -> None:
    """With the reason, and nothing is changed nor stands in the audit log."""
    store = _store_of(tmp_path)
    store.point("load", "production", 2)
    before = _tree(tmp_path)

    with pytest.raises(StoreError, match=reason):
        store.point("load", "production", version, split=split, shadow=shadow)
    assert _tree(tmp_path) == before


def test_rolling_back_goes_back_step_by_step(tmp_path: Path) -> None:
    """First a split and a shadow end, then the alias stands for what it did before, and so on as far as it goes."""
    store = _store_of(tmp_path)
    for version in (1, 3, 3, 2):
        store.point("load", "production", version)
    store.point("load", "production", 2, split={4: 50}, shadow=1)

    assert _entry(store).traffic_of("production").previous == (1, 3)
    assert [store.roll_back("load", "production") for _ in range(3)] == [2, 3, 1]
    assert _entry(store).traffic == {}
    with pytest.raises(RefusedError, match="production has stood for nothing but version 1"):
        store.roll_back("load", "production")
    assert _entry(store).aliases == {"production": 1}


def test_rolling_back_passes_over_what_is_gone(tmp_path: Path) -> None:
    """Neither to a version that is not published any more, nor to the one that the alias stands for anyhow."""
    store = _store_of(tmp_path)
    for version in (4, 1, 2, 1):
        store.point("load", "production", version)
    assert _entry(store).in_use() == {1, 2}
    _forget_version(store, 2)

    assert _entry(store).before("production") == (4,)
    assert _entry(store).in_use() == {1, 4}
    assert store.roll_back("load", "production") == 4


def test_so_many_former_versions_are_remembered(tmp_path: Path) -> None:
    """A hundred changes do not make the index longer and longer."""
    store = _store_of(tmp_path, 2)
    for turn in range(25):
        store.point("load", "production", turn % 2 + 1)

    assert _entry(store).traffic_of("production").previous == (1, 2) * 5


def test_an_alias_is_dropped_with_all_that_was_said_of_it(tmp_path: Path) -> None:
    """The others stay, and an alias or a model that is not there is told."""
    store = _store_of(tmp_path, 2)
    store.point("load", "production", 1, shadow=2)
    store.point("load", "canary", 2, split={1: 5})
    store.drop("load", "production")

    assert _entry(store).aliases == {"canary": 2}
    assert _entry(store).traffic.keys() == {"canary"}
    for act in (store.drop, store.roll_back):
        with pytest.raises(NothingSuchError, match="load has no alias 'production'"):
            act("load", "production")
        with pytest.raises(NothingSuchError, match="there is no model 'sales'"):
            act("sales", "production")


def test_loading_by_hand_is_counted_and_unloading_begins_anew(tmp_path: Path) -> None:
    """So that a service sees that it is to try once more."""
    store = _store_of(tmp_path, 2)

    assert [store.want("load", 1, loaded=loaded) for loaded in (True, True, False, True)] == [1, 2, 0, 1]
    store.want("load", 2, loaded=False)
    assert _entry(store).wanted == {1: 1, 2: 0}
    with pytest.raises(NothingSuchError, match="load has no version 3"):
        store.want("load", 3, loaded=True)


def test_what_an_alias_needs_is_not_unloaded(tmp_path: Path) -> None:
    """Neither its version nor those of its split, nor its shadow; what it only stood for before may go."""
    store = _store_of(tmp_path)
    store.point("load", "production", 4)
    store.point("load", "production", 1, split={2: 5}, shadow=3)

    for version in (1, 2, 3):
        with pytest.raises(RefusedError, match=f"version {version} is in use by the alias production"):
            store.want("load", version, loaded=False)
        store.want("load", version, loaded=True)
    assert _entry(store).in_use() == {1, 2, 3, 4}
    store.want("load", 4, loaded=False)
    assert _entry(store).in_use() == {1, 2, 3}


def test_pointing_at_what_was_unloaded_by_hand_wants_it_again(tmp_path: Path) -> None:
    """Later it is the way back of a rollback, which is to be at once, as for any other."""
    store = _store_of(tmp_path, 3)
    for version in (1, 2, 3):
        store.want("load", version, loaded=False)
    store.point("load", "production", 1, split={2: 1})

    assert _entry(store).wanted == {3: 0}
    store.point("load", "production", 2)
    assert _entry(store).in_use() == {1, 2}


# The audit log


def test_every_change_leaves_a_line(tmp_path: Path) -> None:
    """What was done to which model, when and by whom, in the order in which it was done."""
    store = Store(tmp_path)
    store.publish("load", _writes(), by="alice")
    store.publish("load", _writes(digest=OTHER), by="alice")
    store.point("load", "production", 1, split={2: 10}, shadow=2, by="bob")
    store.point("load", "production", 2, by="bob")
    store.roll_back("load", "production", by="carol")
    store.want("load", 1, loaded=True, by="carol")
    store.want("load", 2, loaded=False, by="carol")
    store.drop("load", "production", by="dave")
    store.want("load", 1, loaded=False)

    lines = store.audit(100)
    times = [datetime.fromisoformat(line.pop("time")) for line in lines]
    assert times == sorted(times)
    assert all(line.pop("model") == "load" for line in lines)
    pointed = {"by": "bob", "action": "point", "alias": "production"}
    assert lines == [
        {"by": "alice", "action": "publish", "version": 1, "digest": DIGEST},
        {"by": "alice", "action": "publish", "version": 2, "digest": OTHER},
        {**pointed, "version": 1, "split": {"2": 10}, "shadow": 2, "from": None},
        {**pointed, "version": 2, "split": {}, "shadow": None, "from": 1},
        {"by": "carol", "action": "roll back", "alias": "production", "from": 2, "version": 1},
        {"by": "carol", "action": "load", "version": 1},
        {"by": "carol", "action": "unload", "version": 2},
        {"by": "dave", "action": "drop", "alias": "production", "from": 1},
        {"by": f"user {os.getuid()}", "action": "unload", "version": 1},
    ]
    assert [line["action"] for line in store.audit(2)] == ["drop", "unload"]
    assert Store(tmp_path / "empty").audit(5) == []


def test_lines_are_found_from_the_end_of_a_long_log(tmp_path: Path) -> None:
    """However long it has become, and whatever names are in it."""
    store = _store_of(tmp_path, 1)
    for turn in range(300):
        store.want("load", 1, loaded=True, by=f"somebody\n{'ü' * 50} {turn}")

    assert [line["by"].split()[-1] for line in store.audit(250)] == [str(turn) for turn in range(50, 300)]


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    """Where the disk was full in the middle of one: what comes after it has a line of its own."""
    store = _store_of(tmp_path, 1)
    with (tmp_path / AUDIT).open("a") as file:
        file.write('{"time": "2026-01-01T00:00')
    assert [line["action"] for line in store.audit(5)] == ["publish"]

    store.point("load", "production", 1)
    store.drop("load", "production")
    assert [line["action"] for line in store.audit(5)] == ["publish", "point", "drop"]


def test_no_change_without_a_line(tmp_path: Path) -> None:
    """Where the log cannot be written the index stays as it is, and reading the log says why."""
    store = _store_of(tmp_path, 1)
    (tmp_path / AUDIT).unlink()
    (tmp_path / AUDIT).mkdir()
    before = _tree(tmp_path)

    with pytest.raises(StoreBrokenError, match="cannot be written to: Is a directory"):
        store.point("load", "production", 1)
    with pytest.raises(StoreBrokenError, match=rf"{AUDIT}: Is a directory"):
        store.audit(5)
    assert _tree(tmp_path) == before


# Locks, disks and publishers that die


def test_nothing_waits_for_a_publisher_that_writes(tmp_path: Path) -> None:
    """An archive may take minutes: meanwhile aliases move, and others publish under another number."""
    store = _store_of(tmp_path, 1)

    def write(version: int, folder: Path) -> str:
        assert Store(tmp_path).publish("load", _writes()) == version + 1 == 3
        Store(tmp_path).point("load", "production", 3)
        return _writes()(version, folder)

    assert store.publish("load", write) == 2
    assert _entry(store).versions.keys() == {1, 2, 3}
    assert _entry(store).aliases == {"production": 3}


def test_a_publisher_that_is_killed_leaves_nothing_listed(tmp_path: Path) -> None:
    """The lock goes with it, its number is given to nobody else, and the next one publishes."""
    store = _store_of(tmp_path, 1)
    killed = subprocess.run([sys.executable, "-c", DYING, str(tmp_path)], cwd=ROOT, check=False)

    assert killed.returncode == -signal.SIGKILL
    assert _entry(store).versions.keys() == {1}
    assert store.publish("load", _writes()) == 3
    assert _entry(store).versions.keys() == {1, 3}


def test_a_full_disk_leaves_the_index_as_it_was(tmp_path: Path) -> None:
    """Whatever is being changed, the error names the folder; with room again, all goes on."""
    store = _store_of(tmp_path, 2)
    store.point("load", "production", 1)
    index = (tmp_path / INDEX).read_text()

    for room in (0, len(index) + 10):  # not even the index; the index, and nothing of the log's line
        found = subprocess.run(
            [sys.executable, "-c", FULL, str(tmp_path), str(room), DIGEST],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.stdout.split() == ["StoreBrokenError"] * 3, found.stderr
        assert found.stderr.count(f"{tmp_path} cannot be written to: File too large") == 3
        assert (tmp_path / INDEX).read_text() == index
    assert not list(tmp_path.glob(".load-*"))
    assert not list(tmp_path.glob(".index*"))

    store.point("load", "production", 2)
    assert store.audit(1)[0]["version"] == 2


def test_a_lock_that_somebody_keeps_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some patience, instead of waiting for ever; readers do not mind it."""
    store = _store_of(tmp_path, 1)
    monkeypatch.setattr(place, "PATIENCE_S", 0.05)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        for change in (lambda: store.point("load", "production", 1), lambda: store.publish("load", _writes())):
            with pytest.raises(StoreBrokenError, match=r"has been locked by somebody else for 0\.05 s"):
                change()
        assert _entry(store).versions.keys() == {1}
        holder.communicate()

    store.point("load", "production", 1)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """Where a file is in its place."""
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreBrokenError, match="cannot be written to"):
        Store(tmp_path / "file" / "store").publish("load", _writes())
    (tmp_path / "load").write_text("")
    with pytest.raises(StoreBrokenError, match="cannot be written to"):
        Store(tmp_path).publish("load", _writes())


# Signatures


def test_what_is_published_with_a_key_is_signed(tmp_path: Path) -> None:
    """For its own name, number and digest; what is there already can be signed later, and is then."""
    signer = Signer.make(tmp_path / "key.pem")
    store = Store(tmp_path / "store")
    store.publish("load", _writes(), signer=signer)
    store.publish("load", _writes(digest=OTHER))

    trust = Trust.parse(signer.public)
    assert _entry(store).signatures.keys() == {1}
    trust.check("load", 1, DIGEST, _entry(store).signatures[1])
    store.sign("load", 2, signer, by="alice")
    trust.check("load", 2, OTHER, _entry(store).signatures[2])
    assert store.audit(1)[0] | {"time": ""} == {
        "time": "", "by": "alice", "action": "sign", "model": "load", "version": 2
    }  # fmt: skip
    with pytest.raises(NothingSuchError, match="load has no version 3"):
        store.sign("load", 3, signer)


def test_lost_index_is_not_made_anew(tmp_path: Path) -> None:
    """One that listed a new version alone would take all others out of service; it has to be put back."""
    store = _store_of(tmp_path)
    kept = (tmp_path / INDEX).read_bytes()
    (tmp_path / INDEX).unlink()
    before = _tree(tmp_path)

    with pytest.raises(StoreError, match="has versions and no index"):
        store.publish("sales", _writes())

    assert _tree(tmp_path) == before
    (tmp_path / INDEX).write_bytes(kept)
    assert store.publish("sales", _writes()) == 1


def test_what_was_asked_for_by_hand_ends_with_an_alias(tmp_path: Path) -> None:
    """Else every version that was ever promoted would stay loaded."""
    store = _store_of(tmp_path)
    for version in (1, 2, 3):
        store.want("load", version, loaded=True)

    store.point("load", "production", 1, split={2: 10})

    assert _entry(store).wanted == {3: 1}
