"""The search: what a space may say, what is tried, when it stops, and that a study survives whoever works on it."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from models import networks
from tests.app.serving import redis_server
from tests.training import world
from training.__main__ import main
from training.data.dataset import Dataset, prepare
from training.errors import DivergedError, RecipeError, TrainingError
from training.fitting.fit import Fitted, build, fit
from training.fitting.progress import Epoch
from training.recipe import Recipe, load
from training.recipe.rewrite import with_values
from training.recipe.space import draw
from training.scoring.evaluate import evaluate, export
from training.searching.findings import Findings
from training.searching.search import join, options, slots, values_of
from training.searching.study import REASON, SLOT, Pace, Slots, open_storage, shown
from training.searching.worker import Train, Worker

ROOT = Path(__file__).parents[2]
RATE = {"training.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}}
QUICK = Pace(beat=0.02, silence=0.3)


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal waits for the disk at every line, which is most of a small study's time; no test cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return world.write(tmp_path / "rows.csv", world.rows(160))


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "study.journal")


def searched(
    file: Path, space: Mapping[str, Any], *, sections: Mapping[str, Any] | None = None, **search: object
) -> Recipe:
    return world.recipe(file, search={"pruner": "none", "trials": 4, **search, "space": space}, **(sections or {}))


def epoch(number: int, error: float) -> Epoch:
    return Epoch(number, loss=error, validation=error, learning_rate=0.1, windows_per_s=1.0, best=True)


def distance(recipe: Recipe, dataset: Dataset, *, tell: Callable[[Epoch], None]) -> Fitted:
    """Takes the place of a training: the nearer the learning rate is to 0.01, the better, in each epoch alike."""
    epochs = [
        epoch(number, abs(math.log10(recipe.training.learning_rate) + 2))
        for number in range(1, recipe.training.epochs + 1)
    ]
    for one in epochs:
        tell(one)
    return Fitted(build(recipe, dataset), epochs, 0.0, "lstm", {})


def work(recipe: Recipe, place: str, train: Train = distance, *, pace: Pace = QUICK) -> list[FrozenTrial]:
    """All trials of the study, once a worker has found nothing more to do."""
    search = options(recipe)
    study = join(recipe, search, place, recipe.name)
    Worker(recipe, search, Slots(study, *slots(search), pace=pace), train=train).work()
    return study.get_trials()


def kept(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state in {TrialState.COMPLETE, TrialState.PRUNED}]


def refusal(file: Path, space: Mapping[str, Any], **search: object) -> str:
    with pytest.raises(RecipeError) as caught:
        options(searched(file, space, **search))
    return str(caught.value)


def test_a_space_says_what_may_be_tried(file: Path, place: str) -> None:
    """Whole numbers stay whole and on their steps, bounds are kept, and choices come as they were written."""
    space = {
        "network.config.hidden": {"low": 4, "high": 12, "step": 4},
        "training.epochs": {"low": 1, "high": 9, "log": True},
        "training.clip": {"low": 0.5, "high": 2.0, "step": 0.5},
        "training.loss": ["mse", "mae"],
        "training.patience": [3, 5],
        **RATE,
    }
    recipe = searched(file, space, sampler="random", trials=30, metric="mase")
    study = join(recipe, options(recipe), place, "tiny")

    found = [draw(options(recipe).parameters, study.ask()) for _ in range(30)]

    tried = {key: {values[key] for values in found} for key in space}
    assert tried["network.config.hidden"] == {4, 8, 12}
    assert tried["training.epochs"] <= set(range(1, 10))
    assert all(isinstance(value, int) for value in tried["training.epochs"] | tried["network.config.hidden"])
    assert tried["training.clip"] == {0.5, 1.0, 1.5, 2.0}
    assert tried["training.loss"] == {"mse", "mae"}
    assert tried["training.patience"] == {3, 5}
    assert all(1e-4 <= rate <= 1e-1 for rate in tried["training.learning_rate"])
    assert sum(rate < 1e-2 for rate in tried["training.learning_rate"]) > 10


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({"training.lerning_rate": [1e-3]}, "training.lerning_rate: unknown key; did you mean 'learning_rate'?"),
        ({"training.loss": ["mse", "l2"]}, "training.loss: Input should be 'mse', 'mae'"),
        ({"training.learning_rate": {"low": -1.0, "high": 1.0}}, "training.learning_rate: Input should be greater"),
        ({"network.config.hiden": [3]}, "network.config.hiden: unknown key; did you mean 'hidden'?"),
        ({"network.config.hidden": [8, 8.5]}, "network.config.hidden: Input should be a valid integer"),
        ({"network.architecture": ["lstm", "lstn"]}, "network.architecture: unknown architecture 'lstn'; did you mean"),
        (
            {"network.architecture": ["lstm", "linear"], "network.config.hidden": [8]},
            "network.config.hidden: unknown key (valid:",
        ),
        (
            {"network.architecture": {"lstm": {"network.config.score": ["dot"]}}},
            "network.config.score: unknown key",
        ),
        ({"training.optimizer": {"adam": {"training.clipp": [1.0]}}}, "training.clipp: unknown key; did you mean"),
        ({"data.files": ["a.csv"]}, "'data.files': cannot be searched, as data decides what is scored"),
        ({"window.steps": [3, 6]}, "'window.steps': cannot be searched, as window.steps decides what is scored"),
        ({"training.hardware.devices": [1, 2]}, "'training.hardware.devices': cannot be searched"),
        ({"training.epochs.more": [3]}, "'training.epochs.more': 'epochs' is not a table"),
    ],
)
def test_a_key_or_value_that_the_recipe_refuses_is_named(file: Path, space: dict[str, Any], expected: str) -> None:
    """Before anything runs, with what is valid."""
    assert refusal(file, space, sampler="random", pruner="none").startswith(f"search.space: {expected}")


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({"training": {"learning_rate": [1e-3]}}, "'training': a full key of the recipe is needed, in quotes"),
        ({"training.clip": 1.0}, "'training.clip': must be a list, a table with low and high, or a table for each"),
        ({"training.clip": []}, "'training.clip': choices must be one or more, and differ"),
        ({"training.clip": [1, 1]}, "'training.clip': choices must be one or more, and differ"),
        ({"training.clip": {"low": 1.0, "hihg": 2.0}}, "'training.clip': hihg: unknown key; did you mean 'high'?"),
        ({"training.clip": {"low": 1.0}}, "'training.clip': high: missing"),
        ({"training.clip": {"low": "a", "high": 2}}, "'training.clip': low: must be a number"),
        ({"training.clip": {"low": 2.0, "high": 1.0}}, "'training.clip': low must be less than high"),
        ({"training.clip": {"low": 0.0, "high": 1.0, "log": True}}, "'training.clip': low must be greater than 0"),
        ({"training.clip": {"low": 0.0, "high": 1.0, "step": 0.3}}, "'training.clip': high must be a whole number of"),
        ({"training.clip": {"low": 0.0, "high": 1.0, "step": -1}}, "'training.clip': step must be greater than 0"),
        (
            {"training.clip": {"low": 1, "high": 9, "step": 2, "log": True}},
            "'training.clip': step and log = true exclude each other",
        ),
        (
            {"training.clip": [1.0], "training.optimizer": {"adam": {"training.clip": [2.0]}}},
            "'training.clip': is searched outside of 'training.optimizer'.adam already",
        ),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(tmp_path: Path, space: dict[str, Any], expected: str) -> None:
    """Reading the recipe says which key and why."""
    path = tmp_path / "recipe.toml"
    path.write_text(world.toml(world.given(search={})).replace("search = {}", f"search = {{space = {_toml(space)}}}"))

    with pytest.raises(RecipeError) as caught:
        load(path)

    assert f"search.space: {expected}" in str(caught.value)


def test_unlike_errors_are_not_compared(file: Path) -> None:
    """A loss that is searched needs a metric that does not depend on it, and no pruner that does."""
    loss = {"training.loss": ["mse", "mae"]}

    assert "search.metric: training.loss is searched" in refusal(file, loss, metric="validation")
    assert "search.pruner: training.loss is searched" in refusal(file, loss, metric="mase", pruner="median")
    assert options(searched(file, loss, metric="mase"))


def test_an_architecture_brings_its_own_space(file: Path, place: str) -> None:
    """A key in an architecture's table is only tried with it, and the recipe's own options go where there are none."""
    space = {
        "network.architecture": {
            "lstm": {"network.config.layers": [1, 2]},
            "attention_lstm": {"network.config.score": ["dot", "additive"]},
            "linear": {},
        },
        **RATE,
    }
    recipe = searched(file, space, trials=30)

    trials = work(recipe, place)

    seen = set()
    for trial in trials:
        found = recipe.having(values_of(recipe, trial)).network
        seen.add(found.architecture)
        given = found.config.model_fields_set
        assert ("layers" in given) == (found.architecture == "lstm" or "layers" in trial_base(found.architecture))
        assert "hidden" in given or found.architecture == "linear"
    assert seen == {"lstm", "attention_lstm", "linear"}


def trial_base(architecture: str) -> set[str]:
    """Options of the tiny world's recipe that the architecture has too."""
    return {"hidden", "layers", "dropout"} & set(networks.config_of(architecture).model_fields)


