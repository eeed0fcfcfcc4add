"""Adaptive intervals: what came of earlier forecasts moves the miscoverages that later ones ask for.

Adaptive conformal inference (Gibbs and Candès, 2021), for each level, step and target by itself. What is remembered of
a model is keyed by its digest, so that a new version begins anew, and lies in files that the HTTP processes share, or
in Redis (app/forecasts/adaptive_redis.py).
Shapes: B windows, n rows that followed, G levels, N calibrated steps, T targets.
"""

import asyncio
import fcntl
import logging
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.errors import InvalidError, Place
from app.ticket import ModelId
from models.intervals import ADAPTIVE_RATE, adapted, miscoverage
from models.spec import Spec

log = logging.getLogger(__name__)

T = TypeVar("T")
Doubles = NDArray[np.float64]
Flags = NDArray[np.bool_]

_MAGIC = b"aci1"
_HEADER = struct.Struct("<4sQIIII")
"""Magic, actuals, G, N, T, windows."""
_SEEN = struct.Struct("<16sI")
"""A window and the bytes of its marks."""
_SEEN_BYTES = 2**18
"""Of marks in all: the windows whose actuals came last are remembered."""
_MOST_ACTUALS = 2**63
"""Far more than anybody tells of, and few enough that any number can be added."""
_MOST_MODELS = 64
"""Files; the one that was not written for the longest goes first."""


class StateError(Exception):
    """What is remembered cannot be read or written now."""


class Learnt(NamedTuple):
    """What to ask for."""

    alpha: Doubles
    """[levels, steps, T], miscoverages, for `models.intervals.Table.adaptive_bounds`."""
    actuals: int
    """How many actual values have moved them."""


class Outcomes(NamedTuple):
    """What came of forecasts."""

    windows: Sequence[bytes]
    """B names of 16 bytes: the same window again has the same."""
    observed: Flags
    """[B, n, T], where there is an actual value."""
    p_values: Doubles | None = None
    """[B, n, T], NaN where there is none or where nothing was calibrated; None of a model without intervals."""
    least: Doubles | None = None
    """[N, T], the p-value of an actual that not even the widest interval holds."""


class Lesson(NamedTuple):
    """What was new in outcomes."""

    fresh: Flags
    """[B, n, T], which of them had not been told before."""
    inside: Flags
    """[G, B, n, T], which of those with a p-value the adaptive interval of that moment held."""
    actuals: int
    """As in `Learnt`, from now on."""


