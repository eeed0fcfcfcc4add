"""Reads the store's index, has the engine load what the policy chooses, and keeps the catalogue true."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable

from app.forecasts.catalogue import Catalogue, Model, Version
from app.link.engine import EngineStoppedError, Link, LoadError
from app.settings import Policy
from app.ticket import ModelId
from models.store import Entry, Store, StoreError

log = logging.getLogger(__name__)

_DEATHS = 3
"""So many engines may die while they load a version before it is left out."""


class Registry:
    """Loads versions, one after the other. Whoever shows the catalogue to others is told of every change."""

    def __init__(self, store: Store, policy: Policy, changed: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._policy = policy
        self._changed = changed
        self._links: dict[Link, set[ModelId]] = {}
        """The devices, and what each has loaded."""
        self._turn = asyncio.Lock()
        self._deaths: Counter[ModelId] = Counter()
        self.catalogue = Catalogue()

    def read(self) -> None:
        """Read what is published, and choose."""
        try:
            index = self._store.index()
        except StoreError as error:
            self.catalogue.trouble = str(error)
            log.error("the model store cannot be read: %s", error)  # noqa: TRY400  the message says it all
            self._changed()
            return
        self.catalogue.models = models = {name: self._model(name, entry) for name, entry in index.models.items()}
        for name, number in sorted(self._policy.listed or ()):
            if name not in models or number not in models[name].versions:
                log.error("FORETELL_VERSIONS asks for %s:%d, which is not published", name, number)
        if not models:
            log.warning("no models are published in %s", self._store.root)
        self._changed()

    async def load_on(self, link: Link) -> None:
        """Load what is chosen on a device, one after the other; a version that fails stays out, with its reason.

        What fails on one device is on none. Where a device came in place of another, that is how it gets its models.
        """
        self._links[link] = set()
        link.lost.add_done_callback(lambda _: self._forget(link))
        async with self._turn:
            for model in self.catalogue.models.values():
                for version in (*model.in_state("ready"), *model.in_state("loading")):
                    if link.lost.done():
                        return  # what killed it was another version, if any
                    await self._load(version)
                await self._fall_back(model)

    def _forget(self, link: Link) -> None:
        del self._links[link]
        if self._links:
            return
        # No device has anything any more: what was ready has to load again.
        for version in self.catalogue.versions():
            if version.state == "ready":
                version.state = "loading"
        self._changed()

    async def _fall_back(self, model: Model) -> None:
        """A version that fails must not take the model out: the one that served before serves on."""
        while (
            self._links
            and not model.in_state("loading")
            and len(model.in_state("ready")) < (self._policy.latest or 0)
            and (older := model.in_state("unloaded"))
        ):
            older[-1].state, older[-1].reason = "loading", None
            await self._load(older[-1])

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
        """Load it on every device that has not got it."""
        name, number, digest = version.id
        began = time.monotonic()
        try:
            archive = self._store.archive(name, number)
            for link, loaded in list(self._links.items()):
                if version.id not in loaded:
                    version.spec = await link.load(version.id, archive.resolve())
                    loaded.add(version.id)
        except EngineStoppedError:
            # Not the version's fault, as it seems: it stays as it is until the engine is back.
            self._deaths[version.id] += 1
            if self._deaths[version.id] == _DEATHS:
                self._fail(version, "the engine died whenever it was loaded")
        except LoadError as error:
            self._fail(version, str(error))
        else:
            version.state = "ready"
            del self._deaths[version.id]
            seconds = time.monotonic() - began
            log.info("%s version %d is ready after %.2f s (%s)", name, number, seconds, digest)
        self._changed()

    def _fail(self, version: Version, reason: str) -> None:
        version.state, version.reason, version.spec = "failed", reason, None
        for link, loaded in self._links.items():
            link.unload(version.id)
            loaded.discard(version.id)
        log.error("%s version %d does not load: %s", version.id.name, version.id.version, reason)
