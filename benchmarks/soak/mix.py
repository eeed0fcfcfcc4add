"""What is asked in a soak besides plain forecasts: intervals, backtests, anomalies, and requests that are wrong.

Each knows its right answer, as the questions of the tests do; shapes as there.
"""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson

from models.store import Store
from tests.app import calibrated
from tests.app.asking import BOUNDED
from tests.builders import publish_tiny
from tests.chaos.questions import Oracle, Question, Reply, difference, forecasts

PLAIN, BANDED = "tiny", "banded"
_JSON = {"Content-Type": "application/json"}
_ARRAY = {"Content-Type": "application/x-npy"}
_STEPS = 3
_SERIES = 200
_STRIDE = 4


def publish(root: Path) -> None:
    """A plain model in two versions, and one with intervals whose calibration errors are whole numbers up to 99."""
    for seed in range(2):
        publish_tiny(Store(root), PLAIN, **BOUNDED, seed=seed)
    calibrated.publish(root, BANDED)


def mixed(oracle: Oracle, *, deadline_ms: int | None = None) -> list[Question]:
    """A pool with something of everything, in an order in which every kind comes again and again."""
    plain = forecasts(oracle, PLAIN, count=64, deadline_ms=deadline_ms)
    others = [_with_intervals(oracle, seed) for seed in range(8)]
    others += [_anomalies(oracle, seed) for seed in range(4)]
    others += _wrong_ones()
    others += [_backtest(oracle, seed) for seed in range(2)]
    spread: list[Question] = []
    every = len(plain) // len(others)
    for number, other in enumerate(others):
        spread += [*plain[number * every : (number + 1) * every], other]
    return [*spread, *plain[len(others) * every :]]


def _window(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(10, 1, (1, 8, 1)).astype(np.float32)


def _with_intervals(oracle: Oracle, seed: int) -> Question:
    window = _window(seed)
    number = oracle.register(window, _STEPS)

    def fault(reply: Reply) -> str:
        said = orjson.loads(reply.body)
        right = oracle.right(BANDED, 1, number)[0]
        # The 20th and the 180th of 199 errors from -99 to 99.
        bounds = said["intervals"]["80"]
        return (
            difference(np.array(said["forecast"], np.float32), right)
            or difference(np.array(bounds["lower"], np.float32), right - 80)
            or difference(np.array(bounds["upper"], np.float32), right + 80)
        )

    target = f"/forecast?model={BANDED}&version=1&steps={_STEPS}&level=80"
    return Question("intervals", target, orjson.dumps({"window": window[0].tolist()}), _JSON, _read(fault))


def _anomalies(oracle: Oracle, seed: int) -> Question:
    window = _window(100 + seed)
    number = oracle.register(window, _STEPS)
    actual = [[1000.0], [10.0], [-1000.0]]

    def fault(reply: Reply) -> str:
        said = orjson.loads(reply.body)
        if np.ravel(said["anomalous"]).tolist() != [True, False, True]:
            return f"anomalous {said['anomalous']}"
        return difference(np.array(said["expected"], np.float32), oracle.right(BANDED, 1, number)[0])

    body = orjson.dumps({"window": window[0].tolist(), "actual": actual})
    return Question("anomalies", f"/anomalies?model={BANDED}&version=1&level=80", body, _JSON, _read(fault))


def _backtest(oracle: Oracle, seed: int) -> Question:
    series = np.random.default_rng(seed).normal(10, 1, (_SERIES, 1)).astype(np.float32)
    starts = range(0, _SERIES - 8 - _STEPS + 1, _STRIDE)
    windows = np.stack([series[start : start + 8] for start in starts])
    truth = np.stack([series[start + 8 : start + 8 + _STEPS] for start in starts])
    number = oracle.register(windows, _STEPS)
    file = io.BytesIO()
    np.save(file, series)

    def fault(reply: Reply) -> str:
        last = orjson.loads(reply.body.splitlines()[-1])
        if "error" in last:
            # Its answer had begun when it was called off: it ends with a whole problem, which is as good as a refusal.
            return "" if last["error"]["status"] in (503, 504) else f"{last['error']}"
        errors = np.abs(oracle.right(BANDED, 1, number) - truth).mean(0)[:, 0]
        (said,) = last["result"]["model"].values()
        return difference(np.array(said["mae"], np.float32), errors.astype(np.float32))

    target = f"/backtest?model={BANDED}&version=1&steps={_STEPS}&stride={_STRIDE}"
    return Question("backtest", target, file.getvalue(), _ARRAY, _read(fault))


def _wrong_ones() -> list[Question]:
    asked = [
        ("no JSON", f"/predict?model={PLAIN}", b'{"window": [[1', 400),
        ("nobody's", "/predict?model=nobody", b'{"window": [[1]]}', 404),
        ("short", f"/predict?model={PLAIN}", b'{"window": [[1], [2]]}', 422),
        ("too far", f"/forecast?model={PLAIN}&steps=1000000", orjson.dumps({"window": [[1.0]] * 8}), 422),
        ("too large", f"/predict?model={PLAIN}", b" " * (3 << 20), 413),
    ]
    return [Question(label, target, body, _JSON, lambda _: "", expects=status) for label, target, body, status in asked]


def _read(fault: Callable[[Reply], str]) -> Callable[[Reply], str]:
    """An answer that lacks what it must have is as wrong as one with other numbers."""

    def read(reply: Reply) -> str:
        try:
            return fault(reply)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            return f"malformed: {error!r}"

    return read
