"""What a recipe may say, and how it is told what it may not."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from models import spec
from tests.training import world
from training.errors import RecipeError
from training.recipe import load

GAPS = {"method": "carry_forward", "limit": 3}
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
            {"gaps": {"limits": 1}},
            "data.gaps.limits: unknown key; did you mean 'limit'?",
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
        ("data", {"timezone": "Europe/Berln"}, "data.timezone: unknown time zone; did you mean 'Europe/Berlin'?"),
        ("data", {"timezone": ""}, "data.timezone: unknown time zone"),
        ("data", {"series": "load"}, "data: series: 'load' is a feature or the column of times"),
        ("data", {"series": "time"}, "data: series: 'time' is a feature or the column of times"),
        ("data", {"gaps": {"method": "linear"}}, "data.gaps.method: Input should be 'refuse', 'carry_forward' or"),
        ("data", {"gaps": {"method": "interpolate"}}, "data.gaps: limit: needed where method is 'interpolate'"),
        ("data", {"gaps": {"limit": 2}}, "data.gaps: method: must be 'carry_forward' or 'interpolate' where there is"),
        ("data", {"gaps": {"mask": True}}, "data.gaps: method: must be 'carry_forward' or 'interpolate' where there"),
        (
            "data",
            {"gaps": {"method": "interpolate", "limit": 12}},
            "data.gaps.limit (12) must be less than window.length (12)",
        ),
        ("data", {"calendar": {"features": ["hours"]}}, "data.calendar.features[0]: Input should be 'hour', 'day_of_"),
        ("data", {"calendar": {"feature": ["hour"]}}, "data.calendar.feature: unknown key; did you mean 'features'?"),
        ("data", {"calendar": {"features": ["holiday"]}}, "data.calendar: holidays: needed where, and only where,"),
        (
            "data",
            {"calendar": {"features": ["holiday"], "holidays": "USS"}},
            "data.calendar.holidays: unknown country 'USS'; did you mean 'US' or ",
        ),
        (
            "data",
            {"calendar": {"features": ["holiday"], "holidays": "US-NX"}},
            "data.calendar.holidays: US has no part 'NX'; did you mean 'TX' or 'TN' or 'NY'? (there are: AK, ",
        ),
        ("split", {"calibration": 0.2}, "split: train + validation + calibration must be less than 1; got 1"),
        ("split", {"calibration": -0.1}, "split.calibration: Input should be greater than or equal to 0; got -0.1"),
        (
            "window",
            {"shortest": 13},
            "window: shortest (13) must be more than horizon (1) and not more than length (12)",
        ),
        ("window", {"shortest": 1}, "window: shortest (1) must be more than horizon (1) and not more than length (12)"),
        ("training", {"shorten": 1.5}, "training.shorten: Input should be less than or equal to 1; got 1.5"),
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
        (
            {"window": {"shortest": 4}, "data": {"gaps": {"method": "interpolate", "limit": 4}}},
            r"data.gaps.limit \(4\) must be less than window.shortest \(4\)",
        ),
        (
            {"window": {"shortest": 4}, "training": {"augment": {"random_crop": 0.2}}},
            r"training.augment.random_crop would make gaps longer; it goes without window.shortest",
        ),
        (
            {"data": {"gaps": GAPS}, "training": {"augment": {"window_slicing": 0.9}}},
            r"training.augment.window_slicing would make gaps longer; it goes without data.gaps.method",
        ),
    ],
)
def test_what_nothing_would_learn_is_refused(sections: dict[str, dict[str, Any]], message: str) -> None:
    """Steps that no loss covers, features that reach beyond the window, gaps that may be all there is."""
    with pytest.raises(ValidationError, match=message):
        world.recipe(**sections)


def test_columns_that_are_known_ahead_are_told_apart() -> None:
    """A static feature is known ahead like a known-future covariate, and both are no targets."""
    features = [
        {"name": name, "role": role}
        for name, role in (("area", "static"), ("load", "target"), ("tariff", "future"), ("wind", "past"))
    ]

    data = world.recipe(data={"features": features}).data

    assert (data.known_columns, data.static_columns, data.target_columns) == ([0, 2], [0], [1])


def test_gaps_are_what_the_graph_is_to_do_about_them() -> None:
    """Nothing where windows avoid them."""
    gaps = world.recipe(data={"gaps": {**GAPS, "mask": True}}).data.gaps.in_graph

    assert gaps == spec.Gaps(method="carry_forward", limit=3, mask=True)
    assert world.recipe().data.gaps.in_graph is None


def test_holidays_are_days_since_1970() -> None:
    """Of a country, of a part of it, and none where no calendar asks for them."""
    country, part = (
        world.recipe(data={"calendar": {"features": ["holiday"], "holidays": whose}}).data.holidays
        for whose in ("US", "US-NY")
    )
    day = (date(2013, 7, 4) - date(1970, 1, 1)).days
    lincoln = (date(2013, 2, 12) - date(1970, 1, 1)).days

    assert (day in country, day in part, day + 1 in part) == (True, True, False)
    assert (lincoln in country, lincoln in part) == (False, True)
    assert list(part) == sorted(set(part))
    assert world.recipe(data={"calendar": {"features": ["hour"]}}).data.holidays == ()
