"""Models with prediction intervals whose errors are known, and what can be told of their windows.

root / "tiny" forecasts one target from 8 rows; its calibration errors are the whole numbers from -99 to 99.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from models.intervals import Base, Table, calibrate
from models.spec import Intervals, Role, Span
from models.store import Store
from tests.builders import HOUR, START, publish_tiny

STEPS = 3
ERRORS = np.arange(-99, 100).astype(np.float32)
"""Of each step and target."""


def table(
    errors: NDArray[np.float32] = ERRORS, *, targets: int = 1, symmetric: bool = False, extrapolate: bool = False
) -> Table:
    """One that was calibrated with these errors at every step of every target."""
    truth = np.broadcast_to(errors[:, None, None], (len(errors), STEPS, targets)).astype(np.float32)
    scale = np.ones((STEPS, targets), np.float32)
    return calibrate(Base(np.zeros_like(truth)), truth, scale, symmetric=symmetric, extrapolate=extrapolate)


def intervals(
    levels: tuple[float, ...] = (80, 90), windows: int = len(ERRORS), *, extrapolate: bool = False
) -> Intervals:
    """What a spec says of it."""
    return Intervals(
        method="conformal",
        levels=list(levels),
        calibrated_steps=STEPS,
        extrapolate=extrapolate,
        coverage={f"{level:g}": [level / 100] * STEPS for level in levels},
        windows=windows,
        effective=windows // STEPS,
        calibration=Span(start=START, end=START + 100 * HOUR, windows=windows),
    )


def publish(
    root: Path,
    name: str = "tiny",
    *,
    errors: NDArray[np.float32] = ERRORS,
    levels: tuple[float, ...] = (80, 90),
    extrapolate: bool = False,
    roles: Sequence[Role] = ("target",),
    horizon: int = 1,
    seed: int = 0,
    **fields: object,
) -> int:
    """Publish a tiny model with such intervals."""
    packed = table(errors, targets=list(roles).count("target"), extrapolate=extrapolate).pack()
    said = intervals(levels, len(errors), extrapolate=extrapolate)
    return publish_tiny(
        Store(root), name, roles=roles, horizon=horizon, seed=seed, table=packed, intervals=said, **fields
    )


def windows(count: int, *, columns: int = 1, seed: int = 0) -> list[list[list[float]]]:
    """That many windows, no two alike."""
    found: list[list[list[float]]] = np.random.default_rng(seed).normal(10, 1, (count, 8, columns)).tolist()
    return found


async def forecasts(client: httpx.AsyncClient, asked: list[list[list[float]]], steps: int) -> NDArray[np.float64]:
    """What the service says of windows [B][8][C]: [B, steps, T]."""
    response = await client.post("/forecast", params={"steps": steps}, json={"windows": asked})
    assert response.status_code == 200, response.text
    return np.array(response.json()["forecasts"])


async def told(
    client: httpx.AsyncClient, body: dict[str, Any], name: str = "tiny", version: int | str = 1
) -> httpx.Response:
    """The answer to actuals."""
    return await client.post(f"/models/{name}/versions/{version}/actuals", json=body)
