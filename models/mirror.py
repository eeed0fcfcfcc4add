"""A folder that follows a store far away: its index as it was read last, and of its versions those that were wanted.

The folder is a store like any other to whoever reads it. What comes into it has been verified by the digest that the
index lists, and comes by rename. Several services may have one in common.
"""

import hashlib
import logging
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from models.place import sync
from models.store import ARCHIVE, REPORT, Index, Store, StoreBrokenError, StoreError, digest_of

log = logging.getLogger(__name__)

_FETCHING = ".fetching-"
_LEFT_S = 3600.0
"""What was being fetched so long ago was left by a process that died."""
_SETTLED_S = 600.0
"""Another service may know of younger ones what this one has not heard yet."""


class Mirror:
    """Of one store, in a folder of its own below another one."""

    def __init__(self, source: Store, below: Path) -> None:
        self._source = source
        readable = "".join(letter if letter.isalnum() else "-" for letter in source.name)[-40:].strip("-")
        self.store = Store(below / f"{readable}-{hashlib.sha256(source.name.encode()).hexdigest()[:8]}")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known of what is published."""
        return self.store.revision() is None

    def pull(self) -> None:
        """Ask for the index; StoreError where there is no answer or a damaged one, and the one of before stays."""
        changed = self.store.follow(self._asked)
        if changed is not None:
            self._tidy(changed)

    def _asked(self) -> bytes | None:
        text = self._source.text()
        if text is None and not self.is_empty:
            raise StoreBrokenError(f"{self._source.name} has no index any more")
        return text

    def fetch(self, name: str, version: int, digest: str) -> None:
        """See to it that the archive with that digest is here, and its report; StoreError where it cannot be had."""
        place = self.store.archive(name, version).parent
        try:
            if _digest(place / ARCHIVE) != digest:
                self._fetch(name, version, digest, place)
            elif not (place / REPORT).is_dir():
                self._fetch_report(name, version, place)
        except OSError as error:
            raise StoreBrokenError(f"{self.store.root} cannot be written to: {error.strerror or error}") from error

    def _fetch(self, name: str, version: int, digest: str, place: Path) -> None:
        self.store.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_FETCHING, dir=self.store.root, ignore_cleanup_errors=True) as scratch:
            archive = self._source.take(name, version, digest, Path(scratch))
            sync(archive)
            place.mkdir(parents=True, exist_ok=True)
            # Of a version that was here with another digest, it is the report of that one.
            shutil.rmtree(place / REPORT, ignore_errors=True)
            archive.replace(place / ARCHIVE)
            os.utime(place)
            sync(place)
        self._fetch_report(name, version, place)

    def _fetch_report(self, name: str, version: int, place: Path) -> None:
        """A version without one can be served."""
        with tempfile.TemporaryDirectory(prefix=_FETCHING, dir=self.store.root, ignore_cleanup_errors=True) as scratch:
            try:
                self._source.take_report(name, version, Path(scratch))
            except StoreError as error:
                log.warning("the report of %s version %d is not to be had: %s", name, version, error)
                return
            # An empty one says that there is none, and is not asked for again.
            (Path(scratch) / REPORT).mkdir(exist_ok=True)
            with suppress(OSError):  # another service was first
                (Path(scratch) / REPORT).rename(place / REPORT)

    def _tidy(self, index: Index) -> None:
        """Nothing stays that the store lists no more, nor what was left half fetched."""
        for place in self.store.root.glob("*/[0-9]*"):
            listed = index.models.get(place.parent.name)
            if (listed is None or int(place.name) not in listed.versions) and _age_s(place) > _SETTLED_S:
                shutil.rmtree(place, ignore_errors=True)
                with suppress(OSError):
                    place.parent.rmdir()
        for left in self.store.root.glob(f"{_FETCHING}*"):
            if _age_s(left) > _LEFT_S:
                shutil.rmtree(left, ignore_errors=True)


def _digest(path: Path) -> str | None:
    try:
        return digest_of(path)
    except OSError:
        return None


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
