"""A store in an object store, by whatever fsspec has a driver for: s3://bucket/models, gs://, abfs:// and so on.

Objects are replaced in one go, and can neither be renamed, locked nor added to. So archives are put first and the index
after them; whoever writes holds an object that only one can make; every change is an object of its own below `audit/`.
Nothing waits longer than some seconds for an answer, and what is secret in an address is in no message.
"""

import getpass
import hashlib
import json
import logging
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from models.place import (
    ARCHIVE,
    AUDIT,
    INDEX,
    REPORT,
    NothingSuchError,
    StoreBrokenError,
    StoreError,
    UncertainError,
    free_number,
    numbers,
    shown,
)

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

T = TypeVar("T")

AUDITS = "audit"
LOCK = ".lock"
_BEGUN = ".publishing"
"""Keeps a version's number while its archive is on the way."""

ANSWER_S = 10.0
"""Longest for an answer to a small question."""
_PART = 8 * 2**20
_PART_S = 60.0
"""Longest for so many bytes."""
_HANGING = 4
"""So many questions may be without an answer before no further one is asked."""
LEASE_S = 30.0
"""A lock that has not changed hands for so long is of somebody who died. Who writes holds it half as long at most."""
PATIENCE_S = 45.0
_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0

_LARGEST_FILE = 16 * 2**20
_MOST_FILES = 100
"""Of a report; no more is served."""
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)

_TALKATIVE = ("aiobotocore", "azure", "botocore", "fsspec", "google", "urllib3")
"""Libraries below drivers, whose finest lines hold signatures and keys."""

_local = threading.Lock()
_ours: dict[str, threading.Lock] = {}
"""Within a process nobody has to ask far away whose turn it is."""


def check(url: str) -> str:
    """The package that has the driver for an address; StoreError where it is not there, or nothing after it."""
    from fsspec.registry import known_implementations, registry

    protocol, _, path = url.partition("://")
    known = known_implementations.get(protocol)
    if known is None and protocol not in registry:
        raise StoreError(f"{protocol}:// is no protocol of fsspec; an object store's is such as s3://bucket/models")
    package = "fsspec" if known is None else str(known["class"]).partition(".")[0]
    if find_spec(package) is None:
        raise StoreError(f"{protocol}:// needs the package {package}: pip install {package}")
    if not path.strip("/"):
        raise StoreError(f"{protocol}:// lacks a place in it, such as {protocol}://bucket/models")
    return package