@dataclass(slots=True)
class State:
    """All that is remembered of a model."""

    alpha: Doubles
    """[G, N, T]"""
    actuals: int
    seen: dict[bytes, bytes]
    """By window, the one told of last at the end: a bit for each step and target that has been counted."""

    @classmethod
    def fresh(cls, spec: Spec) -> "State":
        """Each level as it was calibrated."""
        shape, levels = _shape(spec), [] if spec.intervals is None else spec.intervals.levels
        targets = np.array([miscoverage(level) for level in levels])
        return cls(np.broadcast_to(targets[:, None, None], shape).copy(), 0, {})

    def pack(self) -> bytes:
        """As bytes, the miscoverages first."""
        head = _HEADER.pack(_MAGIC, self.actuals, *self.alpha.shape, len(self.seen))
        marks = [_SEEN.pack(window, len(bits)) + bits for window, bits in self.seen.items()]
        return b"".join([head, self.alpha.astype("<f8").tobytes(), *marks])

    @classmethod
    def unpack(cls, packed: bytes, spec: Spec) -> "State":
        """The reverse of `pack`, or a fresh one of nothing; ValueError for anything else."""
        if not packed:
            return cls.fresh(spec)
        learnt = _learnt(packed, spec)
        place = _HEADER.size + learnt.alpha.nbytes
        seen = {}
        windows = _HEADER.unpack_from(packed)[-1]
        try:
            for _ in range(windows):
                window, length = _SEEN.unpack_from(packed, place)
                place += _SEEN.size + length
                seen[window] = packed[place - length : place]
        except struct.error as error:
            raise ValueError(str(error)) from error
        if place != len(packed) or len(seen) != windows:
            raise ValueError("the bytes do not end where the last window does, or one comes twice")
        return cls(learnt.alpha.copy(), learnt.actuals, seen)

    def learn(self, outcomes: Outcomes, levels: Sequence[float]) -> Lesson:
        """Move the miscoverages window by window, by what has not been told before."""
        fresh = np.zeros_like(outcomes.observed)
        inside = np.zeros((len(levels), *fresh.shape), np.bool_)
        for index, window in enumerate(outcomes.windows):
            fresh[index] = self._remember(window, outcomes.observed[index])
            if outcomes.p_values is not None and outcomes.least is not None:
                p_values = np.where(fresh[index], outcomes.p_values[index], np.nan)[: len(outcomes.least)]
                inside[:, index, : len(p_values)] = self._move(p_values, outcomes.least[: len(p_values)], levels)
        self._forget()
        return Lesson(fresh, inside, self.actuals)

    def _remember(self, window: bytes, observed: Flags) -> Flags:
        """Which of the cells [n, T] had not been counted; now they have."""
        before = np.unpackbits(np.frombuffer(self.seen.pop(window, b""), np.uint8)).astype(np.bool_)
        marks = np.zeros(max(len(before), observed.size), np.bool_)
        marks[: len(before)] = before
        told = observed.ravel()
        fresh = told & ~marks[: told.size]
        marks[: told.size] |= told
        self.seen[window] = np.packbits(marks).tobytes()
        return fresh.reshape(observed.shape)

    def _move(self, p_values: Doubles, least: Doubles, levels: Sequence[float]) -> Flags:
        """Which of p-values [m, T] the intervals of the moment held, [G, m, T]; NaN moves nothing."""
        known = ~np.isnan(p_values)
        rows = slice(len(p_values))
        held = np.zeros((len(levels), *p_values.shape), np.bool_)
        for index, level in enumerate(levels):
            alpha = self.alpha[index, rows]
            # An interval misses exactly what has a p-value of its alpha or less; below `least` the widest one stands.
            held[index] = p_values > np.maximum(alpha, least)
            covered = np.where(known, held[index], np.nan)
            self.alpha[index, rows] = adapted(alpha, covered, miscoverage(level), ADAPTIVE_RATE)
        self.actuals += int(known.sum())
        return held

    def _forget(self) -> None:
        size = sum(_SEEN.size + len(bits) for bits in self.seen.values())
        while size > _SEEN_BYTES:
            oldest = next(iter(self.seen))
            size -= _SEEN.size + len(self.seen.pop(oldest))


class States(Protocol):
    """Keeps packed states by digest, for all who share it. StateError where it cannot."""

    async def read(self, digest: str, size: int) -> bytes:
        """The first bytes of a state; none where there is none."""

    async def change(self, digest: str, change: Callable[[bytes], tuple[bytes, T]]) -> T:
        """Put another in its place, with nobody else's change between; gives what `change` gives besides.

        `change` may be called several times.
        """

    async def close(self) -> None:
        """Let go of what it holds."""


