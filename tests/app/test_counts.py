"""Figures in files that processes share, and those of versions that are gone."""

import asyncio
import fcntl
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import values
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.parser import text_string_to_metric_families

from app import counts
from app.costs import Tally
from app.counts import Ended, Figure, Ledger, Lifetimes, served
from app.metrics import Metrics
from app.settings import child_environment
from app.ticket import ModelId
from tests.app.serving import ROOT, metric
from tests.patience import PATIENCE_S

OLD, NEW = (ModelId("load", number, "sha256:" + str(number) * 64) for number in (1, 2))
WAIT_S = 300.0


class Clock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Maker:
    """Makes metrics that go by one clock, and closes their files in the end."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._made: list[Metrics] = []

    def lifetimes(self) -> Lifetimes:
        return Lifetimes(self.clock, WAIT_S)

    def metrics(self, folder: Path | None) -> Metrics:
        self._made.append(Metrics(folder, self.lifetimes()))
        return self._made[-1]

    def close(self) -> None:
        for ledger in (metrics._ledger for metrics in self._made):
            for file in ledger._files.values() if ledger is not None else ():
                file.close()


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Maker]:
    """Metrics that are made after a test with it count by themselves again."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    maker = Maker()
    yield maker
    maker.close()


def version(model: ModelId, state: str = "ready") -> SimpleNamespace:
    return SimpleNamespace(id=model, state=state)


def kept(lifetimes: Lifetimes, *models: ModelId) -> list[int]:
    return [model.version for model in models if lifetimes.keeps({"model": model.name, "version": str(model.version)})]


def count_all(metrics: Metrics, model: ModelId, shadow: int = 9) -> None:
    """Something in every series that a version has."""
    metrics.waited(model, 0.01)
    metrics.passed(model, 8, 0.02)
    metrics.out_of_memory(model)
    metrics._asked(model, _tally(metrics, model))
    metrics.inputs(model, {("temp", "inside"): 1}, {("temp", "below"): 1.0})
    metrics.actuals(model, "temp", "first", 1, 1.0, 1.0)
    metrics.held(model, "temp", "first", ("80", "plain"), 1, 2)
    metrics.shadowed(model, shadow, "computed")
    metrics.differed(model, shadow, "temp", 1, 0.5)


def _tally(metrics: Metrics, model: ModelId) -> Tally:
    tally = metrics._tallies._tally(model)
    tally.results["computed"].buckets[3] += 1
    tally.windows["computed"] += 1
    tally.stages["parse"] += 0.1
    return tally


def text_of(metrics: Metrics) -> str:
    return asyncio.run(metrics.exposition()).decode()


def versions_in(text: str) -> dict[str, int]:
    """How many series there are of each version."""
    found: dict[str, int] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples if family.name != "foretell_model_state" else ():
            if "version" in sample.labels:
                found[sample.labels["version"]] = found.get(sample.labels["version"], 0) + 1
    return found


def keys_in(folder: Path) -> set[str]:
    """The versions that any file has figures of."""
    return {
        json.loads(key)[2]["version"]
        for path in folder.glob("*.db")
        for key, _, _, _ in MmapedDict.read_all_values_from_file(str(path))
        if "version" in json.loads(key)[2]
    }


def test_versions_that_are_served() -> None:
    """What answers, and what is on its way, as all are for a moment where an engine ends."""
    states = ("ready", "loading", "failed", "unloaded")
    found = served(version(ModelId("load", number, "sha256:0"), state) for number, state in enumerate(states))
    assert [model.version for model in found] == [0, 1]


def test_lifetime() -> None:
    """A version's figures are kept while it is served and for a while after that, however often it comes back."""
    clock = Clock()
    lifetimes = Lifetimes(clock, WAIT_S)
    assert kept(lifetimes, OLD, NEW) == [1, 2]  # nobody has said anything yet

    assert lifetimes.follow([OLD]) == set()
    assert kept(lifetimes, OLD, NEW) == [1]
    clock.now = 10
    assert lifetimes.follow([NEW]) == set()
    clock.now = 10 + WAIT_S - 1
    assert lifetimes.follow([NEW]) == set()
    assert kept(lifetimes, OLD, NEW) == [1, 2]
    clock.now = 10 + WAIT_S
    assert lifetimes.follow([NEW]) == {("load", "1")}
    assert kept(lifetimes, OLD, NEW) == [2]
    assert lifetimes.follow([NEW]) == set()

    lifetimes.follow([OLD, NEW])
    assert kept(lifetimes, OLD, NEW) == [1, 2]
    lifetimes.follow([NEW])
    clock.now += WAIT_S / 2
    lifetimes.follow([OLD, NEW])
    lifetimes.follow([NEW])
    clock.now += WAIT_S / 2
    assert lifetimes.follow([NEW]) == set()
    assert kept(lifetimes, OLD, NEW) == [1, 2]


