"""Augmentation: what each change does to the window, and what it leaves alone."""

import pytest
import torch
from torch import Tensor

from tests import builders
from tests.training import world
from training.data.augment import Augmentation, augmentation
from training.data.windows import Batches, Clock, Windows
from training.recipe import Augment, Recipe

LENGTH, STEPS, ROWS = 12, 3, 4000
FEATURES = builders.features(("target", "future", "past"))
MEAN = torch.tensor([feature.statistics.mean for feature in FEATURES])
STD = torch.tensor([feature.statistics.std for feature in FEATURES])


def recipe(window: dict[str, int] | None = None, **training: object) -> Recipe:
    features = [{"name": feature.name, "role": feature.role} for feature in FEATURES]
    return world.recipe(data={"features": features}, window=window or {}, training=training)


def made(recipe: Recipe, *, seed: int = 0) -> Augmentation:
    return Augmentation(recipe, FEATURES, seed=seed, device=torch.device("cpu"))


def change(rows: Tensor, *, seed: int = 0, **options: object) -> Tensor:
    augment = made(recipe(augment=options), seed=seed)
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
    augment = made(recipe(augment={"jitter": 0.1}))
    batches = Batches(Windows(series, torch.arange(16), clock, LENGTH, STEPS), 16, augment=augment)

    (first,), (second,) = batches, batches

    assert torch.equal(first.rows[:, LENGTH:], second.rows[:, LENGTH:])
    assert not torch.equal(first.rows, second.rows)
    assert torch.equal(series, kept)


def test_a_share_of_the_windows_loses_its_oldest_rows() -> None:
    """Any number of them up to what a window may lack; all but static features, and nothing of what came."""
    features = builders.features(("target", "future", "static"))
    short = recipe({"shortest": 8}, shorten=0.5)
    rows = torch.randn(ROWS, LENGTH + STEPS, 3)
    given = rows.clone()

    changed = Augmentation(short, features, seed=3, device=torch.device("cpu"))(rows)

    absent = changed[:, :LENGTH, 0].isnan()
    counts = absent.sum(1)
    assert torch.equal(absent, torch.arange(LENGTH) < counts[:, None])
    assert torch.equal(changed[:, :LENGTH, 1].isnan(), absent)
    assert torch.equal(changed.nan_to_num(9), torch.where(changed.isnan(), 9, given))
    assert not changed[:, :, 2].isnan().any()
    assert not changed[:, LENGTH:].isnan().any()
    assert counts.unique().tolist() == [0, 1, 2, 3, 4]
    shares = counts.bincount() / ROWS
    assert shares.tolist() == pytest.approx([0.5, *[0.125] * 4], abs=0.03)


def test_windows_are_shortened_with_the_seed_and_only_where_they_may_be() -> None:
    """Without `window.shortest` the share says nothing, and with a share of nothing there is nothing to do."""
    short = recipe({"shortest": 8}, shorten=1.0)
    one, same, other = (made(short, seed=seed)(ramps()).isnan() for seed in (1, 1, 2))

    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one[:, 0, 0].all()
    device = torch.device("cpu")
    assert augmentation(short, FEATURES, seed=0, device=device) is not None
    for still in (recipe(shorten=1.0), recipe({"shortest": 8}, shorten=0.0), recipe({"shortest": 12}, shorten=1.0)):
        assert augmentation(still, FEATURES, seed=0, device=device) is None


def test_what_is_missing_stays_missing() -> None:
    """No change makes a value of none."""
    rows = ramps()
    rows[:, 4, 0] = float("nan")

    changed = made(recipe(augment={"jitter": 0.5, "scaling": 0.2}))(rows)

    assert torch.equal(changed.isnan(), rows.isnan())