class Bucket:
    """A store below an address. Nothing is imported or asked before it has to be."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self.name = shown(self._url)
        self._secrets = _secrets(self._url)
        self._system: tuple[AbstractFileSystem, str] | None = None
        self._hanging: set[Future[Any]] = set()
        self._proved = False
        """Whether it is known that of two who make an object only one does."""
        self._lock: bytes = b""
        """What is in the lock that we hold, and since when."""
        self._since = 0.0

    def at(self, *parts: str) -> str:
        return "/".join((self.name, *parts))

    # What a place does

    def prepare(self) -> None:
        # A driver takes a second to import, in which nothing else gets on.
        with suppress(StoreError):
            self._key()

    def read(self) -> bytes | None:
        return self._got(INDEX)

    @contextmanager
    def locked(self) -> Iterator[None]:
        with _local:
            turn = _ours.setdefault(self._url, threading.Lock())
        if not turn.acquire(timeout=PATIENCE_S):
            raise StoreBrokenError(f"{self.name} has been locked by this process for {PATIENCE_S:g} s")
        try:
            self._lock = self._acquired()
            try:
                yield
            except UncertainError:
                raise  # what is still on its way has the lock's lease to arrive
            except BaseException:
                self._release()
                raise
            self._release()
        finally:
            turn.release()

    def write(self, index: str, line: str) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self._put(f"{AUDITS}/{stamp}-{secrets.token_hex(4)}.json", line.encode())
        if time.monotonic() - self._since > LEASE_S / 2 or self._got(LOCK) != self._lock:
            raise StoreBrokenError(f"{self.name}: the lock was lost to somebody else meanwhile; nothing is changed")
        try:
            self._put(INDEX, index.encode())
        except _NoAnswerError as error:
            raise UncertainError(f"{error}; whether the change is made, look before you repeat it") from error

    def audit(self, last: int) -> list[bytes]:
        names = sorted(name for name in self._names(AUDITS) if name.endswith(".json"))[-last:]
        keys = [self._key(AUDITS, name) for name in names]

        def ask() -> dict[str, bytes]:
            found: dict[str, bytes] = self._there.cat(keys, on_error="omit") if keys else {}
            return found

        found = self._asked(ask, within_s=ANSWER_S + 0.05 * len(keys))
        lines = [b" ".join(found[key].splitlines()) for key in keys if key in found]
        # A folder may have been copied here, with what was done to it before.
        before = (self._got(AUDIT) or b"").splitlines() if len(lines) < last else []
        return [*before, *lines][-last:]

    def has_versions(self) -> bool:
        return any(
            ARCHIVE in self._names(model, number)
            for model in self._names()
            if model != AUDITS
            for number in self._names(model)
            if number.isdecimal()
        )

    def draft(self, name: str, listed: Collection[int], wanted: int | None) -> "BucketDraft":
        number = free_number(self.at(name), {*listed, *numbers(self._names(name))}, wanted)
        draft = BucketDraft(self, name, number)
        draft.begin()
        return draft

    def take_archive(self, name: str, version: int, target: Path) -> None:
        self._download(target, name, str(version), ARCHIVE)

    def take_report(self, name: str, version: int, folder: Path) -> None:
        names = [file for file in self._names(name, str(version), REPORT, files=True) if _FILE.fullmatch(file)]
        if names:
            folder.mkdir()
        for file in sorted(names)[:_MOST_FILES]:
            self._download(folder / file, name, str(version), REPORT, file, most=_LARGEST_FILE)

    # Objects

    def put_file(self, path: Path, *parts: str) -> None:
        """A file as an object that was not there, read back: what is there is what was sent."""
        content = path.read_bytes()
        # One that is there may be what an earlier try of the driver's has put: then it is the same.
        made = self._made("/".join(parts), content)
        if self._stream(lambda _: None, parts) != hashlib.sha256(content).digest():
            raise StoreBrokenError(f"{self.at(*parts)} is {'not what was sent' if made else 'there already'}")

    def begin(self, *parts: str) -> None:
        """Keep a place."""
        if not self._made("/".join((*parts, _BEGUN)), _told()):
            raise StoreBrokenError(f"{self.at(*parts)} is there already")

    def remove(self, *parts: str) -> None:
        """An object, as far as that goes."""
        key = self._key(*parts)
        with suppress(StoreError, FileNotFoundError):
            self._asked(lambda: self._there.rm_file(key))

    def remove_begun(self, *parts: str) -> None:
        """What kept a place."""
        self.remove(*parts, _BEGUN)

    @property
    def _there(self) -> "AbstractFileSystem":
        return self._opened()[0]

    def _opened(self) -> "tuple[AbstractFileSystem, str]":
        if self._system is None:
            package = check(self._url)
            from fsspec.core import url_to_fs

            for library in (*_TALKATIVE, package):
                logging.getLogger(library).setLevel(logging.WARNING)
            system, root = url_to_fs(self._url)
            self._system = system, root.rstrip("/")
        return self._system

    def _key(self, *parts: str) -> str:
        # Asked for outside of `_asked`, for its errors are those of an address.
        try:
            return "/".join((self._opened()[1], *parts))
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001  drivers read an address each in their own way
            raise self._broken(error) from None

    def _got(self, key: str) -> bytes | None:
        """A small object; None where there is none."""
        path = self._key(key)
        try:
            content: bytes = self._asked(lambda: self._there.cat_file(path))
        except FileNotFoundError:
            return None
        return content

    def _put(self, key: str, content: bytes) -> None:
        path = self._key(key)
        try:
            self._asked(lambda: self._there.pipe_file(path, content), within_s=_time_for(len(content)))
        except FileNotFoundError as error:
            raise self._broken(error) from None

    def _made(self, key: str, content: bytes) -> bool:
        """Whether there is an object now that was not there before."""
        path = self._key(key)
        try:
            self._asked(lambda: self._there.pipe_file(path, content, mode="create"), within_s=_time_for(len(content)))
        except FileExistsError:
            return False
        except FileNotFoundError as error:
            raise self._broken(error) from None
        return True

    def _names(self, *parts: str, files: bool = False) -> list[str]:
        """What is there, as of a folder; or its files alone."""
        path = self._key(*parts)

        def ask() -> list[str]:
            self._there.invalidate_cache()
            found: list[dict[str, Any]] = self._there.ls(path, detail=True)
            return [str(entry["name"]) for entry in found if not files or entry["type"] == "file"]

        try:
            found = self._asked(ask, within_s=2 * ANSWER_S)
        except (FileNotFoundError, NotADirectoryError):
            return []
        # An object of the folder's own name would be listed as itself.
        return [entry.rstrip("/").rpartition("/")[2] for entry in found if entry.rstrip("/") != path]

    def _download(self, target: Path, *parts: str, most: int | None = None) -> None:
        try:
            with target.open("xb") as file:
                self._stream(file.write, parts, most, shutil.disk_usage(target.parent).free)
        except FileNotFoundError:
            raise NothingSuchError(f"{self.at(*parts)} is not there") from None
        except OSError as error:
            raise StoreBrokenError(f"{target.parent} cannot be written to: {error.strerror}") from error

    def _stream(
        self, write: Callable[[bytes], object], parts: Collection[str], most: int | None = None, room: int | None = None
    ) -> bytes:
        """Its bytes, a part at a time; their SHA-256."""
        path = self._key(*parts)

        def measure() -> int:
            self._there.invalidate_cache()
            return int(self._there.info(path)["size"])

        size = self._asked(measure)
        for bound, what in ((most, "more than is taken"), (room, "more than there is room for")):
            if bound is not None and size > bound:
                raise StoreBrokenError(f"{self.at(*parts)} has {size} bytes, {what}")
        digest = hashlib.sha256()
        for start in range(0, size, _PART):
            content = self._asked(
                lambda start=start: self._there.cat_file(path, start=start, end=min(size, start + _PART)),  # type: ignore[misc]
                within_s=_PART_S,
            )
            digest.update(content)
            write(content)
        return digest.digest()

    def _asked(self, ask: Callable[[], T], within_s: float | None = None) -> T:
        """What the driver answers, in a thread that the end of the process does not wait for.

        FileNotFoundError and FileExistsError as it says; StoreBrokenError for all else, and where no answer comes.
        """
        within_s = ANSWER_S if within_s is None else within_s
        self._hanging = {one for one in self._hanging if not one.done()}
        if len(self._hanging) >= _HANGING:
            raise _NoAnswerError(f"{self.name} does not answer")
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(ask())
            except BaseException as error:  # noqa: BLE001  whoever asked is told
                future.set_exception(error)

        threading.Thread(target=run, name="store", daemon=True).start()
        try:
            error = future.exception(within_s)
        except TimeoutError:
            self._hanging.add(future)
            raise _NoAnswerError(f"{self.name} has not answered for {within_s:g} s") from None
        if error is None:
            return future.result()
        if isinstance(error, FileNotFoundError | FileExistsError | NotADirectoryError | StoreError):
            raise error
        # Not `from error`: its own text may hold what is secret.
        raise self._broken(error) from None

    def _broken(self, error: BaseException) -> StoreBrokenError:
        text = shown((str(error).strip() or type(error).__name__).splitlines()[0])
        for secret in self._secrets:
            text = text.replace(secret, "...")
        return StoreBrokenError(f"{self.name}: {text[:300]}")

    # The lock

    def _acquired(self) -> bytes:
        ours = _told()
        end = time.monotonic() + PATIENCE_S
        pause, seen, since = _PAUSE_S, b"", 0.0
        while not self._made(LOCK, ours):
            held = self._got(LOCK)
            if held is not None and held != seen:
                seen, since = held, time.monotonic()
            elif held is not None and time.monotonic() - since > LEASE_S:
                # By nobody's clock but our own: it has stood like that while we watched.
                self._break(held)
            if time.monotonic() > end:
                raise StoreBrokenError(f"{self.name} has been locked for {PATIENCE_S:g} s, by {_owner(seen)}")
            time.sleep(pause * (0.5 + secrets.randbelow(1000) / 1000))
            pause = min(_LONGEST_PAUSE_S, 2 * pause)
        self._since = time.monotonic()
        if not self._proved:
            if self._made(LOCK, ours):
                self.remove(LOCK)
                raise StoreBrokenError(
                    f"{self.name} can be read but not changed: of two who make the same object it refuses neither, so"
                    " changes at the same time would be lost"
                )
            self._proved = True
        return ours

    def _break(self, held: bytes) -> None:
        """Remove the lock of somebody who is gone; of several who see that, one does."""
        claim = f"{LOCK}-{hashlib.sha256(held).hexdigest()[:16]}"
        if not self._made(claim, _told()):
            return
        if self._got(LOCK) == held:
            self.remove(LOCK)
        self.remove(claim)

    def _release(self) -> None:
        with suppress(StoreError):
            if self._got(LOCK) == self._lock:
                self.remove(LOCK)


class BucketDraft:
    """A folder of this machine, whose files are put where the version is to lie."""

    def __init__(self, bucket: Bucket, name: str, version: int) -> None:
        self.version = version
        self.folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        self._bucket = bucket
        self._at = (name, str(version))
        self._put: list[tuple[str, ...]] = []

    def begin(self) -> None:
        """Keep the number."""
        try:
            self._bucket.begin(*self._at)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def settle(self) -> None:
        # The archive last: what is found with one is whole.
        paths = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        for path in sorted(paths, key=lambda path: path.name == ARCHIVE):
            parts = (*self._at, *path.relative_to(self.folder).parts)
            self._put.append(parts)
            self._bucket.put_file(path, *parts)

    def place(self) -> None:
        """It lies there."""

    def discard(self, *, listed: bool) -> None:
        if not listed:
            for parts in reversed(self._put):
                self._bucket.remove(*parts)
        self.close()

    def close(self) -> None:
        self._bucket.remove_begun(*self._at)
        shutil.rmtree(self.folder, ignore_errors=True)


class _NoAnswerError(StoreBrokenError):
    """Nothing has come back in time."""


def _time_for(size: int) -> float:
    return ANSWER_S + _PART_S * (size // _PART)


def _told() -> bytes:
    """Who we are and when, and like nothing that was ever told before."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "somebody"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    said = {"by": f"{user} at {socket.gethostname()}", "since": now, "id": secrets.token_hex(16)}
    return json.dumps(said).encode()


def _owner(lock: bytes) -> str:
    try:
        said = json.loads(lock)
        return f"{said['by']:.100} since {said['since']:.40}"
    except (ValueError, TypeError, KeyError):
        return "somebody"


def _secrets(url: str) -> list[str]:
    """What must not be told of an address, as it stands there and as it is meant."""
    try:
        password = urlsplit(url).password or ""
    except ValueError:
        password = ""
    return sorted({text for text in (password, unquote(password)) if len(text) > 2}, key=len, reverse=True)
