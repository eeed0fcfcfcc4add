"""Metrics against numbers worked out by hand."""

import math

import pytest
import torch

from training.metrics import Errors


def errors(truth: list[float], forecast: list[float]) -> Errors:
    """One step, one target, a window each."""
    found = Errors(1, 1)
    for wanted, given in zip(truth, forecast, strict=True):
        found.add(torch.tensor([[[given]]]), torch.tensor([[[wanted]]]))
    return found


def test_scores_of_one_target_worked_out_by_hand() -> None:
    """Errors 1, 0, 2, 1 around a truth of 1, 2, 3, 6 with mean 3."""
    scores = errors([1, 2, 3, 6], [2, 2, 1, 5]).scores(["load"], [0.5])["load"]

    assert scores.mae == [1.0]
    assert scores.rmse == [pytest.approx(math.sqrt(1.5))]
    assert scores.r2 == [pytest.approx(1 - 6 / 14)]
    assert scores.mase == [2.0]


def test_steps_and_targets_are_kept_apart() -> None:
    """Each step of each target has a score of its own."""
    found = Errors(2, 2)
    found.add(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]), torch.tensor([[[0.0, 0.0], [0.0, 3.0]]]))

    scores = found.scores(["load", "heat"], [1.0, 1.0])

    assert (scores["load"].mae, scores["heat"].mae) == ([1.0, 0.0], [0.0, 3.0])


def test_batches_add_up_to_the_whole() -> None:
    """How the windows are cut into batches changes no score."""
    truth, forecast = torch.randn(2, 10, 3, 2, generator=torch.Generator().manual_seed(0))
    whole, parts = Errors(3, 2), Errors(3, 2)

    whole.add(forecast, truth)
    for one, other in zip(forecast.split(4), truth.split(4), strict=True):
        parts.add(one, other)

    names, naive = ["load", "heat"], [1.0, 2.0]
    one, other = whole.scores(names, naive), parts.scores(names, naive)
    for name in names:
        assert one[name].rmse == pytest.approx(other[name].rmse)
        assert one[name].r2 == pytest.approx(other[name].r2)


def test_what_cannot_be_divided_is_none() -> None:
    """A constant truth has no R², a constant training series no MASE."""
    scores = errors([2, 2], [2, 3]).scores(["load"], [0.0])["load"]

    assert (scores.r2, scores.mase, scores.mae) == ([None], [None], [0.5])
