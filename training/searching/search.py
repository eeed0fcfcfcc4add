"""Looking for better values of a recipe: each trial is a training, and Optuna says what to try and when to stop.

The same seed gives the same trials, however often a study is interrupted: what a slot draws is decided by the seed, the
slot and the trials before it. Several workers at once see each other's trials at different times, and draw accordingly.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FixedTrial, FrozenTrial
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from training.errors import RecipeError
from training.recipe import ARCHITECTURE, Recipe, put
from training.recipe.section import describe
from training.recipe.space import Branches, Label, Parameter, Search, Space, draw, grid, size
from training.searching.study import SLOT, open_storage, open_study

_TRIALS = 50
"""Where a recipe does not say how many."""
_LARGEST_GRID = 10_000
_SCORED = ("name", "data", "split", "window.steps", "window.season", "search")
"""What is scored, on what and by what name."""
_LOSS = ("training.loss", "training.huber_delta", "training.quantile")
_DEVICES = ("training.hardware.devices", "training.hardware.nodes")


def options(recipe: Recipe) -> Search:
    """The recipe's `[search]`, every key and value of it checked; RecipeError naming what is wrong, one a line."""
    search = recipe.search
    if search is None:
        raise RecipeError("search: missing; `[search.space]` says what to try")
    problems = list(dict.fromkeys(_problems(search.parameters, [recipe.given()])))
    problems += _incomparable(search)
    if recipe.ensemble:
        problems.append("ensemble: its members are searched one by one; search one and put it into an ensemble then")
    if recipe.training.hardware.parallel:
        problems.append("training.hardware: a trial is trained on one device; several are tried at once with --jobs")
    if search.sampler == "grid":
        problems += _not_a_grid(search)
    if problems:
        raise RecipeError("\n".join(problems))
    return search


def slots(search: Search) -> tuple[int, list[dict[str, Label]] | None]:
    """How many trials are wanted and, of a grid, what each of them tries."""
    if search.sampler != "grid":
        return search.trials or _TRIALS, None
    points = list(islice(grid(search.parameters), search.trials))
    return len(points), points


def join(recipe: Recipe, search: Search, place: str, name: str) -> optuna.Study:
    """The study of that name and place, begun or gone on with, with the recipe's sampler and pruner."""
    comparable = recipe.record() | {"search": search.model_dump(include={"metric", "space"})}
    study = open_study(open_storage(place), name, comparable)
    study.sampler = Seeded(search)
    study.pruner = _pruner(recipe, search)
    return study


def values_of(recipe: Recipe, trial: FrozenTrial) -> dict[str, Any]:
    """What a trial used, by the recipe's keys."""
    return draw(options(recipe).parameters, FixedTrial(trial.params))


class Seeded(BaseSampler):
    """A sampler that begins anew with each trial: a study gone on with draws what one without interruption would."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.sampler = self._fresh(0)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:  # noqa: ARG002  Optuna's contract
        self.sampler = self._fresh(trial.user_attrs.get(SLOT, trial.number))

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> object:
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def _fresh(self, slot: int) -> BaseSampler:
        seed = int(np.random.SeedSequence((self.search.seed, slot)).generate_state(1)[0])
        if self.search.sampler != "tpe":
            return RandomSampler(seed)
        with _experimental():
            # By groups, or parameters that only one architecture has would be drawn without regard to the others.
            return TPESampler(seed=seed, group=True)


def _pruner(recipe: Recipe, search: Search) -> BasePruner:
    """What stops trials early; it counts epochs."""
    if search.pruner == "none":
        return NopPruner()
    if search.pruner == "median":
        return MedianPruner()
    return HyperbandPruner(min_resource=1, max_resource=_most_epochs(recipe, search.parameters))


def _problems(space: Space, contexts: list[dict[str, Any]]) -> Iterator[str]:
    """What the recipe has against the space's keys and values, each beside the values that the recipe gives itself."""
    # A key beside the architecture must be there for all of them.
    for parameter in sorted(space, key=lambda parameter: parameter.key != ARCHITECTURE):
        key, domain = parameter.key, parameter.domain
        if fixed := next((one for one in (*_SCORED, *_DEVICES) if _is_within(key, one)), None):
            why = "decides what is scored" if fixed in _SCORED else "is the same for every trial"
            yield f"search.space: {key!r}: cannot be searched, as {fixed} {why}"
            continue
        yield from _refusals(key, domain.samples, contexts)
        if isinstance(domain, Branches):
            for choice, inner in domain.spaces.items():
                yield from _problems(inner, [put(context, key, choice) for context in contexts])
        if key == ARCHITECTURE:
            contexts = [put(context, key, sample) for context in contexts for sample in domain.samples]


def _refusals(key: str, samples: Sequence[object], contexts: list[dict[str, Any]]) -> Iterator[str]:
    for context in contexts:
        for sample in samples:
            try:
                Recipe.model_validate(put(context, key, sample))
            except RecipeError as error:
                yield f"search.space: {error}"
            except ValidationError as error:
                # What is wrong elsewhere may be right with what the trial has there.
                yield from (
                    f"search.space: {describe(problem)}"
                    for problem in error.errors()
                    if _is_within(_place(problem), key)
                )


def _place(problem: ErrorDetails) -> str:
    unknown = [problem["ctx"]["key"]] if problem["type"] == "unknown_key" else []
    return ".".join(map(str, [*problem["loc"], *unknown]))


def _is_within(key: str, table: str) -> bool:
    return key == table or key.startswith(f"{table}.")


def _incomparable(search: Search) -> list[str]:
    losses = [parameter.key for parameter in _all(search.parameters) if parameter.key in _LOSS]
    if not losses:
        return []
    problems = []
    if search.metric == "validation":
        problems.append(f"search.metric: {losses[0]} is searched, so 'validation' compares unlike losses; use 'mase'")
    if search.pruner != "none":
        problems.append(f"search.pruner: {losses[0]} is searched, and pruners compare losses; use 'none'")
    return problems


def _not_a_grid(search: Search) -> list[str]:
    endless = [parameter.key for parameter in _all(search.parameters) if math.isinf(parameter.domain.size)]
    if endless:
        return [f"search.space: {key!r}: a grid needs a list, or a range with a step" for key in endless]
    points = size(search.parameters)
    if search.trials is None and points > _LARGEST_GRID:
        return [f"search.trials: missing; the grid has {points:,.0f} points"]
    return []


def _all(space: Space) -> Iterator[Parameter]:
    for parameter in space:
        yield parameter
        if isinstance(parameter.domain, Branches):
            for inner in parameter.domain.spaces.values():
                yield from _all(inner)


def _most_epochs(recipe: Recipe, space: Space) -> int:
    found = [parameter.domain.samples for parameter in _all(space) if parameter.key == "training.epochs"]
    return max((int(epochs) for samples in found for epochs in samples), default=recipe.training.epochs)


@contextlib.contextmanager
def _experimental() -> Iterator[None]:
    """Parts of Optuna that may yet change how they are called; its version is pinned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
