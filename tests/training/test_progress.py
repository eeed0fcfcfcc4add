"""What can be watched while a model is trained: the bar, TensorBoard's event files, the table of epochs."""

import csv
import io
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training import world
from training.__main__ import main
from training.data.dataset import prepare
from training.fitting import progress
from training.fitting.fit import Fitted, fit
from training.recipe import Recipe

METRICS = ("loss", "validation", "learning_rate", "windows_per_s")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return world.recipe(world.write(tmp_path / "rows.csv", world.rows(160)), training={"epochs": 3})


def trained(recipe: Recipe, logs: Path) -> Fitted:
    return fit(recipe, prepare(recipe), tell=lambda _: None, logs=logs)


def test_the_table_holds_every_epoch(recipe: Recipe, tmp_path: Path) -> None:
    """One line an epoch with all that the history has of it, and the recipe beside it."""
    fitted = trained(recipe, tmp_path / "logs")

    folder = tmp_path / "logs" / "tiny" / "version_0"
    lines = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert [int(line["step"]) for line in lines] == [1, 2, 3]
    for line, epoch in zip(lines, fitted.epochs, strict=True):
        assert [float(line[name]) for name in METRICS] == pytest.approx([getattr(epoch, name) for name in METRICS])
    assert yaml.safe_load((folder / "hparams.yaml").read_text())["training"]["epochs"] == 3


def test_the_event_files_hold_every_epoch(recipe: Recipe, tmp_path: Path) -> None:
    """As TensorBoard reads them, with the recipe as hyper-parameters and the best validation error of the run."""
    fitted = trained(recipe, tmp_path / "logs")

    events = EventAccumulator(str(tmp_path / "logs" / "tiny" / "version_0")).Reload()
    for name in METRICS:
        found = events.Scalars(name)
        assert [one.step for one in found] == [1, 2, 3]
        assert [one.value for one in found] == pytest.approx([getattr(epoch, name) for epoch in fitted.epochs])
    best = events.Scalars("best_validation")[-1].value
    assert best == pytest.approx(min(epoch.validation for epoch in fitted.epochs))
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_the_command_logs_where_it_is_told(tmp_path: Path) -> None:
    """`train --logs DIR` writes both."""
    file = world.write(tmp_path / "rows.csv", world.rows(160))
    (tmp_path / "recipe.toml").write_text(world.toml(world.given(file)))

    arguments = ["--artifacts", str(tmp_path / "store"), "--logs", str(tmp_path / "logs")]
    assert main(["train", str(tmp_path / "recipe.toml"), *arguments]) == 0

    names = {path.name.split(".")[0] for path in (tmp_path / "logs" / "tiny" / "version_0").iterdir()}
    assert names == {"metrics", "hparams", "events"}


def test_every_run_has_a_folder_of_its_own(recipe: Recipe, tmp_path: Path) -> None:
    """Side by side, so that TensorBoard compares them; nothing is overwritten."""
    for _ in range(2):
        trained(recipe, tmp_path)

    assert sorted(path.name for path in (tmp_path / "tiny").iterdir()) == ["version_0", "version_1"]


def test_the_bar_shows_loss_and_validation_error(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an epoch runs: how far it is, its loss so far, and the validation error of the one before."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(progress, "get_console", lambda: console)
    monkeypatch.setattr(progress, "_SHOWN_EVERY_S", 0.0)
    shown: list[tuple[str, int, float, float]] = []

    class Watching(progress.Bar):
        def on_train_epoch_end(self, *_: object) -> None:
            (task,) = self.progress.tasks
            fields = task.fields
            shown.append((fields["epoch"], int(task.completed), fields["loss"], fields["validation"]))
            self.progress.refresh()

    fitted = fit(recipe, prepare(recipe), tell=lambda _: None, callbacks=[Watching()])

    assert [epoch for epoch, *_ in shown] == ["1/3", "2/3", "3/3"]
    assert {completed for _, completed, *_ in shown} == {4}
    assert [loss for *_, loss, _ in shown][-1] == pytest.approx(fitted.epochs[-1].loss)
    assert [validation for *_, validation in shown] == pytest.approx([epoch.validation for epoch in fitted.epochs])
    assert f"validation {fitted.epochs[-1].validation:.4f}" in screen.getvalue()


def test_the_bar_leaves_with_an_error(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """However training ends, the terminal is given back."""
    bars: list[progress.Bar] = []
    kept = progress.Bar.__init__

    def remember(bar: progress.Bar) -> None:
        kept(bar)
        bars.append(bar)

    def give_up(_: progress.Epoch) -> None:
        raise KeyError

    monkeypatch.setattr(progress, "get_console", lambda: Console(file=io.StringIO(), force_terminal=True))
    monkeypatch.setattr(progress.Bar, "__init__", remember)

    with pytest.raises(KeyError):
        fit(recipe, prepare(recipe), tell=give_up, bar=True)

    assert [bar.progress.live.is_started for bar in bars] == [False]