def test_one_that_comes_back_late_begins_anew() -> None:
    """What was counted before is told as over, though nobody looked while it was away."""
    clock = Clock()
    lifetimes = Lifetimes(clock, WAIT_S)
    lifetimes.follow([OLD])
    lifetimes.follow([])
    clock.now = WAIT_S
    over = lifetimes.follow([OLD])
    assert over == {("load", "1")}
    assert kept(lifetimes, OLD) == [1]
    assert not lifetimes.keeps({"model": "load", "version": "1"}, over)


def test_labels_of_both_count() -> None:
    """A comparison goes with either version; what is of no version stays."""
    lifetimes = Lifetimes()
    lifetimes.follow([OLD])
    assert lifetimes.keeps({"model": "load", "version": "1"})
    assert not lifetimes.keeps({"model": "load", "version": "1", "shadow": "2"})
    assert not lifetimes.keeps({"model": "else", "version": "1"})
    assert lifetimes.keeps({"route": "/predict"})


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_series_go_with_their_version(shared: bool, maker: Maker, tmp_path: Path) -> None:
    """Every series of a version is there until it has been gone for a while, and then none, in memory nor in files."""
    metrics = maker.metrics(tmp_path if shared else None)
    versions = [version(OLD), version(NEW)]
    metrics.watch(lambda: versions, list, dict, lambda: True, lambda: True)
    metrics.sweep()
    count_all(metrics, OLD, shadow=2)
    count_all(metrics, NEW, shadow=1)
    metrics.answered("POST", "/predict", 200, 0.003)
    before = text_of(metrics)
    assert versions_in(before)["1"] == versions_in(before)["2"] > 60

    versions[0].state = "unloaded"
    metrics.sweep()
    maker.clock.now = WAIT_S - 1
    metrics.sweep()
    assert versions_in(text_of(metrics)) == versions_in(before)
    maker.clock.now = WAIT_S
    metrics.sweep()
    after = text_of(metrics)

    shadows = sum("shadow=" in line and 'version="2"' in line for line in before.splitlines())
    assert shadows == 3
    assert versions_in(after) == {"2": versions_in(before)["2"] - shadows}
    assert metric(after, "foretell_requests_total", route="/predict") == 1
    assert metric(after, "foretell_pass_rows_sum", version="2") == 8
    assert all(("load", "1") not in _children(one) for one in (*metrics._of_versions, *metrics._of_shadows))
    if shared:
        assert keys_in(tmp_path) == {"2"}


def _children(family: MetricWrapperBase) -> set[tuple[str, ...]]:
    return {labels[:2] for labels in family._metrics}


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_one_that_is_loaded_again_counts_from_nothing(shared: bool, maker: Maker, tmp_path: Path) -> None:
    """As a counter of a process that has started again."""
    metrics = maker.metrics(tmp_path if shared else None)
    versions = [version(OLD)]
    metrics.watch(lambda: versions, list, dict, lambda: True, lambda: True)
    for state, rows in (("ready", 8), ("unloaded", 0), ("ready", 3)):
        versions[0].state = state
        metrics.sweep()
        if rows:
            metrics.waited(OLD, 0.5)
            metrics.passed(OLD, rows, 0.02)
        maker.clock.now += WAIT_S
    text = text_of(metrics)

    assert metric(text, "foretell_pass_rows_sum", version="1") == 3
    assert metric(text, "foretell_pass_rows_count", version="1") == 1
    assert metric(text, "foretell_queue_seconds_sum", version="1") == 0.5
    assert asyncio.run(metrics.figures())["load", "1"].passes == 1


def test_every_family_of_versions_is_swept() -> None:
    """None is forgotten that has a version among its labels."""
    metrics = Metrics()
    of_versions = {family for family in vars(metrics).values() if "version" in getattr(family, "_labelnames", ())}
    assert of_versions == {*metrics._of_versions, *metrics._of_shadows}


