"""Scores of what will be served: the exported network, asked as the service asks it, beside the baselines.

Shapes: B windows of a batch, L window, N steps, F features, T targets, K known-future covariates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
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
    """Windows as a client sends them, and what came of them."""

    window: Tensor
    """[B, L, F]"""
    time: Tensor
    """int64 [B]: the epoch seconds of the window's last row."""
    future: Tensor
    """[B, N, K]"""
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
"""Is shown each batch in the order of the windows: question, forecast [B, N, T], attention [B, R * passes, L]."""


def evaluate(
    recipe: Recipe, dataset: Dataset, module: ForecastModule, part: str = "test", watch: Watch | None = None
) -> Metrics:
    """Errors on every window of the part, the last batch included."""
    steps = recipe.window.steps
    targets = [dataset.features[column] for column in recipe.data.target_columns]
    forecasts = baselines.fitted(recipe, dataset)
    errors = {name: Errors(steps, targets, dataset.naive_errors) for name in ("model", *forecasts)}
    windows = dataset.windows[part]
    for batch in Batches(windows, _batch_size(recipe)):
        asked = question(recipe, batch)
        answer, attention = _ask(recipe, module, asked)
        errors["model"].add(answer, asked.truth)
        for name, forecast in forecasts.items():
            errors[name].add(forecast(asked.targets), asked.truth)
        if watch:
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


def case(recipe: Recipe, dataset: Dataset, module: ForecastModule, chosen: int) -> Case:
    """The test window of this number, from 0."""
    windows = dataset.windows["test"]
    asked = question(recipe, windows.gather(torch.tensor([chosen])))
    forecast, attention = _ask(recipe, module, asked)
    found = Example(
        window=asked.window[0].tolist(),
        start=datetime.fromtimestamp(int(windows.clock.at(windows.starts[chosen])), UTC),
        future=asked.future[0].tolist() if recipe.data.known_columns else None,
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
