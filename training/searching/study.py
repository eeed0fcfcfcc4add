"""A study that several processes and machines work on at once: where it is kept, and who does what.

A study is a row of slots, one for each trial that is wanted. A worker claims the first slot that nobody holds. Whoever
holds one gives signs of life; a worker that is killed falls silent, and after a while its slot is free again. A study
needs no coordinator, and whoever is stopped or killed leaves one that goes on.

An Optuna trial in the state FAIL has given its slot back; COMPLETE and PRUNED ones hold theirs for good.
"""

import contextlib
import json
import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalRedisBackend
from optuna.trial import FrozenTrial, TrialState

from training.errors import TrainingError
from training.recipe.space import Label

SLOT = "slot"
REASON = "reason"
"""Why a trial gave its slot back, or why it came to nothing."""
_BEAT = "beat"
_MOST_LOSSES = 3
"""A slot that killed so many workers is left alone: the next would run out of memory as they did."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds."""

    beat: float = 10.0
    """Between two signs of life."""
    silence: float = 60.0
    """After which a worker is taken for dead."""


class _Replayed(BaseJournalBackend):
    """A journal that is always read from its beginning: Redis would hand out pickled snapshots, which may hold code."""

    def __init__(self, backend: BaseJournalBackend) -> None:
        self.backend = backend

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        yield from self.backend.read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.backend.append_logs(logs)


def open_storage(place: str) -> BaseStorage:
    """A journal file, or by its URL a journal in Redis or a database; TrainingError where it cannot be opened."""
    scheme = urlsplit(place).scheme if "://" in place else ""
    try:
        if scheme in {"redis", "rediss", "unix"}:
            with warnings.catch_warnings():
                # Optuna may yet change how it is called; its version is pinned.
                warnings.simplefilter("ignore", ExperimentalWarning)
                return JournalStorage(_Replayed(JournalRedisBackend(place, prefix="foretell")))
        if scheme:
            return RDBStorage(place)
        # Absolute, as the lock is a link beside the file that points to it.
        return JournalStorage(JournalFileBackend(os.fspath(Path(place).resolve())))
    except Exception as error:
        # Each kind of storage, and each database's driver, has its own errors; all mean that there is no study.
        raise TrainingError(f"storage {shown(place)}: {str(error).splitlines()[0]}") from error


def shown(place: str) -> str:
    """A storage as it may be printed: without the password."""
    password = urlsplit(place).password if "://" in place else None
    return place.replace(f":{password}@", ":***@") if password else place


def open_study(storage: BaseStorage, name: str, subject: dict[str, Any]) -> optuna.Study:
    """The study of that name, begun or gone on with; TrainingError where it was begun about another subject."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=storage, study_name=name, direction="minimize", load_if_exists=True)
    begun = study.user_attrs.get("subject")
    subject = json.loads(json.dumps(subject))
    if begun is None:
        study.set_user_attr("subject", subject)
    elif begun != subject:
        raise TrainingError(
            f"study {name!r} was begun with another recipe ({', '.join(_differences(begun, subject))}); go on with"
            " that one, or begin a study of another name with --study"
        )
    return study


def _differences(before: object, now: object, place: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before | now:
            yield from _differences(before.get(key), now.get(key), f"{place}.{key}" if place else key)
    elif before != now:
        yield f"{place}: {before!r} then, {now!r} now"


@dataclass
class Slots:
    """The part that one worker takes in a study."""

    study: optuna.Study
    wanted: int
    points: list[dict[str, Label]] | None = None
    """Of a grid: what each slot tries. Otherwise the study's sampler decides."""
    pace: Pace = field(default_factory=Pace)
    _heard: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Of each running trial: its last sign of life, and when it was first seen here."""

    def claim(self) -> optuna.Trial | None:
        """A trial for the first free slot; None where none is left and whoever holds the others is alive."""
        while (slot := self._free()) is not None or self._comes_free():
            if slot is None:
                continue
            if slot not in {trial.user_attrs.get(SLOT) for trial in self._trials(TrialState.WAITING)}:
                self.study.enqueue_trial(self.points[slot] if self.points else {}, user_attrs={SLOT: slot})
            trial = self.study.ask()
            if self._is_ours(trial):
                return trial
            give_back(self.study, trial, "another worker holds the slot")
        return None

    @contextlib.contextmanager
    def held(self, trial: optuna.Trial) -> Iterator[None]:
        """Signs of life while the trial runs."""
        done = threading.Event()
        beating = threading.Thread(target=self._beat, args=(trial, done), daemon=True)
        beating.start()
        try:
            yield
        finally:
            done.set()
            beating.join()

    def _beat(self, trial: optuna.Trial, done: threading.Event) -> None:
        beat = 0
        while not done.wait(self.pace.beat):
            beat += 1
            try:
                trial.set_user_attr(_BEAT, beat)
            except UpdateFinishedTrialError:
                return

    def _free(self) -> int | None:
        self._give_up_the_silent()
        trials = self.study.get_trials(deepcopy=False)
        lost = Counter(trial.user_attrs.get(SLOT) for trial in trials if is_lost(trial))
        held = {trial.user_attrs.get(SLOT) for trial in trials if _holds(trial)}
        return next((slot for slot in range(self.wanted) if slot not in held and lost[slot] < _MOST_LOSSES), None)

    def _comes_free(self) -> bool:
        """Whether a slot did so before everybody who holds one had given a sign of life."""
        before = {trial.number: _last_beat(trial) for trial in self._trials(TrialState.RUNNING)}
        while any(before.get(trial.number) == _last_beat(trial) for trial in self._trials(TrialState.RUNNING)):
            time.sleep(self.pace.beat / 10)
            if self._free() is not None:
                return True
        return False

    def _give_up_the_silent(self) -> None:
        now = time.monotonic()
        for trial in self._trials(TrialState.RUNNING):
            beat, since = self._heard.get(trial.number, (-1, now))
            if beat != _last_beat(trial):
                self._heard[trial.number] = (_last_beat(trial), now)
            elif now - since > self.pace.silence:
                # Somebody else may have been faster.
                with contextlib.suppress(UpdateFinishedTrialError):
                    self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _is_ours(self, trial: optuna.Trial) -> bool:
        """Two workers may have asked at the same time: the first to have been counted has the slot."""
        slot = trial.user_attrs.get(SLOT)
        others = [other for other in self.study.get_trials(deepcopy=False) if other.number < trial.number]
        return slot in range(self.wanted) and not any(
            _holds(other) and other.user_attrs.get(SLOT) == slot for other in others
        )

    def _trials(self, state: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(state,))


def give_back(study: optuna.Study, trial: optuna.Trial, reason: str) -> None:
    """Leave the trial's slot to whoever comes next."""
    trial.set_user_attr(REASON, reason)
    study.tell(trial, state=TrialState.FAIL)


def is_lost(trial: FrozenTrial) -> bool:
    """Whether the trial's worker fell silent."""
    return trial.state == TrialState.FAIL and REASON not in trial.user_attrs


def _holds(trial: FrozenTrial) -> bool:
    return trial.state in {TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED}


def _last_beat(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get(_BEAT, 0))
