"""Makes changes in the store, sees to it that they are noticed, and waits until they hold here."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from app.apart import apart
from app.errors import ConflictError, ForetellError, UnavailableError, UnknownModelError, UnknownVersionError
from app.forecasts.catalogue import Catalogue, Version
from models.store import NothingSuchError, RefusedError, Store, StoreError, Traffic

T = TypeVar("T")

_POLL_S = 0.01
_NOTICED_S = 10.0
"""A change of an alias holds here after some milliseconds; so long where the processes have a lot to do."""


class News(Protocol):
    """Tells other replicas that the store has changed (app.administration.news_redis)."""

    def tell(self) -> None:
        """All of them, soon."""


class Pointed(NamedTuple):
    """An alias as it stands."""

    model: str
    alias: str
    version: int
    serves: int | None
    """The version that answers, another one where that is not ready; None where none is."""
    traffic: Traffic


class Administrator:
    """The way to all changes. Each is made by somebody, whose name stands in the audit log.

    Errors: UnknownModelError, UnknownVersionError; ConflictError for what cannot be done, and why; UnavailableError
    where the store cannot be written.
    """

    def __init__(self, store: Store, catalogue: Catalogue, changed: Callable[[], None], news: News | None) -> None:
        self._store = store
        self._catalogue = catalogue
        self._changed = changed
        self._news = news

    async def load(self, name: str, wanted: str, *, by: str, within_s: float) -> Version:
        """Load a version, or try again; after so long as it is then. ConflictError where it does not load."""
        version = await self._published(name, wanted)
        before = version
        tries = await self._change(self._store.want, name, version.id.version, loaded=True, by=by)
        if version.state != "ready":
            # What one that has failed before says is new once it has been tried again.
            await self._noticed(lambda: self._found(before).tries >= tries)
        return await self._tried(before, within_s)

    async def newest(self, name: str) -> str:
        """The number of the version that was published last; UnknownModelError."""
        entry = (await self._asked(self._store.index)).models.get(name)
        if entry is None or not entry.versions:
            raise UnknownModelError(f"there is no model {name!r}")
        return str(max(entry.versions))

    async def _tried(self, version: Version, within_s: float) -> Version:
        """As it is once it has been loaded, or after so long."""
        await self._until(lambda: self._found(version).state in ("ready", "failed"), within_s)
        found = self._found(version)
        if found.state == "failed":
            raise ConflictError(f"{found.id.name} version {found.id.version} does not load: {found.reason}")
        return found

    async def unload(self, name: str, wanted: str, *, by: str) -> Version:
        """Unload a version, whatever the policy says; ConflictError where an alias needs it."""
        version = self._catalogue.find(name, wanted)
        for owner, alias, number, serves in self._catalogue.answering():
            if (owner, serves) == (name, version.id.version) != (name, number):
                raise ConflictError(
                    f"{name} version {serves} answers for the alias {alias}; point that elsewhere first"
                )
        await self._change(self._store.want, name, version.id.version, loaded=False, by=by)
        await self._noticed(lambda: self._found(version).state not in ("ready", "loading"))
        return self._found(version)

    async def point(
        self,
        name: str,
        alias: str,
        wanted: str,
        *,
        split: Mapping[int, float],
        shadow: int | None,
        by: str,
        within_s: float,
    ) -> Pointed:
        """Let an alias stand for a version, once all that it needs is ready here: whatever answers now does so until
        then, and goes on where one of them does not load (ConflictError).
        """
        version = (await self._published(name, wanted)).id.version
        for number in (version, *split, *([shadow] if shadow else [])):
            found = self._catalogue.find(name, str(number))
            if found.state in ("unloaded", "failed"):
                found = await self.load(name, str(number), by=by, within_s=within_s)
            elif found.state == "loading":
                found = await self._tried(found, within_s)
            if found.state != "ready":
                raise UnavailableError(f"{name} version {number} is still {found.state}; {alias} stays as it is")
        await self._change(self._store.point, name, alias, version, split=split, shadow=shadow, by=by)
        await self._noticed(lambda: self._stands(name, alias, version, split, shadow))
        return self.shown(name, alias)

    async def roll_back(self, name: str, alias: str, *, by: str) -> Pointed:
        """Let it stand for what it stood for before."""
        self.shown(name, alias)
        version = await self._change(self._store.roll_back, name, alias, by=by)
        await self._noticed(lambda: self._stands(name, alias, version, {}, None))
        return self.shown(name, alias)

    async def drop(self, name: str, alias: str, *, by: str) -> None:
        """Forget an alias."""
        self.shown(name, alias)
        await self._change(self._store.drop, name, alias, by=by)
        await self._noticed(lambda: alias not in self._catalogue.model(name).aliases)

    async def audit(self, last: int) -> list[dict[str, Any]]:
        """The latest changes, the newest first."""
        return (await self._asked(partial(self._store.audit, last)))[::-1]

    def shown(self, name: str, alias: str) -> Pointed:
        """An alias as it stands here."""
        model = self._catalogue.model(name)
        if alias not in model.aliases:
            raise UnknownVersionError(f"{name} has no alias {alias!r}")
        serving = model.serving(alias)
        serves = serving.id.version if serving is not None and serving.state == "ready" else None
        return Pointed(name, alias, model.aliases[alias], serves, model.traffic.get(alias, Traffic()))

    def _stands(self, name: str, alias: str, version: int, split: Mapping[int, float], shadow: int | None) -> bool:
        try:
            shown = self.shown(name, alias)
        except UnknownVersionError:
            return False
        return (shown.version, dict(shown.traffic.split), shown.traffic.shadow) == (version, dict(split), shadow)

    async def _published(self, name: str, wanted: str) -> Version:
        """A version; whoever publishes one and goes on to promote it is not to wait until it is looked for."""
        if not self._knows(name, wanted):
            entry = (await self._asked(self._store.index)).models.get(name)
            if entry is not None and wanted in map(str, entry.versions):
                self._changed()
                await self._until(lambda: self._knows(name, wanted), _NOTICED_S)
        return self._catalogue.find(name, wanted)

    def _knows(self, name: str, wanted: str) -> bool:
        try:
            self._catalogue.find(name, wanted)
        except (UnknownModelError, UnknownVersionError):
            return False
        return True

    def _found(self, version: Version) -> Version:
        return self._catalogue.find(version.id.name, str(version.id.version))

    async def _change(self, change: Callable[..., T], *given: object, **named: object) -> T:
        done = await self._asked(partial(change, *given, **named))
        self._changed()
        if self._news is not None:
            self._news.tell()
        return done

    async def _asked(self, ask: Callable[[], T]) -> T:
        try:
            # The store may be slow or far away, and somebody else may hold the lock.
            return await apart(ask)
        except NothingSuchError as error:
            raise _unknown(error) from error
        except RefusedError as error:
            raise ConflictError(str(error)) from error
        except StoreError as error:
            raise UnavailableError(str(error)) from error

    async def _noticed(self, holds: Callable[[], bool]) -> None:
        """Until a change that was made holds here; UnavailableError where that takes too long: who asked is not to
        make it again.
        """
        await self._until(holds, _NOTICED_S)
        if not holds():
            raise UnavailableError("the change is made, and is not seen here yet: look, do not repeat it")

    async def _until(self, holds: Callable[[], bool], within_s: float) -> None:
        """Or until so much time has passed."""
        end = asyncio.get_running_loop().time() + within_s
        while not holds() and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110  snapshots tell nobody
            await asyncio.sleep(_POLL_S)


def _unknown(error: NothingSuchError) -> ForetellError:
    text = str(error)
    return UnknownModelError(text) if text.startswith("there is no model") else UnknownVersionError(text)
