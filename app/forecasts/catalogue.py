"""Which models and versions there are, in what state, and which one a request means."""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from app.errors import InvalidError, NotReadyError, Place, UnknownModelError, UnknownVersionError
from app.ticket import ModelId
from models.spec import Spec
from models.store import Traffic

_ALL = 100.0
_NONE = Traffic()

State = Literal["loading", "ready", "failed", "unloaded"]


@dataclass(slots=True)
class Version:
    """A published version and what has become of it."""

    id: ModelId
    state: State
    reason: str | None = None
    """Why it is out."""
    spec: Spec | None = None
    """Known once it is ready."""
    tries: int = 0
    """How often somebody had asked for it by hand when it was looked at last."""
    signature: str | None = None
    """Its publisher's, likewise."""


@dataclass(slots=True)
class Model:
    """A name with its versions and aliases."""

    versions: dict[int, Version] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    traffic: dict[str, Traffic] = field(default_factory=dict)
    """What becomes of the requests for an alias, where that is more than to go to its version."""

    def in_state(self, state: State) -> list[Version]:
        """Those versions, oldest first."""
        return [version for _, version in sorted(self.versions.items()) if version.state == state]

    def newest_ready(self) -> Version | None:
        """What `latest` means."""
        return next(reversed(self.in_state("ready")), None)

    def serving(self, alias: str) -> Version | None:
        """What answers for an alias: its version; while that is not ready what it stood for before, latest first, or
        the newest that is older. None where the alias is of nothing that is published.
        """
        meant = self.versions.get(self.aliases[alias])
        if meant is None or meant.state == "ready":
            return meant
        before = [self.versions.get(number) for number in reversed(self.traffic.get(alias, _NONE).previous)]
        older = [version for version in reversed(self.in_state("ready")) if version.id.version < meant.id.version]
        return next((one for one in (*before, *older) if one is not None and one.state == "ready"), meant)

    def chosen(self, alias: str, name: str, client: Callable[[], str] | None) -> Version | None:
        """The same for one client: some get the versions that the alias is split into, always the same ones.

        Where a share grows, those who had that version keep it.
        """
        split = self.traffic.get(alias, _NONE).split
        if split and client is not None:
            place = _place(f"{name}/{alias}/{client()}")
            for number, share in sorted(split.items()):
                if place < share:
                    version = self.versions.get(number)
                    if version is not None and version.state == "ready":
                        return version
                    break
                place -= share
        return self.serving(alias)

    def shadow(self, alias: str) -> Version | None:
        """The version that is asked the same as an alias and answers nobody, where there is one and it is ready."""
        number = self.traffic.get(alias, _NONE).shadow
        version = None if number is None else self.versions.get(number)
        return version if version is not None and version.state == "ready" else None


def _place(client: str) -> float:
    """Where a client lies between 0 and 100: evenly spread, and always at the same place, in every process."""
    digest = hashlib.blake2b(client.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64 * _ALL


class Meant(NamedTuple):
    """What a request means."""

    id: ModelId
    spec: Spec
    shadow: Version | None = None
    """Who is asked the same for comparison."""


@dataclass(slots=True)
class Catalogue:
    """What is published; the registry writes it, or a copy of it comes from the process that has the registry."""

    models: dict[str, Model] = field(default_factory=dict)
    trouble: str | None = None
    """Why the store could not be read."""
    settled: bool = False
    """Whether every version that was chosen at the start has been tried."""

    @property
    def ready(self) -> bool:
        """Whether at least one version is warm, and none of those of the start is still on its way: what is published
        later loads beside what serves (docs/decisions/0008).
        """
        return self.settled and any(version.state == "ready" for version in self.versions())

    def versions(self) -> Iterator[Version]:
        """Every published version."""
        for model in self.models.values():
            yield from model.versions.values()

    def answering(self) -> Iterator[tuple[str, str, int, int]]:
        """Every alias with its model's name, the version that it stands for and the one that answers; 0 where none is
        ready.
        """
        for name, model in self.models.items():
            for alias, number in model.aliases.items():
                serving = model.serving(alias)
                ready = serving is not None and serving.state == "ready"
                yield name, alias, number, serving.id.version if serving is not None and ready else 0

    def find(self, name: str, wanted: str) -> Version:
        """A published version in whatever state, by number, alias or `latest`.

        UnknownModelError, UnknownVersionError.
        """
        version = self._version(name, self.model(name), wanted)
        if version is None:
            raise UnknownVersionError(f"no version of {name} is ready")
        return version

    def model(self, name: str) -> Model:
        """A published model; UnknownModelError where there is none of that name."""
        if name not in self.models:
            raise UnknownModelError(f"there is no model {name!r}")
        return self.models[name]

    def resolve(self, name: str | None, wanted: str | None, client: Callable[[], str] | None = None) -> Meant:
        """The ready version that a request means; where an alias is split, `client` is asked whose it is.

        UnknownModelError, UnknownVersionError; InvalidError where the name is needed; NotReadyError where it is known
        but not ready.
        """
        name = name or self._only_name()
        model = self.model(name)
        alias = _alias(model, wanted)
        version = model.chosen(alias, name, client) if alias else self._version(name, model, wanted)
        if version is None or version.spec is None or version.state != "ready":
            state = (
                "no version of it is ready" if version is None else f"version {version.id.version} is {version.state}"
            )
            reason = f": {version.reason}" if version is not None and version.reason else ""
            raise NotReadyError(f"{name}: {state}{reason}")
        return Meant(version.id, version.spec, model.shadow(alias) if alias else None)

    def _only_name(self) -> str:
        served = [name for name, model in self.models.items() if model.newest_ready() is not None]
        if len(served) == 1:
            return served[0]
        if not served:
            raise NotReadyError("no model is ready")
        raise InvalidError(Place("query.model", f"needed, since several are served: {', '.join(sorted(served))}"))

    def _version(self, name: str, model: Model, wanted: str | None) -> Version | None:
        alias = _alias(model, wanted)
        if alias is None and wanted in (None, "latest"):
            return model.newest_ready()
        written = re.fullmatch(r"[1-9]\d{0,8}", wanted or "", re.ASCII)
        number = int(written[0]) if written else model.aliases.get(alias or "")
        if number not in model.versions:
            raise UnknownVersionError(f"{name} has no version {wanted!r}")
        return model.versions[number]


def _alias(model: Model, wanted: str | None) -> str | None:
    """The alias that is meant, where it is one; `production` where nothing is said."""
    if wanted is None:
        wanted = "production"
    return wanted if model.aliases.get(wanted) in model.versions else None
