"""A query made ready for a model: what a device is asked, and what its answer comes to.

Shapes: B windows, L window, H steps a pass, N steps, K known features, T targets, Q quantiles, R attention rows a pass,
P passes, A = P * R attention rows.
"""

import math
from typing import NamedTuple

import numpy as np

from app.asked.layout import Layout
from app.asked.query import Query
from app.errors import NotFiniteError, Place
from app.forecasts.cache import Answer
from app.link.frames import Order
from app.spans import Ran
from app.ticket import Floats, ModelId
from models.spec import Spec


class Computed(NamedTuple):
    """A model's answer and what it cost."""

    answer: Answer
    queued_s: float
    device_s: float
    ran: Ran | None = None
    """In which batches, where whoever had it computed is traced."""


class Job(NamedTuple):
    """A query made ready for a model."""

    model: ModelId
    spec: Spec
    query: Query
    layout: Layout
    steps: int
    attention: bool
    patience_s: float
    bulk: bool

    @property
    def windows(self) -> int:
        """B"""
        return len(self.layout.windows)

    @property
    def attention_rows(self) -> int:
        """A for the steps that were asked for."""
        return math.ceil(self.steps * self.spec.attention_rows / self.spec.horizon)


def order_of(job: Job) -> Order:
    """What a device is asked."""
    windows, moments, known, _ = job.layout
    return Order(
        digest=job.model.digest,
        windows=windows,
        time=moments,
        known=known,
        passes=math.ceil(job.steps / job.spec.horizon),
        attention=job.attention,
        bulk=job.bulk,
        patience_s=job.patience_s,
    )


def answer_of(numbers: Floats, job: Job) -> Answer:
    """Cut to the steps that were asked for: passes are whole."""
    spec, windows = job.spec, job.windows
    rows = math.ceil(job.steps / spec.horizon) * spec.horizon
    split = windows * rows * spec.outputs
    forecast = numbers[:split].reshape(windows, rows, spec.outputs)[:, : job.steps]
    if not job.attention:
        return Answer(forecast, None)
    weights = numbers[split:].reshape(windows, rows // spec.horizon * spec.attention_rows, spec.window)
    return Answer(forecast, weights[:, : job.attention_rows])


def check_finite(forecast: Floats, job: Job, *, before: int = 0) -> None:
    """NotFiniteError where a forecast [B, n, T + Q * T] of the steps after the first `before` is not."""
    if np.isfinite(forecast).all():
        return
    window, step, output = (int(index) for index in np.argwhere(~np.isfinite(forecast))[0])
    place = job.query.places.of(window)
    name = job.spec.targets[output % len(job.spec.targets)]
    raise NotFiniteError(Place(place, f"the model's forecast of {name} is not finite from step {before + step + 1} on"))
