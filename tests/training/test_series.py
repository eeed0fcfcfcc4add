"""Errors of each series: its own windows, its own naive error."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from tests.training import world
from training.data.dataset import Dataset, prepare
from training.recipe import Recipe
from training.scoring import evaluate
from training.scoring.evaluate import answers
from training.scoring.series import BySeries, SeriesScores, ranked


class Zero:
    """A module (ForecastModule) that forecasts nothing but zeros."""

    def encode(self, window: Tensor, time: Tensor) -> list[Tensor]:
        return [time]

    def decode(self, state: list[Tensor], future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        return torch.zeros(len(future), 1, 2), torch.zeros(len(future), 0, 12), state

    def rollout(self, window: Tensor, time: Tensor, future: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def levels(level: float, count: int = 100) -> pl.DataFrame:
    """Two targets of which one is `level` in turn with its negative, and the other twice that."""
    turn = level * (-1.0) ** pl.int_range(count)
    return world.rows(count).with_columns(load=turn, heat=2 * turn)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Recipe, Dataset]:
    """Two series of different levels, one with a gap; a third that ends before the test begins."""
    gap = world.with_gap(levels(3.0).filter(pl.int_range(100) != 50), "wind", 20, 2)
    frames = {"a": levels(1.0), "b": gap, "c": levels(9.0, 60)}
    frame = pl.concat([frame.with_columns(station=pl.lit(name)) for name, frame in frames.items()])
    recipe = world.recipe(
        world.write(tmp_path / "rows.csv", frame),
        data={"series": "station"},
        window={"length": 12, "steps": 3, "season": 1},
    )
    return recipe, prepare(recipe)


def scored(recipe: Recipe, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, batch: int) -> list[SeriesScores]:
    """In batches of so many windows, which no series is a multiple of."""
    monkeypatch.setattr(evaluate, "_BATCH", batch)
    found = BySeries(recipe, dataset)
    for asked, outputs, attention in answers(recipe, dataset.windows["test"], Zero()):
        found.add(asked, outputs, attention)
    return found.scores()


@pytest.mark.parametrize("batch", [4, 7, 512])
def test_errors_of_each_series_worked_out_by_hand(
    made: tuple[Recipe, Dataset], monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """A forecast of zeros errs by the level; the naive error of a value and its negative is twice the level."""
    recipe, dataset = made
    scales = [feature.statistics.scale for feature in dataset.features[:2]]

    a, b, c = scored(recipe, dataset, monkeypatch, batch)

    for one, level in ((a, 1.0), (b, 3.0)):
        for target, error, scale in zip(("load", "heat"), (level, 2 * level), scales, strict=True):
            assert one.errors[target] == pytest.approx(
                {"mae": error, "rmse": error, "mase": 0.5, "standardised_mae": error / scale}
            )
    assert (a.windows, b.windows, c.windows) == (18, 18, 0)
    assert c.errors == {}
    assert [(one.name, one.rows, one.absent, one.missing) for one in (a, b, c)] == [
        ("a", 100, 0, 0),
        ("b", 99, 1, 3 + 2),
        ("c", 60, 0, 0),
    ]


def test_a_single_series_errs_as_all_do(tmp_path: Path) -> None:
    """By the same means over steps as everywhere in the report."""
    recipe = world.recipe(world.write(tmp_path / "rows.csv", world.rows(200)))
    dataset = prepare(recipe)
    series = BySeries(recipe, dataset)

    metrics = evaluate.evaluate(recipe, dataset, Zero(), watches=[series.add])

    (one,) = series.scores()
    for target, of in metrics.model.items():
        for metric, value in one.errors[target].items():
            assert value == pytest.approx(sum(getattr(of, metric)) / 3), metric


def test_overall_mase_is_that_of_the_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means of each series' own weighted by its windows; one that has no training rows counts in MAE alone."""
    late = world.rows(50, seed=3, start=world.START + 150 * world.HOUR).with_columns(pl.col("load") * 1000)
    frames = [world.rows(200), world.rows(190, seed=2).with_columns(pl.col("load", "heat") * 50), late]
    files = [world.write(tmp_path / f"{index}.csv", frame) for index, frame in enumerate(frames)]
    recipe = world.recipe(*files)
    dataset = prepare(recipe)
    series = BySeries(recipe, dataset)
    monkeypatch.setattr(evaluate, "_BATCH", 7)

    metrics = evaluate.evaluate(recipe, dataset, Zero(), watches=[series.add])

    one, other, new = series.scores()
    windows = (one.windows, other.windows)
    assert new.windows > 0 < windows[1] < windows[0]
    for target, of in metrics.model.items():
        own = [scores.errors[target]["mase"] for scores in (one, other)]
        assert new.errors[target]["mase"] is None
        assert sum(filter(None, of.mase)) / 3 == pytest.approx(np.average(own, weights=windows))
    for scores in metrics.baselines.values():
        # Of waves with little noise; errors of the new series, a thousand times as large, would be far above.
        assert all(0 < error < 50 for error in scores["load"].mase if error is not None)


def test_only_what_has_no_unit_is_averaged_over_targets() -> None:
    """And nothing where a target has no value."""
    load = {"mae": 1.0, "rmse": 2.0, "mase": 0.5, "standardised_mae": 4.0}
    heat = {**load, "mase": 1.5}
    one, two, none = (
        SeriesScores("a", 9, 0, 0, 5, errors)
        for errors in ({"load": load}, {"load": load, "heat": heat}, {"load": load, "heat": {**heat, "mase": None}})
    )

    assert one.overall == load
    assert two.overall == {"mae": None, "rmse": None, "mase": 1.0, "standardised_mae": 4.0}
    assert none.overall["mase"] is None


def test_series_are_ranked_by_their_scaled_error() -> None:
    """The best first; those without one are in no order."""
    errors = {"a": 2.0, "b": None, "c": 0.5, "d": 1.0}
    scores = [
        SeriesScores(name, 9, 0, 0, 5, {"load": {"mae": 1.0, "rmse": 1.0, "mase": mase, "standardised_mae": math.pi}})
        for name, mase in errors.items()
    ]

    assert [one.name for one in ranked([*scores, SeriesScores("e", 9, 0, 0, 0, {})])] == ["c", "d", "a"]
