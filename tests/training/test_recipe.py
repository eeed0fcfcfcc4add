"""What a recipe may say, and how it is told what it may not."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.training import world
from training.errors import RecipeError
from training.recipe import load

RECIPES = sorted((Path(__file__).parents[2] / "training/recipes").glob("*.toml"))


def refusal(tmp_path: Path, recipe: dict[str, Any]) -> str:
    path = tmp_path / "recipe.toml"
    path.write_text(world.toml(recipe))
    with pytest.raises(RecipeError) as caught:
        load(path)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_can_be_read(path: Path) -> None:
    """The recipes of the repository are valid and named after what they publish."""
    assert load(path).name == path.stem


def test_a_recipe_keeps_the_order_of_its_features(tmp_path: Path) -> None:
    """Targets and covariates stay where the recipe puts them."""
    path = tmp_path / "recipe.toml"
    features = [
        {"name": "wind", "role": "past"},
        {"name": "load", "role": "target"},
        {"name": "tariff", "role": "future"},
    ]
    path.write_text(world.toml(world.given(data={"features": features})))

    data = load(path).data

    assert (data.names, data.target_columns, data.known_columns) == (["wind", "load", "tariff"], [1], [2])


@pytest.mark.parametrize(
    ("section", "keys", "expected"),
    [
        ("windo", {"length": 3}, "windo: unknown key; did you mean 'window'?"),
        ("window", {"lenght": 3}, "window.lenght: unknown key; did you mean 'length'?"),
        (
            "data",
            {"gaps": {"carry_forwards": 1}},
            "data.gaps.carry_forwards: unknown key; did you mean 'carry_forward'?",
        ),
        ("network", {"config": {"hiden": 3}}, "network.config.hiden: unknown key; did you mean 'hidden'?"),
        ("training", {"lerning_rate": 3}, "training.lerning_rate: unknown key; did you mean 'learning_rate'?"),
        (
            "data",
            {"features": [{"name": "load", "role": "target"}, {"name": "wind", "rol": "past"}]},
            "data.features[1].rol: unknown key; did you mean 'role'?",
        ),
        (
            "data",
            {"derived": [{"of": "load", "kind": "mean", "row": 3}]},
            "data.derived[0].row: unknown key; did you mean 'rows'?",
        ),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(
    tmp_path: Path, section: str, keys: dict[str, Any], expected: str
) -> None:
    """Wherever a key is misspelt, the message gives its full place and the key that was meant."""
    assert refusal(tmp_path, world.given(**{section: keys})).startswith(expected)


@pytest.mark.parametrize(
    ("section", "keys", "expected"),
    [
        ("training", {"loss": "l2"}, "training.loss: Input should be 'mse', 'mae', 'huber' or 'quantile'; got 'l2'"),
        ("training", {"epochs": 0}, "training.epochs: Input should be greater than 0; got 0"),
        ("network", {"config": {"dropout": 1.5}}, "network.config.dropout: Input should be less than 1; got 1.5"),
        (
            "network",
            {"architecture": "lstn"},
            "network.architecture: unknown architecture 'lstn'; did you mean 'lstm'?",
        ),
        ("window", {"season": 13}, "window: season (13) must not be longer than length (12)"),
        ("split", {"train": 0.8, "validation": 0.2}, "split: train + validation must be less than 1; got 1"),
        ("data", {"frequency": "PT0S"}, "data.frequency: must be one or more whole seconds"),
        ("data", {"features": [{"name": "a", "role": "past"}]}, "data.features: at least one must have role 'target'"),
        ("data", {"features": [{"name": "a", "role": "target"}] * 2}, "data.features: names must be unique"),
        ("data", {"features": [{"name": "a"}]}, "data.features[0].role: missing"),
    ],
)
def test_a_wrong_value_is_told_with_its_place_and_what_is_valid(
    tmp_path: Path, section: str, keys: dict[str, Any], expected: str
) -> None:
    """A value out of bounds is told with its place, its limits and what was found."""
    assert refusal(tmp_path, world.given(**{section: keys})).startswith(expected)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    """Two mistakes take one run to find, not two."""
    problems = refusal(tmp_path, world.given(training={"epochs": 0}, window={"steps": 0})).splitlines()

    assert len(problems) == 2


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    """A broken or absent file is an error of the recipe, not a traceback."""
    broken = tmp_path / "recipe.toml"
    broken.write_text("name = ")

    with pytest.raises(RecipeError, match="not TOML"):
        load(broken)
    with pytest.raises(RecipeError, match="No such file"):
        load(tmp_path / "absent.toml")


def test_the_record_has_every_default_and_no_folder() -> None:
    """What the artifact keeps could be trained again, and does not tell of the disk it was trained on."""
    record = world.recipe(Path("/home/someone/rows.csv"), Path("data/rows.csv")).record()

    assert record["data"]["files"] == ["rows.csv", "data/rows.csv"]
    assert record["training"]["clip"] == 1.0
    assert record["network"]["config"]["bidirectional"] is False


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"window": {"horizon": 4}}, r"horizon \(4\) must not be longer than steps \(3\), which the loss covers"),
        (
            {"data": {"derived": [{"of": "wind", "kind": "mean", "rows": 13}]}},
            r"data.derived\[0\].rows \(13\) must not be more than window.length \(12\)",
        ),
    ],
)
def test_what_nothing_would_learn_is_refused(sections: dict[str, dict[str, Any]], message: str) -> None:
    """Steps that no loss covers, and features that reach beyond the window."""
    with pytest.raises(ValidationError, match=message):
        world.recipe(**sections)
