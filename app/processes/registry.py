"""Follows the store's index, has the engine load what the policy chooses, and keeps the catalogue true.

What serves goes on serving: a version loads beside the others, and only once it is ready, or has failed, does any of
them leave.
"""

import asyncio
import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from app.apart import apart
from app.forecasts.catalogue import Catalogue, Model, Version
from app.link.engine import EngineStoppedError, Link, LoadError
from app.settings import Policy
from app.ticket import ModelId
from models.mirror import Mirror
from models.signature import SignatureError, Trust
from models.spec import Spec
from models.store import Entry, Index, Store, StoreBrokenError, StoreError, Traffic

log = logging.getLogger(__name__)

_DEATHS = 3
"""So many engines may die while they load a version, or in its passes, before it is left out."""
_MEMORY_S = 600.0
"""A death in a pass counts for so long."""
_REST_S = 60.0
_LONGEST_REST_S = 3600.0
"""What was taken out is left alone for so long, each time twice as long: a crash a minute would be no service."""
_LINGER_S = 1.0
"""A version that is served no more stays on the devices for this long: who was told of it a moment ago, and reads a
body or asks a cache, is still to find it there."""
_BREATH_S = 0.02
_FETCH_S = 1.0
_LONGEST_FETCH_S = 60.0
"""What could not be fetched is tried again after so long, each time twice as long."""
_NEVER = object()
"""What no revision is."""
_NOT_CHOSEN = "not chosen by FORETELL_VERSIONS"