class FolderStates:
    """A file for each model, in a folder of the processes that share it. It is read without a lock: a file is whole,
    since another takes its place.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def read(self, digest: str, size: int) -> bytes:
        try:
            # A few microseconds: the file is in memory, and a thread would take ten times as long.
            with self._file(digest).open("rb", buffering=0) as file:
                return file.read(size)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise StateError(str(error)) from error

    async def change(self, digest: str, change: Callable[[bytes], tuple[bytes, T]]) -> T:
        try:
            return await asyncio.to_thread(self._change, digest, change)
        except OSError as error:
            raise StateError(str(error)) from error

    async def close(self) -> None:
        """Whoever made the folder removes it."""

    def _change(self, digest: str, change: Callable[[bytes], tuple[bytes, T]]) -> T:
        file = self._file(digest)
        self._folder.mkdir(exist_ok=True)
        # The end of the block, or of the process, ends the lock.
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            packed, result = change(file.read_bytes() if file.exists() else b"")
            beside = file.with_suffix(".new")
            beside.write_bytes(packed)
            beside.replace(file)
            self._remove_oldest()
        return result

    def _remove_oldest(self) -> None:
        files = sorted(self._folder.glob("*.state"), key=lambda file: file.stat().st_mtime_ns)
        for file in files[:-_MOST_MODELS]:
            file.unlink()

    def _file(self, digest: str) -> Path:
        return self._folder / f"{digest.replace(':', '-')}.state"


class AdaptiveWatcher(Protocol):
    """Who counts what goes wrong (the metrics)."""

    def adaptive_failed(self) -> None:
        """A state could not be read or written."""


class Adaptive:
    """What is remembered of all models. Without its store it knows nothing and learns nothing, and never raises for
    that: intervals are then as they were calibrated.
    """

    def __init__(self, states: States, watcher: AdaptiveWatcher) -> None:
        self._states = states
        self._watcher = watcher

    async def alphas(self, model: ModelId, spec: Spec, levels: Sequence[str], steps: int) -> Learnt | None:
        """The miscoverages [levels, steps, T] to ask for; None where it is not known what they are now.

        Steps beyond the calibrated ones have those of the last. InvalidError for a level that was not measured: only
        those learn.
        """
        chosen = _chosen(spec, levels)
        wanted = _HEADER.size + 8 * int(np.prod(_shape(spec)))
        try:
            packed = await self._states.read(model.digest, wanted)
        except StateError:
            self._watcher.adaptive_failed()
            return None
        learnt = _or_anew(lambda: _learnt(packed, spec), model) if packed else None
        alpha, actuals = learnt or Learnt(State.fresh(spec).alpha, 0)
        rows = np.minimum(np.arange(steps), alpha.shape[1] - 1)
        return Learnt(alpha[chosen][:, rows], actuals)

    async def learn(self, model: ModelId, spec: Spec, outcomes: Outcomes) -> Lesson | None:
        """Learn from what has not been told before; None where that cannot be known or kept."""
        levels = [] if spec.intervals is None else spec.intervals.levels

        def change(packed: bytes) -> tuple[bytes, Lesson]:
            state = _or_anew(lambda: State.unpack(packed, spec), model) or State.fresh(spec)
            lesson = state.learn(outcomes, levels)
            return state.pack(), lesson

        try:
            return await self._states.change(model.digest, change)
        except StateError:
            self._watcher.adaptive_failed()
            return None

    async def close(self) -> None:
        """Let go of the store."""
        await self._states.close()


def _shape(spec: Spec) -> tuple[int, int, int]:
    """G, N and T; the former are 0 of a model without intervals, of which only what was counted is remembered."""
    if spec.intervals is None:
        return 0, 0, len(spec.targets)
    return len(spec.intervals.levels), spec.intervals.calibrated_steps, len(spec.targets)


def _learnt(packed: bytes, spec: Spec) -> Learnt:
    """The beginning of a packed state; ValueError where it is none of this model's."""
    try:
        magic, actuals, *shape, _ = _HEADER.unpack_from(packed)
    except struct.error as error:
        raise ValueError(str(error)) from error
    if magic != _MAGIC or tuple(shape) != _shape(spec):
        raise ValueError("not a state of this model")
    alpha = np.frombuffer(packed, "<f8", int(np.prod(shape)), _HEADER.size).reshape(shape)
    if not (np.abs(alpha) <= 1).all() or actuals > _MOST_ACTUALS:
        raise ValueError("not miscoverages, or more actuals than there can be")
    return Learnt(alpha.astype(np.float64), actuals)


def _or_anew(read: Callable[[], T], model: ModelId) -> T | None:
    """None of what cannot be read: it is somebody else's, and learning begins anew."""
    try:
        return read()
    except ValueError as error:
        log.warning("what was learnt of %s cannot be read (%s); it begins anew", model, error)
        return None


def _chosen(spec: Spec, levels: Sequence[str]) -> list[int]:
    """Which of the model's levels these are."""
    measured = [] if spec.intervals is None else spec.intervals.levels
    chosen = []
    for level in levels:
        if float(level) not in measured:
            adaptive = ", ".join(f"{one:g}" for one in measured) or "none"
            raise InvalidError(Place("query.level", f"{level} is not adaptive; of this model these are: {adaptive}"))
        chosen.append(measured.index(float(level)))
    return chosen
