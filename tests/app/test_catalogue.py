"""The catalogue: which version a request means, and what it is told where there is none."""

import math
from collections import Counter
from functools import cache

import pytest

from app.errors import InvalidError, NotReadyError, UnknownModelError, UnknownVersionError
from app.forecasts.catalogue import Catalogue, Model, State, Version
from app.ticket import ModelId
from models.spec import Spec
from models.store import Traffic
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
    return Catalogue(dict(models), settled=True)


def meant(found: Catalogue, name: str | None = None, wanted: str | None = None) -> int:
    """The number of the version that a request means."""
    return found.resolve(name, wanted)[0].version


def test_newest_ready_version_is_meant() -> None:
    """Without a wish, and as `latest`, it is the newest of those that are ready."""
    found = catalogue(a=model("a", "unloaded", "ready", "ready", "failed", "loading"))
    assert meant(found) == meant(found, "a") == meant(found, "a", "latest") == 3
    assert found.resolve("a", "2") == (ModelId("a", 2, "sha256:2"), spec(), None)


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ("1", "a: version 1 is unloaded"),
        ("3", "a: version 3 is failed: the example fails"),
        ("4", "a: version 4 is loading"),
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
        (["ready", "loading"], True),
        (["loading"], False),
        (["failed", "unloaded"], False),
    ],
)
def test_ready_once_something_is(states: list[State], ready: bool) -> None:
    """Ready means that something is warm, over all models, once all that was chosen at the start has been tried."""
    assert not Catalogue({"a": model("a", *states)}).ready
    assert catalogue(a=model("a", *states)).ready == ready
    assert catalogue(**{f"m{n}": model(f"m{n}", state) for n, state in enumerate(states)}).ready == ready


# Aliases whose version is not ready


@pytest.mark.parametrize(
    ("states", "previous", "serves"),
    [
        (["ready", "ready", "ready", "loading"], (1, 2), 2),
        (["ready", "failed", "ready", "failed"], (1, 2), 1),
        (["ready", "ready", "unloaded", "failed", "ready"], (), 2),
        (["ready", "ready", "ready", "failed", "ready"], (5,), 5),
        (["ready", "ready", "ready", "failed", "ready"], (9,), 3),
        (["failed", "unloaded", "loading", "failed", "ready"], (2,), 0),
        (["ready", "ready", "ready", "ready"], (1,), 4),
    ],
)
def test_who_answers_for_an_alias(states: list[State], previous: tuple[int, ...], serves: int) -> None:
    """Its version; else what it stood for before, the latest first; else the newest that is older, and no newer one:
    that nobody has promoted."""
    found = catalogue(a=model("a", *states, production=4))
    found.models["a"].traffic["production"] = Traffic(previous=previous)

    assert list(found.answering()) == [("a", "production", 4, serves)]
    assert found.find("a", "production").id.version == 4
    if serves:
        assert meant(found) == meant(found, "a", "production") == serves
    else:
        with pytest.raises(NotReadyError, match="a: version 4 is failed: the example fails"):
            found.resolve("a", "production")


def test_alias_of_what_is_not_published_is_unknown() -> None:
    """By default the newest is meant then; by name it is nothing."""
    found = catalogue(a=model("a", "ready", production=7))

    assert meant(found, "a") == 1
    with pytest.raises(UnknownVersionError):
        found.resolve("a", "production")
    assert list(found.answering()) == [("a", "production", 7, 0)]


# Splits


def split(shares: dict[int, float], *states: State) -> Catalogue:
    """`production` is version 1, and others have shares of its clients."""
    found = catalogue(a=model("a", *(states or ("ready",) * 3), production=1))
    found.models["a"].traffic["production"] = Traffic(split=shares)
    return found


def places(found: Catalogue, clients: int = 4000, wanted: str | None = None) -> list[int]:
    """The version that each client gets."""
    return [
        found.resolve("a", wanted, lambda number=number: f"client {number}").id.version for number in range(clients)
    ]