def test_a_grid_is_tried_completely_and_once(file: Path, place: str) -> None:
    """Every combination, with those of each choice's own space; a second run finds nothing to do."""
    space = {
        "training.learning_rate": [0.1, 0.01],
        "training.clip": {"low": 0.0, "high": 0.3, "step": 0.1},
        "training.optimizer": {"adam": {}, "adamw": {"training.weight_decay": [0.1, 0.2]}},
    }
    recipe = searched(file, space, sampler="grid", trials=None)

    first = work(recipe, place)
    second = work(recipe, place)

    assert len(first) == len(second) == 2 * 4 * 3
    assert len({tuple(sorted(trial.params.items())) for trial in first}) == 24
    assert {trial.params["training.clip"] for trial in first} == {0.0, 0.1, 0.2, 0.3}
    with_decay = {trial.params.get("training.weight_decay (adamw)") for trial in first}
    assert with_decay == {None, 0.1, 0.2}


def test_a_grid_needs_an_end(file: Path) -> None:
    """A continuum cannot be enumerated, and a vast grid only as far as the recipe says."""
    assert "'training.learning_rate': a grid needs a list, or a range with a step" in refusal(
        file, RATE, sampler="grid"
    )
    vast = {"training.batch": {"low": 1, "high": 300}, "training.seed": {"low": 0, "high": 300}}
    assert "search.trials: missing; the grid has 90,300 points" in refusal(file, vast, sampler="grid", trials=None)
    assert slots(options(searched(file, vast, sampler="grid", trials=3)))[0] == 3


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_study_gone_on_with_tries_what_one_without_interruption_does(
    file: Path, tmp_path: Path, sampler: str
) -> None:
    """The seed decides, however often the search is taken up; another seed tries something else."""

    def rates(place: str, *trials: int, seed: int = 0) -> list[float]:
        for count in trials:
            found = work(searched(file, RATE, sampler=sampler, trials=count, seed=seed), str(tmp_path / place))
        return [trial.params["training.learning_rate"] for trial in found]

    at_once, in_parts, other = rates("a", 14), rates("b", 5, 11, 14), rates("c", 14, seed=1)

    assert at_once == in_parts
    assert len(set(at_once)) == 14
    assert not set(at_once) & set(other)


