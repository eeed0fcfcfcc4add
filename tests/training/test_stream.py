"""Stateful training: lanes that cover every row, a state that goes on, a gradient that does not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.training import world
from training.data.dataset import Dataset, prepare
from training.data.windows import Batches
from training.errors import RecipeError
from training.fitting.fit import Fitted, build, fit
from training.fitting.stream import StreamObjective, Streams, lanes
from training.recipe import Recipe

LENGTH = 12


def dataset(
    folder: Path, *frames: pl.DataFrame, stateful: Mapping[str, int], **sections: Mapping[str, Any]
) -> tuple[Recipe, Dataset]:
    files = [world.write(folder / f"{index}.csv", frame) for index, frame in enumerate(frames)]
    training = {"stateful": stateful, **sections.pop("training", {})}
    recipe = world.recipe(*files, training=training, **sections)
    return recipe, prepare(recipe)


def streams(recipe: Recipe, dataset: Dataset) -> Streams:
    assert recipe.training.stateful
    return Streams(recipe, dataset, recipe.training.stateful, torch.device("cpu"))


def trained(folder: Path, **sections: Mapping[str, Any]) -> Fitted:
    recipe, found = dataset(folder, world.rows(400), stateful={"rows": 12, "lanes": 4}, **sections)
    return fit(recipe, found, tell=lambda _: None)


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6).filter(lambda sizes: max(sizes) > LENGTH),
    wanted=st.integers(1, 9),
)
def test_lanes_cover_every_row_once(sizes: list[int], wanted: int) -> None:
    """All but the first L rows of every run are forecast in exactly one lane, from L rows of the same run."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    ranges = [(end - size, end) for size, end in zip(sizes, ends, strict=True)]

    found = lanes(ranges, LENGTH, wanted)

    forecast = [row for begin, end in zip(found.begins, found.ends, strict=True) for row in range(begin, end)]
    assert sorted(forecast) == [row for first, end in ranges for row in range(first + LENGTH, end)]
    for begin, end in zip(found.begins, found.ends, strict=True):
        assert any(first <= begin - LENGTH and end <= last for first, last in ranges)
    grouped = [begin for group in found.groups(wanted) for begin in group.begins]
    assert sorted(grouped) == sorted(found.begins)


def test_one_run_is_cut_into_as_many_lanes_as_asked_for() -> None:
    """Of equal length, to be read at once."""
    found = lanes([(0, LENGTH + 100)], LENGTH, 4)

    assert (found.begins, found.ends) == ([12, 37, 62, 87], [37, 62, 87, 112])
    assert len(found.groups(4)) == 1


@pytest.mark.parametrize("horizon", [1, 3])
def test_an_epoch_scores_every_training_row_once(tmp_path: Path, horizon: int) -> None:
    """Rows of two files around gaps, also those that windows would fill: none of the validation, none twice."""
    gap = world.with_gap(world.with_gap(world.rows(200), "load", 60, 5), "load", 100, 1)
    frames = [gap, world.rows(170, seed=1)]
    recipe, found = dataset(
        tmp_path,
        *frames,
        stateful={"rows": 7, "lanes": 3},
        window={"horizon": horizon},
        data={"gaps": {"method": "carry_forward", "limit": 1}},
    )
    stretches = streams(recipe, found)
    seen: list[Tensor] = []

    for stretch in stretches:
        assert stretch.rows.size(1) % horizon == 0
        seen.append(stretch.rows[stretch.scored])

    assert len(list(stretches)) == len(stretches)
    train = [one.values[:140] for one in found.series]
    wanted = torch.cat([train[0][12:60], train[0][77:100], train[0][113:], train[1][12:]])
    scored = torch.cat(seen)
    assert len(scored) == len(wanted)
    assert torch.equal(scored.unique(dim=0), wanted.unique(dim=0))


def test_the_state_goes_on_and_its_gradient_does_not(tmp_path: Path) -> None:
    """After two stretches the state is that of one unbroken reading, and nothing leads back to the first."""
    recipe, found = dataset(tmp_path, world.rows(120), stateful={"rows": 10, "lanes": 1})
    network = build(recipe, found).eval()
    objective = StreamObjective(network, recipe)
    first, second, *_ = streams(recipe, found)

    objective.training_step(first, 0).backward()
    before = [part.clone() for part in objective.state]
    loss = objective.training_step(second, 1)

    rows = network.scaler.scale_rows(found.series[0].values[:32].unsqueeze(0))
    _, (unbroken, _) = network.core.cells(rows[:, :31])
    assert torch.allclose(objective.state[0], unbroken, atol=1e-5)
    assert torch.equal(objective.state[-1], rows[:, 31:])
    assert not any(part.requires_grad for part in [*before, *objective.state])
    loss.backward()
    objective.state = [torch.zeros_like(part) for part in before]
    assert not torch.allclose(objective.training_step(second, 1), loss)


