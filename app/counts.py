"""What the processes of a service count, in files that all of them read, and how long the figures of a version stay.

The files are prometheus_client's, who reads them too. Its own class for a figure in them keeps every one for as long
as the process lives, and nothing ever leaves a file: with a new version a day a service would grow for ever.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Protocol

from prometheus_client import multiprocess
from prometheus_client.core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.registry import Collector

from app.ticket import ModelId

Key = tuple[str, str]
"""A model and its version, as labels have them."""
Keeps = Callable[[Mapping[str, str]], bool]
"""Whether the figure with these labels is kept."""
Entry = tuple[str, float, float]
"""A figure in a file: its key, value and time."""

_KEPT_S = 300.0
"""Prometheus itself looks back for so long: whoever scrapes in time has seen the last value."""
_SERVED = ("ready", "loading")
"""Where an engine ends, all that it had is loading for a moment."""

_COUNTS = ("counter", "histogram")
_GAUGES = ("gauge_livesum", "gauge_livemax")
"""The first parts of the files' names."""
_ALLOTTED = 2**20
"""As the library makes them itself, and more; some 7000 series."""
_ENDED = "ended"
_LOCK = ".ended"


class VersionState(Protocol):
    """What is to be known of a version."""

    @property
    def id(self) -> ModelId:
        """Which one."""

    @property
    def state(self) -> str:
        """What has become of it."""


def served(versions: Iterable[VersionState]) -> Iterator[ModelId]:
    """Those that answer, or are about to."""
    return (version.id for version in versions if version.state in _SERVED)


