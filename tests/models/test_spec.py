"""The spec as outsiders read it, and what it refuses to say."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from models.spec import FORMAT, Feature, Intervals, IntervalScores, Span, Spec, first_error, is_model_name
from tests import builders

ROLES = ("future", "target", "past", "target")


def _spec(**fields: object) -> Spec:
    network = builders.network("attention_lstm", roles=ROLES, horizon=3)
    return builders.spec_for(network, architecture="attention_lstm", clock=True, **fields)


def _document(**fields: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(_spec().model_dump_json())
    return document | fields


def test_survives_the_way_through_json() -> None:
    """What is written as JSON is read back as it was, intervals, times and nested lists included."""
    span = Span(start=builders.START, end=builders.START + builders.HOUR, windows=100)
    scores = IntervalScores(coverage={"target_0": [0.81]}, width={"target_0": [2.0]}, winkler={"target_0": [3.0]})
    intervals = Intervals(
        method="conformal",
        levels=[80, 95],
        calibrated_steps=7,
        coverage={"80": [0.81], "95": [0.94]},
        windows=100,
        effective=14,
        calibration=span,
        scores={"80": scores},
        baselines={"gaussian": {"80": scores}},
    )
    spec = _spec(intervals=intervals)

    assert Spec.model_validate_json(spec.model_dump_json()) == spec


def test_json_has_the_names_that_outsiders_read() -> None:
    """The names of the published contract are all there, at the top and within the example."""
    document = _document()

    assert {
        *("name", "version", "format", "architecture", "config", "features", "targets", "window", "horizon"),
        *("attention_rows", "frequency", "clock", "gaps", "intervals", "training", "metrics", "example"),
    } <= document.keys()
    assert {"name", "role", "unit", "statistics"} <= document["features"][0].keys()
    assert document["example"].keys() == {"window", "start", "future", "static", "steps", "forecast", "attention"}
    assert document["format"] == FORMAT == "torchscript/1"


@pytest.mark.parametrize(
    ("frequency", "text"),
    [
        (timedelta(hours=1), "PT1H"),
        (timedelta(minutes=15), "PT15M"),
        (timedelta(seconds=0.5), "PT0.5S"),
        (timedelta(days=1), "P1D"),
    ],
)
def test_frequency_is_an_iso_duration_in_json(frequency: timedelta, text: str) -> None:
    """The time between rows is written, and read, as ISO 8601 has it."""
    spec = _spec(frequency=frequency)

    assert json.loads(spec.model_dump_json())["frequency"] == text
    assert Spec.model_validate(_document(frequency=text)).frequency == frequency


def test_times_in_json_are_iso_8601() -> None:
    """The example's start is a time with its zone."""
    start = _document()["example"]["start"]

    assert datetime.fromisoformat(start) == datetime(2025, 12, 31, 17, tzinfo=UTC)


def test_is_frozen_in_every_part() -> None:
    """Neither the spec nor a part of it can be changed."""
    spec = _spec()

    for part, field in ((spec, "window"), (spec.example, "steps"), (spec.features[0].statistics, "mean")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, field, 1)


def test_refuses_a_field_that_it_does_not_know() -> None:
    """A misspelt field is an error at its place, not silently dropped."""
    document = _document()
    document["example"]["colour"] = "red"

    with pytest.raises(ValidationError) as caught:
        Spec.model_validate(document)
    assert first_error(caught.value).startswith("example.colour: ")


@pytest.mark.parametrize("targets", [["target_3", "target_1"], ["target_1"], ["past_2"], ["target_1", "target_3", "x"]])
def test_targets_are_the_features_of_that_role_in_order(targets: list[str]) -> None:
    """The order of the forecast's columns can be read off either list."""
    with pytest.raises(ValidationError, match="targets: must be the features whose role is 'target'"):
        Spec.model_validate(_document(targets=targets))


def test_feature_names_are_unique() -> None:
    """Two columns of one name could not be told apart in a CSV."""
    document = _document()
    document["features"][0]["name"] = document["features"][2]["name"]

    with pytest.raises(ValidationError, match="features: names must be unique"):
        Spec.model_validate(document)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 0),
        ("window", 0),
        ("horizon", -1),
        ("attention_rows", -1),
        ("name", "../weather"),
        ("gaps", "guess"),
        ("recursion", "endless"),
        ("features", []),
    ],
)
def test_refuses_a_value_out_of_bounds_at_its_place(field: str, value: object) -> None:
    """The reason begins with the field that is wrong."""
    with pytest.raises(ValidationError) as caught:
        Spec.model_validate(_document(**{field: value}))
    assert first_error(caught.value).startswith((f"{field}: ", f"{field}."))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_refuses_numbers_that_are_not_finite(number: str) -> None:
    """An example that could never be compared is refused where it is read."""
    text = _spec().model_dump_json()
    value = json.dumps(json.loads(text)["example"]["forecast"][0][0])

    with pytest.raises(ValidationError, match="finite"):
        Spec.model_validate_json(text.replace(value, number))


