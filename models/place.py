"""Where a store lies: what `models.store` needs of its surroundings, and the folder that gives it.

Another place is an object store (`models.bucket`). A place knows nothing of what an index says; it keeps what it is
given so that no reader sees half of it, and two who write do not lose what either of them wrote.
"""

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol, TextIO

ARCHIVE = "model.pt"
REPORT = "report"
INDEX = "index.json"
AUDIT = "audit.jsonl"

PATIENCE_S = 30.0
_PAUSE_S = 0.02
"""The lock is held for milliseconds."""


class StoreError(Exception):
    """The store cannot be read or written as asked, and why."""


class NothingSuchError(StoreError):
    """A model, version or alias that is not there."""


class RefusedError(StoreError):
    """A change that contradicts what the index says."""


class StoreBrokenError(StoreError):
    """The store cannot be read or written."""


class UncertainError(StoreBrokenError):
    """Nobody knows whether what was written is there, or comes to be there later."""


class Draft(Protocol):
    """A version on its way into a store: a number that nobody else gets, and a folder to fill."""

    version: int
    folder: Path

    def settle(self) -> None:
        """What is in the folder is as safe as what is listed; may take minutes."""

    def place(self) -> None:
        """Under the lock: all of it lies where a version lies, and may be listed."""

    def discard(self, *, listed: bool) -> None:
        """It has failed: nothing of it stays behind, unless the index lists it in spite of that."""

    def close(self) -> None:
        """Nobody needs the folder any more."""


class Place(Protocol):
    """Keeps an index, an audit log, and archives with their reports. All errors are StoreError."""

    name: str
    """As messages call it; what is secret in an address is not in it."""

    def at(self, *parts: str) -> str:
        """The same of something in it."""

    def prepare(self) -> None:
        """Have at hand what it takes to ask, before somebody waits for an answer."""

    def read(self) -> bytes | None:
        """The index; None where there is none."""

    def locked(self) -> AbstractContextManager[None]:
        """Alone with all that is changed."""

    def write(self, index: str, line: str) -> None:
        """Under the lock: replace the index in one go, and before it add a line to the audit log."""

    def audit(self, last: int) -> list[bytes]:
        """The latest lines, the newest last."""

    def has_versions(self) -> bool:
        """Whether archives are there, listed or not."""

    def draft(self, name: str, listed: Collection[int], wanted: int | None) -> Draft:
        """Under the lock: begin the next version of a model, or that one; RefusedError where its number is taken."""

    def take_archive(self, name: str, version: int, target: Path) -> None:
        """Write a copy of a version's archive there."""

    def take_report(self, name: str, version: int, folder: Path) -> None:
        """Make a copy of a version's report, that folder; nothing where there is none."""


