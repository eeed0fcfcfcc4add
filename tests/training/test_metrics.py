"""Metrics against numbers worked out by hand, and against numpy on all windows at once."""

import math

import numpy as np
import pytest
import torch

from models.spec import Feature, Metrics, Scaling, Scores, Statistics
from training.scoring.metrics import OVERALL, TITLES, Errors, averages, forecasts, stretches


def feature(name: str, mean: float = 0.0, std: float = 1.0, scaling: Scaling = "standard") -> Feature:
    statistics = Statistics(mean=mean, std=std, min=mean - std, max=mean + 3 * std)
    return Feature(name=name, role="target", scaling=scaling, statistics=statistics)


def scored(truth: list[float], forecast: list[float], target: Feature | None = None, naive: float = 0.5) -> Scores:
    """One step, one target, a window each."""
    found = Errors(1, [target or feature("load")])
    for wanted, given in zip(truth, forecast, strict=True):
        found.add(torch.tensor([[[given]]]), torch.tensor([[[wanted]]]), torch.tensor([[naive]]))
    (scores,) = found.scores().values()
    return scores


def scores(mae: list[float], r2: list[float | None] | None = None) -> Scores:
    return Scores(mae=mae, rmse=mae, r2=r2 or [0.5] * len(mae), mase=mae, smape=mae, standardised_mse=mae)


def test_scores_of_one_target_worked_out_by_hand() -> None:
    """Errors 1, 0, 2, 1 around a truth of 1, 2, 3, 6 with mean 3."""
    found = scored([1, 2, 3, 6], [2, 2, 1, 5])

    assert found.mae == [1.0]
    assert found.rmse == [pytest.approx(math.sqrt(1.5))]
    assert found.r2 == [pytest.approx(1 - 6 / 14)]
    assert found.mase == [2.0]
    assert found.smape == [pytest.approx(100 * (2 / 3 + 0 + 1 + 2 / 11) / 4)]


@pytest.mark.parametrize("scaling", ["standard", "min_max", "robust", "none"])
def test_the_standardised_scale_is_that_of_the_training_rows(scaling: Scaling) -> None:
    """Mean and standard deviation set it, whatever the model scales by."""
    found = scored([1, 2, 3, 6], [2, 2, 1, 5], feature("load", mean=7.0, std=4.0, scaling=scaling))

    assert found.standardised_mae == [1.0 / 4]
    assert found.standardised_mse == [1.5 / 16]


@pytest.mark.parametrize("size", [1, 7, 100])
def test_every_metric_equals_numpy_on_all_windows_at_once(size: int) -> None:
    """By step and target, far from zero, and however the windows are cut into batches."""
    random = np.random.default_rng(0)
    offset = np.array([1e5, -3.0])
    truth = (offset + random.normal(size=(40, 3, 2))).astype(np.float32)
    forecast = (truth + random.normal(size=truth.shape)).astype(np.float32)
    found = Errors(3, [feature("load", 1e5, 2.0), feature("heat", -2.0, 0.5)])
    naive = random.uniform(0.5, 2.0, size=(40, 2))
    for batch in zip(*(torch.tensor(values).split(size) for values in (forecast, truth, naive)), strict=True):
        found.add(*batch)

    y, f = truth.astype(np.float64), forecast.astype(np.float64)
    error, std = f - y, np.array([2.0, 0.5])
    expected = {
        "mae": np.abs(error).mean(0),
        "rmse": np.sqrt((error**2).mean(0)),
        "r2": 1 - (error**2).sum(0) / ((y - y.mean(0)) ** 2).sum(0),
        "smape": (200 * np.abs(error) / (np.abs(y) + np.abs(f))).mean(0),
        "mase": (np.abs(error) / naive[:, None]).mean(0),
        "standardised_mse": ((error / std) ** 2).mean(0),
        "standardised_mae": np.abs(error / std).mean(0),
    }
    assert expected.keys() == TITLES.keys()
    for target, of in enumerate(found.scores().values()):
        for metric, values in expected.items():
            assert getattr(of, metric) == pytest.approx(values[:, target].tolist(), rel=1e-9), metric


def test_what_cannot_be_divided_is_none() -> None:
    """A constant truth has no R², a constant training series no MASE; where all is zero there is no relative error."""
    found = scored([0, 0], [0, 1], naive=0.0)

    assert (found.r2, found.mase, found.mae, found.smape) == ([None], [None], [0.5], [100.0])
    assert scored([0.1, 0.1], [0, 0]).r2 == [None]


def test_windows_without_a_naive_error_count_for_nothing_in_mase_alone() -> None:
    """Errors 1, 3 and 8, of which the last has no denominator: MASE is of the first two, MAE of all."""
    found = Errors(1, [feature("load")])
    found.add(torch.tensor([[[1.0]], [[3.0]], [[8.0]]]), torch.zeros(3, 1, 1), torch.tensor([[2.0], [1.0], [0.0]]))

    assert (found.scores()["load"].mase, found.scores()["load"].mae) == ([1.75], [4.0])


def test_direct_and_recursive_steps_are_averaged_apart() -> None:
    """Steps 1 to H are direct, those beyond recursive; with a single pass there is nothing to keep apart."""
    metrics = Metrics(steps=4, windows=9, season=1, horizon=1, model={"load": scores([1, 2, 3, 7])}, baselines={})

    means = {name: averages(metrics.model, steps)["load"]["mae"] for name, steps in stretches(metrics).items()}

    assert means == {"all": 3.25, "direct": 1.0, "recursive": 4.0}
    assert stretches(metrics.model_copy(update={"horizon": 4})).keys() == {"all"}
    assert stretches(metrics.model_copy(update={"horizon": None})).keys() == {"all"}


def test_only_unitless_metrics_are_averaged_over_targets() -> None:
    """Degrees and miles are not added up; a step without a value leaves its average without one."""
    found = averages({"load": scores([1, 3]), "wind": scores([5, 7], r2=[0.5, None])}, slice(None))

    assert (found[OVERALL]["mase"], found[OVERALL]["standardised_mse"]) == (4.0, 4.0)
    assert (found[OVERALL]["mae"], found[OVERALL]["rmse"], found["wind"]["r2"], found[OVERALL]["r2"]) == (None,) * 4


def test_scores_of_older_archives_have_no_newer_metrics() -> None:
    """Archives from before sMAPE and the standardised scale still load; what they lack has no average."""
    old = Metrics.model_validate(
        {
            "steps": 1,
            "windows": 2,
            "season": 1,
            "model": {"load": {"mae": [1.0], "rmse": [1.0], "r2": [0.5], "mase": [1.0]}},
            "baselines": {},
        }
    )

    found = averages(forecasts(old)["model"], slice(None))["load"]

    assert (found["mae"], found["smape"], found["standardised_mse"]) == (1.0, None, None)
