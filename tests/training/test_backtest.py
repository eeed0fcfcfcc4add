"""Backtests: folds in time, no row of the future, the same scores as a training or a version of their own."""

import csv
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from models.store import Store
from tests.training import world
from training.__main__ import main
from training.data.dataset import Part, prepare
from training.errors import DataError, RecipeError
from training.fitting.fit import fit
from training.fitting.progress import Epoch
from training.judging import backtest, versions
from training.judging.backtest import Fold, Mode
from training.publishing.publish import publish
from training.recipe import Recipe
from training.scoring.evaluate import evaluate, export
from training.scoring.series import BySeries

ROWS = 200
SPANS = {"train": Part("train", 0, 70), "validation": Part("validation", 70, 80), "test": Part("test", 80, 100)}


def recipe_for(folder: Path, frame: pl.DataFrame | None = None, **sections: Mapping[str, Any]) -> Recipe:
    """Training takes 70 % of 200 hours, the validation 10 %, each of two folds 20 hours."""
    file = world.write(folder / "rows.csv", world.rows(ROWS) if frame is None else frame)
    return world.recipe(file, **{"training": {"epochs": 1}, **sections})


def folds_of(recipe: Recipe, mode: Mode = "expanding", folds: int = 2) -> tuple[list[Fold], list[tuple[int, Epoch]]]:
    """The folds of a backtest, and what was told of their epochs."""
    told: list[tuple[int, Epoch]] = []
    found = list(backtest.retrain(recipe, folds, mode, tell=lambda fold, epoch: told.append((fold, epoch))))
    return found, told


def poisoned(first: int) -> pl.DataFrame:
    """Every value from this row on is absurd."""
    frame = world.rows(ROWS)
    index = pl.int_range(pl.len())
    return frame.with_columns(
        pl.when(index < first).then(pl.col(name)).otherwise(1e6 * (index % 7)).alias(name) for name in world.COLUMNS
    )


def test_expanding_folds_train_on_all_that_came_before() -> None:
    """The first fold is the split itself but for its end; every later one begins where the one before it ended."""
    first, second = backtest.layout(SPANS, 2, "expanding", 1)

    assert first == {**SPANS, "test": Part("test", 80, 90)}
    assert second == {
        "train": Part("train", 0, 80),
        "validation": Part("validation", 80, 90),
        "test": Part("test", 90, 100),
    }


def test_sliding_folds_train_on_as_much_as_the_split() -> None:
    """The whole moves on with the origin."""
    first, second = backtest.layout(SPANS, 2, "sliding", 1)

    assert first["train"] == SPANS["train"]
    assert (second["train"], second["validation"]) == (Part("train", 10, 80), Part("validation", 80, 90))


@pytest.mark.parametrize("mode", ["expanding", "sliding"])
def test_a_fold_has_a_calibration_span_where_the_split_has(mode: Mode) -> None:
    """As long as that one, between validation and test."""
    spans = {**SPANS, "calibration": Part("calibration", 80, 84), "test": Part("test", 84, 100)}
    names = ["train", "validation", "calibration", "test"]

    first, second = backtest.layout({name: spans[name] for name in names}, 2, mode, 1)

    assert [*first] == [*second] == names
    assert (first["train"], first["calibration"]) == (spans["train"], spans["calibration"])
    assert second["validation"] == Part("validation", 78, 88)
    assert second["calibration"] == Part("calibration", 88, 92)
    assert second["train"] == Part("train", 0 if mode == "expanding" else 8, 78)


