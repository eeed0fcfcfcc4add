"""An ensemble, from the recipe to the archive: its members are what they would be alone, and it is their mean."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from models import artifact
from models.ensemble import Ensemble
from models.store import Store
from tests.training import world
from training.data.dataset import prepare
from training.errors import RecipeError
from training.fitting.fit import Fitted, fit
from training.fitting.progress import Epoch, runs
from training.publishing.publish import publish
from training.recipe import Recipe

MEMBERS = [
    {"training.seed": 3},
    {"window.length": 8, "network.config.hidden": 4},
    {"network.architecture": "linear", "training.learning_rate": 0.1},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return world.write(tmp_path / "rows.csv", world.rows(160))


def recipe_for(*files: Path, ensemble: object) -> Recipe:
    return Recipe.model_validate({**world.given(*files), "ensemble": ensemble})


def trained(recipe: Recipe, heard: list[Epoch]) -> Fitted:
    return fit(recipe, prepare(recipe), tell=heard.append)


def test_members_are_what_they_would_be_alone(file: Path) -> None:
    """Each has its own seed, options, window and epochs, and trains as if there were no others."""
    recipe, heard = recipe_for(file, ensemble=MEMBERS), list[Epoch]()
    fitted = trained(recipe, heard)

    core = fitted.network.core
    assert isinstance(core, Ensemble)
    assert core.windows == [12, 8, 12]
    assert [epoch.member for epoch in heard] == [1, 1, 2, 2, 3, 3]
    assert [[epoch.number for epoch in run] for run in runs(fitted.epochs)] == [[1, 2]] * 3
    for member, values in zip(core.members, MEMBERS, strict=True):
        alone = trained(recipe_for(file, ensemble=()).having(values), [])
        weights = torch.nn.utils.parameters_to_vector(alone.network.parameters())
        assert torch.equal(torch.nn.utils.parameters_to_vector(member.parameters()), weights)


def test_an_ensemble_is_published_as_one_model(file: Path, tmp_path: Path) -> None:
    """One archive, scored as a whole; its spec says what its members are."""
    recipe, store = recipe_for(file, ensemble=MEMBERS[1:]), Store(tmp_path / "store")
    dataset = prepare(recipe)

    published = publish(recipe, dataset, fit(recipe, dataset, tell=lambda _: None), store)

    digest = store.index().models["tiny"].versions[1]
    spec = artifact.load(published.archive, digest=digest).spec
    assert spec.architecture == "ensemble"
    assert [(one["architecture"], one["window"]) for one in spec.config["members"]] == [("lstm", 8), ("linear", 12)]
    assert spec.recursion == "sliding"
    page = (published.archive.parent / "report" / "report.md").read_text("utf-8")
    assert "Member 2: best of 2 epochs" in page


def test_quantiles_of_an_ensemble_are_calibrated(tmp_path: Path) -> None:
    """Those of the members, averaged like their forecasts."""
    file = world.write(tmp_path / "long.csv", world.rows(500))
    split = {"train": 0.5, "validation": 0.1, "calibration": 0.2}
    given = world.given(file, split=split, intervals={"method": "cqr", "levels": [80]})
    recipe = Recipe.model_validate({**given, "ensemble": MEMBERS[1:]})
    dataset, store = prepare(recipe), Store(tmp_path / "store")

    published = publish(recipe, dataset, fit(recipe, dataset, tell=lambda _: None), store)

    spec = artifact.load(published.archive, digest=store.index().models["tiny"].versions[1]).spec
    assert (spec.outputs, spec.quantiles) == (6, (0.05, 0.95))
    assert spec.intervals is not None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data.time": "when"}, r"ensemble\[0\]: 'data.time' is the same for all members \(valid: network\.\*"),
        ({"window.horizon": 2}, "'window.horizon' is the same for all"),
        ({"window.length": 13}, r"window.length \(13\) must not be longer than that of the recipe \(12\)"),
        ({"network.config.hiden": 4}, "unknown key; did you mean 'hidden'"),
        ({"training.hardware.devices": 2}, "one process"),
    ],
)
def test_a_member_that_cannot_be_is_refused(values: dict[str, object], message: str) -> None:
    """The message has its place and what is valid."""
    with pytest.raises(ValidationError, match=message):
        recipe_for(ensemble=[values])


def test_members_that_would_be_the_same_network_are_refused(file: Path) -> None:
    """Their mean would be one of them, at the price of both; another seed is enough."""
    with pytest.raises(RecipeError, match=r"ensemble\[2\] is the same as ensemble\[0\]; give it a training.seed"):
        trained(recipe_for(file, ensemble=[{"training.seed": 3}, {}, {"training.seed": 3}]), [])

    assert trained(recipe_for(file, ensemble=[{}, {"training.seed": 1}]), []).architecture == "ensemble"
