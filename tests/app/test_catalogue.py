"""The catalogue: which version a request means, and what it is told where there is none."""

from functools import cache

import pytest

from app.errors import InvalidError, NotReadyError, UnknownModelError, UnknownVersionError
from app.forecasts.catalogue import Catalogue, Model, State, Version
from app.ticket import ModelId
from models.spec import Spec
from tests.builders import network, spec_for


@cache
def spec() -> Spec:
    return spec_for(network())


def model(name: str, *states: State, **aliases: int) -> Model:
    """A model whose versions, from 1 on, are in these states."""
    versions = {
        number: Version(
            ModelId(name, number, f"sha256:{number}"),
            state,
            "the example fails" if state == "failed" else None,
            spec() if state == "ready" else None,
        )
        for number, state in enumerate(states, 1)
    }
    return Model(versions, aliases)


def catalogue(**models: Model) -> Catalogue:
    return Catalogue(dict(models))


def meant(found: Catalogue, name: str | None = None, wanted: str | None = None) -> int:
    """The number of the version that a request means."""
    return found.resolve(name, wanted)[0].version


def test_newest_ready_version_is_meant() -> None:
    """Without a wish, and as `latest`, it is the newest of those that are ready."""
    found = catalogue(a=model("a", "unloaded", "ready", "ready", "failed", "loading"))
    assert meant(found) == meant(found, "a") == meant(found, "a", "latest") == 3
    assert found.resolve("a", "2") == (ModelId("a", 2, "sha256:2"), spec())


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ("1", "a: version 1 is unloaded"),
        ("3", "a: version 3 is failed: the example fails"),
        ("4", "a: version 4 is loading"),
        ("canary", "a: version 4 is loading"),
    ],
)
def test_version_that_is_not_ready(wanted: str, why: str) -> None:
    """One that is known and not ready is told with its state and its reason, and no other is given instead."""
    found = catalogue(a=model("a", "unloaded", "ready", "failed", "loading", canary=4))
    with pytest.raises(NotReadyError) as refusal:
        found.resolve("a", wanted)
    assert refusal.value.detail == why


def test_ready_without_a_spec_is_not_ready() -> None:
    """A version that cannot say what it takes is given to nobody."""
    found = catalogue(a=model("a", "ready"))
    found.models["a"].versions[1].spec = None
    with pytest.raises(NotReadyError):
        found.resolve("a", "1")


def test_aliases() -> None:
    """An alias stands for its version; `production`, where it is set, is what is meant without a wish."""
    states: list[State] = ["ready", "ready", "ready"]
    assert meant(catalogue(a=model("a", *states, canary=2)), "a") == 3
    found = catalogue(a=model("a", *states, canary=2, production=1))
    assert [meant(found, "a", wanted) for wanted in (None, "canary", "latest", "3")] == [1, 2, 3, 3]


@pytest.mark.parametrize("wanted", ["2", "0", "canary", "01", "-1", "+1", "1e3", "1.0", "", " 1", "٣", "9" * 40])
def test_unknown_versions(wanted: str) -> None:
    """What is no number of a version and no alias is unknown, however much it looks like one."""
    with pytest.raises(UnknownVersionError):
        catalogue(a=model("a", "ready")).resolve("a", wanted)


def test_unknown_model() -> None:
    """A name that is not published is unknown, with and without a version, also where another one is served."""
    found = catalogue(a=model("a", "ready"))
    for ask in (lambda: found.resolve("b", None), lambda: found.find("b", "1"), lambda: found.model("b")):
        with pytest.raises(UnknownModelError):
            ask()
    with pytest.raises(UnknownVersionError):
        found.find("a", "2")
    assert found.find("a", "1").id.version == 1


def test_name_is_needed_where_several_are_served() -> None:
    """The refusal lists them, and only those that are served; one that is not ready leaves no doubt."""
    found = catalogue(b=model("b", "ready"), a=model("a", "ready"), c=model("c", "failed"))
    with pytest.raises(InvalidError, match=r"several are served: a, b$"):
        found.resolve(None, None)
    assert found.resolve(None, None)[0].name == "b" if found.models.pop("a") else None


def test_empty_catalogue() -> None:
    """With nothing published it is not ready, and a request is told so."""
    found = catalogue()
    assert not found.ready
    with pytest.raises(NotReadyError, match="no model is ready"):
        found.resolve(None, None)
    with pytest.raises(UnknownModelError):
        found.resolve("a", None)


@pytest.mark.parametrize(
    ("states", "ready"),
    [
        (["ready"], True),
        (["ready", "failed", "unloaded"], True),
        (["ready", "loading"], False),
        (["loading"], False),
        (["failed", "unloaded"], False),
    ],
)
def test_ready_once_all_have_been_tried(states: list[State], ready: bool) -> None:
    """Ready means that something is warm and nothing is still on its way, over all models."""
    assert catalogue(a=model("a", *states)).ready == ready
    assert catalogue(**{f"m{n}": model(f"m{n}", state) for n, state in enumerate(states)}).ready == ready