@pytest.mark.parametrize("folds", [1, 3, 7, 20])
def test_the_folds_are_the_whole_test_span(folds: int) -> None:
    """However it is cut, no row is left out and none is in two folds."""
    tests = [parts["test"] for parts in backtest.layout(SPANS, folds, "expanding", 1)]

    assert (tests[0].start, tests[-1].end, len(tests)) == (80, 100, folds)
    assert all(one.end == other.start for one, other in pairwise(tests))
    assert {part.end - part.start for part in tests} <= {20 // folds, 20 // folds + 1}


@pytest.mark.parametrize("folds", [0, 21])
def test_more_folds_than_rows_are_refused(folds: int) -> None:
    """With how many there may be."""
    with pytest.raises(RecipeError, match=rf"folds: must be from 1 to 20, .*; got {folds}"):
        list(backtest.layout(SPANS, folds, "expanding", 1))


def test_what_comes_later_is_cut_off(tmp_path: Path) -> None:
    """Of a series not a row is left that is of the moment or later, wherever on the grid that falls."""
    (series,) = prepare(recipe_for(tmp_path)).series

    for end, rows in (
        (series.start, 0),
        (series.start + 3600, 1),
        (series.start + 3601, 2),
        (series.start + 10**9, ROWS),
    ):
        assert len(backtest.before(series, end, 3600)) == rows


@pytest.mark.parametrize("mode", ["expanding", "sliding"])
def test_a_poisoned_future_changes_nothing(tmp_path: Path, mode: Mode) -> None:
    """What comes after a fold's end is in none of its figures, not in the last digit."""
    (clean, *_), told = folds_of(recipe_for(tmp_path), mode)
    (fold, later), again = folds_of(recipe_for(tmp_path, poisoned(180)), mode)

    assert fold == clean
    assert [(epoch.loss, epoch.validation) for number, epoch in again if number == 1] == [
        (epoch.loss, epoch.validation) for number, epoch in told if number == 1
    ]
    assert later.metrics.model["load"].mae[0] > 1e4


def test_a_poisoned_test_span_changes_no_training(tmp_path: Path) -> None:
    """Scaler, weights, baselines and MASE's denominator come from before the test: only the truth is another."""
    _, told = folds_of(recipe_for(tmp_path), folds=1)
    (fold,), again = folds_of(recipe_for(tmp_path, poisoned(160)), folds=1)

    assert [(epoch.loss, epoch.validation) for _, epoch in again] == [
        (epoch.loss, epoch.validation) for _, epoch in told
    ]
    mae, mase = fold.metrics.model["load"].mae, fold.metrics.model["load"].mase
    naive = prepare(recipe_for(tmp_path)).naive_errors[0][0]
    assert mase == pytest.approx([error / naive for error in mae])


def test_each_fold_is_scaled_by_its_own_training_rows(tmp_path: Path) -> None:
    """Where a level shifts within the test span, the later fold's scale has seen it and the first one's has not."""
    shifted = world.rows(ROWS).with_columns(load=pl.col("load") + 50 * (pl.int_range(pl.len()) >= 150))

    (first, second), _ = folds_of(recipe_for(tmp_path, shifted))

    scales = [
        fold.metrics.model["load"].mae[0] / fold.metrics.model["load"].standardised_mae[0] for fold in (first, second)
    ]
    assert scales[1] > 3 * scales[0]


def test_one_fold_is_the_training_itself(tmp_path: Path) -> None:
    """With a single origin a backtest scores what `train` would publish."""
    recipe = recipe_for(tmp_path)
    dataset = prepare(recipe)
    fitted = fit(recipe, dataset, tell=lambda _: None)

    ((fold,), _) = folds_of(recipe, folds=1)

    series = BySeries(recipe, dataset)
    module = export(recipe, fitted.network, dataset.windows["test"])
    assert fold.metrics == evaluate(recipe, dataset, module, watches=[series.add])
    assert fold.series == series.scores()


def test_a_series_that_begins_later_is_left_out_until_then(tmp_path: Path) -> None:
    """A fold knows nothing of a file whose first row is still to come."""
    early = world.write(tmp_path / "early.csv", world.rows(180))
    late = world.write(tmp_path / "late.csv", world.rows(32, seed=5, start=world.START + 190 * world.HOUR))
    recipe = world.recipe(early, late, training={"epochs": 1}, split={"train": 0.6, "validation": 0.1})

    (first, *_), _ = folds_of(recipe)

    # The test span begins at hour 155, and the first file ends after 180.
    assert first.test.windows == 180 - 155 - 3 + 1


def test_a_version_is_scored_as_it_is(tmp_path: Path) -> None:
    """Folds of all rows after its validation span; a single fold gives the scores that it was published with."""
    recipe = recipe_for(tmp_path)
    dataset = prepare(recipe)
    store = Store(tmp_path / "store")
    made = publish(recipe, dataset, fit(recipe, dataset, tell=lambda _: None), store)
    version = versions.load(store, "tiny:1")

    (whole,) = backtest.score(recipe, 1, version)
    one, other = backtest.score(recipe, 2, version)

    assert whole.metrics.model["load"].mae == pytest.approx(made.metrics.model["load"].mae)
    assert whole.metrics.baselines == made.metrics.baselines
    assert (one.train.end, other.train.end) == (dataset.span("train").end,) * 2
    assert (one.test.end, other.test.end) == (other.test.start, dataset.span("test").end)


def test_a_version_is_scored_on_windows_that_it_takes(tmp_path: Path) -> None:
    """One that fills no gaps is not given any, though the recipe has learnt to since."""
    gappy = world.with_gap(world.rows(200), "load", 190, 2)
    plain = recipe_for(tmp_path)
    world.write(Path(plain.data.files[0]), gappy)
    dataset = prepare(plain)
    store = Store(tmp_path / "store")
    publish(plain, dataset, fit(plain, dataset, tell=lambda _: None), store)
    filling = plain.having({"data.gaps": {"method": "interpolate", "limit": 3}, "window.shortest": 6})

    (whole,) = backtest.score(filling, 1, versions.load(store, "tiny:1"))

    assert whole.metrics.windows == len(dataset.windows["test"])


def test_a_version_of_another_recipe_is_refused(tmp_path: Path) -> None:
    """With the place and what the version was made for."""
    recipe = recipe_for(tmp_path)
    dataset = prepare(recipe)
    store = Store(tmp_path / "store")
    publish(recipe, dataset, fit(recipe, dataset, tell=lambda _: None), store)

    with pytest.raises(RecipeError, match=r"window\.length: tiny version 1 was made for 12; got 13"):
        list(backtest.score(recipe_for(tmp_path, window={"length": 13}), 1, versions.load(store, "tiny")))


def test_a_fold_without_a_window_is_told(tmp_path: Path) -> None:
    """Which one, and why."""
    with pytest.raises(DataError, match=r"fold 1: no window for test: .* test spans 2 rows"):
        folds_of(recipe_for(tmp_path), folds=20)


def test_several_processes_are_refused(tmp_path: Path) -> None:
    """They would each write the same results."""
    with pytest.raises(RecipeError, match=r"training\.hardware"):
        folds_of(recipe_for(tmp_path, training={"hardware": {"devices": 2}}))


def test_the_command_writes_figures_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything as JSON and by step as CSV, a page with pictures, and the table on the screen."""
    given = world.given(world.write(tmp_path / "rows.csv", world.rows(ROWS)), training={"epochs": 1})
    (tmp_path / "recipe.toml").write_text(world.toml(given))
    output = tmp_path / "out"

    assert main(["backtest", str(tmp_path / "recipe.toml"), "--folds", "2", "--output", str(output)]) == 0

    shown = capsys.readouterr().out
    found = json.loads((output / "backtest.json").read_text())
    lines = list(csv.DictReader((output / "backtest.csv").read_text().splitlines()))
    page = (output / "report.md").read_text()
    errors = [sum(fold["metrics"]["model"]["load"]["mae"]) / 3 for fold in found["folds"]]
    (series,) = found["folds"][0]["metrics"]["series"]
    assert (series["name"], series["errors"]["load"]["mae"]) == ("rows.csv", pytest.approx(errors[0]))
    assert next(line.split()[:5] for line in shown.splitlines() if line.startswith("load ")) == [
        "load",
        "model",
        "MAE",
        *(f"{error:.3f}" for error in errors),
    ]
    assert found["overall"]["model"]["load"]["mae"] == pytest.approx(
        {"mean": sum(errors) / 2, "std": abs(errors[0] - errors[1]) / 2}
    )
    assert len(lines) == 2 * 4 * 2 * 3
    assert float(lines[0]["mae"]) == found["folds"][0]["metrics"]["model"]["load"]["mae"][0]
    assert {path.name for path in output.glob("*.png")} == {"errors.png", "folds.png"}
    assert "](errors.png)" in page
    assert "](folds.png)" in page
    assert "training spans that are expanding" in page
