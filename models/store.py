"""The published models: `<name>/<version>/model.pt`, and `index.json` with the digest of each.

An archive counts once the index lists it, and the index is replaced in one go: no reader sees half of anything. Every
change leaves a line in the audit log that says who made it, and when. All of it lies in a folder (`models.place`) or in
an object store (`models.bucket`). Needs no torch.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self
from urllib.parse import unquote

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from models.place import (
    ARCHIVE,
    AUDIT,
    INDEX,
    REPORT,
    Draft,
    Folder,
    NothingSuchError,
    Place,
    RefusedError,
    StoreBrokenError,
    StoreError,
    UncertainError,
)
from models.signature import Signer
from models.spec import Frozen, ModelName, first_error, is_model_name

__all__ = [
    "ARCHIVE",
    "AUDIT",
    "INDEX",
    "REPORT",
    "Alias",
    "Digest",
    "Entry",
    "Index",
    "NothingSuchError",
    "RefusedError",
    "Share",
    "Store",
    "StoreBrokenError",
    "StoreError",
    "Traffic",
    "digest_of",
    "parse",
]

_REMEMBERED = 10
"""So many versions that an alias stood for before: far enough back for any rollback that somebody understands."""


def _is_not_latest(alias: str) -> str:
    if alias == "latest":
        raise ValueError("'latest' always stands for the newest version")
    return alias


Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Alias = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$"), AfterValidator(_is_not_latest)]
Share = Annotated[PositiveFloat, Field(le=100)]


def parse(text: str) -> Path | str:
    """Where a store lies, as somebody has written it: a folder, or the address of an object store.

    StoreError for an address that nothing here can read, saying which package would.
    """
    scheme, found, _ = text.partition("://")
    if not found:
        return Path(text)
    if scheme in ("file", "local"):
        if not (path := text.partition("://")[2]).startswith("/"):
            raise StoreError(f"{scheme}:// takes a path from the root on, such as {scheme}:///srv/models")
        # The folder itself, with its lock: who goes there by its path is to see the same.
        return Path(unquote(path))
    from models import bucket

    bucket.check(text)
    return text


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
    """The published models, in a folder or below an address. Whoever changes it says who they are (`by`)."""

    def __init__(self, root: Path | str) -> None:
        self._place = _place(root)

    @property
    def name(self) -> str:
        """Where it lies, for messages."""
        return self._place.name

    @property
    def root(self) -> Path:
        """Of a store that is a folder."""
        return self._folder.root

    def prepare(self) -> None:
        """Have at hand what it takes to ask, before somebody waits for an answer."""
        self._place.prepare()

    def index(self) -> Index:
        """What is published; empty for a place without an index, StoreError for one that cannot be read."""
        return self._parsed(self._place.read())

    def text(self) -> bytes | None:
        """The same as it is written, and valid; None where there is no index."""
        found = self._place.read()
        self._parsed(found)
        return found

    def _parsed(self, text: bytes | None) -> Index:
        try:
            return Index() if text is None else Index.model_validate_json(text)
        except ValidationError as error:
            raise StoreBrokenError(f"{self._place.at(INDEX)}: {first_error(error)}") from error

    def revision(self) -> tuple[int, int, int] | None:
        """Of a folder: another one whenever the index is; None where there is none to be read."""
        return self._folder.revision()

    def archive(self, name: str, version: int) -> Path:
        """Of a folder: where the archive of a version lies."""
        return self._folder.archive(name, version)

    def where(self, name: str, version: int) -> str:
        """The same for a person to read, of any store."""
        return self._place.at(name, str(version), ARCHIVE)

    @property
    def _folder(self) -> Folder:
        if not isinstance(self._place, Folder):
            raise StoreError(f"{self.name} is not a folder")
        return self._place

    def publish(
        self,
        name: str,
        write: Callable[[int, Path], str],
        *,
        by: str = "",
        signer: Signer | None = None,
        version: int | None = None,
        signature: str | None = None,
    ) -> int:
        """Publish the next version of a model, or one of that number, and give its number.

        `write` is handed that number and an empty folder, fills it (model.pt, report/) and returns the digest. All of
        it is put into its place and then listed; a failure on the way leaves the store as it was. RefusedError where
        the number is taken.
        """
        if not is_model_name(name):
            raise RefusedError(f"{name!r} cannot be a model's name: lower-case letters, digits, '-' and '_'")
        draft = self._draft(name, version)
        try:
            # Not under the lock: it may take minutes, in which nobody could move an alias.
            digest = write(draft.version, draft.folder)
            draft.settle()
            with self._place.locked():
                index = self.index()
                entry = index.models.get(name, Entry())
                update: dict[str, object] = {"versions": {**entry.versions, draft.version: digest}}
                if signature is not None:
                    update["signatures"] = {**entry.signatures, draft.version: signature}
                listed = entry.model_copy(update=update)
                if signer is not None:
                    listed = _signed(listed, name, draft.version, signer)
                text = _text(index, name, listed)
                draft.place()
                said = {"model": name, "version": draft.version, "digest": digest}
                self._write(text, Change(by, "publish", said))
        except UncertainError:
            draft.discard(listed=True)
            raise
        except BaseException:
            draft.discard(listed=self._may_list(name, draft.version))
            raise
        draft.close()
        return draft.version

    def copy(self, name: str, version: int, target: "Store", *, by: str = "", signer: Signer | None = None) -> bool:
        """Publish a version of this store in another one, with its number, its report and its signature.

        Whether it was not there already. RefusedError where another one has that number.
        """
        entry = self.index().models.get(name)
        if entry is None:
            raise NothingSuchError(f"there is no model {name!r} in {self.name}")
        digest = _with(entry, name, version).versions[version]
        there = target.index().models.get(name, Entry())
        if version in there.versions:
            if there.versions[version] != digest:
                raise RefusedError(f"{target.name} has another {name} version {version}; versions do not change")
            return False

        def write(_number: int, folder: Path) -> str:
            self.take(name, version, digest, folder)
            self.take_report(name, version, folder)
            return digest

        signature = entry.signatures.get(version)
        target.publish(name, write, by=by, signer=signer, version=version, signature=signature)
        return True

    def take(self, name: str, version: int, digest: str, folder: Path) -> Path:
        """A copy of a version's archive in a folder; StoreError where it is not what the digest says."""
        path = folder / ARCHIVE
        self._place.take_archive(name, version, path)
        if (found := digest_of(path)) != digest:
            raise StoreBrokenError(f"{self.where(name, version)}: digest is {found}, expected {digest}")
        return path

    def take_report(self, name: str, version: int, folder: Path) -> None:
        """A copy of its report in a folder, where it has one."""
        self._place.take_report(name, version, folder / REPORT)

    @contextmanager
    def opened(self, name: str, version: int) -> Iterator[Path]:
        """The archive of a version as a file of this machine, for as long as it is needed; StoreError."""
        if isinstance(self._place, Folder):
            yield self.archive(name, version)
            return
        entry = self.index().models.get(name, Entry())
        with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
            yield self.take(name, version, _with(entry, name, version).versions[version], Path(folder))

    def follow(self, index: Callable[[], bytes | None]) -> Index | None:
        """Of a folder that mirrors another store: have that one's index, if it is another; None where it is not.

        The other is asked under the lock, so that of two who follow it the later answer stays.
        """
        with self._folder.locked():
            text = index()
            if text is None or text == self._folder.read():
                return None
            self._folder.copy(text)
            return self._parsed(text)

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
        return [said for line in self._place.audit(last) if (said := _said(line)) is not None]

    def _may_list(self, name: str, version: int) -> bool:
        with suppress(StoreError):
            return version in self.index().models.get(name, Entry()).versions
        return True

    def _draft(self, name: str, version: int | None) -> Draft:
        """The next version, empty: whoever publishes at the same time gets another number."""
        with self._place.locked():
            text = self._place.read()
            if text is None and self._place.has_versions():
                # One that lists this version alone would take everything else out of service.
                raise StoreBrokenError(f"{self.name} has versions and no {INDEX}: put that back first")
            entry = self._parsed(text).models.get(name, Entry())
            return self._place.draft(name, entry.versions, version)

    @contextmanager
    def _changing(self, name: str, change: Change) -> Iterator["_Edit"]:
        """An entry to change; it is written at the end, where there is one to be changed and nothing was raised."""
        with self._place.locked():
            index = self.index()
            if name not in index.models:
                raise NothingSuchError(f"there is no model {name!r}")
            edit = _Edit(index.models[name], {"model": name, **change.said})
            yield edit
            self._write(_text(index, name, edit.entry), change._replace(said=edit.said))

    def _write(self, text: str, change: Change) -> None:
        """The index, and before it the line of the audit log: there is no change that the log does not know."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "by": change.by or _whoever(), "action": change.action, **change.said}
        self._place.write(text, json.dumps(line))


class _Edit:
    """A change under way."""

    def __init__(self, entry: Entry, said: dict[str, object]) -> None:
        self.entry = entry
        self.said = said


def digest_of(path: Path) -> str:
    """Of an archive: its SHA-256."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _place(root: Path | str) -> Place:
    found = parse(root) if isinstance(root, str) else root
    if isinstance(found, Path):
        return Folder(found)
    from models.bucket import Bucket

    return Bucket(found)


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