class Lifetimes:
    """Which versions' figures are kept: those of what is served, and of what was until a while ago."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, kept_s: float = _KEPT_S) -> None:
        self._clock = clock
        self._kept_s = kept_s
        self._served: set[Key] | None = None
        self._left: dict[Key, float] = {}
        """When they were served last."""

    def follow(self, models: Iterable[ModelId]) -> set[Key]:
        """These are served now. The versions whose time is over since it was told last."""
        now = self._clock()
        over = {key for key, left in self._left.items() if now - left >= self._kept_s}
        before, self._served = self._served or set(), {(model.name, str(model.version)) for model in models}
        self._left |= dict.fromkeys(before - self._served, now)
        self._left = {key: left for key, left in self._left.items() if key not in self._served and key not in over}
        return over

    def keeps(self, labels: Mapping[str, str], over: Container[Key] = ()) -> bool:
        """Whether a figure with these labels is kept: of no version, or of versions whose time is not over.

        All are as long as nobody has told what is served. None is of those in `over`, which `follow` gave: a version
        may have come back since, and then it counts anew.
        """
        if self._served is None or "version" not in labels:
            return True
        numbers = (labels["version"], labels.get("shadow", labels["version"]))
        versions = [(labels["model"], number) for number in numbers]
        return all((version in self._served or version in self._left) and version not in over for version in versions)


class Ledger:
    """The figures of this process, in files of its own; OSError where there is no room for them."""

    def __init__(self, folder: Path, pid: int) -> None:
        self._folder = folder
        self._pid = pid
        self._files: dict[str, MmapedDict] = {}
        self._lock = Lock()
        try:
            for kind in (*_COUNTS, *_GAUGES):
                _allot(self._path(kind))
        except OSError:
            for file in folder.glob(f"*_{pid}.db"):
                file.unlink()
            raise

    def figure(
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Sequence[str],
        labelvalues: Sequence[str],
        help_text: str,
        multiprocess_mode: str = "",
        **_: object,
    ) -> "Figure":
        """A place to count in, as prometheus_client asks for one (its `ValueClass`)."""
        kind = f"{typ}_{multiprocess_mode}" if multiprocess_mode else typ
        return Figure(self, kind, mmap_key(metric_name, name, list(labelnames), list(labelvalues), help_text))

    def read(self, kind: str, key: str) -> float:
        """A figure; 0 where there is none yet, and then it is there from now on."""
        with self._lock:
            value: float = self._file(kind).read_value(key)[0]
            return value

    def add(self, kind: str, key: str, amount: float) -> None:
        """Count so much more."""
        with self._lock:
            file = self._file(kind)
            file.write_value(key, file.read_value(key)[0] + amount, 0.0)

    def write(self, kind: str, key: str, value: float, timestamp: float) -> None:
        """Put a value, and its time, in place of what is there."""
        with self._lock:
            self._file(kind).write_value(key, value, timestamp)

    def keep(self, keeps: Keeps) -> None:
        """Forget all other figures. Where the disk has no room to write the rest anew, they stay for now."""
        with self._lock:
            for kind, file in self._files.items():
                entries = list(file.read_all_values())
                kept = [entry for entry in entries if keeps(_labels(entry[0]))]
                if len(kept) < len(entries):
                    self._files[kind] = _rewritten(self._path(kind), kept)
                    file.close()

    def _file(self, kind: str) -> MmapedDict:
        if kind not in self._files:
            self._files[kind] = MmapedDict(str(self._path(kind)))
        return self._files[kind]

    def _path(self, kind: str) -> Path:
        return self._folder / f"{kind}_{self._pid}.db"


class Figure:
    """A number in a ledger, with the methods of prometheus_client's own values."""

    __slots__ = ("_key", "_kind", "_ledger")

    def __init__(self, ledger: Ledger, kind: str, key: str) -> None:
        self._ledger, self._kind, self._key = ledger, kind, key
        ledger.read(kind, key)  # from now on it is shown

    def inc(self, amount: float) -> None:
        """Add to it."""
        self._ledger.add(self._kind, self._key, amount)

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Put another in its place."""
        self._ledger.write(self._kind, self._key, value, timestamp or 0.0)

    def get(self) -> float:
        """What it is."""
        return self._ledger.read(self._kind, self._key)

    def set_exemplar(self, _exemplar: object) -> None:
        """The files have no place for one."""

    def get_exemplar(self) -> None:
        """There is none."""


class Together(Collector):
    """The figures of all processes in a folder: those that are kept."""

    def __init__(self, folder: Path, keeps: Keeps) -> None:
        self._files = multiprocess.MultiProcessCollector(None, str(folder))
        self._folder = folder
        self._keeps = keeps

    def collect(self) -> Iterator[Metric]:
        """Undisturbed, or what a process counted that has just ended would be there twice."""
        with (self._folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            families: list[Metric] = list(self._files.collect())
        for family in families:
            family.samples = [sample for sample in family.samples if self._keeps(sample.labels)]
            yield family


class Ended:
    """What processes counted that have ended, in one file of each kind: over months there would be thousands."""

    def __init__(self, folder: Path, lifetimes: Lifetimes | None = None) -> None:
        self._folder = folder
        self._lifetimes = lifetimes or Lifetimes()
        self._waiting: list[int] = []
        """Those that have not been added yet."""

    def follow(self, models: Iterable[ModelId]) -> None:
        """These are served now: figures of versions that have not been for a while go."""
        if over := self._lifetimes.follow(models):
            self._add(over)

    def take(self, pid: int) -> None:
        """A process has ended: what it counted is added to what others did, what it had at the moment goes."""
        multiprocess.mark_process_dead(pid, str(self._folder))
        for torn in self._folder.glob(f"*_{pid}{_FRESH}"):
            torn.unlink()
        self._waiting.append(pid)
        self._add()

    def _add(self, over: Container[Key] = ()) -> None:
        """What does not fit on the disk, or while somebody reads who may have been stopped in the middle of it, stays
        where it is until the next time.
        """
        try:
            with _alone(self._folder):
                for kind in _COUNTS:
                    paths = (self._folder / f"{kind}_{pid}.db" for pid in self._waiting)
                    counted = [path for path in paths if path.exists()]
                    self._add_to(self._folder / f"{kind}_{_ENDED}.db", counted, over)
        except OSError:
            return
        self._waiting.clear()

    def _add_to(self, total: Path, counted: Sequence[Path], over: Container[Key]) -> None:
        sums: dict[str, float] = {}
        for path in (total, *counted):
            for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)) if path.exists() else ():
                if self._lifetimes.keeps(_labels(key), over):
                    sums[key] = sums.get(key, 0.0) + value
        _rewritten(total, [(key, value, 0.0) for key, value in sums.items()]).close()
        for path in counted:
            path.unlink()


_FRESH = ".fresh"
"""The end of the name of a file that is not whole yet."""


def _labels(key: str) -> Mapping[str, str]:
    labels: Mapping[str, str] = json.loads(key)[2]
    return labels


def _allot(path: Path, size: int = _ALLOTTED) -> None:
    """The disk space to count in: writing to a page that a full disk has no place for would kill the process."""
    with path.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def _rewritten(path: Path, entries: Iterable[Entry]) -> MmapedDict:
    """The file with these figures in place of what it had; whoever reads it sees the one or the other."""
    fresh = path.with_suffix(_FRESH)
    fresh.unlink(missing_ok=True)
    try:
        _allot(fresh, max(_ALLOTTED, path.stat().st_size if path.exists() else 0))
        file = MmapedDict(str(fresh))
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    for key, value, timestamp in entries:
        file.write_value(key, value, timestamp)
    fresh.replace(path)
    return file


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While nobody reads; BlockingIOError where somebody does."""
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
