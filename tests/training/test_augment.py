"""Augmentation: what each change does to the window, and what it leaves alone."""

import pytest
import torch
from torch import Tensor

from tests import builders
from training.data.augment import Augmentation
from training.data.windows import Batches, Clock, Windows
from training.recipe import Augment

LENGTH, STEPS, ROWS = 12, 3, 4000
FEATURES = builders.features(("target", "future", "past"))
MEAN = torch.tensor([feature.statistics.mean for feature in FEATURES])
STD = torch.tensor([feature.statistics.std for feature in FEATURES])


def change(rows: Tensor, *, seed: int = 0, **options: object) -> Tensor:
    augment = Augmentation(Augment(**options), FEATURES, length=LENGTH, seed=seed, device=torch.device("cpu"))
    given = rows.clone()
    changed = augment(rows)
    assert torch.equal(rows, given)
    assert torch.equal(changed[:, :, 1], rows[:, :, 1]), "what is known ahead was touched"
    return changed


def ramps() -> Tensor:
    """[B, L + N, F]: rows that count up from 0."""
    return torch.arange(LENGTH + STEPS).float().view(1, -1, 1).repeat(ROWS, 1, 3)


def test_jitter_is_noise_on_the_window_alone() -> None:
    """As wide as asked for in each feature's standard deviations, about nothing, and anew in every cell."""
    rows = ramps()

    noise = change(rows, jitter=0.5) - rows

    assert torch.equal(noise[:, LENGTH:], torch.zeros(ROWS, STEPS, 3))
    assert noise[:, :LENGTH].std((0, 1))[[0, 2]].tolist() == pytest.approx((0.5 * STD)[[0, 2]].tolist(), rel=0.05)
    assert noise.mean((0, 1)).abs().max() < 0.02
    assert noise[:, :LENGTH, 0].unique().numel() > 0.9 * ROWS * LENGTH


def test_scaling_stretches_window_and_truth_alike() -> None:
    """About the training mean, each window by one factor of its own."""
    rows = ramps()

    factor = (change(rows, scaling=0.2) - MEAN) / (rows - MEAN)

    own = factor[:, 0, 0]
    assert torch.allclose(factor[:, :9, [0, 2]], own[:, None, None].expand(-1, 9, 2), atol=1e-3)
    assert torch.allclose(factor[:, LENGTH:, 0], own[:, None].expand(-1, STEPS), atol=1e-3)
    assert own.mean().item() == pytest.approx(1, abs=0.02)
    assert own.std().item() == pytest.approx(0.2, rel=0.05)


def test_a_window_slice_ends_with_the_window_and_fills_it() -> None:
    """A random slice of at least that fraction, by straight lines between its rows; a ramp stays one."""
    rows = ramps()

    changed = change(rows, window_slicing=0.5)

    assert torch.equal(changed[:, LENGTH:], rows[:, LENGTH:])
    assert torch.allclose(changed[:, LENGTH - 1], rows[:, LENGTH - 1], atol=1e-5)
    begins = changed[:, 0, 0]
    assert 0 <= begins.min() < 0.1
    assert 5.4 < begins.max() <= 5.5
    assert torch.allclose(changed[:, :LENGTH, 0].diff(dim=1), ((11 - begins) / 11)[:, None].expand(-1, 11), atol=1e-4)


def test_a_random_crop_keeps_the_newest_rows() -> None:
    """Up to that fraction of the oldest rows give way to the oldest that is kept."""
    rows = ramps()

    changed = change(rows, random_crop=0.25)

    firsts = changed[:, 0, 0]
    assert firsts.unique().tolist() == [0, 1, 2, 3]
    assert torch.equal(changed[:, :, 0], rows[:, :, 0].maximum(firsts[:, None]))


def test_nothing_is_changed_unless_it_is_asked_for() -> None:
    """The defaults leave training as it is, and say so."""
    assert not Augment().active
    assert Augment(window_slicing=0.9).active
    assert torch.equal(change(ramps()), ramps())


def test_a_seed_decides_the_changes() -> None:
    """Two runs with one seed see the same windows, and another one others."""
    options = {"jitter": 0.1, "scaling": 0.1, "window_slicing": 0.8, "random_crop": 0.2}

    one, same, other = (change(ramps(), seed=seed, **options) for seed in (1, 1, 2))

    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_batches_are_changed_anew_in_every_epoch() -> None:
    """As they are gathered; the series itself stays what it is."""
    clock = Clock(torch.tensor([0]), torch.tensor([0]), 3600)
    series = torch.randn(30, 3)
    kept = series.clone()
    augment = Augmentation(Augment(jitter=0.1), FEATURES, length=LENGTH, seed=0, device=torch.device("cpu"))
    batches = Batches(Windows(series, torch.arange(16), clock, LENGTH, STEPS), 16, augment=augment)

    (first,), (second,) = batches, batches

    assert torch.equal(first.rows[:, LENGTH:], second.rows[:, LENGTH:])
    assert not torch.equal(first.rows, second.rows)
    assert torch.equal(series, kept)