def test_tpe_finds_what_random_search_does_not(file: Path, tmp_path: Path) -> None:
    """After its first ten trials it stays near the best: its later trials are better on average."""

    def later(sampler: str) -> float:
        trials = work(searched(file, RATE, sampler=sampler, trials=30), str(tmp_path / sampler))
        return sum(trial.value or 0 for trial in trials[15:]) / 15

    assert later("tpe") < later("random") / 2


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_a_pruner_stops_bad_trials_early(file: Path, place: str, pruner: str) -> None:
    """Trials far behind the others end before their last epoch, and never the best."""
    recipe = searched(file, RATE, pruner=pruner, sampler="random", trials=20, sections={"training": {"epochs": 9}})

    trials = work(recipe, place)

    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert pruned
    assert all((trial.last_step or 0) < 9 for trial in pruned)
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert all(trial.last_step == 9 for trial in finished)
    assert min(trial.value or 0 for trial in trials) == min(trial.value or 0 for trial in finished)


def test_without_a_pruner_every_trial_comes_to_its_end(file: Path, place: str) -> None:
    """However bad it is."""
    trials = work(searched(file, RATE, sampler="random", trials=12), place)

    assert {trial.state for trial in trials} == {TrialState.COMPLETE}


def test_a_trial_that_comes_to_nothing_says_why_and_the_search_goes_on(file: Path, place: str) -> None:
    """A loss that is no number, options that do not fit each other, a window that the data has no room for."""
    space = {
        "training.learning_rate": [1e30, 0.01],
        "window.horizon": [1, 12],
        "window.length": [12, 120],
    }
    recipe = searched(
        file,
        space,
        sampler="grid",
        trials=None,
        sections={"training": {"loss": "mse", "clip": 0.0, "epochs": 1}, "window": {"steps": 12}},
    )

    trials = work(recipe, place, fit)

    reasons = {tuple(trial.params.values()): trial.user_attrs.get(REASON, "") for trial in trials}
    assert len(reasons) == 8
    assert "smaller training.learning_rate" in reasons[1e30, 1, 12]
    assert "must be longer than horizon" in reasons[0.01, 12, 12]
    assert "no window for" in reasons[0.01, 1, 120]
    assert reasons[0.01, 1, 12] == ""
    assert [trial.state for trial in trials].count(TrialState.COMPLETE) == 1


