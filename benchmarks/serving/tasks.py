"""What is asked of every server: the requests in its dialect, with the answers that the model gives.

Shapes: B windows, L window, F features, N steps, T targets.
"""

import numpy as np

from benchmarks.serving.dialects import Dialect, Task
from benchmarks.serving.servers import Kind
from benchmarks.serving.workload import (
    CARRIED,
    DEVIATIONS,
    FORECAST_STEPS,
    SLIDING,
    WINDOWS,
    Floats,
    Published,
    make_windows,
    to_json,
)

ONE_STEP_TOLERANCE = 1e-4
"""Of a target's standard deviation: another batch size sums in another order, about 1e-6."""
MANY_STEPS_TOLERANCE = 2e-3
"""The same after hundreds of steps, each of which rests on the last."""
ATTENTION_TOLERANCE = 1e-5
BATCH = 64
BATCHES = 8


class Tasks:
    """The tasks for one published pair of models."""

    def __init__(self, published: Published) -> None:
        self._right = published
        self._windows = make_windows()
        self._texts = [to_json(window) for window in self._windows]

    def predict(self, dialect: Dialect) -> Task:
        """One window, one step."""
        requests = [dialect.predict(text) for text in self._texts]
        return Task(requests, dialect.prediction, self._one_by_one(), self._tolerances())

    def predict_binary(self, dialect: Dialect) -> Task | None:
        """The same with the window as raw float32; None where a server has no such interface."""
        requests = [dialect.predict_binary(window) for window in self._windows]
        if any(request is None for request in requests):
            return None
        found = [request for request in requests if request is not None]
        return Task(found, dialect.prediction, self._one_by_one(), self._tolerances())

    def predict_many(self, dialect: Dialect) -> Task:
        """BATCH windows in a request, in another order in each."""
        orders = [np.roll(np.arange(WINDOWS), -5 * turn)[:BATCH] for turn in range(BATCHES)]
        requests = [dialect.predict_many([self._texts[index] for index in order]) for order in orders]
        expected = [[_flat(self._right.prediction[order]), _flat(self._right.attention[order])] for order in orders]
        return Task(requests, dialect.predictions, expected, self._tolerances())

    def forecast(self, dialect: Dialect, steps: int, name: str) -> Task:
        """One window, `steps` steps, with the recursion of the model of that name; no attention."""
        requests = [dialect.forecast(text, steps) for text in self._texts]
        expected = [[_flat(rows)] for rows in self._right.forecasts[name, steps]]
        return Task(requests, dialect.forecasted, expected, [self._scaled(MANY_STEPS_TOLERANCE)])

    def forecast_of(self, kind: Kind, steps: int = FORECAST_STEPS) -> Task:
        """What a server is asked by default: its own recursion, be it carried or sliding."""
        return self.forecast(kind.dialect, steps, CARRIED if kind.ours else SLIDING)

    def _one_by_one(self) -> list[list[list[float]]]:
        pairs = zip(self._right.prediction, self._right.attention, strict=True)
        return [[_flat(prediction), _flat(attention)] for prediction, attention in pairs]

    def _tolerances(self) -> list[list[float]]:
        return [self._scaled(ONE_STEP_TOLERANCE), [ATTENTION_TOLERANCE]]

    def _scaled(self, tolerance: float) -> list[float]:
        return [tolerance * scale for scale in DEVIATIONS]


def _flat(values: Floats) -> list[float]:
    return [float(value) for value in values.flatten()]