def test_others_see_none_of_a_version_that_is_gone(maker: Maker, tmp_path: Path) -> None:
    """What another process has not forgotten yet is not shown."""
    other = """
import sys
from pathlib import Path
from app.metrics import Metrics
from app.ticket import ModelId

metrics = Metrics(Path(sys.argv[1]))
metrics.passed(ModelId("load", 1, ""), 8, 0.003)
metrics.passed(ModelId("load", 2, ""), 8, 0.003)
"""
    command = [sys.executable, "-c", other, str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=child_environment(), check=True, timeout=PATIENCE_S)
    metrics = maker.metrics(tmp_path)
    assert set(versions_in(text_of(metrics))) == {"1", "2"}
    metrics.watch(lambda: [version(NEW)], list, dict, lambda: True, lambda: True)
    assert set(versions_in(text_of(metrics))) == {"2"}
    assert set(asyncio.run(metrics.figures())) == {("load", "2")}
    assert keys_in(tmp_path) == {"1", "2"}


def test_what_ended_processes_counted_goes_with_the_version(maker: Maker, tmp_path: Path) -> None:
    """In their file too; what is of no version, or of one that is served, stays."""
    metrics = maker.metrics(tmp_path)
    for model in (OLD, NEW):
        metrics.passed(model, 8, 0.003)
    metrics.rejected("queue-full")
    ended = Ended(tmp_path, maker.lifetimes())
    ended.follow([OLD, NEW])
    (pid,) = {path.stem.rpartition("_")[2] for path in tmp_path.glob("*.db")}
    ended.take(int(pid))
    assert keys_in(tmp_path) == {"1", "2"}

    ended.follow([NEW])
    maker.clock.now = WAIT_S
    ended.follow([NEW])
    assert keys_in(tmp_path) == {"2"}
    text = text_of(maker.metrics(tmp_path))
    assert metric(text, "foretell_pass_rows_sum", version="2") == 8
    assert metric(text, "foretell_rejected_total", reason="queue-full") == 1


@pytest.mark.anyio
async def test_files_that_somebody_keeps(maker: Maker, tmp_path: Path) -> None:
    """Only those wait who want to read them: the event loop goes on, though whoever adds to the files was stopped."""
    metrics = maker.metrics(tmp_path)
    metrics.rejected("queue-full")
    with (tmp_path / ".ended").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        asked = [asyncio.ensure_future(one) for one in (metrics.exposition(), metrics.figures())]
        done, _ = await asyncio.wait(asked, timeout=0.2)
        assert not done
    text, _ = await asyncio.gather(*asked)
    assert metric(text.decode(), "foretell_rejected_total", reason="queue-full") == 1


def test_full_disk_leaves_figures_as_they_are(
    maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They stay in the file for now, which counts on, and nothing half written is left."""
    metrics = maker.metrics(tmp_path)
    versions = [version(OLD), version(NEW)]
    metrics.watch(lambda: versions, list, dict, lambda: True, lambda: True)
    metrics.sweep()
    for model in (OLD, NEW):
        metrics.passed(model, 8, 0.003)
    versions.pop(0)
    metrics.sweep()

    def full(_file: int, _offset: int, _length: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(counts.os, "posix_fallocate", full)
        maker.clock.now = WAIT_S
        text = text_of(metrics)
    assert "figures of versions that are gone stay for now: No space left on device" in caplog.text
    assert set(versions_in(text)) == {"2"}
    metrics.passed(NEW, 8, 0.003)
    assert metric(text_of(metrics), "foretell_pass_rows_sum", version="2") == 16
    assert keys_in(tmp_path) == {"1", "2"}
    assert not list(tmp_path.glob("*.fresh"))


def test_ledger_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, and leaves no file that a count could be lost or killed in."""

    def full(_file: int, _offset: int, _length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(counts.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        Ledger(tmp_path, 7)
    assert list(tmp_path.iterdir()) == []


def test_figures(tmp_path: Path) -> None:
    """Add, set and read as the library asks for it; another ledger of the same process goes on with what is there."""
    ledgers = [Ledger(tmp_path, 7) for _ in range(2)]

    def figure(ledger: Ledger) -> Figure:
        return ledger.figure("gauge", "rows", "rows", ["device"], ["cpu"], "Rows.", multiprocess_mode="livesum")

    one = figure(ledgers[0])
    assert one.get() == 0
    one.inc(2.5)
    one.set(4.0, 3.0)
    one.inc(1.0)
    assert one.get() == figure(ledgers[1]).get() == 5
    for ledger in ledgers:
        (file,) = ledger._files.values()
        file.close()