def test_the_error_of_a_trial_is_that_of_its_best_epoch(file: Path, place: str) -> None:
    """Early stopping gives back the best weights, so later epochs do not count."""

    def train(recipe: Recipe, dataset: Dataset, *, tell: Callable[[Epoch], None]) -> Fitted:
        for number, error in enumerate((0.5, 0.2, 0.9), 1):
            tell(epoch(number, error))
        return Fitted(build(recipe, dataset), [], 0.0, "lstm", {})

    trials = work(searched(file, RATE, trials=1), place, train)

    assert trials[0].value == 0.2
    assert trials[0].intermediate_values == {1: 0.5, 2: 0.2, 3: 0.2}


def test_the_mase_of_a_trial_is_that_of_the_exported_network(file: Path, place: str) -> None:
    """On the validation windows, over all targets and steps."""
    recipe = searched(file, {"training.epochs": [1]}, metric="mase", trials=1)

    (trial,) = work(recipe, place, fit)

    dataset = prepare(recipe)
    fitted = fit(recipe.having({"training.epochs": 1}), dataset, tell=lambda _: None)
    module = export(recipe, fitted.network, dataset.windows["validation"])
    scores = evaluate(recipe, dataset, module, "validation").model.values()
    errors = [error for score in scores for error in score.mase if error is not None]
    assert trial.value == pytest.approx(sum(errors) / len(errors), rel=1e-4)


