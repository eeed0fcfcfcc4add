"""The folder of published models: `<name>/<version>/model.pt`, and `index.json` with the digest of each.

An archive counts once the index lists it, and the index changes by rename alone: no reader sees half of anything. Every
change leaves a line in `audit.jsonl` that says who made it, and when. Needs no torch.
"""

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, TextIO

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from models.signature import Signer
from models.spec import Frozen, ModelName, first_error, is_model_name

ARCHIVE = "model.pt"
REPORT = "report"
INDEX = "index.json"
AUDIT = "audit.jsonl"
_REMEMBERED = 10
"""So many versions that an alias stood for before: far enough back for any rollback that somebody understands."""

_PATIENCE_S = 30.0
_PAUSE_S = 0.02
"""The lock is held for milliseconds."""


def _is_not_latest(alias: str) -> str:
    if alias == "latest":
        raise ValueError("'latest' always stands for the newest version")
    return alias


Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Alias = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$"), AfterValidator(_is_not_latest)]
Share = Annotated[PositiveFloat, Field(le=100)]


class StoreError(Exception):
    """The store cannot be read or written as asked, and why."""


class NothingSuchError(StoreError):
    """A model, version or alias that is not there."""


class RefusedError(StoreError):
    """A change that contradicts what the index says."""


class StoreBrokenError(StoreError):
    """The folder cannot be read or written."""


class Traffic(Frozen):
    """What becomes of the requests for an alias, beside the version that it stands for."""

    split: dict[PositiveInt, Share] = Field(default={})
    """Other versions, each with the percentage of clients that it gets."""
    shadow: PositiveInt | None = None
    """A version that is asked the same, and answers nobody."""
    previous: tuple[PositiveInt, ...] = ()
    """What the alias stood for before, the latest last."""

    @model_validator(mode="after")
    def _is_at_most_all(self) -> Self:
        if sum(self.split.values()) > 100:
            raise ValueError("the shares of split are more than 100 percent")
        return self


class Entry(Frozen):
    """What the index says of one model."""

    versions: dict[PositiveInt, Digest] = Field(default={})
    aliases: dict[Alias, PositiveInt] = Field(default={})
    traffic: dict[Alias, Traffic] = Field(default={})
    wanted: dict[PositiveInt, Annotated[int, Field(ge=0)]] = Field(default={})
    """Versions that somebody asked for by hand, whatever the service's policy: how many times to load, 0 to unload."""
    signatures: dict[PositiveInt, str] = Field(default={})
    """Of versions, where their publisher signs (models.signature)."""

    def traffic_of(self, alias: str) -> Traffic:
        """An alias's; plain where nothing is said of it."""
        return self.traffic.get(alias, Traffic())

    def before(self, alias: str) -> tuple[int, ...]:
        """What an alias can be rolled back to, the first choice last: versions disappear where a store is replaced."""
        previous = [number for number in self.traffic_of(alias).previous if number in self.versions]
        while previous and previous[-1] == self.aliases.get(alias):
            previous.pop()
        return tuple(previous)

    def in_use(self) -> set[int]:
        """Versions that requests for an alias may go to, or went to until its last change, unless somebody unloads
        that: a rollback is to be at once.
        """
        used = set(self.aliases.values())
        for alias in self.aliases:
            traffic = self.traffic_of(alias)
            used |= {*traffic.split} | ({traffic.shadow} if traffic.shadow else set())
            used |= {number for number in self.before(alias)[-1:] if self.wanted.get(number) != 0}
        return used & set(self.versions)


class Index(Frozen):
    """What the store vouches for: only archives listed here are opened."""

    models: dict[ModelName, Entry] = Field(default={})


class Change(NamedTuple):
    """Who changes the index, and what is to stand in the audit log beside it."""

    by: str
    action: str
    said: Mapping[str, object]


