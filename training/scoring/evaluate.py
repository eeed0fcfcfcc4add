"""Scores of what will be served: the exported network, asked as the service asks it, beside the baselines.

Shapes: B windows of a batch, L window, N steps, F features, S static ones, K known ahead, T targets, O outputs: T of
the forecast and then T of each quantile that the network forecasts besides.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import artifact
from models.artifact import ForecastModule
from models.forecaster import Forecaster
from models.spec import Example, Metrics
from training.data.dataset import Dataset
from training.data.windows import Batch, Batches, Windows
from training.recipe import Recipe
from training.scoring import baselines
from training.scoring.metrics import Errors

_BATCH = 512
"""Windows, or fewer where those are large:"""
_VALUES = 2**25
"""in what a batch gathers, and in the most attention that a window may come with."""


@dataclass(frozen=True, slots=True)
class Question:
    """Windows as the artifact is given them, NaN where a value is missing, and what came of them."""

    window: Tensor
    """[B, L, F]"""
    time: Tensor
    """int64 [B]: the epoch seconds of the window's last row."""
    future: Tensor
    """[B, N, K]: known-future covariates and static features."""
    targets: Tensor
    """[B, L, T]: the targets among the window's features."""
    truth: Tensor
    """[B, N, T]"""


def question(recipe: Recipe, batch: Batch) -> Question:
    """Windows taken apart."""
    window, ahead = batch.rows.split([recipe.window.length, recipe.window.steps], 1)
    targets, known = recipe.data.target_columns, recipe.data.known_columns
    return Question(window, batch.times, ahead[:, :, known], window[:, :, targets], ahead[:, :, targets])


def export(recipe: Recipe, network: Forecaster, windows: Windows) -> ForecastModule:
    """The module that the archive will hold, compared with the eager network on a few of the windows."""
    probe = question(recipe, windows.gather(torch.arange(min(len(windows), 4))))
    return artifact.export(network, probe.window, probe.time, probe.future, recipe.window.steps)


Watch = Callable[[Question, Tensor, Tensor], None]
"""Is shown each batch in the order of the windows: question, outputs [B, N, O], attention [B, R * passes, L]."""


def answers(recipe: Recipe, windows: Windows, module: ForecastModule) -> Iterator[tuple[Question, Tensor, Tensor]]:
    """All windows in order, batch by batch: the question, the outputs [B, N, O], the attention [B, R * passes, L]."""
    for batch in Batches(windows, _batch_size(recipe)):
        asked = question(recipe, batch)
        yield asked, *_ask(recipe, module, asked)


def evaluate(
    recipe: Recipe, dataset: Dataset, module: ForecastModule, part: str = "test", watches: Sequence[Watch] = ()
) -> Metrics:
    """Errors on every window of the part, the last batch included."""
    steps = recipe.window.steps
    targets = [dataset.features[column] for column in recipe.data.target_columns]
    forecasts = baselines.fitted(recipe, dataset)
    errors = {name: Errors(steps, targets) for name in ("model", *forecasts)}
    by_series = torch.tensor(dataset.naive_errors, dtype=torch.float64)
    windows, done = dataset.windows[part], 0
    for asked, answer, attention in answers(recipe, windows, module):
        starts = windows.starts[done : done + len(answer)]
        naive_errors = by_series[windows.clock.series(starts)]
        done += len(starts)
        errors["model"].add(answer[:, :, : len(targets)], asked.truth, naive_errors)
        for name, forecast in forecasts.items():
            errors[name].add(forecast(asked.targets), asked.truth, naive_errors)
        for watch in watches:
            watch(asked, answer, attention)
    scores = {name: found.scores() for name, found in errors.items()}
    return Metrics(
        steps=steps,
        windows=len(windows),
        season=recipe.window.season,
        horizon=recipe.window.horizon,
        model=scores.pop("model"),
        baselines=scores,
    )


@dataclass(frozen=True, slots=True)
class Case:
    """One test window and its answer, with what really came."""

    example: Example
    truth: Tensor
    """[N, T]"""
    bands: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=dict)
    """By level, where intervals begin and end, [N, T] each."""


def case(recipe: Recipe, dataset: Dataset, module: ForecastModule, chosen: int) -> Case:
    """The test window of this number, from 0."""
    windows = dataset.windows["test"]
    asked = question(recipe, windows.gather(torch.tensor([chosen])))
    forecast, attention = _ask(recipe, module, asked)
    data, window = recipe.data, asked.window[0]
    changing = [column for column in range(len(data.names)) if column not in data.static_columns]
    ahead = [place for place, column in enumerate(data.known_columns) if column in changing]
    found = Example(
        window=[[None if math.isnan(value) else value for value in row] for row in window[:, changing].tolist()],
        start=datetime.fromtimestamp(int(windows.clock.at(windows.starts[chosen])), UTC),
        future=asked.future[0, :, ahead].tolist() if ahead else None,
        static=window[0, data.static_columns].tolist() if data.static_columns else None,
        steps=recipe.window.steps,
        forecast=forecast[0].tolist(),
        attention=attention[0].tolist(),
    )
    return Case(found, asked.truth[0])


def example(recipe: Recipe, dataset: Dataset, module: ForecastModule) -> Case:
    """The test window in the middle: the one that the archive holds."""
    return case(recipe, dataset, module, len(dataset.windows["test"]) // 2)


def _batch_size(recipe: Recipe) -> int:
    length, steps, width = recipe.window.length, recipe.window.steps, len(recipe.data.features)
    return max(1, min(_BATCH, _VALUES // max(length * steps, (length + steps) * width)))


def _ask(recipe: Recipe, module: ForecastModule, asked: Question) -> tuple[Tensor, Tensor]:
    return artifact.answer(module, asked.window, asked.time, asked.future, recipe.window.steps, recipe.window.horizon)