@pytest.mark.parametrize("field", ["window", "future", "forecast", "attention"])
@pytest.mark.parametrize("change", ["one row less", "one number less"])
def test_an_example_has_the_shapes_of_its_model(field: str, change: str) -> None:
    """An example of another shape than window, steps and features ask for is refused, naming its part."""
    document = _document()
    rows = document["example"][field]
    if change == "one row less":
        rows.pop()
    else:
        rows[-1].pop()

    with pytest.raises(ValidationError, match=rf"example\.{field}: must be \d+ rows of \d+ numbers"):
        Spec.model_validate(document)


def test_an_example_of_a_model_with_a_clock_says_when_it_starts() -> None:
    """Without a start, a model that reads the time has no example."""
    document = _document()
    document["example"]["start"] = None

    with pytest.raises(ValidationError, match=r"example\.start: missing"):
        Spec.model_validate(document)


def test_columns_and_known_are_in_the_order_of_the_window() -> None:
    """The derived lists follow the features."""
    spec = _spec()

    assert spec.columns == ["future_0", "target_1", "past_2", "target_3"]
    assert spec.known == ["future_0"]


@pytest.mark.parametrize("name", ["a", "weather", "load-2", "7_days", "a" * 64])
def test_accepts_a_model_name(name: str) -> None:
    """Lower-case letters, digits, hyphens and underscores name a model."""
    assert is_model_name(name)
    assert _spec(name=name).name == name


@pytest.mark.parametrize("name", ["", "../x", "A", "a/b", "a b", ".a", "-a", "a\n", "ä", "a" * 65, "a\0"])
def test_refuses_a_name_that_is_no_folder_and_no_url(name: str) -> None:
    """What could lead out of the store, or needs quoting, names no model."""
    assert not is_model_name(name)
    with pytest.raises(ValidationError):
        _spec(name=name)


def test_attention_rows_divide_the_horizon() -> None:
    """Each attention row tells of the same number of steps."""
    eager = builders.network("attention_lstm", horizon=2)
    good = builders.spec_for(eager, architecture="attention_lstm")
    wrong = good.model_dump() | {"attention_rows": 2, "horizon": 3}
    with pytest.raises(ValidationError, match="attention_rows: 2 do not divide the horizon of 3"):
        Spec.model_validate(wrong)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"gaps": {"method": "carry_forward", "limit": 0}}, "gaps.Gaps.limit: "),
        ({"shortest": 9}, "shortest: 9 is more than the window of 8"),
        ({"clock": False, "calendar": {"features": ["hour"]}}, "clock: a model with a calendar has one"),
        ({"calendar": {"features": ["holiday"]}}, "calendar: Value error, holidays: needed where"),
        ({"calendar": {"features": ["hour"], "holidays": "US"}}, "calendar: Value error, holidays: needed where"),
        ({"calendar": {"features": ["hour", "hour"]}}, "calendar: Value error, features: each at most once"),
        ({"quantiles": [1.0]}, "quantiles.0: "),
        ({"quantiles": [0.5]}, "example.forecast: must be 7 rows of 4 numbers"),
    ],
)
def test_refuses_what_cannot_be(fields: dict[str, object], reason: str) -> None:
    """Gaps, short windows, calendars and quantiles that contradict each other or the example."""
    with pytest.raises(ValidationError) as caught:
        Spec.model_validate(_document(**fields))
    assert any(reason in f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in caught.value.errors())


@pytest.mark.parametrize(
    ("role", "limits", "reason"),
    [
        ("past", {"minimum": 0.0}, "are of targets"),
        ("target", {"minimum": 2.0, "maximum": 2.0}, r"minimum \(2\) must be less than maximum \(2\)"),
        ("target", {"maximum": float("inf")}, "finite"),
    ],
)
def test_limits_that_cannot_be_are_refused(role: str, limits: dict[str, float], reason: str) -> None:
    """They are of what is forecast, and leave room for it."""
    statistics = {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0}
    with pytest.raises(ValidationError, match=reason):
        Feature.model_validate({"name": "a", "role": role, "statistics": statistics, **limits})


def test_columns_of_a_request_are_those_that_change() -> None:
    """A static feature is given once for a window, and is known ahead like a known-future covariate."""
    roles = ("static", "target", "future", "past", "static")
    network = builders.network("lstm", roles=("future", "target", "future", "past", "future"), horizon=2)
    features = builders.features(roles)
    example = builders.example_of(network)
    static = {"window": [row[1:4] for row in example.window], "future": [row[1:2] for row in example.future or []]}
    spec = builders.spec_for(
        network,
        architecture="lstm",
        features=features,
        example=example.model_copy(update={**static, "static": [1.0, 2.0]}),
    )
    assert spec.columns == ["target_1", "future_2", "past_3"]
    assert spec.future == ["future_2"]
    assert spec.static == ["static_0", "static_4"]
    assert spec.known == ["static_0", "future_2", "static_4"]