def test_rows_are_read_again_only_for_other_windows(file: Path, place: str) -> None:
    """Trials that ask for the same windows share the data."""
    given: list[tuple[int, Dataset]] = []

    def train(recipe: Recipe, dataset: Dataset, *, tell: Callable[[Epoch], None]) -> Fitted:
        given.append((recipe.window.length, dataset))
        return distance(recipe, dataset, tell=tell)

    space = {"window.length": [12, 18], "training.learning_rate": [0.1, 0.01, 0.001]}
    work(searched(file, space, sampler="grid", trials=None), place, train)

    assert [length for length, _ in given] == [12, 12, 12, 18, 18, 18]
    assert [dataset.windows["train"].length for _, dataset in given] == [12, 12, 12, 18, 18, 18]
    assert len({id(dataset) for _, dataset in given}) == 2


def test_an_interrupted_trial_is_tried_again(file: Path, place: str) -> None:
    """Ctrl-C gives its slot back, and the next run does what is left, with the values that it would have had."""

    def interrupted(recipe: Recipe, dataset: Dataset, *, tell: Callable[[Epoch], None]) -> Fitted:
        tell(epoch(1, 0.5))
        raise KeyboardInterrupt

    recipe = searched(file, RATE)
    with pytest.raises(KeyboardInterrupt):
        work(recipe, place, interrupted)

    trials = work(recipe, place)

    assert [trial.state for trial in trials] == [TrialState.FAIL] + [TrialState.COMPLETE] * 4
    assert [trial.user_attrs[SLOT] for trial in kept(trials)] == [0, 1, 2, 3]
    assert trials[0].params == trials[1].params


def test_a_trial_whose_worker_was_killed_is_tried_again(file: Path, place: str) -> None:
    """A real process takes a trial and is killed; whoever comes next waits until it is silent, and does its work."""
    recipe = searched(file, RATE, trials=2)
    join(recipe, options(recipe), place, "tiny")
    script = f"""
        import os, signal, optuna
        from training.searching.study import Slots, open_storage
        study = optuna.load_study(study_name="tiny", storage=open_storage({place!r}))
        trial = Slots(study, 2).claim()
        trial.suggest_float("training.learning_rate", 1e-4, 1e-1, log=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert python(script).wait() == -signal.SIGKILL

    trials = work(recipe, place)

    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert sorted(trial.user_attrs[SLOT] for trial in kept(trials)) == [0, 1]


def test_a_trial_whose_worker_lives_is_left_alone(file: Path, place: str) -> None:
    """Signs of life are believed, however long a trial takes; whoever has nothing else to do does not wait for it."""
    recipe = searched(file, RATE, trials=2)
    study = join(recipe, options(recipe), place, "tiny")
    elsewhere = Slots(study, 2, pace=QUICK)
    trial = elsewhere.claim()
    assert trial is not None

    with elsewhere.held(trial):
        trials = work(recipe, place)

    assert [trial.state for trial in trials] == [TrialState.RUNNING, TrialState.COMPLETE]


def test_a_slot_that_kills_its_workers_is_left_alone(file: Path, place: str) -> None:
    """After three of them; the others are tried all the same."""
    recipe = searched(file, RATE, trials=2)
    study = join(recipe, options(recipe), place, "tiny")
    for _ in range(3):
        trial = Slots(study, 1, pace=QUICK).claim()
        assert trial is not None
        study.tell(trial, state=TrialState.FAIL)

    assert [trial.user_attrs[SLOT] for trial in kept(work(recipe, place))] == [1]


def test_a_worker_taken_for_dead_goes_on_with_the_next_trial(file: Path, place: str) -> None:
    """Its trial is another one's by then; what it found is not counted twice."""
    recipe = searched(file, RATE, trials=2)
    study = join(recipe, options(recipe), place, "tiny")

    def train(recipe: Recipe, dataset: Dataset, *, tell: Callable[[Epoch], None]) -> Fitted:
        if len(study.get_trials()) == 1:
            study.tell(0, state=TrialState.FAIL)
        return distance(recipe, dataset, tell=tell)

    trials = work(recipe, place, train)

    assert [trial.user_attrs[SLOT] for trial in kept(trials)] == [0, 1]
    assert trials[0].state == TrialState.FAIL


