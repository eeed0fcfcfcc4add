"""Scaling and derived features, from the recipe to the graph."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError

from tests.training import world
from training.data.dataset import prepare
from training.fitting.fit import build


def published(tmp_path: Path, scaling: str, values: list[float]) -> tuple[float, float]:
    """What the graph's scaler shifts and scales the feature by; only the first 70 of 100 rows are for training."""
    frame = world.rows(100).with_columns(load=pl.Series(values))
    features = [{"name": "load", "role": "target", "scaling": scaling}]
    recipe = world.recipe(world.write(tmp_path / "rows.csv", frame), data={"features": features})
    scaler = build(recipe, prepare(recipe)).scaler
    return scaler.shift.item(), scaler.scale.item()


@pytest.mark.parametrize(
    ("scaling", "shift", "scale"),
    [
        ("standard", lambda rows: rows.mean(), lambda rows: rows.std()),
        ("min_max", lambda rows: rows.min(), lambda rows: rows.max() - rows.min()),
        ("robust", np.median, lambda rows: np.diff(np.quantile(rows, (0.25, 0.75)))[0] / 1.349),
        ("none", lambda _: 0.0, lambda _: 1.0),
    ],
)
def test_a_feature_is_scaled_by_its_training_rows_alone(
    tmp_path: Path, scaling: str, shift: object, scale: object
) -> None:
    """Whatever the validation and test rows hold changes nothing."""
    assert callable(shift)
    assert callable(scale)
    training = np.random.default_rng(0).gamma(2.0, 3.0, 70)
    later = [1e6] * 30

    found = published(tmp_path, scaling, [*training, *later])

    assert found == pytest.approx((shift(training), scale(training)), rel=1e-5)


@pytest.mark.parametrize("scaling", ["standard", "min_max", "robust"])
def test_a_constant_feature_is_not_blown_up(tmp_path: Path, scaling: str) -> None:
    """Where the training rows do not vary, a unit stays a unit."""
    assert published(tmp_path, scaling, [5.0] * 100) == (5.0, 1.0)


def test_a_feature_that_is_mostly_one_value_is_scaled_by_its_deviation(tmp_path: Path) -> None:
    """Rain: the quartiles are all zero, and the robust scale falls back to the standard deviation."""
    values = [float(row % 10 == 0) for row in range(100)]

    _, scale = published(tmp_path, "robust", values)

    assert scale == pytest.approx(0.3)


def test_derived_features_are_part_of_the_graph(tmp_path: Path) -> None:
    """A recipe's derived features widen what the network reads, not what a request holds."""
    derived = [{"of": "wind", "kind": "mean", "rows": 3}, {"of": "load", "kind": "difference", "rows": 6}]
    recipe = world.recipe(world.write(tmp_path / "rows.csv", world.rows(100)), data={"derived": derived})

    network = build(recipe, prepare(recipe))

    assert network.core.shape.inputs == 5
    window = torch.zeros(2, 12, 3)
    forecast, _ = network.rollout(window, torch.zeros(2, dtype=torch.int64), torch.zeros(2, 4, 0), 4)
    assert forecast.shape == (2, 4, 2)


@pytest.mark.parametrize(
    ("derived", "message"),
    [
        ({"of": "rain", "kind": "mean", "rows": 3}, r"no feature 'rain' \(there are: load, heat, wind\)"),
        ({"of": "wind", "kind": "median", "rows": 3}, "'mean', 'variance', 'trend' or 'difference'"),
        ({"of": "wind", "kind": "trend", "rows": 1}, "takes 2 or more"),
    ],
)
def test_a_derived_feature_that_cannot_be_is_refused(derived: dict[str, object], message: str) -> None:
    """The message names what there is."""
    with pytest.raises(ValidationError, match=message):
        world.recipe(data={"derived": [derived]})