@pytest.mark.parametrize("shares", [{2: 10}, {2: 0.5}, {2: 50, 3: 50}, {2: 20, 3: 30}])
def test_split_is_as_large_as_it_says(shares: dict[int, float]) -> None:
    """Each version has its share of the clients, as far as chance allows (five standard deviations), and the alias's
    own has the rest."""
    clients = 4000
    found = Counter(places(split(shares), clients))

    for version, share in {1: 100 - sum(shares.values()), **shares}.items():
        spread = math.sqrt(clients * share / 100 * (1 - share / 100))
        assert abs(found[version] - clients * share / 100) <= 5 * spread
    assert found.keys() <= {1, *shares}


def test_client_keeps_its_version() -> None:
    """However often it asks, in whatever process: which one that is depends on model, alias and client alone."""
    assert places(split({2: 50}), 12) == places(split({2: 50}), 12) == [2, 1, 1, 2, 2, 2, 1, 2, 1, 2, 1, 1]


def test_growing_share_takes_nobody_back() -> None:
    """Whoever had the candidate has it still when more get it."""
    before, after = places(split({2: 10})), places(split({2: 25}))

    assert all(later == 2 for earlier, later in zip(before, after, strict=True) if earlier == 2)
    assert after.count(2) > before.count(2)


def test_models_are_split_independently() -> None:
    """The same clients are not the guinea pigs of every model."""
    found = split({2: 50})
    found.models["b"] = found.models["a"]
    elsewhere = [found.resolve("b", None, lambda number=number: f"client {number}").id.version for number in range(200)]

    assert places(found, 200) != elsewhere


def test_candidate_that_is_not_ready_gets_nobody() -> None:
    """Its clients are answered by the alias's version, and those of the other candidate keep theirs."""
    whole, broken = places(split({2: 30, 3: 30})), places(split({2: 30, 3: 30}, "ready", "failed", "ready"))

    assert [1 if version == 2 else version for version in whole] == broken
    gone = split({9: 100})
    assert set(places(gone, 20)) == {1}


def test_only_the_alias_is_split() -> None:
    """Not a number, not `latest`, not another alias; and nobody is asked who they are without a split."""
    found = split({2: 100})
    found.models["a"].aliases["canary"] = 3

    assert set(places(found, 20)) == set(places(found, 20, "production")) == {2}
    for wanted, version in (("1", 1), ("latest", 3), ("canary", 3)):
        assert found.resolve("a", wanted, lambda: pytest.fail("asked")).id.version == version
    assert found.resolve("a", None).id.version == 1


def test_any_text_is_a_client() -> None:
    """Also one that is no Unicode."""
    assert split({2: 50}).resolve("a", None, lambda: "\udcff\x00").id.version in (1, 2)


def test_split_of_a_version_that_fell_back() -> None:
    """Those of the rest get what stands in; the candidate's keep it."""
    found = split({3: 50}, "ready", "failed", "ready")
    found.models["a"].aliases["production"] = 2

    assert set(places(found, 50)) == {1, 3}


# Shadows


@pytest.mark.parametrize(("state", "shadow"), [("ready", 2), ("loading", None), ("failed", None), ("unloaded", None)])
def test_shadow_is_asked_only_once_it_is_ready(state: State, shadow: int | None) -> None:
    """By requests for the alias, whoever answers them, and by no others."""
    found = split({3: 50}, "ready", state, "ready")
    found.models["a"].traffic["production"] = Traffic(split={3: 50}, shadow=2)

    shadows = [found.resolve("a", None, lambda number=number: str(number)).shadow for number in range(20)]
    assert {one and one.id.version for one in shadows} == {shadow}
    assert found.resolve("a", "latest").shadow is None
    assert found.resolve("a", "1").shadow is None
    found.models["a"].traffic["production"] = Traffic(shadow=9)
    assert found.resolve("a", None).shadow is None
