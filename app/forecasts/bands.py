"""Prediction intervals around forecasts: which ones a request wants, and the tables of the models that make them.

Tables lie in the archives. Whoever asks for no interval never has one read.
Shapes: B windows, L window, N steps, T targets, Q quantiles.
"""

import asyncio
import logging
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from cachetools import LRUCache

from app.errors import FailedError, InvalidError, Place
from app.forecasts.adaptive import Adaptive, Learnt
from app.ticket import Floats, ModelId
from models import archive
from models.intervals import Band, Base, Bounds, LevelError, StepsError, Table
from models.spec import Spec
from models.store import Store

log = logging.getLogger(__name__)

BandName = Literal["step", "path"]
"""Whether a level holds for each step by itself, or for all of them at once."""


_LEVEL = "query.level"
_MOST_LEVELS = 20
_MOST_TABLES = 64
"""Of at most some megabytes each."""
_LONGEST_ECHO = 20
_WRITTEN = re.compile(r"\d{1,3}(\.\d{1,7})?", re.ASCII)
_BANDS: Mapping[BandName, Band] = {"step": "each", "path": "path"}


class Wanted(NamedTuple):
    """The intervals that a request asks for."""

    levels: tuple[str, ...]
    """Percents, as short as they can be written."""
    band: BandName = "step"
    adaptive: bool = False
    """Whether what came of earlier forecasts may change them."""


class Intervals(NamedTuple):
    """Of one answer."""

    bounds: Mapping[str, Bounds]
    """By level: lower and upper, [B, N, T] each."""
    extrapolated_from: int | None = None
    """From this step on they are beyond what was calibrated; None where they are not."""
    actuals: int | None = None
    """How many actual values have moved adaptive ones; None where nothing was to."""


def levels_of(text: str) -> tuple[str, ...]:
    """Percents with commas between, `80,97.5`; InvalidError for anything else."""
    levels = tuple(_level(part.strip()) for part in text.split(","))
    if len(levels) > _MOST_LEVELS or len(set(levels)) < len(levels):
        raise InvalidError(Place(_LEVEL, f"at most {_MOST_LEVELS} levels, each of them once"))
    return levels


def _level(text: str) -> str:
    if not _WRITTEN.fullmatch(text):
        raise InvalidError(Place(_LEVEL, f"{text[:_LONGEST_ECHO]!r} is no percentage; levels are such as 80,97.5"))
    whole, _, part = text.partition(".")
    return ".".join(filter(None, (whole.lstrip("0") or "0", part.rstrip("0"))))


class Tables:
    """The tables of the served models, each read and verified once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # Those of versions that are served no longer go in their time.
        self._tables: LRUCache[str, asyncio.Task[Table]] = LRUCache(_MOST_TABLES)

    async def of(self, model: ModelId, spec: Spec, *, place: str = _LEVEL) -> Table:
        """The model's; InvalidError where it has no intervals, FailedError where its archive is gone or another."""
        if spec.intervals is None:
            raise InvalidError(Place(place, "the model has no intervals: nothing was set aside to calibrate them on"))
        task = self._tables.get(model.digest)
        if task is None:
            task = asyncio.ensure_future(asyncio.to_thread(self._read, model))
            self._tables[model.digest] = task
        try:
            # Shielded: one client that hangs up must not stop it for the others.
            return await asyncio.shield(task)
        except (OSError, ValueError) as error:
            self._tables.pop(model.digest, None)
            log.exception("the intervals of %s cannot be read", model)
            raise FailedError("the model's intervals cannot be read") from error

    def _read(self, model: ModelId) -> Table:
        content = self._store.archive(model.name, model.version).read_bytes()
        # What was verified when the model was loaded may have been replaced since.
        if archive.digest_of(content) != model.digest:
            raise ValueError("the archive is not the one that was loaded")
        packed = archive.record(content, archive.RESIDUALS_FILE)
        if packed is None:
            raise ValueError(f"the archive holds no {archive.RESIDUALS_FILE}")
        return Table.unpack(packed)


def check(table: Table, wanted: Wanted, steps: int) -> None:
    """InvalidError for levels or steps that the table has no intervals for: before anything is computed."""
    try:
        table.check(wanted.levels, steps, _BANDS[wanted.band])
    except LevelError as error:
        raise InvalidError(Place(_LEVEL, str(error))) from error
    except StepsError as error:
        raise InvalidError(Place("query.steps", str(error))) from error


def base_of(table: Table, spec: Spec, windows: Floats, outputs: Floats) -> Base:
    """What intervals are taken from: windows [B, L, F] as the archive takes them, and its outputs [B, N, T + Q * T]."""
    targets = len(spec.targets)
    low = high = volatility = None
    if spec.quantiles:
        low, high = outputs[..., targets : 2 * targets], outputs[..., 2 * targets :]
    if table.method == "scaled":
        columns = [index for index, feature in enumerate(spec.features) if feature.role == "target"]
        volatility = table.volatility(windows[:, :, columns])
    return Base(outputs[..., :targets], low, high, volatility)


def intervals(table: Table, base: Base, wanted: Wanted) -> Intervals:
    """Around every forecast, at every level, as calibrated."""
    found = table.bounds(base, wanted.levels, _BANDS[wanted.band])
    return Intervals(dict(zip(wanted.levels, found, strict=True)), _beyond(table, base.forecast.shape[1]))


def _beyond(table: Table, steps: int) -> int | None:
    return table.steps + 1 if steps > table.steps else None


class Banding:
    """What puts the intervals of a request around its forecasts."""

    def __init__(self, spec: Spec, table: Table, wanted: Wanted, learnt: Learnt | None) -> None:
        self._spec = spec
        self._table = table
        self._wanted = wanted
        self._learnt = learnt

    def around(self, windows: Floats, outputs: Floats) -> Intervals:
        """Windows [B, L, F] as the archive takes them, its outputs [B, N, T + Q * T]."""
        base = base_of(self._table, self._spec, windows, outputs)
        if self._learnt is None:
            return intervals(self._table, base, self._wanted)
        found = [self._table.adaptive_bounds(base, alpha)[0] for alpha in self._learnt.alpha]
        bounds = dict(zip(self._wanted.levels, found, strict=True))
        return Intervals(bounds, _beyond(self._table, outputs.shape[1]), self._learnt.actuals)


class Bander:
    """Makes ready what a request's intervals take, before anything is computed."""

    def __init__(self, tables: Tables, adaptive: Adaptive) -> None:
        self._tables = tables
        self._adaptive = adaptive

    async def ready(self, model: ModelId, spec: Spec, wanted: Wanted, steps: int) -> Banding:
        """InvalidError for what the model has no intervals for."""
        table = await self._tables.of(model, spec)
        check(table, wanted, steps)
        if not wanted.adaptive:
            return Banding(spec, table, wanted, None)
        if wanted.band == "path":
            raise InvalidError(
                Place("query.adaptive", "adaptive levels are of single steps; it goes without band=path")
            )
        return Banding(spec, table, wanted, await self._adaptive.alphas(model, spec, wanted.levels, steps))