class Folder:
    """A folder: one file is locked, and everything comes by rename."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = str(root)

    def at(self, *parts: str) -> str:
        return str(self.root.joinpath(*parts))

    def prepare(self) -> None:
        """Nothing is needed."""

    def read(self) -> bytes | None:
        path = self.root / INDEX
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreBrokenError(f"{path}: {error.strerror}") from error

    def revision(self) -> tuple[int, int, int] | None:
        """Another one whenever the index is; None where there is none to be read."""
        try:
            found = (self.root / INDEX).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def archive(self, name: str, version: int) -> Path:
        """Where the archive of a version lies."""
        return self.root / name / str(version) / ARCHIVE

    @contextmanager
    def locked(self) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / ".lock").open("w")
        except OSError as error:
            raise self._unwritable(error) from error
        with lock:
            end = time.monotonic() + PATIENCE_S
            while not _is_locked(lock):
                if time.monotonic() > end:
                    raise StoreBrokenError(f"{self.root} has been locked by somebody else for {PATIENCE_S:g} s")
                time.sleep(_PAUSE_S)
            yield

    def write(self, index: str, line: str) -> None:
        self._replace(index.encode(), lambda: self._log(line))

    def copy(self, index: bytes) -> None:
        """Under the lock: have the index of another place, whose own log tells of its changes."""
        self._replace(index, lambda: None)

    def _replace(self, index: bytes, first: Callable[[], None]) -> None:
        try:
            with tempfile.NamedTemporaryFile(prefix=f".{INDEX}-", dir=self.root, delete=False) as file:
                unfinished = Path(file.name)
                try:
                    file.write(index)
                    file.flush()
                    os.fsync(file.fileno())
                    unfinished.chmod(0o644)
                    first()
                    unfinished.replace(self.root / INDEX)
                except BaseException:
                    unfinished.unlink(missing_ok=True)
                    raise
            sync(self.root)
        except OSError as error:
            raise self._unwritable(error) from error

    def _log(self, line: str) -> None:
        with (self.root / AUDIT).open("ab+") as file:
            # Where the disk was full, the line before may have no end.
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            file.write((b"" if file.read(1) in (b"", b"\n") else b"\n") + line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def audit(self, last: int) -> list[bytes]:
        try:
            with (self.root / AUDIT).open("rb") as file:
                # Enough for so many lines as long as lines get.
                file.seek(max(0, file.seek(0, os.SEEK_END) - last * 1024))
                return file.read().splitlines()[-last:]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreBrokenError(f"{self.root / AUDIT}: {error.strerror}") from error

    def has_versions(self) -> bool:
        return next(self.root.glob(f"*/[0-9]*/{ARCHIVE}"), None) is not None

    def draft(self, name: str, listed: Collection[int], wanted: int | None) -> "FolderDraft":
        # Folders count too: one that is not listed (a publisher died on its way) is never overwritten.
        folders = [path.name for path in (self.root / name).glob("*")]
        number = free_number(self.at(name), {*listed, *numbers(folders)}, wanted)
        place = self.root / name / str(number)
        try:
            place.mkdir(parents=True)
            unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=self.root))
        except OSError as error:
            _remove_empty(place)
            raise self._unwritable(error) from error
        return FolderDraft(number, place, unfinished)

    def take_archive(self, name: str, version: int, target: Path) -> None:
        self._copy(lambda: shutil.copyfile(self.archive(name, version), target))

    def take_report(self, name: str, version: int, folder: Path) -> None:
        report = self.archive(name, version).with_name(REPORT)
        if report.is_dir():
            self._copy(lambda: shutil.copytree(report, folder))

    def _copy(self, copy: Callable[[], object]) -> None:
        try:
            copy()
        except OSError as error:
            raise StoreBrokenError(f"{error.filename or self.name}: {error.strerror or error}") from error

    def _unwritable(self, error: OSError) -> StoreBrokenError:
        return StoreBrokenError(f"{self.root} cannot be written to: {error.strerror}")


class FolderDraft:
    """Beside the folder of the version, which is there and empty, one that takes its place."""

    def __init__(self, version: int, place: Path, unfinished: Path) -> None:
        self.version = version
        self.folder = unfinished
        self._place = place

    def settle(self) -> None:
        self.folder.chmod(0o755)
        for path in (*self.folder.rglob("*"), self.folder):
            sync(path)

    def place(self) -> None:
        self.folder.rename(self._place)
        sync(self._place.parent)

    def discard(self, *, listed: bool) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if not listed:
            # Of a disk that is full, each further try would fill more.
            shutil.rmtree(self._place, ignore_errors=True)
            _remove_empty(self._place)

    def close(self) -> None:
        """It is the version's own now."""


def shown(address: str) -> str:
    """An address without what may be secret in it."""
    return re.sub(r"\?[^\s'\"]*", "?...", re.sub(r"//[^/\s]*@", "//...@", address))


def numbers(names: Collection[str]) -> set[int]:
    """Those of them that are versions."""
    return {int(name) for name in names if name.isascii() and name.isdecimal()}


def free_number(place: str, taken: Collection[int], wanted: int | None) -> int:
    """The next one, or that one; RefusedError where it is taken."""
    if wanted is None:
        return max(taken, default=0) + 1
    if wanted in taken:
        raise RefusedError(f"{place} has a {wanted} already, listed or left behind")
    return wanted


def sync(path: Path) -> None:
    """A file is on the disk, or what a folder has by rename."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_locked(lock: TextIO) -> bool:
    """Whether it is ours now."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_empty(place: Path) -> None:
    """The folder of a version that came to nothing, and its model's where that is all there was."""
    with suppress(OSError):
        place.rmdir()
    with suppress(OSError):
        place.parent.rmdir()