def test_processes_share_a_study_without_doing_anything_twice(file: Path, place: str) -> None:
    """Two processes that claim as fast as they can: every slot is done once, and none is left."""
    recipe = searched(file, RATE, trials=30)
    study = join(recipe, options(recipe), place, "tiny")
    script = f"""
        import optuna
        from training.searching.study import Pace, Slots, open_storage
        study = optuna.load_study(study_name="tiny", storage=open_storage({place!r}))
        slots = Slots(study, 30, pace=Pace(0.1, 60))
        while (trial := slots.claim()) is not None:
            study.tell(trial, 1.0)
    """

    assert [process.wait() for process in [python(script), python(script)]] == [0, 0]

    done = kept(study.get_trials())
    assert sorted(trial.user_attrs[SLOT] for trial in done) == list(range(30))


def python(script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT)


def test_a_study_in_redis_goes_on(file: Path, tmp_path: Path) -> None:
    """A real Redis holds the journal: two workers, one after the other, share it; no pickle is ever kept there."""
    with redis_server(tmp_path) as redis:
        first = work(searched(file, RATE, trials=110), redis.url)
        second = work(searched(file, RATE, trials=112), redis.url)

        assert [trial.params for trial in second[:110]] == [trial.params for trial in first]
        assert len(kept(second)) == 112
        assert not redis.client.keys("*snapshot*")


