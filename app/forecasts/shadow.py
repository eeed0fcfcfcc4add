"""A candidate that is asked what another version is asked, answers nobody, and is compared (`foretell_shadow_*`).

Shapes: B windows, N steps, T targets, H steps a pass, P passes.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from app.errors import ForetellError
from app.forecasts.catalogue import Meant
from app.link.engine import Engine, Outcome
from app.link.frames import Order
from app.ticket import Floats, ModelId
from models.spec import Spec

log = logging.getLogger(__name__)

_MOST = 64
"""So many questions under way; more are counted and not asked, so that a slow candidate piles nothing up."""

Prepared = Callable[[], tuple[Spec, Order]]
"""What to ask of the candidate; any ForetellError where it does not take what the other one took."""


class ShadowWatcher(Protocol):
    """Who counts (the metrics)."""

    def shadowed(self, model: ModelId, shadow: int, result: str) -> None:
        """`compared`, `refused` (it does not take such a window), `failed`, or `dropped` for want of room."""

    def differed(self, model: ModelId, shadow: int, target: str, values: int, difference: float) -> None:
        """So many values of a target, and the sum of how far the two were apart, in its unit."""


class _Asked(NamedTuple):
    by: Meant
    shadow: ModelId
    forecast: Floats
    """[B, N, T + ...], of the version that answered."""


class Shadows:
    """Asks candidates, a few at a time."""

    def __init__(self, engine: Engine, watcher: ShadowWatcher) -> None:
        self._engine = engine
        self._watcher = watcher
        self._under_way = 0

    def ask(self, meant: Meant, shadow: ModelId, prepared: Prepared, forecast: Floats) -> None:
        """Once who asked has been answered: the forecast [B, N, T + ...] is what they get."""
        if self._under_way >= _MOST:
            self._watcher.shadowed(meant.id, shadow.version, "dropped")
            return
        self._under_way += 1
        asyncio.get_running_loop().call_soon(self._submit, _Asked(meant, shadow, forecast), prepared)

    def _submit(self, asked: _Asked, prepared: Prepared) -> None:
        try:
            spec, order = prepared()
        except ForetellError:
            self._end(asked, "refused")
            return
        except Exception:  # or its place would never be free again
            log.exception("what to ask of %s cannot be made", asked.shadow)
            self._end(asked, "failed")
            return
        if len(order.windows) != len(asked.forecast):
            self._end(asked, "refused")  # of several series it makes one, or the other way round
            return
        try:
            self._engine.submit(order, lambda outcome: self._compare(asked, spec, order, outcome))
        except ForetellError:
            self._end(asked, "dropped")

    def _compare(self, asked: _Asked, spec: Spec, order: Order, outcome: Outcome | ForetellError) -> None:
        if isinstance(outcome, ForetellError):
            self._end(asked, "failed")
            return
        try:
            differences = _differences(asked, spec, order, outcome)
        except Exception:  # or it would break the connection, and with it everybody's order
            log.exception("an answer of %s cannot be read", asked.shadow)
            self._end(asked, "failed")
            return
        if not all(np.isfinite(apart).all() for apart in differences.values()):
            self._end(asked, "failed")
            return
        for target, apart in differences.items():
            difference = float(np.abs(apart).sum())
            self._watcher.differed(asked.by.id, asked.shadow.version, target, apart.size, difference)
        self._end(asked, "compared")

    def _end(self, asked: _Asked, result: str) -> None:
        self._under_way -= 1
        self._watcher.shadowed(asked.by.id, asked.shadow.version, result)


def _differences(asked: _Asked, spec: Spec, order: Order, outcome: Outcome) -> dict[str, NDArray[np.float64]]:
    """Of every target that both have: [B, N]."""
    windows, steps = asked.forecast.shape[:2]
    rows = order.passes * spec.horizon
    theirs = outcome.numbers[: windows * rows * spec.outputs].reshape(windows, rows, spec.outputs)[:, :steps]
    return {
        target: asked.forecast[:, :, index].astype(np.float64) - theirs[:, :, spec.targets.index(target)]
        for index, target in enumerate(asked.by.spec.targets)
        if target in spec.targets
    }
