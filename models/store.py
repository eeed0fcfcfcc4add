"""The folder of published models: `<name>/<version>/model.pt`, and `index.json` with the digest of each.

An archive counts once the index lists it, and the index changes by rename alone: no reader sees half of anything.
Needs no torch.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveInt, ValidationError

from models.spec import Frozen, ModelName, first_error, is_model_name

ARCHIVE = "model.pt"
REPORT = "report"
INDEX = "index.json"


def _is_not_latest(alias: str) -> str:
    if alias == "latest":
        raise ValueError("'latest' always stands for the newest version")
    return alias


Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Alias = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$"), AfterValidator(_is_not_latest)]


class StoreError(Exception):
    """The store cannot be read or written as asked, and why."""


class Entry(Frozen):
    """What the index says of one model."""

    versions: dict[PositiveInt, Digest] = Field(default={})
    aliases: dict[Alias, PositiveInt] = Field(default={})


class Index(Frozen):
    """What the store vouches for: only archives listed here are opened."""

    models: dict[ModelName, Entry] = Field(default={})


class Store:
    """A folder of published models."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def index(self) -> Index:
        """What is published; empty for a folder without an index, StoreError for one that cannot be read."""
        path = self.root / INDEX
        try:
            return Index.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return Index()
        except ValidationError as error:
            raise StoreError(f"{path}: {first_error(error)}") from error
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error

    def archive(self, name: str, version: int) -> Path:
        """Where the archive of a version lies."""
        return self.root / name / str(version) / ARCHIVE

    def publish(self, name: str, write: Callable[[int, Path], str]) -> int:
        """Publish the next version of a model and give its number.

        `write` is handed that number and an empty folder, fills it (model.pt, report/) and returns the digest. The
        folder is renamed into place and then listed; a failure on the way leaves the store as it was.
        """
        if not is_model_name(name):
            raise StoreError(f"{name!r} cannot be a model's name: lower-case letters, digits, '-' and '_'")
        with self._locked():
            index = self.index()
            entry = index.models.get(name, Entry())
            version = self._next_version(name, entry)
            unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=self.root))
            try:
                digest = write(version, unfinished)
                listed = entry.model_copy(update={"versions": {**entry.versions, version: digest}})
                text = _text(index, name, listed)
                unfinished.chmod(0o755)
                (self.root / name).mkdir(exist_ok=True)
                unfinished.rename(self.root / name / str(version))
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
            self._write(text)
        return version

    def point(self, name: str, alias: str, version: int) -> None:
        """Let an alias stand for a published version; StoreError where there is no such version."""
        with self._locked():
            index = self.index()
            entry = index.models.get(name, Entry())
            if version not in entry.versions:
                raise StoreError(f"{name} has no version {version}")
            pointed = entry.model_copy(update={"aliases": {**entry.aliases, alias: version}})
            self._write(_text(index, name, pointed))

    def _next_version(self, name: str, entry: Entry) -> int:
        # Folders count too: one that is not listed (a publisher died between its renames) is never overwritten.
        folders = [path.name for path in (self.root / name).glob("*")]
        taken = {*entry.versions, *(int(folder) for folder in folders if folder.isdecimal())}
        return max(taken, default=0) + 1

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / ".lock").open("w")
        except OSError as error:
            raise StoreError(f"{self.root} cannot be written to: {error.strerror}") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, text: str) -> None:
        with tempfile.NamedTemporaryFile("w", prefix=f".{INDEX}-", dir=self.root, delete=False) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).chmod(0o644)
        Path(file.name).replace(self.root / INDEX)


def _text(index: Index, name: str, entry: Entry) -> str:
    """The index with another entry for `name`; StoreError where that would be wrong."""
    models = {**index.model_dump()["models"], name: entry.model_dump()}
    try:
        return Index.model_validate({"models": models}).model_dump_json(indent=2) + "\n"
    except ValidationError as error:
        raise StoreError(first_error(error)) from error
