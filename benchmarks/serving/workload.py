"""The windows that are posted and the answers that must come back. Without torch, which only `model.py` needs.

This process must not hold torch: memory that it shares with a server would not count as that server's.
Shapes: B windows, L window, F features (all of them targets), N steps, T targets.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

CARRIED = "attention-carried"
SLIDING = "attention-sliding"
WINDOW, FEATURES = 96, 7
WINDOWS = 64
"""Different windows that are posted in turn: more than a cache of the last few would help with."""
FORECAST_STEPS = 24
LONG_STEPS = 500
MEANS = [20.0 + 10 * column for column in range(FEATURES)]
DEVIATIONS = [2.0 + 0.5 * column for column in range(FEATURES)]
SEED = 7

_ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True)
class Published:
    """A folder with both models, where their archives lie, and what they answer to `make_windows()`."""

    root: Path
    archives: dict[str, Path]
    prediction: Floats
    """[B, T]"""
    attention: Floats
    """[B, L]"""
    forecasts: dict[tuple[str, int], Floats]
    """By model and steps [B, N, T]."""


def publish(root: Path) -> Published:
    """Let `model.py`, in a process of its own, write both models and their answers."""
    answers = root.with_suffix(".npz")
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.serving.model", str(root), str(answers)]
    subprocess.run(command, cwd=_ROOT, check=True)
    with np.load(answers) as found:
        forecasts = {(name, steps): found[f"{name}/{steps}"] for name, steps in asked_forecasts()}
        archives = {name: Path(str(found[f"{name}/archive"])) for name in (CARRIED, SLIDING)}
        return Published(root, archives, found["prediction"], found["attention"], forecasts)


def asked_forecasts() -> list[tuple[str, int]]:
    """The models and steps that sections ask for."""
    return [(name, steps) for name in (CARRIED, SLIDING) for steps in (FORECAST_STEPS, LONG_STEPS)]


def make_windows(count: int = WINDOWS) -> Floats:
    """Random walks around each feature's level, as they come out of JSON with six digits [B, L, F]."""
    random = np.random.default_rng(SEED)
    walk = random.normal(size=(count, WINDOW, FEATURES)).cumsum(1) * 0.2 + random.normal(size=(count, 1, FEATURES))
    return np.array(json.loads(to_json(walk * np.array(DEVIATIONS) + np.array(MEANS))), np.float32)


def to_json(values: NDArray[Any]) -> str:
    """Nested lists of six significant digits each, as a client with measurements would send them."""
    if values.ndim == 0:
        return f"{values:.6g}"
    return f"[{','.join(to_json(part) for part in values)}]"
