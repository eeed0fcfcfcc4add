"""Models with a clock: the service tells them when the window was, and never gives one time's forecast for another."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
import torch

from models import artifact
from models.forecaster import Forecaster
from models.seasonal import Seasonal
from models.spec import Example
from models.store import ARCHIVE, Store
from tests.app.serving import serving
from tests.builders import HOUR, inputs, network, publish_tiny, spec_for

pytestmark = pytest.mark.anyio

CYCLE = 6
LENGTH = 8
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "sliding": ("linear", {"cycle": CYCLE}),
    "carried": ("lstm", {"cycle": CYCLE, "hidden": 4, "layers": 1}),
    "half-hourly": ("linear", {"cycle": CYCLE}),
}
"""Both recursions; and one whose rows come twice in each hour of the cycle."""
FREQUENCIES = {"sliding": HOUR, "carried": HOUR, "half-hourly": HOUR / 2}
START = datetime(2013, 6, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """A service of them all, and of one without a clock."""
    root = tmp_path_factory.mktemp("store")
    for name in NETWORKS:
        publish_seasonal(Store(root), name)
    publish_tiny(Store(root), "timeless")
    publish_tiny(Store(root), "new-york", timezone="America/New_York")
    async with serving(root, max_queue_rows=20, max_batch_rows=8) as client:
        yield client


def seasonal(name: str) -> Forecaster:
    """A network with a cycle of hours, each far from the others."""
    architecture, config = NETWORKS[name]
    built = network(architecture, config, window=LENGTH, horizon=2)
    cycle = cast(Seasonal, built.core).cycle
    with torch.no_grad():
        cycle.copy_(torch.arange(CYCLE).unsqueeze(1) ** 2)
    return built


def publish_seasonal(store: Store, name: str) -> None:
    """Publish it, with an example whose time is right."""
    built, (architecture, config), frequency = seasonal(name), NETWORKS[name], FREQUENCIES[name]
    window, time, future = inputs(built, 1, 5)
    with torch.inference_mode():
        forecast, attention = built.rollout(window, time, future, 5)
    example = Example(
        window=window[0].tolist(),
        start=datetime.fromtimestamp(int(time[0]), UTC) - (LENGTH - 1) * frequency,
        future=None,
        steps=5,
        forecast=forecast[0].tolist(),
        attention=attention[0].tolist(),
    )

    def write(version: int, folder: Path) -> str:
        spec = spec_for(
            built,
            name=name,
            version=version,
            architecture=architecture,
            config=config,
            clock=True,
            frequency=frequency,
            example=example,
        )
        return artifact.save(built, spec, folder / ARCHIVE)

    store.publish(name, write)


def window_of(seed: int = 0) -> list[list[float]]:
    """Plausible rows."""
    return np.random.default_rng(seed).normal(10, 1, (LENGTH, 1)).astype(np.float32).tolist()


def right(name: str, window: list[list[float]], start: datetime, steps: int) -> np.ndarray:
    """What the network itself says [N, T] of a window that began then."""
    last = start + (LENGTH - 1) * FREQUENCIES[name]
    with torch.inference_mode():
        forecast, _ = seasonal(name).rollout(
            torch.tensor([window]), torch.tensor([int(last.timestamp())]), torch.zeros(1, steps, 0), steps
        )
    return forecast[0].numpy()


async def ask(client: httpx.AsyncClient, name: str, steps: int, **body: object) -> httpx.Response:
    """The answer to a request that must go well."""
    response = await client.post("/forecast", json=body, params={"model": name, "steps": steps})
    assert response.status_code == 200, response.text
    return response


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("name", NETWORKS)
async def test_forecast_is_of_its_time(client: httpx.AsyncClient, name: str, steps: int) -> None:
    """The network is told the time of the last row, whatever the interval between rows, and each hour is another."""
    window = window_of()
    forecasts = []
    for hours in range(CYCLE):
        start = START + hours * HOUR

        answer = await ask(client, name, steps, window=window, start=start.isoformat())

        forecasts.append(answer.json()["forecast"])
        np.testing.assert_allclose(forecasts[-1], right(name, window, start, steps), rtol=1e-5, atol=1e-5)
    assert len({str(forecast) for forecast in forecasts}) == CYCLE


async def test_each_window_has_its_own_time(client: httpx.AsyncClient) -> None:
    """Several windows, more than fit into one pass, are each forecast from their own start, in order."""
    windows = [window_of(seed) for seed in range(19)]
    starts = [START + (seed * seed % 11) * HOUR for seed in range(19)]

    answer = await ask(client, "carried", 5, windows=windows, start=[start.isoformat() for start in starts])

    for found, window, start in zip(answer.json()["forecasts"], windows, starts, strict=True):
        np.testing.assert_allclose(found, right("carried", window, start, 5), rtol=1e-5, atol=1e-5)


async def test_one_time_is_one_forecast_however_it_is_written(client: httpx.AsyncClient) -> None:
    """Another spelling of the same time is the same request; without an offset the time is UTC."""
    window = window_of(100)
    first = await ask(client, "sliding", 3, window=window, start="2013-06-01T00:00:00Z")

    for spelling in ("2013-06-01", "2013-06-01T00:00", "2013-06-01 00:00:00", "2013-06-01T02:00:00+02:00"):
        again = await ask(client, "sliding", 3, window=window, start=spelling)
        assert again.headers["x-cache"] == "hit"
        assert again.content == first.content


async def test_another_time_is_another_forecast(client: httpx.AsyncClient) -> None:
    """Equal windows of other times share neither an answer in the cache nor work under way."""
    window = window_of(101)
    starts = [START + hours * HOUR for hours in range(CYCLE)]

    together = await asyncio.gather(
        *(ask(client, "sliding", 3, window=window, start=start.isoformat()) for start in starts)
    )
    later = [await ask(client, "sliding", 3, window=window, start=start.isoformat()) for start in starts]

    assert [response.headers["x-cache"] for response in together] == ["miss"] * CYCLE
    assert [response.headers["x-cache"] for response in later] == ["hit"] * CYCLE
    for response, again, start in zip(together, later, starts, strict=True):
        np.testing.assert_allclose(response.json()["forecast"], right("sliding", window, start, 3), rtol=1e-5)
        assert again.content == response.content


ROWS = [[float(row)] for row in range(LENGTH)]


@pytest.mark.parametrize(
    ("model", "body", "place", "says"),
    [
        ("sliding", {"window": ROWS}, "start", "needed"),
        ("sliding", {"windows": [ROWS] * 2}, "start", "needed"),
        ("sliding", {"window": ROWS, "start": "soon"}, "start", "'soon' is not an ISO 8601 time"),
        ("sliding", {"window": ROWS, "start": None}, "start", "not null"),
        ("sliding", {"window": ROWS, "start": "1969-12-31T23:00:00Z"}, "start", "'1969-12-31T23:00:00Z' is not within"),
        ("sliding", {"windows": [ROWS] * 3, "start": ["2013-06-01"] * 2 + ["x"]}, "start[2]", "'x' is not"),
        ("sliding", {"windows": [ROWS] * 3, "start": ["2013-06-01"]}, "start", "for 1 windows, but there are 3"),
        ("sliding", {"windows": [ROWS], "start": "2013-06-01"}, "start", "a list of times is needed"),
        ("timeless", {"window": ROWS, "start": "2013-06-01T25:00"}, "start", "is not an ISO 8601 time"),
        ("new-york", {"window": ROWS, "start": "2013-03-10T02:00"}, "start", "does not exist in America/New_York"),
        ("new-york", {"windows": [ROWS] * 2, "start": ["2013-06-01", "2013-11-03T01:30"]}, "start[1]", "comes twice"),
    ],
)
async def test_refusals(client: httpx.AsyncClient, model: str, body: dict[str, Any], place: str, says: str) -> None:
    """A start that is missing, wrong or of no use is refused with its place."""
    response = await client.post("/predict", json=body, params={"model": model})

    assert response.status_code == 422
    (error,) = response.json()["errors"]
    assert error["place"] == place
    assert says in error["message"]


async def test_answers_say_when(client: httpx.AsyncClient) -> None:
    """With the offset that the model's zone has then, over a change of the clocks, for one window and for several."""
    spring = {"window": ROWS, "start": "2013-03-09T18:00"}
    both = {"windows": [ROWS] * 2, "start": ["2013-03-09T18:00", "2013-11-02T22:00:00Z"]}

    one = (await ask(client, "new-york", 2, **spring)).json()
    several = (await ask(client, "new-york", 2, **both)).json()
    predicted = (await client.post("/predict?model=new-york", json=spring)).json()

    assert one["timestamps"] == ["2013-03-10T03:00:00-04:00", "2013-03-10T04:00:00-04:00"]
    assert several["timestamps"] == [one["timestamps"], ["2013-11-03T01:00:00-05:00", "2013-11-03T02:00:00-05:00"]]
    assert predicted["timestamp"] == one["timestamps"][0]


