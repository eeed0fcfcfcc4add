"""Those who work on a search: each claims a trial, trains it and tells the study, until there are none left."""

import contextlib
import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import optuna
import torch
from optuna.exceptions import TrialPruned, UpdateFinishedTrialError
from optuna.trial import TrialState

from training.data.dataset import Dataset, prepare
from training.errors import DataError, TrainingError
from training.fitting.fit import Fitted, fit
from training.fitting.progress import Epoch
from training.recipe import Recipe
from training.recipe.space import Search, draw
from training.scoring.evaluate import evaluate, export
from training.searching.search import join, options, slots
from training.searching.study import REASON, Slots, give_back


class Train(Protocol):
    """What `training.fitting.fit.fit` does."""

    def __call__(self, recipe: Recipe, dataset: Dataset, *, tell: Callable[[Epoch], None]) -> Fitted:
        """Train the recipe, telling of every epoch."""


@dataclass
class Worker:
    """One process's part in a search: it claims trials and trains them, until there are none left."""

    recipe: Recipe
    search: Search
    slots: Slots
    tell: Callable[[], None] = lambda: None
    """Hears of every epoch and of every end of a trial."""
    train: Train = fit
    _prepared: tuple[dict[str, Any], Dataset] | None = field(default=None, init=False)

    def work(self, until: Callable[[], bool] = lambda: False) -> None:
        """Try one after the other, as long as `until` does not hold; on Ctrl-C the trial under way is given back."""
        study = self.slots.study
        while not until() and (trial := self.slots.claim()) is not None:
            try:
                with self.slots.held(trial):
                    state, value = self._try(trial)
                study.tell(trial, value, state, skip_if_finished=True)
            except UpdateFinishedTrialError:
                # Somebody has taken this worker for dead, and the trial's slot is another one's.
                continue
            except BaseException as error:
                with contextlib.suppress(UpdateFinishedTrialError):
                    give_back(study, trial, repr(error))
                raise
            self.tell()

    def _try(self, trial: optuna.Trial) -> tuple[TrialState, float | None]:
        best, epochs = math.inf, 0

        def tell(epoch: Epoch) -> None:
            nonlocal best
            # The best so far, as its weights are what early stopping gives back.
            best = min(best, epoch.validation)
            trial.report(best, epoch.number)
            self.tell()
            # After the last epoch nothing is saved, and how good the trial was would be lost.
            if epoch.number < epochs and trial.should_prune():
                raise TrialPruned

        try:
            recipe = self.recipe.having(draw(self.search.parameters, trial))
            epochs = recipe.training.epochs
            torch.set_num_threads(recipe.training.threads)
            dataset = self.dataset(recipe)
            fitted = self.train(recipe, dataset, tell=tell)
            return TrialState.COMPLETE, best if self.search.metric == "validation" else _mase(recipe, dataset, fitted)
        except TrialPruned:
            return TrialState.PRUNED, None
        except (TrainingError, torch.OutOfMemoryError) as error:
            # Pruned and not failed, so that the sampler learns to stay away from such values.
            trial.set_user_attr(REASON, " ".join(str(error).split()))
            return TrialState.PRUNED, None

    def dataset(self, recipe: Recipe) -> Dataset:
        """Its rows and windows, read anew only where they are not those of the last recipe."""
        asked = recipe.model_dump(include={"data", "split", "window"})
        if self._prepared is None or self._prepared[0] != asked:
            self._prepared = None
            self._prepared = asked, prepare(recipe)
        return self._prepared[1]


def _mase(recipe: Recipe, dataset: Dataset, fitted: Fitted) -> float:
    """Of the network as it would be served, over all targets and steps of the validation windows."""
    module = export(recipe, fitted.network, dataset.windows["validation"])
    scores = evaluate(recipe, dataset, module, "validation").model.values()
    errors = [error for score in scores for error in score.mase if error is not None]
    if not errors:
        raise DataError("search.metric 'mase': the seasonal-naive forecast is never wrong; use 'validation'")
    return sum(errors) / len(errors)


@dataclass(frozen=True, slots=True)
class Crew:
    """Worker processes on this machine."""

    recipe: Recipe
    place: str
    """Of the study; see `open_storage`."""
    name: str
    jobs: int
    timeout_s: float

    @contextlib.contextmanager
    def at_work(self) -> Iterator[Sequence[BaseProcess]]:
        """The processes, started; whoever is still there in the end is asked to give its trial back, and waited for."""
        context = multiprocessing.get_context("spawn")
        asked = (self.recipe, self.place, self.name, self.timeout_s)
        workers = [context.Process(target=_take_part, args=asked, daemon=True) for _ in range(self.jobs)]
        try:
            for worker in workers:
                worker.start()
            yield workers
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.join()


def _take_part(recipe: Recipe, place: str, name: str, timeout_s: float) -> None:
    """What a process of a crew does."""
    end, parent = time.monotonic() + timeout_s, multiprocessing.parent_process()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    search = options(recipe)

    def stop_as_orphan() -> None:
        if parent is not None and not parent.is_alive():
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        study = join(recipe, search, place, name)
        Worker(recipe, search, Slots(study, *slots(search)), stop_as_orphan).work(lambda: time.monotonic() > end)
