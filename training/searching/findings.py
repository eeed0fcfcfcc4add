"""What a search has found so far, for people: a line a trial, the best, and which parameters mattered."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import optuna
from optuna.importance import get_param_importances
from optuna.trial import FrozenTrial, TrialState

from training.recipe.space import Label
from training.searching.study import REASON, is_lost

_ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
_FEWEST = 10
"""Trials that came to an end, before it is said which parameters mattered."""


@dataclass
class Findings:
    """Follows a study, whoever works on it."""

    study: optuna.Study
    wanted: int
    _told: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self._told = {trial.number for trial in self._trials(*_ENDED)}

    def best(self) -> FrozenTrial | None:
        """The finished trial with the smallest error; None where there is none yet."""
        finished = self._trials(TrialState.COMPLETE)
        return min(finished, key=lambda trial: (trial.value, trial.number), default=None)

    def done(self) -> int:
        """Trials that need not be tried again."""
        return len(self._trials(TrialState.COMPLETE, TrialState.PRUNED))

    def reasons(self) -> list[str]:
        """Why trials came to nothing, oldest first."""
        return [trial.user_attrs[REASON] for trial in self._trials(TrialState.PRUNED) if REASON in trial.user_attrs]

    def news(self) -> Iterator[str]:
        """A line for each trial that has ended since the last call, or since the beginning of this one's life."""
        best = self.best()
        for trial in self._trials(*_ENDED):
            if trial.number in self._told:
                continue
            self._told.add(trial.number)
            if trial.state != TrialState.FAIL or is_lost(trial):
                shown = f"best {best.value:.4f} (trial {best.number})" if best and best.value is not None else "no best"
                yield f"trial {trial.number:3d}  {_outcome(trial):24}  {shown}  {tried(trial.params)}"

    def status(self) -> str:
        """What is under way."""
        running = self._trials(TrialState.RUNNING)
        now = ", ".join(f"trial {trial.number}{_latest(trial)}" for trial in running)
        return f"{self.done()} of {self.wanted} trials done; {now or 'between trials'}"

    def importances(self) -> list[list[str]]:
        """Each parameter and its share in what makes a trial good (PED-ANOVA: Watanabe et al., 2023), largest first."""
        if len(self._trials(TrialState.COMPLETE)) < _FEWEST:
            return []
        with warnings.catch_warnings():
            # It warns of few trials; shares are shown to be looked at, and nothing depends on them.
            warnings.simplefilter("ignore")
            shares = get_param_importances(self.study)
        return [[name, f"{share:.0%}"] for name, share in shares.items()]

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)


def tried(params: dict[str, Label]) -> str:
    """Values beside the last words of their keys."""
    shown = {name.split(" (")[0].rpartition(".")[2]: value for name, value in params.items()}
    return "  ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in shown.items()
    )


def _outcome(trial: FrozenTrial) -> str:
    if trial.state == TrialState.FAIL:
        return "lost, to be tried again"
    if REASON in trial.user_attrs:
        return f"failed: {trial.user_attrs[REASON]}"
    if trial.state == TrialState.PRUNED:
        return f"{trial.value:.4f} pruned at {trial.last_step}"
    return f"{trial.value:.4f}"


def _latest(trial: FrozenTrial) -> str:
    step = trial.last_step
    return "" if step is None else f" epoch {step} {trial.intermediate_values[step]:.4f}"