class Store:
    """A folder of published models. Whoever changes it says who they are (`by`)."""

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
            raise StoreBrokenError(f"{path}: {first_error(error)}") from error
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

    def publish(
        self, name: str, write: Callable[[int, Path], str], *, by: str = "", signer: Signer | None = None
    ) -> int:
        """Publish the next version of a model and give its number.

        `write` is handed that number and an empty folder, fills it (model.pt, report/) and returns the digest. The
        folder is renamed into place and then listed; a failure on the way leaves the store as it was.
        """
        if not is_model_name(name):
            raise RefusedError(f"{name!r} cannot be a model's name: lower-case letters, digits, '-' and '_'")
        place, unfinished = self._reserve(name)
        version = int(place.name)
        try:
            # Not under the lock: it may take minutes, in which nobody could move an alias.
            digest = write(version, unfinished)
            unfinished.chmod(0o755)
            _settle(unfinished)
            with self._locked():
                index = self.index()
                entry = index.models.get(name, Entry())
                listed = entry.model_copy(update={"versions": {**entry.versions, version: digest}})
                if signer is not None:
                    listed = _signed(listed, name, version, signer)
                text = _text(index, name, listed)
                unfinished.rename(place)
                _sync(place.parent)
                self._write(text, Change(by, "publish", {"model": name, "version": version, "digest": digest}))
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            self._remove_unlisted(name, version, place)
            raise
        return version

    def sign(self, name: str, version: int, signer: Signer, *, by: str = "") -> None:
        """Vouch for a version that is published."""
        with self._changing(name, Change(by, "sign", {"version": version})) as edit:
            edit.entry = _signed(_with(edit.entry, name, version), name, version, signer)

    def point(
        self,
        name: str,
        alias: str,
        version: int,
        *,
        split: Mapping[int, float] | None = None,
        shadow: int | None = None,
        by: str = "",
    ) -> None:
        """Let an alias stand for a published version; others get a share of its clients, or its requests in shadow.

        NothingSuchError where there is no such version, RefusedError for shares that make no sense.
        """
        split = dict(split or {})
        said = {"alias": alias, "version": version, "split": split, "shadow": shadow}
        with self._changing(name, Change(by, "point", said)) as edit:
            for number in (version, *split, *([shadow] if shadow else ())):
                _with(edit.entry, name, number)
            if version in split:
                raise RefusedError(f"version {version} is what {alias} stands for, and gets the rest anyhow")
            if version == shadow:
                raise RefusedError(f"version {version} is what {alias} stands for, and cannot be its shadow")
            former, previous = edit.entry.aliases.get(alias), edit.entry.traffic_of(alias).previous
            edit.said["from"] = former
            if former is not None and former != version:
                previous = (*previous, former)[-_REMEMBERED:]
            traffic = {"split": split, "shadow": shadow, "previous": previous}
            edit.entry = _pointed(edit.entry, alias, version, traffic)

    def roll_back(self, name: str, alias: str, *, by: str = "") -> int:
        """Take back the last step: a split or a shadow where there is one, else the version; the one that it is now.

        RefusedError where there is nothing to take back.
        """
        with self._changing(name, Change(by, "roll back", {"alias": alias})) as edit:
            former, traffic = _alias(edit.entry, name, alias), edit.entry.traffic_of(alias)
            before = edit.entry.before(alias)
            if traffic.split or traffic.shadow:
                before = (*before, former)
            if not before:
                raise RefusedError(f"{name}: {alias} has stood for nothing but version {former}")
            *previous, version = before
            edit.said.update({"from": former, "version": version})
            edit.entry = _pointed(edit.entry, alias, version, {"previous": tuple(previous)})
        return version

    def drop(self, name: str, alias: str, *, by: str = "") -> None:
        """Forget an alias; NothingSuchError where there is none."""
        with self._changing(name, Change(by, "drop", {"alias": alias})) as edit:
            edit.said["from"] = _alias(edit.entry, name, alias)
            aliases = {other: number for other, number in edit.entry.aliases.items() if other != alias}
            traffic = {other: said for other, said in edit.entry.traffic.items() if other != alias}
            edit.entry = edit.entry.model_copy(update={"aliases": aliases, "traffic": traffic})

    def want(self, name: str, version: int, *, loaded: bool, by: str = "") -> int:
        """Have a version loaded, again where it failed, or unloaded, whatever the service's policy says; how often it
        has been asked for since it was unloaded by hand.

        RefusedError where an alias needs what is to be unloaded.
        """
        action = "load" if loaded else "unload"
        with self._changing(name, Change(by, action, {"version": version})) as edit:
            entry = _with(edit.entry, name, version)
            used = [
                alias
                for alias, number in entry.aliases.items()
                if version in (number, entry.traffic_of(alias).shadow, *entry.traffic_of(alias).split)
            ]
            if used and not loaded:
                raise RefusedError(
                    f"{name} version {version} is in use by the alias {used[0]}; point that elsewhere first"
                )
            count = entry.wanted.get(version, 0) + 1 if loaded else 0
            edit.entry = entry.model_copy(update={"wanted": {**entry.wanted, version: count}})
        return count

    def audit(self, last: int) -> list[dict[str, Any]]:
        """The latest changes, the newest last."""
        try:
            with (self.root / AUDIT).open("rb") as file:
                # Enough for so many lines as long as lines get.
                file.seek(max(0, file.seek(0, os.SEEK_END) - last * 1024))
                lines = file.read().splitlines()[-last:]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreBrokenError(f"{self.root / AUDIT}: {error.strerror}") from error
        return [said for line in lines if (said := _said(line)) is not None]

    def _remove_unlisted(self, name: str, version: int, place: Path) -> None:
        """Where the index does not list it: of a disk that is full, each further try would fill more."""
        with suppress(StoreError):
            listed = self.index().models.get(name, Entry()).versions
            if version not in listed:
                shutil.rmtree(place, ignore_errors=True)
                _remove_empty(place)

    def _reserve(self, name: str) -> tuple[Path, Path]:
        """The folder of the next version, empty: whoever publishes at the same time gets another number. Beside it one
        to fill.
        """
        with self._locked():
            if self.revision() is None and next(self.root.glob(f"*/[0-9]*/{ARCHIVE}"), None) is not None:
                # One that lists this version alone would take everything else out of service.
                raise StoreBrokenError(f"{self.root} has versions and no {INDEX}: put that back first")
            entry = self.index().models.get(name, Entry())
            # Folders count too: one that is not listed (a publisher died on its way) is never overwritten.
            folders = [path.name for path in (self.root / name).glob("*")]
            taken = {*entry.versions, *(int(folder) for folder in folders if folder.isdecimal())}
            place = self.root / name / str(max(taken, default=0) + 1)
            try:
                place.mkdir(parents=True)
                unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=self.root))
            except OSError as error:
                _remove_empty(place)
                raise StoreBrokenError(f"{self.root} cannot be written to: {error.strerror}") from error
        return place, unfinished

    @contextmanager
    def _changing(self, name: str, change: Change) -> Iterator["_Edit"]:
        """An entry to change; it is written at the end, where there is one to be changed and nothing was raised."""
        with self._locked():
            index = self.index()
            if name not in index.models:
                raise NothingSuchError(f"there is no model {name!r}")
            edit = _Edit(index.models[name], {"model": name, **change.said})
            yield edit
            self._write(_text(index, name, edit.entry), change._replace(said=edit.said))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / ".lock").open("w")
        except OSError as error:
            raise StoreBrokenError(f"{self.root} cannot be written to: {error.strerror}") from error
        with lock:
            end = time.monotonic() + _PATIENCE_S
            while not _is_locked(lock):
                if time.monotonic() > end:
                    raise StoreBrokenError(f"{self.root} has been locked by somebody else for {_PATIENCE_S:g} s")
                time.sleep(_PAUSE_S)
            yield

    def _write(self, text: str, change: Change) -> None:
        """The index, and before it the line of the audit log: there is no change that the log does not know."""
        try:
            with tempfile.NamedTemporaryFile("w", prefix=f".{INDEX}-", dir=self.root, delete=False) as file:
                unfinished = Path(file.name)
                try:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                    unfinished.chmod(0o644)
                    self._log(change)
                    unfinished.replace(self.root / INDEX)
                except BaseException:
                    unfinished.unlink(missing_ok=True)
                    raise
            _sync(self.root)
        except OSError as error:
            raise StoreBrokenError(f"{self.root} cannot be written to: {error.strerror}") from error

    def _log(self, change: Change) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "by": change.by or _whoever(), "action": change.action, **change.said})
        with (self.root / AUDIT).open("ab+") as file:
            # Where the disk was full, the line before may have no end.
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            file.write((b"" if file.read(1) in (b"", b"\n") else b"\n") + line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _remove_empty(place: Path) -> None:
    """The folder of a version that came to nothing, and its model's where that is all there was."""
    with suppress(OSError):
        place.rmdir()
    with suppress(OSError):
        place.parent.rmdir()


class _Edit:
    """A change under way."""

    def __init__(self, entry: Entry, said: dict[str, object]) -> None:
        self.entry = entry
        self.said = said


def _settle(folder: Path) -> None:
    """Everything in it is on the disk, before anything says that it is there."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    """A file, or what a folder has by rename."""
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


def _with(entry: Entry, name: str, version: int) -> Entry:
    if version not in entry.versions:
        raise NothingSuchError(f"{name} has no version {version}")
    return entry


def _alias(entry: Entry, name: str, alias: str) -> int:
    if alias not in entry.aliases:
        raise NothingSuchError(f"{name} has no alias {alias!r}")
    return entry.aliases[alias]


def _signed(entry: Entry, name: str, version: int, signer: Signer) -> Entry:
    signature = signer.sign(name, version, entry.versions[version])
    return entry.model_copy(update={"signatures": {**entry.signatures, version: signature}})


def _pointed(entry: Entry, alias: str, version: int, traffic: Mapping[str, object]) -> Entry:
    """What somebody asked for by hand, to load or to unload it, is over for a version that an alias needs: later the
    policy decides, or every version that was ever promoted would stay loaded.
    """
    try:
        said = Traffic.model_validate(traffic)
    except ValidationError as error:
        raise RefusedError(first_error(error)) from error
    others = {other: one for other, one in entry.traffic.items() if other != alias}
    used = {version, *said.split, said.shadow}
    update = {
        "aliases": {**entry.aliases, alias: version},
        "traffic": others | ({alias: said} if said != Traffic() else {}),
        "wanted": {number: count for number, count in entry.wanted.items() if number not in used},
    }
    return entry.model_copy(update=update)


def _text(index: Index, name: str, entry: Entry) -> str:
    """The index with another entry for `name`; StoreError where that would be wrong."""
    try:
        # What was built piece by piece is held against the rules once more, as whoever reads it will.
        changed = Index.model_validate({"models": {**index.model_dump()["models"], name: entry.model_dump()}})
    except ValidationError as error:
        raise RefusedError(first_error(error)) from error
    return changed.model_dump_json(indent=2, exclude_defaults=True) + "\n"


def _said(line: bytes) -> dict[str, Any] | None:
    """A line of the audit log; None for one that was cut off."""
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def _whoever() -> str:
    """Where nobody says who they are, it is somebody at the machine."""
    return f"user {os.getuid()}"
