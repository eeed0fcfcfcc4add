"""KServe's time series API: what its answers are beside those of /forecast, and what cannot be asked through it."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from models.store import Store
from tests.app import calibrated
from tests.app.serving import serving
from tests.builders import publish_tiny

PATH = "/v1/timeseries/forecast"
SERIES = np.random.default_rng(0).normal(10, 1, 10).astype(np.float32).tolist()
ROWS = np.random.default_rng(1).normal(10, 1, (8, 2)).astype(np.float32).tolist()


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """Of a model of one column with a clock and intervals, one of two columns, and one that needs more."""
    root = tmp_path_factory.mktemp("store")
    calibrated.publish(root, "one", clock=True, timezone="Europe/Vienna")
    publish_tiny(Store(root), "two", roles=("target", "target"))
    publish_tiny(Store(root), "more", roles=("target", "future"))
    async with serving(root) as client:
        yield client


def one(values: list[Any], **fields: object) -> dict[str, Any]:
    """A series of one column."""
    said = {"type": "univariate_time_series", "name": "load", "series": values, "frequency": "H"}
    return {**said, "start_timestamp": "2026-03-28T20:00:00", **fields}


def request(*inputs: dict[str, Any], model: str = "one", **options: object) -> dict[str, Any]:
    """For three steps."""
    return {"model": model, "inputs": list(inputs), "options": {"horizon": 3, **options}}


@pytest.mark.anyio
async def test_answer_is_that_of_forecast(client: httpx.AsyncClient) -> None:
    """Of every series its last rows count; quantiles are the bounds of intervals, the middle one the forecast; times go
    on over the change to summer time."""
    second = one(SERIES[:8], name="other", frequency="hour", start_timestamp="2026-01-01T00:00:00Z")
    asked = request(one(SERIES), second, quantiles=[0.1, 0.5, 0.9, 0.05])
    response = await client.post(PATH, json=asked | {"metadata": {"who": "me"}})
    windows = [[[value] for value in SERIES[2:]], [[value] for value in SERIES[:8]]]
    start = ["2026-03-28T22:00:00+01:00", "2026-01-01T00:00:00Z"]
    other = await client.post("/forecast?model=one&steps=3&level=80,90", json={"windows": windows, "start": start})
    right = other.json()

    assert response.status_code == 200
    said = response.json()
    assert (said["status"], said["model"]) == ("completed", "one")
    assert [output["content"][0]["name"] for output in said["outputs"]] == ["load", "other"]
    for index, output in enumerate(said["outputs"]):
        (content,) = output["content"]
        assert content["type"] == "univariate_time_series"
        assert content["start_timestamp"] == right["timestamps"][index][0]
        assert content["mean_forecast"] == [step[0] for step in right["forecasts"][index]]
        for quantile, level, side in (("0.1", "80", "lower"), ("0.9", "80", "upper"), ("0.05", "90", "lower")):
            bounds = right["intervals"][level][side][index]
            assert content["quantiles"][quantile] == [step[0] for step in bounds]
        assert content["quantiles"]["0.5"] == content["mean_forecast"]
    assert said["outputs"][0]["content"][0]["start_timestamp"] == "2026-03-29T07:00:00+02:00"


@pytest.mark.anyio
async def test_several_columns(client: httpx.AsyncClient) -> None:
    """Rows in, rows out; without a start there is none in the answer."""
    asked = {"type": "multivariate_time_series", "name": "x", "series": ROWS, "frequency": "hour"}
    response = await client.post(PATH, json=request(asked, model="two"))
    right = await client.post("/forecast?model=two&steps=3", json={"window": ROWS})

    (content,) = response.json()["outputs"][0]["content"]
    assert content["mean_forecast"] == right.json()["forecast"]
    assert (content["type"], content.get("start_timestamp")) == ("multivariate_time_series", None)


@pytest.mark.anyio
async def test_models(client: httpx.AsyncClient) -> None:
    """Their names."""
    assert sorted((await client.get("/v1/timeseries/models")).json()) == ["more", "one", "two"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (request(one(SERIES), one(SERIES, start_timestamp=None)), "inputs[1].start_timestamp"),
        (request(one(SERIES, start_timestamp=None)), "inputs[0].start_timestamp"),
        (request(one(SERIES, start_timestamp="x")), "inputs[0].start_timestamp"),
        (request(one(SERIES, start_timestamp="9999-12-31T23:00:00Z")), "inputs[0].start_timestamp"),
        (request(one(SERIES[:7])), "inputs[0].series"),
        (request(one(["a"])), "inputs[0].series[0]"),
        (request(one([None] * 8)), "inputs[0].series[0][0]"),
        (request(one(SERIES, frequency="D")), "inputs[0].frequency"),
        (request(one(SERIES, frequency="M")), "inputs[0].frequency"),
        (request(one(SERIES, frequency="fortnight")), "inputs[0].frequency"),
        (request(one(SERIES, type="x")), "inputs[0].type"),
        (request(one(SERIES, color="x")), "inputs[0].color"),
        (request(one(SERIES), model="two"), "inputs[0].series"),
        (request(one(SERIES), model="more"), "model"),
        (request(one(SERIES), quantiles=[1.5]), "options.quantiles[0]"),
        (request(one(SERIES), quantiles=[0.001]), "options.quantiles"),
        (request(one(SERIES), horizon=0), "options.horizon"),
        (request(one(SERIES), horizon=4, quantiles=[0.1]), "options.horizon"),
        (request(one(SERIES), horizon=10_000), "options.horizon"),
        (request(one(SERIES), temperature=1), "options.temperature"),
        ({"model": "one", "inputs": [], "options": {"horizon": 1}}, "inputs"),
        ({"inputs": [one(SERIES)], "options": {"horizon": 1}}, "model"),
        ({"model": "one", "inputs": [one(SERIES)]}, "options"),
        (request(one(SERIES)) | {"metadata": 5}, "metadata"),
        ([], "body"),
    ],
)
async def test_refusal_names_the_place(client: httpx.AsyncClient, asked: object, param: str) -> None:
    """In the shape of that API, and in its words."""
    response = await client.post(PATH, json=asked)

    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["code"], error["type"], error["param"]) == ("422", "invalid", param)
    assert error["message"].startswith(param)


@pytest.mark.anyio
async def test_other_refusals(client: httpx.AsyncClient) -> None:
    """What is no JSON, and a model that there is not."""
    malformed = await client.post(PATH, content=b"{")
    unknown = await client.post(PATH, json=request(one(SERIES), model="nobody"))

    assert (malformed.status_code, malformed.json()["error"]["type"]) == (400, "malformed")
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "unknown-model")