async def test_without_a_clock_the_time_changes_no_number(client: httpx.AsyncClient) -> None:
    """A model that needs no start takes one, for the timestamps alone: other times share the forecast."""
    first = await ask(client, "timeless", 2, window=ROWS)
    dated = await ask(client, "timeless", 2, window=ROWS, start="2013-06-01")
    later = await ask(client, "timeless", 2, window=ROWS, start="2014-06-01T00:00+02:00")

    assert "timestamps" not in first.json()
    assert dated.json()["timestamps"] == ["2013-06-01T08:00:00Z", "2013-06-01T09:00:00Z"]
    assert later.json()["timestamps"] == ["2014-06-01T06:00:00Z", "2014-06-01T07:00:00Z"]
    assert [response.headers["x-cache"] for response in (dated, later)] == ["hit", "hit"]
    assert first.json()["forecast"] == dated.json()["forecast"] == later.json()["forecast"]


async def test_the_time_in_a_table(client: httpx.AsyncClient) -> None:
    """Its first row's is the window's start."""
    rows = [f"2013-06-01T{row:02}:00:00Z,{row}.5" for row in range(LENGTH)]
    table = "\n".join(["time,target_0", *rows])

    response = await client.post("/forecast?model=sliding&steps=3", content=table, headers={"Content-Type": "text/csv"})

    window = [[row + 0.5] for row in range(LENGTH)]
    np.testing.assert_allclose(response.json()["forecast"], right("sliding", window, START, 3), rtol=1e-5)
    assert response.json()["timestamps"][0] == "2013-06-01T08:00:00Z"


async def test_the_last_moment(client: httpx.AsyncClient) -> None:
    """A window that begins within the years and ends after them is forecast like any other."""
    answer = await ask(client, "sliding", 3, window=ROWS, start="9999-12-31T23:59:59Z")

    assert np.isfinite(answer.json()["forecast"]).all()


async def test_spec_says_what_is_needed(client: httpx.AsyncClient) -> None:
    """A version shows that it has a clock and the time between its rows; its example, sent as it is, comes out."""
    spec = (await client.get("/models/half-hourly/versions/1")).json()["spec"]
    example = spec["example"]

    answer = await ask(client, "half-hourly", example["steps"], window=example["window"], start=example["start"])

    assert (spec["clock"], spec["frequency"]) == (True, "PT30M")
    np.testing.assert_allclose(answer.json()["forecast"], example["forecast"], rtol=1e-5)
