"""Which models and versions there are, in what state, and which one a request means."""

import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from app.engine import Engine
from app.errors import InvalidError, NotReadyError, Place, UnknownModelError, UnknownVersionError
from app.settings import Policy
from app.ticket import ModelId
from models.artifact import ArtifactError
from models.spec import Spec
from models.store import Entry, Store, StoreError

log = logging.getLogger(__name__)

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


class Registry:
    """Reads the store's index, has the engine load what the policy chooses, and resolves names."""

    def __init__(self, store: Store, engine: Engine, policy: Policy) -> None:
        self._store = store
        self._engine = engine
        self._policy = policy
        self.models: dict[str, Model] = {}
        self.trouble: str | None = None
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

    async def load(self) -> None:
        """Load what the policy chooses, one after the other; a version that fails stays out with its reason."""
        try:
            index = self._store.index()
        except StoreError as error:
            self.trouble = str(error)
            log.error("the model store cannot be read: %s", error)  # noqa: TRY400  the message says it all
            return
        self.models = {name: self._model(name, entry) for name, entry in index.models.items()}
        for name, number in sorted(self._policy.listed or ()):
            if name not in self.models or number not in self.models[name].versions:
                log.error("FORETELL_VERSIONS asks for %s:%d, which is not published", name, number)
        if not self.models:
            log.warning("no models are published in %s", self._store.root)
        for model in self.models.values():
            for version in model.in_state("loading"):
                await self._load(version)
            # One that fails must not take the model out: the version that served before serves on.
            while len(model.in_state("ready")) < (self._policy.latest or 0) and (older := model.in_state("unloaded")):
                older[-1].state, older[-1].reason = "loading", None
                await self._load(older[-1])

    def find(self, name: str, number: int) -> Version:
        """A published version in whatever state; UnknownModelError or UnknownVersionError."""
        version = self.model(name).versions.get(number)
        if version is None:
            raise UnknownVersionError(f"{name} has no version {number}")
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

    def _model(self, name: str, entry: Entry) -> Model:
        published = frozenset(entry.versions)
        # What an alias stands for is served whatever the policy says: it was pointed there on purpose.
        chosen = {
            number
            for number in published
            if self._policy.chooses(name, number, published) or number in entry.aliases.values()
        }
        versions = {
            number: Version(ModelId(name, number, digest), "loading")
            if number in chosen
            else Version(ModelId(name, number, digest), "unloaded", "not chosen by FORETELL_VERSIONS")
            for number, digest in sorted(entry.versions.items())
        }
        return Model(versions, dict(entry.aliases))

    async def _load(self, version: Version) -> None:
        name, number, digest = version.id
        began = time.monotonic()
        try:
            spec = await self._engine.load(version.id, self._store.archive(name, number))
            _check_identity(spec, version.id)
        except (ArtifactError, OSError) as error:
            self._fail(version, error.strerror or "unreadable" if isinstance(error, OSError) else str(error))
            log.error("%s version %d does not load: %s", name, number, version.reason)  # noqa: TRY400  a reason, no bug
            return
        except Exception as error:
            # Whatever a network does on its first rows keeps that one out, never the next.
            self._fail(version, f"its network fails: {type(error).__name__}")
            log.exception("%s version %d does not load", name, number)
            return
        version.spec, version.state = spec, "ready"
        seconds = time.monotonic() - began
        log.info("%s version %d is ready after %.2f s (%s)", name, number, seconds, digest)

    def _fail(self, version: Version, reason: str) -> None:
        version.state, version.reason = "failed", reason
        self._engine.unload(version.id)


def _check_identity(spec: Spec, model: ModelId) -> None:
    if (spec.name, spec.version) != (model.name, model.version):
        raise ArtifactError(f"the archive is of {spec.name} version {spec.version}")
