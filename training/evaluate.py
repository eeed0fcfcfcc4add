"""Scores of what will be served: the exported network, asked as the service asks it, beside the baselines.

Shapes: B windows of a batch, L window, N steps, F features, T targets, K known-future covariates.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from torch import Tensor

from models import artifact
from models.artifact import ForecastModule
from models.forecaster import Forecaster
from models.spec import Example, Metrics
from training import baselines
from training.dataset import Dataset
from training.metrics import Errors
from training.recipe import Recipe
from training.windows import Batches, Windows

_BATCH = 512


@dataclass(frozen=True, slots=True)
class Question:
    """Windows as a client sends them, and what came of them."""

    window: Tensor
    """[B, L, F]"""
    time: Tensor
    """int64 [B], zeros: no network has a clock yet."""
    future: Tensor
    """[B, N, K]"""
    targets: Tensor
    """[B, L, T]: the targets among the window's features."""
    truth: Tensor
    """[B, N, T]"""


def question(recipe: Recipe, rows: Tensor) -> Question:
    """Rows [B, L + N, F] taken apart."""
    window, ahead = rows.split([recipe.window.length, recipe.window.steps], 1)
    targets, known = recipe.data.target_columns, recipe.data.known_columns
    time = torch.zeros(len(rows), dtype=torch.int64)
    return Question(window, time, ahead[:, :, known], window[:, :, targets], ahead[:, :, targets])


def export(recipe: Recipe, network: Forecaster, windows: Windows) -> ForecastModule:
    """The module that the archive will hold, compared with the eager network on a few of the windows."""
    probe = question(recipe, windows.gather(torch.arange(min(len(windows), 4))))
    return artifact.export(network, probe.window, probe.time, probe.future, recipe.window.steps)


def evaluate(recipe: Recipe, dataset: Dataset, module: ForecastModule, part: str = "test") -> Metrics:
    """Errors on every window of the part, the last batch included."""
    steps, targets = recipe.window.steps, recipe.data.target_columns
    forecasts = baselines.fitted(recipe, dataset)
    errors = {name: Errors(steps, len(targets)) for name in ("model", *forecasts)}
    windows = dataset.windows[part]
    for rows in Batches(windows, _BATCH):
        asked = question(recipe, rows)
        answer, _ = _ask(recipe, module, asked)
        errors["model"].add(answer, asked.truth)
        for name, forecast in forecasts.items():
            errors[name].add(forecast(asked.targets), asked.truth)
    names = [recipe.data.names[column] for column in targets]
    scores = {name: found.scores(names, dataset.naive_errors) for name, found in errors.items()}
    return Metrics(
        steps=steps, windows=len(windows), season=recipe.window.season, model=scores.pop("model"), baselines=scores
    )


def example(recipe: Recipe, dataset: Dataset, module: ForecastModule) -> tuple[Example, Tensor]:
    """The test window in the middle with its answer, and what really came [N, T]."""
    windows = dataset.windows["test"]
    chosen = len(windows) // 2
    asked = question(recipe, windows.gather(torch.tensor([chosen])))
    forecast, attention = _ask(recipe, module, asked)
    found = Example(
        window=asked.window[0].tolist(),
        start=datetime.fromtimestamp(int(windows.times[chosen]), UTC),
        future=asked.future[0].tolist() if recipe.data.known_columns else None,
        steps=recipe.window.steps,
        forecast=forecast[0].tolist(),
        attention=attention[0].tolist(),
    )
    return found, asked.truth[0]


def _ask(recipe: Recipe, module: ForecastModule, asked: Question) -> tuple[Tensor, Tensor]:
    return artifact.answer(module, asked.window, asked.time, asked.future, recipe.window.steps, recipe.window.horizon)
