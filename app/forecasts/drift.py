"""Input drift: where among the values of the training rows those of the requests lie, counted aside.

Of each window only the last row counts: the others of a client that asks every hour were counted in the hours before.
Shapes: B windows, L window, F features, n rows.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.ticket import Floats, ModelId
from models.spec import Feature, Spec

log = logging.getLogger(__name__)

RANGES = ("below", "first", "second", "third", "fourth", "above", "missing")
"""Below the least value of the training rows, in one of the quarters between their quartiles, above the greatest."""
INSIDE = "inside"
"""From the least to the greatest, of a feature whose quartiles the archive does not tell."""
SIDES = ("below", "above")
"""Of the mean of the training rows."""

_EVERY_S = 1.0
_MOST_ROWS = 256
"""Of a model from one count to the next; of more requests these are a sample."""
_FARTHEST = 10.0
"""Standard deviations: what is farther away counts as this, so that one wild value does not drown all others."""


class InputWatcher(Protocol):
    """Who keeps the counts (the metrics)."""

    def inputs(
        self, model: ModelId, values: Mapping[tuple[str, str], int], deviations: Mapping[tuple[str, str], float]
    ) -> None:
        """So many more values by feature and range, and their distances from the mean by feature and side, in standard
        deviations of the training rows.
        """


@dataclass(slots=True)
class _Waiting:
    """Rows of a model that nobody has looked at yet."""

    model: ModelId
    spec: Spec
    rows: list[Floats] = field(default_factory=list)
    """[B, F] each."""
    count: int = 0


class Drift:
    """Takes the rows that requests end with, and counts them from time to time."""

    def __init__(self, watcher: InputWatcher) -> None:
        self._watcher = watcher
        self._waiting: dict[str, _Waiting] = {}

    def saw(self, model: ModelId, spec: Spec, windows: Floats) -> None:
        """A request came with windows [B, L, F], NaN where a value is missing. Costs a small copy, and soon not even
        that where many come.
        """
        waiting = self._waiting.get(model.digest)
        if waiting is None:
            waiting = self._waiting[model.digest] = _Waiting(model, spec)
        room = _MOST_ROWS - waiting.count
        if room > 0:
            # A view would keep the whole request.
            rows = windows[:room, -1].copy()
            waiting.rows.append(rows)
            waiting.count += len(rows)

    def count(self) -> None:
        """Count what has come since the last time."""
        come, self._waiting = self._waiting, {}
        for waiting in come.values():
            rows, features = np.concatenate(waiting.rows), waiting.spec.features
            self._watcher.inputs(waiting.model, _by_range(rows, features), _by_side(rows, features))

    async def watch(self) -> None:
        """Count for ever; the last time when told to stop."""
        stopped = False
        while not stopped:
            try:
                await asyncio.sleep(_EVERY_S)
            except asyncio.CancelledError:
                stopped = True
            try:
                self.count()
            except Exception:  # nobody waits for this task, and the next rows may be sound
                log.exception("the inputs of a second cannot be counted")


def _by_range(rows: Floats, features: list[Feature]) -> dict[tuple[str, str], int]:
    """How many values of rows [n, F] are in each range of each feature; nothing of a range with none."""
    edges = np.array([_edges(feature) for feature in features], np.float32)
    place = 1 + (rows[:, :, None] > edges[:, 1:]).sum(2)
    place[rows < edges[:, 0]] = 0
    place[np.isnan(rows)] = len(RANGES) - 1
    counts = np.stack([(place == index).sum(0) for index in range(len(RANGES))], 1)
    return {
        (features[column].name, _range_name(features[column], index)): int(counts[column, index])
        for column, index in np.argwhere(counts).tolist()
    }


def _edges(feature: Feature) -> tuple[float, ...]:
    """Minimum, quartiles and maximum, in single precision as the values are, or a minimum might be below itself."""
    of = feature.statistics
    return (of.min, *(of.quartiles or (of.max,) * 3), of.max)


def _range_name(feature: Feature, index: int) -> str:
    return INSIDE if RANGES[index] == "first" and feature.statistics.quartiles is None else RANGES[index]


def _by_side(rows: Floats, features: list[Feature]) -> dict[tuple[str, str], float]:
    """The sums of the distances of rows [n, F] from the mean, of those below it and of those above it."""
    mean = np.array([feature.statistics.mean for feature in features])
    scale = np.array([feature.statistics.scale for feature in features])
    far = np.nan_to_num(np.clip((rows - mean) / scale, -_FARTHEST, _FARTHEST), nan=0.0)
    sums: NDArray[np.float64] = np.stack([-np.minimum(far, 0).sum(0), np.maximum(far, 0).sum(0)], 1)
    return {
        (features[column].name, SIDES[side]): float(sums[column, side]) for column, side in np.argwhere(sums).tolist()
    }