def test_a_lane_that_has_ended_leaves_the_others_in_place(tmp_path: Path) -> None:
    """The rows that go on keep their own state when a shorter series ends."""
    frames = [world.rows(60, seed=1), world.rows(120, seed=2)]
    recipe, found = dataset(tmp_path, *frames, stateful={"rows": 10, "lanes": 2}, split={"train": 0.8})
    network = build(recipe, found).eval()
    objective = StreamObjective(network, recipe)

    for stretch in streams(recipe, found):
        objective.training_step(stretch, 0)

    last = found.series[1].values[:96].unsqueeze(0)
    _, (unbroken, _) = network.core.cells(network.scaler.scale_rows(last)[:, :-1])
    assert torch.allclose(objective.state[0], unbroken, atol=1e-5)


def test_stateful_training_learns(tmp_path: Path) -> None:
    """A wave is forecast better, on windows, after a few epochs than after the first."""
    fitted = trained(tmp_path, training={"epochs": 12})

    assert min(epoch.validation for epoch in fitted.epochs) < fitted.epochs[0].validation / 2
    assert fitted.epochs[-1].loss < fitted.epochs[0].loss / 2


def test_stateful_training_repeats_itself(tmp_path: Path) -> None:
    """The seed decides the weights."""
    one, same, other = (trained(tmp_path, training={"seed": seed}) for seed in (1, 1, 2))

    assert [epoch.loss for epoch in one.epochs] == [epoch.loss for epoch in same.epochs]
    assert one.epochs[0].loss != other.epochs[0].loss


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"architecture": "linear", "config": {}}, "'linear' with these options carries no state.* lstm"),
        ({"architecture": "lstm", "config": {"bidirectional": True}}, "'lstm' with these options carries no state"),
        ({"architecture": "lstm", "config": {"cycle": 6}}, "'lstm' with these options carries no state"),
        ({"architecture": "lstm", "config": {"normalisation": "last"}}, "set network.config.normalisation to 'none'"),
        ({"architecture": "lstm", "config": {"norm": "batch"}}, "set network.config.norm to 'none' or 'layer'"),
    ],
)
def test_networks_that_cannot_are_refused(tmp_path: Path, network: Mapping[str, Any], message: str) -> None:
    """With those that can, or what to change."""
    recipe, found = dataset(tmp_path, world.rows(160), stateful={}, network=network)

    with pytest.raises(RecipeError, match=message):
        fit(recipe, found, tell=lambda _: None)


def test_only_networks_that_suit_the_recipe_are_proposed(tmp_path: Path) -> None:
    """Those that read no derived features, or for which the window is too short, are none of them."""
    frame = world.rows(400)
    network = {"architecture": "transformer", "config": {}}
    derived = {"derived": [{"of": "load", "kind": "mean", "rows": 3}]}
    recipe, found = dataset(tmp_path, frame, stateful={}, network=network, data=derived)
    short, same = dataset(tmp_path, frame, stateful={}, network=network, window={"horizon": 12, "steps": 12})

    with pytest.raises(RecipeError, match=r"by their defaults: cnn_lstm, gru, lstm$"):
        fit(recipe, found, tell=lambda _: None)
    with pytest.raises(RecipeError, match=r"by their defaults: none$"):
        fit(short, same, tell=lambda _: None)


def test_a_stretch_holds_a_pass(tmp_path: Path) -> None:
    """Fewer rows than a pass forecasts cannot be learnt from."""
    with pytest.raises(ValueError, match=r"training.stateful.rows \(2\) must not be less than window.horizon \(3\)"):
        dataset(tmp_path, world.rows(160), stateful={"rows": 2}, window={"horizon": 3})


def test_validation_stays_on_windows(tmp_path: Path) -> None:
    """The error that chooses the weights is of the forecasts that will be served."""
    recipe, found = dataset(tmp_path, world.rows(160), stateful={"rows": 12, "lanes": 2})
    fitted = fit(recipe, found, tell=lambda _: None)
    objective = StreamObjective(fitted.network, recipe).eval()

    with torch.inference_mode():
        (batch,) = Batches(found.windows["validation"], 1000)
        error = float(objective.errors(batch) @ objective.target_weights)

    assert error == pytest.approx(min(epoch.validation for epoch in fitted.epochs), rel=1e-4)


def test_a_stream_has_no_short_windows(tmp_path: Path) -> None:
    """There would be nothing that could be shorter."""
    with pytest.raises(ValueError, match=r"training\.stateful has no windows that could be shorter"):
        dataset(tmp_path, world.rows(160), stateful={}, window={"shortest": 4})
