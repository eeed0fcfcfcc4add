"""Which models and versions there are, in what state, and which one a request means."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from app.errors import InvalidError, NotReadyError, Place, UnknownModelError, UnknownVersionError
from app.ticket import ModelId
from models.spec import Spec

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


@dataclass(slots=True)
class Model:
    """A name with its versions and aliases."""

    versions: dict[int, Version] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)

    def in_state(self, state: State) -> list[Version]:
        """Those versions, oldest first."""
        return [version for _, version in sorted(self.versions.items()) if version.state == state]

    def newest_ready(self) -> Version | None:
        """What `latest` means."""
        return next(reversed(self.in_state("ready")), None)


@dataclass(slots=True)
class Catalogue:
    """What is published; the registry writes it, or a copy of it comes from the process that has the registry."""

    models: dict[str, Model] = field(default_factory=dict)
    trouble: str | None = None
    """Why the store could not be read."""

    @property
    def ready(self) -> bool:
        """Whether at least one version is warm and none is still on its way (docs/decisions/0008)."""
        states = {version.state for version in self.versions()}
        return "ready" in states and "loading" not in states

    def versions(self) -> Iterator[Version]:
        """Every published version."""
        for model in self.models.values():
            yield from model.versions.values()

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

    def resolve(self, name: str | None, wanted: str | None) -> tuple[ModelId, Spec]:
        """The ready version that a request means.

        UnknownModelError, UnknownVersionError; InvalidError where the name is needed; NotReadyError where it is known
        but not ready.
        """
        name = name or self._only_name()
        model = self.model(name)
        version = self._version(name, model, wanted)
        if version is None or version.spec is None or version.state != "ready":
            state = (
                "no version of it is ready" if version is None else f"version {version.id.version} is {version.state}"
            )
            reason = f": {version.reason}" if version is not None and version.reason else ""
            raise NotReadyError(f"{name}: {state}{reason}")
        return version.id, version.spec

    def _only_name(self) -> str:
        served = [name for name, model in self.models.items() if model.newest_ready() is not None]
        if len(served) == 1:
            return served[0]
        if not served:
            raise NotReadyError("no model is ready")
        raise InvalidError(Place("query.model", f"needed, since several are served: {', '.join(sorted(served))}"))

    def _version(self, name: str, model: Model, wanted: str | None) -> Version | None:
        if wanted is None:
            wanted = "production" if "production" in model.aliases else "latest"
        if wanted == "latest":
            return model.newest_ready()
        number = int(wanted) if re.fullmatch(r"[1-9]\d{0,8}", wanted) else model.aliases.get(wanted)
        if number not in model.versions:
            raise UnknownVersionError(f"{name} has no version {wanted!r}")
        return model.versions[number]