def test_a_study_in_a_database_goes_on(file: Path, tmp_path: Path) -> None:
    """Any that Optuna can use; here SQLite."""
    place = f"sqlite:///{tmp_path / 'study.db'}"

    work(searched(file, RATE, trials=2), place)

    assert len(kept(work(searched(file, RATE, trials=3), place))) == 3


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("absent/study.journal", "storage absent/study.journal: "),
        ("redis://:secret@localhost:1/0", "storage redis://:***@localhost:1/0: "),
        ("nosuchbase://host/study", "storage nosuchbase://host/study: "),
    ],
)
def test_a_storage_that_cannot_be_opened_is_told(place: str, expected: str) -> None:
    """In one line, without the password."""
    with pytest.raises(TrainingError) as caught:
        open_storage(place)

    assert str(caught.value).startswith(expected)
    assert len(str(caught.value).splitlines()) == 1
    assert shown("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"


def test_a_file_that_is_no_journal_is_told(file: Path) -> None:
    """A wrong --storage does not end in a traceback."""
    with pytest.raises(TrainingError, match=r"storage .*rows.csv: "):
        open_storage(str(file))


def test_a_study_is_about_one_recipe(file: Path, place: str) -> None:
    """Errors of another recipe cannot be compared; how to search may change."""
    work(searched(file, RATE, trials=1), place)

    work(searched(file, RATE, trials=2, sampler="random", pruner="median", seed=3, timeout_s=9.0), place)
    with pytest.raises(TrainingError, match=r"training.batch: 32 then, 16 now\); go on .* or begin .* with --study"):
        work(searched(file, RATE, sections={"training": {"batch": 16}}), place)
    with pytest.raises(TrainingError, match=r"search.space.training.learning_rate.high: 0.1 then, 0.2 now"):
        work(searched(file, {"training.learning_rate": {"low": 1e-4, "high": 0.2, "log": True}}), place)


def test_findings_tell_of_every_trial_once(file: Path, place: str) -> None:
    """The best, what was pruned or failed and why, and which parameter mattered."""
    recipe = searched(file, RATE | {"training.seed": [1, 2]}, pruner="median", sampler="random", trials=20)
    findings = Findings(join(recipe, options(recipe), place, "tiny"), 20)

    def train(recipe: Recipe, dataset: Dataset, *, tell: Callable[[Epoch], None]) -> Fitted:
        if recipe.training.learning_rate < 3e-4:
            raise DivergedError("too slow")
        return distance(recipe, dataset, tell=tell)

    trials = work(recipe, place, train)
    news = list(findings.news())

    assert len(news) == 20
    assert not list(findings.news())
    assert sum("failed: too slow" in line for line in news) == findings.reasons().count("too slow") > 0
    assert sum("pruned at 1" in line for line in news) == sum(
        trial.state == TrialState.PRUNED and bool(trial.intermediate_values) for trial in trials
    )
    best = findings.best()
    assert best is not None
    assert best.value == min(trial.value for trial in trials if trial.state == TrialState.COMPLETE and trial.value)
    assert f"best {best.value:.4f} (trial {best.number})" in news[-1]
    assert findings.status() == "20 of 20 trials done; between trials"


def test_findings_say_which_parameters_mattered(file: Path, place: str) -> None:
    """From ten finished trials on; the fake training heeds the learning rate alone."""
    space = RATE | {"training.optimizer": {"adam": {}, "adamw": {"training.weight_decay": [0.1, 0.2]}}}
    few = work(searched(file, space, trials=9), place)
    recipe = searched(file, space, trials=20)
    findings = Findings(join(recipe, options(recipe), place, "tiny"), 20)

    assert len(few) == 9
    assert not findings.importances()
    work(recipe, place)
    assert next(name for name, _ in findings.importances()) == "training.learning_rate"


TEXTS = {
    "tables": """
        # Mine.
        name = "tiny"  # the name
        [window]
        season = 6
        length = 12
        steps = 3
        [data]
        files = ["rows.csv"]
        frequency = "PT1H"
        features = [{ name = "load", role = "target" }]
        [network]
        architecture = "lstm"
        [network.config]
        layers = 2  # deep
        hidden = 8
        [search]
        trials = 3
        [search.space]
        "training.epochs" = [1]
        [training]
        epochs = 2  # few
        """,
    "inline": """
        # Mine.
        name = "tiny"  # the name
        window = { season = 6, length = 12, steps = 3 }
        network = { architecture = "lstm", config = { layers = 2, hidden = 8 } }
        search.space."training.epochs" = [1]
        training.epochs = 2  # few
        [data]
        files = ["rows.csv"]
        frequency = "PT1H"
        features = [{ name = "load", role = "target" }]
        """,
    "sparse": """
        # Mine.
        name = "tiny"  # the name
        [search.space]
        "training.epochs" = [1]
        [network]
        architecture = "lstm"
        [data]
        files = ["rows.csv"]
        frequency = "PT1H"
        features = [{ name = "load", role = "target" }]
        [window]
        season = 6
        length = 12
        steps = 3
        """,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize(
    "values",
    [
        {"training.epochs": 1, "network.config.hidden": 4, "window.length": 24},
        {"network.architecture": "linear"},
        {"network.config.score": "dot", "network.architecture": "attention_lstm", "training.loss": "mse"},
        {"training.augment.jitter": 0.1},
    ],
    ids=["values", "architecture", "both", "deep"],
)
def test_the_best_recipe_is_the_written_one_with_other_values(
    tmp_path: Path, text: str, values: dict[str, Any]
) -> None:
    """However it was written: comments and order stay, the search goes, and it reads back as what was tried."""
    path = tmp_path / "recipe.toml"
    path.write_text(textwrap.dedent(text))
    found = load(path).having(values)

    path.write_text(with_values(path.read_text(), values, found))

    assert load(path) == found
    assert "search" not in path.read_text()
    assert path.read_text().startswith('\n# Mine.\nname = "tiny"  # the name\n')


def write_recipe(folder: Path, **search: object) -> str:
    world.write(folder / "rows.csv", world.rows(160))
    path = folder / "recipe.toml"
    space = {"training.learning_rate": [1e-3, 1e-2, 1e-1]}
    text = world.toml(world.given(folder / "rows.csv"))
    path.write_text(f"# Mine.\n{text}\n[search]\n{world.toml(search)}\n[search.space]\n{_toml_lines(space)}")
    return str(path)


def test_tune_searches_and_writes_the_best_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line a trial, the best recipe ready to be trained; the same command again has nothing left to do."""
    recipe, output = write_recipe(tmp_path, sampler="grid", pruner="none"), tmp_path / "best.toml"
    command = ["tune", recipe, "--storage", str(tmp_path / "journal"), "--output", str(output)]

    assert main(command) == 0
    shown = capsys.readouterr().out
    assert main(command) == 0
    again = capsys.readouterr().out

    assert [line.split()[1] for line in shown.splitlines() if line.startswith("trial")] == ["0", "1", "2"]
    assert "0 of 3 trials done" in shown
    assert shown.rstrip().endswith(f"python -m training train {output}")
    assert "3 of 3 trials done" in again
    assert not any(line.startswith("trial") for line in again.splitlines())
    best = load(output)
    assert best.search is None
    assert best.training.learning_rate in {1e-3, 1e-2, 1e-1}
    assert "# Mine.\n" in output.read_text()
    fitted = fit(best, prepare(best), tell=lambda _: None)
    error = min(epoch.validation for epoch in fitted.epochs)
    assert f"error {error:.6g}: learning_rate={best.training.learning_rate}" in shown


def test_tune_with_several_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each takes trials of the one study, and every trial is told here."""
    storage = str(tmp_path / "journal")
    command = ["tune", write_recipe(tmp_path, sampler="grid", pruner="none"), "--jobs", "2", "--storage", storage]

    assert main([*command, "--output", str(tmp_path / "best.toml")]) == 0

    assert capsys.readouterr().out.count("best 0.") == 3
    study = optuna.load_study(study_name="tiny", storage=open_storage(storage))
    assert sorted(trial.user_attrs[SLOT] for trial in kept(study.get_trials())) == [0, 1, 2]


@pytest.mark.parametrize(
    ("search", "more", "expected"),
    [
        ({"sampler": "bayes"}, [], "search.sampler: Input should be 'tpe', 'random' or 'grid'; got 'bayes'"),
        ({"pruner": "halving"}, [], "search.pruner: Input should be 'hyperband', 'median' or 'none'; got 'halving'"),
        ({"trails": 3}, [], "search.trails: unknown key; did you mean 'trials'?"),
        ({}, ["--storage", "nosuchbase://x"], "storage nosuchbase://x: "),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], search: dict[str, Any], more: list[str], expected: str
) -> None:
    """With the valid choices, before anything runs."""
    assert main(["tune", write_recipe(tmp_path, **search), *more]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


def test_a_recipe_without_a_search_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what is missing."""
    path = tmp_path / "recipe.toml"
    path.write_text(world.toml(world.given()))

    assert main(["tune", str(path)]) == 2
    assert "search: missing; `[search.space]` says what to try" in capsys.readouterr().err


def test_a_search_is_no_part_of_what_is_published(file: Path) -> None:
    """`train` takes a recipe with a search as it is, and the artifact does not tell of it."""
    assert "search" not in searched(file, RATE).record()


def _toml(space: Mapping[str, Any]) -> str:
    """An inline table whose keys are quoted."""
    return "{" + ", ".join(f'"{key}" = {_value(value)}' for key, value in space.items()) + "}"


def _toml_lines(space: Mapping[str, Any]) -> str:
    return "\n".join(f'"{key}" = {_value(value)}' for key, value in space.items())


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return _toml(value)
    text = world.toml({"x": value}).removeprefix("x = ")
    assert tomllib.loads(f"x = {text}") == {"x": value}
    return text
