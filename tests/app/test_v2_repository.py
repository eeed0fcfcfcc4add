"""The model repository extension: what there is, and what is loaded and unloaded with a key."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from models.store import Store
from tests.app.keys import Keys, bearing
from tests.app.serving import serving
from tests.builders import publish_tiny

KEY = "x" * 32
LOAD, UNLOAD, INDEX = "/v2/repository/models/tiny/load", "/v2/repository/models/tiny/unload", "/v2/repository/index"


@asynccontextmanager
async def keyed(root: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody with the key, of a service with three versions, the two latest loaded."""
    for seed in range(3):
        publish_tiny(Store(root), seed=seed)
    async with serving(root, admin_key=KEY, versions="latest:2") as client:
        client.headers.update(bearing(KEY))
        yield client


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """For a test that changes what is served."""
    async with keyed(tmp_path) as client:
        yield client


@pytest.fixture(scope="module")
async def steady(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """For those that do not."""
    async with keyed(tmp_path_factory.mktemp("store")) as client:
        yield client


async def states(client: httpx.AsyncClient) -> dict[str, str]:
    """By version."""
    return {one["version"]: one["state"] for one in (await client.post(INDEX)).json()}


@pytest.mark.anyio
async def test_index(steady: httpx.AsyncClient) -> None:
    """Every version with its state, or those that are ready; what is out says why."""
    every = (await steady.post(INDEX)).json()
    ready = (await steady.post(INDEX, json={"ready": True})).json()

    assert [(one["name"], one["version"], one["state"]) for one in every] == [
        ("tiny", "1", "UNAVAILABLE"),
        ("tiny", "2", "READY"),
        ("tiny", "3", "READY"),
    ]
    assert every[0]["reason"]
    assert [one["version"] for one in ready] == ["2", "3"]


@pytest.mark.anyio
async def test_unload_and_load(client: httpx.AsyncClient) -> None:
    """Without a version, all that are loaded go and the newest comes back; with one, that one."""
    unloaded = await client.post(UNLOAD, json={"parameters": {"unload_dependents": False}})
    assert unloaded.status_code == 200
    assert set((await states(client)).values()) == {"UNAVAILABLE"}
    assert (await client.get("/v2/models/tiny/ready")).status_code == 503
    loaded = await client.post(LOAD)
    assert [(one["version"], one["state"]) for one in loaded.json()] == [("3", "READY")]
    assert (await client.get("/v2/models/tiny/ready")).status_code == 200
    one = await client.post(LOAD, json={"parameters": {"version": "1"}})
    assert one.json()[0]["version"] == "1"
    assert await states(client) == {"1": "READY", "2": "UNAVAILABLE", "3": "READY"}
    gone = await client.post(UNLOAD, json={"parameters": {"version": "3"}})
    assert gone.json()[0]["state"] == "UNAVAILABLE"
    assert await states(client) == {"1": "READY", "2": "UNAVAILABLE", "3": "UNAVAILABLE"}


@pytest.mark.anyio
async def test_nothing_goes_where_an_alias_needs_something(client: httpx.AsyncClient) -> None:
    """A model whose alias stands for one of its versions keeps all of them."""
    await client.put("/models/tiny/aliases/production", json={"version": 2})
    response = await client.post(UNLOAD)

    assert response.status_code == 409
    assert "production" in response.json()["error"]
    assert await states(client) == {"1": "UNAVAILABLE", "2": "READY", "3": "READY"}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        (LOAD, b'{"parameters": {"config": "{}"}}', 422, "parameters.config: unknown field; a model is served as"),
        (LOAD, b'{"parameters": {"file:1/model.pt": "AAAA"}}', 422, "parameters.file:1/model.pt: unknown field"),
        (LOAD, b'{"parameters": {"version": 1}}', 422, "parameters.version: "),
        (LOAD, b'{"parameters": {"version": "9"}}', 404, "tiny has no version '9'"),
        (LOAD, b"{", 400, "not JSON"),
        (LOAD, b"[]", 422, "body: "),
        (LOAD.replace("tiny", "nobody"), b"", 404, "there is no model 'nobody'"),
        (UNLOAD.replace("tiny", "nobody"), b"", 404, "there is no model 'nobody'"),
        (INDEX, b'{"ready": 5}', 422, "ready: "),
    ],
)
async def test_refusals(steady: httpx.AsyncClient, path: str, body: bytes, status: int, error: str) -> None:
    """What cannot be done, and what a body may not say."""
    response = await steady.post(path, content=body)
    assert response.status_code == status
    assert response.json()["error"].startswith(error)


@pytest.mark.anyio
async def test_who_may(tmp_path: Path) -> None:
    """Each endpoint takes the scope of its kind: health none, forecasts `predict`, what is served `read`, the rest
    `admin`."""
    publish_tiny(Store(tmp_path))
    keys = Keys(tmp_path)
    held = {scope: keys.add(f"for-{scope}", scope) for scope in ("predict", "read", "admin")}
    needs = {
        ("GET", "/v2/health/ready"): {None, "predict", "read", "admin"},
        ("POST", "/v2/models/tiny/infer"): {"predict"},
        ("POST", "/v1/timeseries/forecast"): {"predict"},
        ("GET", "/v1/timeseries/models"): {"read"},
        ("GET", "/v2"): {"read"},
        ("GET", "/v2/models/tiny"): {"read"},
        ("GET", "/v2/models/tiny/versions/1/stats"): {"read"},
        ("POST", INDEX): {"read"},
        ("POST", LOAD): {"admin"},
    }
    async with serving(tmp_path, keys_file=keys.file) as client:
        for (method, path), allowed in needs.items():
            for scope in (None, *held):
                headers = {} if scope is None else bearing(held[scope])
                response = await client.request(method, path, headers=headers)
                if scope in allowed:
                    assert response.status_code in (200, 400), (path, scope)
                else:
                    assert response.status_code == (401 if scope is None else 403), (path, scope)
                    assert response.json().keys() == {"error"}