class Registry:
    """Loads versions, one after the other. Whoever shows the catalogue to others is told of every change."""

    def __init__(
        self,
        store: Store,
        policy: Policy,
        changed: Callable[[], None] = lambda: None,
        *,
        trust: Trust | None = None,
        linger_s: float = _LINGER_S,
        load_s: float = 300.0,
        mirror: Mirror | None = None,
    ) -> None:
        self._store = store
        self._mirror = mirror
        """What brings versions into the store, where that is a copy of another one."""
        self._away: str | None = None
        """Why that other one cannot be read."""
        self._unfetched: Counter[ModelId] = Counter()
        """What it could not be asked for, or gave damaged: how often."""
        self._policy = policy
        self._changed = changed
        self._trust = trust
        self._linger_s = linger_s
        self._load_s = load_s
        self._links: dict[Link, set[ModelId]] = {}
        """The devices, and what each has loaded."""
        self._turn = asyncio.Lock()
        self._poked = asyncio.Event()
        self._index = Index()
        self._read: object = None
        """The revision of the index that was read last."""
        self._successors: dict[tuple[str, int], Version] = {}
        """Versions whose digest the index has changed: what serves does so until the other one is ready."""
        self._refused: set[ModelId] = set()
        """Of these, those that did not load."""
        self._deaths: Counter[ModelId] = Counter()
        self._crashes: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_DEATHS))
        """By digest, when the engine last died in a pass."""
        self._taken_out: Counter[ModelId] = Counter()
        self.blamed = 0
        """How often the end of an engine was a version's fault, as it seems."""
        self._leaving: dict[ModelId, asyncio.TimerHandle] = {}
        self._fallbacks: set[tuple[str, str, int, int]] = set()
        self.catalogue = Catalogue()

    # What there is

    async def begin(self) -> None:
        """Read for the first time what is published."""
        await self._pull()
        self.read()

    async def _pull(self) -> None:
        """Bring the copy up to date. Where the store itself does not answer, what is here serves on."""
        if self._mirror is None:
            return
        away = None
        try:
            await apart(self._mirror.pull)
        except StoreError as error:
            away = str(error)
        except Exception as error:  # whatever it was, it is to be tried again
            log.exception("the model store cannot be followed")
            away = f"the model store cannot be followed: {type(error).__name__}"
        before, self._away = self._away, away
        if away == before:
            return
        self.catalogue.trouble = away
        if away is not None and before is None:
            log.error("the model store cannot be reached, and what is here serves on: %s", away)
        if away is None:
            log.info("the model store can be reached again")
            for model in list(self._unfetched):
                self._fetch_again(model)
        self._changed()

    def read(self) -> None:
        """Read what is published, and choose."""
        self._read = self._store.revision()
        try:
            self._index = self._found()
        except StoreError as error:
            self._read = _NEVER  # what ails it may heal without a trace on the file
            if self.catalogue.trouble != str(error):
                log.error("the model store cannot be read: %s", error)  # noqa: TRY400  the message says it all
            self.catalogue.trouble = str(error)
            self._changed()
            return
        if self.catalogue.trouble not in (None, self._away):
            log.info("the model store can be read again")
        self.catalogue.trouble = self._away
        self._successors = {
            (name, number): successor
            for (name, number), successor in self._successors.items()
            if name in self._index.models and number in self._index.models[name].versions
        }
        before = self.catalogue.models
        self.catalogue.models = {
            name: self._merged(name, entry, before.get(name, Model())) for name, entry in self._index.models.items()
        }
        for name, model in before.items():
            for number, version in model.versions.items():
                if name not in self._index.models or number not in self._index.models[name].versions:
                    self._release(version)
        self._tell_unpublished()
        if before:
            self._tell_moved(before)
        self._changed()

    def _tell_moved(self, before: Mapping[str, Model]) -> None:
        """What somebody has changed, for those who read logs at night; who it was stands in the audit log."""
        for name, model in self.catalogue.models.items():
            former = before.get(name, Model())
            for alias in sorted({*model.aliases, *former.aliases}):
                said, told = _standing(model, alias), _standing(former, alias)
                if said != told:
                    log.info("%s: %s now stands for %s, before for %s", name, alias, said, told)

    def _found(self) -> Index:
        """What is published; StoreError also where nothing is there any more: who unmounts a disk unloads no model."""
        index = self._store.index()
        if self._index.models and self._store.revision() is None:
            raise StoreBrokenError(f"{self._store.root} has no index any more")
        return index

    def poke(self) -> None:
        """Somebody says that the index has changed: look at once."""
        self._poked.set()

    async def follow(self, every_s: float) -> None:
        """Keep up with the index, for ever; it is looked at that often, and whenever somebody pokes."""
        due = asyncio.Event()
        settling = asyncio.create_task(self._settle_when(due), name="settling")
        try:
            while True:
                # Not `wait_for`: that of Python 3.11 swallows a cancellation that comes together with the poke.
                with suppress(TimeoutError):
                    async with asyncio.timeout(every_s):
                        await self._poked.wait()
                poked = self._poked.is_set()
                self._poked.clear()
                await self._pull()
                if poked or self._store.revision() != self._read:
                    if self._turn.locked():
                        self._move_aliases()
                    due.set()
                # Whoever pokes without end is heard often enough.
                await asyncio.sleep(_BREATH_S)
        finally:
            settling.cancel()

    async def _settle_when(self, due: asyncio.Event) -> None:
        while True:
            await due.wait()
            due.clear()
            try:
                async with self._turn:
                    if self._store.revision() != self._read:
                        self.read()
                    await self._settle()
            except Exception:  # whatever it was, the next change is to be followed
                log.exception("the model store cannot be followed")

    def _move_aliases(self) -> None:
        """Among the versions that there are: a promotion or a rollback does not wait for what is loading."""
        try:
            index = self._found()
        except StoreError:
            return  # `read` will say so
        before = {
            name: Model({}, dict(model.aliases), dict(model.traffic)) for name, model in self.catalogue.models.items()
        }
        for name, model in self.catalogue.models.items():
            entry = index.models.get(name, Entry())
            if all(number in model.versions for number in entry.aliases.values()):
                model.aliases, model.traffic = dict(entry.aliases), dict(entry.traffic)
        self._tell_moved(before)
        self._changed()

    def _merged(self, name: str, entry: Entry, before: Model) -> Model:
        versions = {}
        for number, digest in sorted(entry.versions.items()):
            model = ModelId(name, number, digest)
            known = before.versions.get(number)
            if known is not None and known.id == model:
                self._successors.pop((name, number), None)
                versions[number] = known
            elif known is not None and known.state == "ready":
                # Published versions do not change, but whole stores are replaced by others.
                self._successors.pop((name, number), None)
                if model not in self._refused or entry.wanted.get(number, 0) > known.tries:
                    self._successors[name, number] = Version(model, "loading")
                versions[number] = known
            else:
                self._successors.pop((name, number), None)
                if known is not None:
                    self._release(known)  # one of several devices may have it
                versions[number] = Version(model, "unloaded", _NOT_CHOSEN)
        merged = Model(versions, dict(entry.aliases), dict(entry.traffic))
        chosen = self._chosen(name)
        for number, version in versions.items():
            tries = entry.wanted.get(number, 0)
            signature = entry.signatures.get(number)
            if number in chosen:
                self._mark(version, again=tries not in (0, version.tries) or signature != version.signature)
            version.tries, version.signature = tries, signature
        return merged

    def _mark(self, version: Version, *, again: bool) -> None:
        """A chosen version is to load, unless it has failed and nobody has asked for it again, or signed it since."""
        if version.state == "unloaded" or (again and version.state == "failed"):
            version.state, version.reason = "loading", None
            self._deaths.pop(version.id, None)
            self._crashes.pop(version.id.digest, None)

    def _chosen(self, name: str) -> set[int]:
        """What is to be served, whether it can be or not.

        What an alias stands for is served whatever the policy says: it was pointed there on purpose.
        """
        entry = self._index.models[name]
        return {number for number in self._policed(name) if entry.wanted.get(number) != 0} | {
            *entry.in_use(),
            *(number for number, count in entry.wanted.items() if count and number in entry.versions),
        }

    def _policed(self, name: str) -> set[int]:
        published = frozenset(self._index.models[name].versions)
        return {number for number in published if self._policy.chooses(name, number, published)}

    def _tell_unpublished(self) -> None:
        models = self.catalogue.models
        for name, number in sorted(self._policy.listed or ()):
            if name not in models or number not in models[name].versions:
                log.error("FORETELL_VERSIONS asks for %s:%d, which is not published", name, number)
        if not models:
            log.warning("no models are published in %s", self._store.root)

    # What the devices have

    async def load_on(self, link: Link) -> None:
        """Load what is chosen on a device, one after the other; a version that fails stays out, with its reason.

        What fails on one device is on none. Where a device came in place of another, that is how it gets its models.
        """
        self._links[link] = set()
        link.failing = self.failing
        link.lost.add_done_callback(lambda _: self._forget(link))
        async with self._turn:
            await self._settle()

    def failing(self, model: ModelId, reason: str) -> None:
        """A device says that a version fails on whatever it is given: it is taken out, and its aliases fall back."""
        for version in self.catalogue.versions():
            if version.id == model and version.state == "ready":
                self._take_out(version, reason)
                self._changed()
                self.poke()  # an older one may step in

    def died(self, digest: str) -> bool:
        """The engine died in a pass of the version with that digest; whether it is one that may be left out for it."""
        found = next((version for version in self.catalogue.versions() if version.id.digest == digest), None)
        if found is None:
            return False
        self.blamed += 1
        crashes = self._crashes[digest]
        crashes.append(now := time.monotonic())
        log.error("the engine died in a pass of %s version %d", found.id.name, found.id.version)
        if len(crashes) == _DEATHS and now - crashes[0] < _MEMORY_S:
            self._take_out(found, f"the engine died {_DEATHS} times in its passes")
            self._changed()
        return True

    def _take_out(self, version: Version, reason: str) -> None:
        """It loads, and yet fails; where nothing else answers for its model it is tried again, less and less often."""
        self._fail(version, reason, "is taken out")
        self._taken_out[version.id] += 1
        pause_s = min(_LONGEST_REST_S, _REST_S * 2 ** (self._taken_out[version.id] - 1))
        asyncio.get_running_loop().call_later(pause_s, self._try_again, version)

    def _try_again(self, version: Version) -> None:
        model = self.catalogue.models.get(version.id.name, Model())
        if version.state == "failed" and version in model.versions.values() and model.newest_ready() is None:
            log.warning("%s version %d is tried again: nothing else is ready", version.id.name, version.id.version)
            version.state, version.reason = "loading", None
            self._crashes.pop(version.id.digest, None)
            self._changed()
            self.poke()

    @property
    def _live(self) -> list[Link]:
        # One that has ended may not be forgotten yet.
        return [link for link in self._links if not link.lost.done()]

    def _forget(self, link: Link) -> None:
        del self._links[link]
        self.poke()
        if self._links:
            return
        # No device has anything any more: what was ready has to load again.
        self.catalogue.settled = False
        for version in self.catalogue.versions():
            if version.state == "ready":
                version.state = "loading"
        self._changed()

    async def _settle(self) -> None:
        """Bring the devices to what is chosen. In the end, everything that can be served is."""
        for name, model in list(self.catalogue.models.items()):
            for version in self._to_load(model):
                if self._live and version.state in ("ready", "loading"):
                    await self._load(version)
            await self._succeed(name, model)
            extra = await self._fall_back(name, model)
            self._let_go(name, model, extra)
        # What nobody knows of yet has not been tried.
        unknown = self._mirror is not None and self._mirror.is_empty and self._away is not None
        if self._live and not self.catalogue.settled and not unknown:
            self.catalogue.settled = all(version.state != "loading" for version in self.catalogue.versions())
        self._tell_fallbacks()
        self._changed()

    def _to_load(self, model: Model) -> list[Version]:
        """What some device has not got; first what is ready elsewhere."""
        return [version for version in (*model.in_state("ready"), *model.in_state("loading")) if self._lacks(version)]

    def _lacks(self, version: Version) -> bool:
        # One that is loading may be on every device that is left of several.
        return version.state == "loading" or any(version.id not in loaded for loaded in self._links.values())

    async def _succeed(self, name: str, model: Model) -> None:
        """Load what the index now has in place of versions that serve."""
        for (owner, number), successor in list(self._successors.items()):
            if owner != name or not self._live:
                continue
            await self._load(successor)
            if successor.state == "loading":
                continue  # the device is gone
            if successor.id in self._unfetched:
                model.versions[
                    number
                ].reason = f"it was replaced, and what is there now is not here: {successor.reason}"
                successor.state = "loading"
                continue
            del self._successors[owner, number]
            if successor.state == "ready":
                former, model.versions[number] = model.versions[number], successor
                self._release(former)
            else:
                self._refused.add(successor.id)
                model.versions[number].reason = f"it was replaced, and what is there now fails: {successor.reason}"

    async def _fall_back(self, name: str, model: Model) -> set[int]:
        """A version that fails must not take the model out: as many older ones step in as the policy lacks.

        Which ones these are.
        """
        if self._policy.latest is None:
            return set()
        chosen, wanted = self._chosen(name), self._index.models[name].wanted
        lacking = sum(model.versions[number].state == "failed" for number in self._policed(name) & chosen)
        found: set[int] = set()
        for number, version in sorted(model.versions.items(), reverse=True):
            if len(found) == lacking or not self._live:
                break
            if number in chosen or wanted.get(number) == 0 or version.state == "failed":
                continue
            if version.state == "unloaded":
                version.state, version.reason = "loading", None
            if await self._has(version):
                found.add(number)
        return found

    async def _has(self, version: Version) -> bool:
        """Whether it can be served, or may be once there is a device."""
        if version.state == "loading":
            await self._load(version)
        return version.state != "failed"

    def _let_go(self, name: str, model: Model, extra: set[int]) -> None:
        """What serves and is chosen no more leaves, once the others have been tried, on every device."""
        wanted = self._index.models[name].wanted
        keep = self._chosen(name) | extra
        if any(model.versions[number].state == "loading" for number in keep):
            return
        for number, version in model.versions.items():
            if number not in keep and version.state in ("ready", "loading"):
                version.state, version.spec = "unloaded", None
                version.reason = "unloaded by hand" if wanted.get(number) == 0 else _NOT_CHOSEN
                log.info("%s version %d is unloaded: %s", name, number, version.reason)
                self._release(version)

    def _release(self, version: Version) -> None:
        """Have the devices forget a version, once nobody can come for it any more."""
        if version.id not in self._leaving:
            loop = asyncio.get_running_loop()
            self._leaving[version.id] = loop.call_later(self._linger_s, self._unload, version.id)

    def _unload(self, model: ModelId) -> None:
        self._stay(model)
        for link, loaded in self._links.items():
            if model in loaded:
                loaded.discard(model)
                link.unload(model)

    def _stay(self, model: ModelId) -> None:
        if (timer := self._leaving.pop(model, None)) is not None:
            timer.cancel()

    async def _load(self, version: Version) -> None:
        """Load it on every device that has not got it."""
        name, number, digest = version.id
        began = time.monotonic()
        fresh = version.state == "loading"
        self._stay(version.id)
        try:
            if self._trust is not None:
                signature = self._index.models[name].signatures.get(number)
                self._trust.check(name, number, digest, signature)
            if self._mirror is not None:
                await apart(partial(self._mirror.fetch, name, number, digest))
                del self._unfetched[version.id]
            archive = self._store.archive(name, number).absolute()
            for link in self._live:
                if version.id not in self._links.get(link, set()) or version.spec is None:
                    version.spec = await self._loaded(link, version.id, archive)
                    self._links.get(link, set()).add(version.id)
        except EngineStoppedError:
            # Not the version's fault, as it seems: it stays as it is until the engine is back.
            self.blamed += 1
            self._deaths[version.id] += 1
            if self._deaths[version.id] == _DEATHS:
                self._fail(version, "the engine died whenever it was loaded")
        except StoreError as error:
            self._fail(version, str(error))
            self._fetch_later(version.id)
        except (LoadError, SignatureError) as error:
            self._fail(version, str(error))
        except Exception as error:  # whatever it was, it is this version's, and the others are to load
            log.exception("%s version %d does not load", name, number)
            self._fail(version, f"it cannot be loaded: {type(error).__name__}")
        else:
            if version.state == "failed":
                self._unload(version.id)  # it was taken out meanwhile
                return
            version.state = "ready"
            self._deaths.pop(version.id, None)
            if fresh:
                seconds = time.monotonic() - began
                log.info("%s version %d is ready after %.2f s (%s)", name, number, seconds, digest)
        self._changed()

    def _fetch_later(self, model: ModelId) -> None:
        self._unfetched[model] += 1
        pause_s = min(_LONGEST_FETCH_S, _FETCH_S * 2 ** (self._unfetched[model] - 1))
        asyncio.get_running_loop().call_later(pause_s, self._fetch_again, model)

    def _fetch_again(self, model: ModelId) -> None:
        for version in self.catalogue.versions():
            if version.id == model and version.state == "failed" and model in self._unfetched:
                version.state, version.reason = "loading", None
                self._changed()
        self.poke()

    async def _loaded(self, link: Link, model: ModelId, archive: Path) -> Spec:
        try:
            async with asyncio.timeout(self._load_s):
                return await link.load(model, archive)
        except TimeoutError:
            # A disk that hangs hangs a thread of the device, and must not hang all that is to be loaded after it.
            link.unload(model)
            raise LoadError(f"it has not loaded within {self._load_s:g} s") from None

    def _fail(self, version: Version, reason: str, what: str = "does not load") -> None:
        version.state, version.reason, version.spec = "failed", reason, None
        log.error("%s version %d %s: %s", version.id.name, version.id.version, what, reason)
        self._unload(version.id)
        self._tell_fallbacks()

    def _tell_fallbacks(self) -> None:
        """An alias that another version answers for is nothing to find out by chance."""
        found = set()
        for name, model in self.catalogue.models.items():
            for alias, number in model.aliases.items():
                serving = model.serving(alias)
                if serving is not None and serving.state == "ready" and serving.id.version != number:
                    found.add((name, alias, number, serving.id.version))
        for name, alias, number, serves in sorted(found - self._fallbacks):
            log.error(
                "%s: %s stands for version %d, which is not ready; %d answers instead", name, alias, number, serves
            )
        self._fallbacks = found


def _standing(model: Model, alias: str) -> str:
    """What an alias stands for, in words."""
    if alias not in model.aliases:
        return "nothing"
    traffic = model.traffic.get(alias, Traffic())
    shares = "".join(f", {share:g} % for version {number}" for number, share in sorted(traffic.split.items()))
    return f"version {model.aliases[alias]}{shares}{f', shadow {traffic.shadow}' if traffic.shadow else ''}"
