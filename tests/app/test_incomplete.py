"""Requests that lack something, end to end: gaps, oldest rows, what never changes; each as the network says."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from models.core import Surroundings
from models.spec import Gaps
from models.store import Store
from tests.app.serving import serving
from tests.builders import network, publish_tiny

pytestmark = pytest.mark.anyio

NAN = float("nan")
LENGTH, SHORTEST, STEPS = 8, 5, 5
PARTS: dict[str, Any] = {
    "architecture": "lstm",
    "config": {"hidden": 4, "layers": 1},
    "roles": ("target", "static", "future", "past", "target"),
    "window": LENGTH,
    "horizon": 2,
    "surroundings": Surroundings(gaps=Gaps(method="interpolate", limit=3, mask=True), short=True),
}
COLUMNS = ("target_0", "future_2", "past_3", "target_4")


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """A service of a model that takes all of it."""
    root = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root), "rich", **PARTS, series="station")
    async with serving(root) as client:
        yield client


def rows_of(count: int = LENGTH, seed: int = 0) -> np.ndarray:
    """Plausible rows [n, C] without the static feature."""
    return np.random.default_rng(seed).normal([10, 20, 25, 30], [1, 3, 4, 5], (count, 4)).astype(np.float32)


AHEAD = np.arange(20, 20 + STEPS, dtype=np.float32)[:, None]


def right(rows: np.ndarray, static: float) -> np.ndarray:
    """What the network itself says [N, T] of a window that is filled up in front with rows of nothing."""
    window = np.full((1, LENGTH, 5), NAN, np.float32)
    window[0, LENGTH - len(rows) :, [0, 2, 3, 4]] = rows.T
    window[:, :, 1] = static
    future = np.stack([np.full(STEPS, static, np.float32), AHEAD[:, 0]], 1)
    with torch.inference_mode():
        forecast, _ = network(**PARTS).rollout(
            torch.from_numpy(window), torch.zeros(1, dtype=torch.int64), torch.from_numpy(future)[None], STEPS
        )
    return forecast[0].numpy()


def listed(rows: np.ndarray) -> list[list[float | None]]:
    """As JSON has them."""
    return [[None if np.isnan(value) else float(value) for value in row] for row in rows]


def holed(seed: int = 0) -> np.ndarray:
    """Rows with a run of three, a single hole and one at either end."""
    rows = rows_of(seed=seed)
    rows[2:5, 0] = rows[0, 2] = rows[7, 3] = rows[3, 3] = NAN
    return rows


async def ask(client: httpx.AsyncClient, body: object, **headers: str) -> httpx.Response:
    """The answer to a request that must go well."""
    content: dict[str, Any] = {"content": body} if isinstance(body, str) else {"json": body}
    response = await client.post("/forecast", params={"steps": STEPS}, headers=headers, **content)
    assert response.status_code == 200, response.text
    return response


async def test_gaps_are_filled_by_the_model(client: httpx.AsyncClient) -> None:
    """What is null goes to the network as missing."""
    body = {"window": listed(holed()), "future": AHEAD.tolist(), "static": {"static_1": 14.5}}

    answer = (await ask(client, body)).json()

    np.testing.assert_allclose(answer["forecast"], right(holed(), 14.5), rtol=1e-4)


@pytest.mark.parametrize("count", range(SHORTEST, LENGTH))
async def test_short_windows(client: httpx.AsyncClient, count: int) -> None:
    """Fewer rows are the last ones, whether those before are left out or null."""
    rows = rows_of()[-count:]
    beside = {"future": AHEAD.tolist(), "static": [14.5]}
    nulls: list[list[float | None]] = [[None] * 4] * (LENGTH - count)

    short = await ask(client, {"window": listed(rows), **beside})
    whole = await ask(client, {"window": nulls + listed(rows), **beside})

    np.testing.assert_allclose(short.json()["forecast"], right(rows, 14.5), rtol=1e-4)
    assert whole.headers["x-cache"] == "hit"
    assert whole.content == short.content


async def test_windows_of_several_lengths(client: httpx.AsyncClient) -> None:
    """Each is forecast as it would be alone."""
    windows, statics = [rows_of(5, 1), holed(2), rows_of(7, 3)], [14.0, 15.0, 16.0]

    answer = await ask(
        client,
        {
            "windows": [listed(rows) for rows in windows],
            "future": [AHEAD.tolist()] * 3,
            "static": [[14.0], {"static_1": 15.0}, [16.0]],
        },
    )

    for found, rows, static in zip(answer.json()["forecasts"], windows, statics, strict=True):
        np.testing.assert_allclose(found, right(rows, static), rtol=1e-4)


async def test_series_in_a_table(client: httpx.AsyncClient) -> None:
    """Mixed rows of several stations, one of them short, the other with a row left out and cells empty; CSV back."""
    windows = {"LGA": (holed(4), 15.0), "JFK": (rows_of(6, 5), 16.0)}
    lines = ["station,static_1,past_3,time,target_4,target_0,future_2"]
    for hour in range(LENGTH + STEPS):
        for name, (rows, static) in windows.items():
            row = hour - (LENGTH - len(rows))
            cells = [NAN] * 4 if row >= len(rows) else rows[max(row, 0)].tolist()
            if row >= len(rows):
                cells[1] = float(AHEAD[row - len(rows), 0])
            texts = ["" if np.isnan(cell) else repr(cell) for cell in cells]
            if row >= 0:
                moment = f"2026-01-01T{hour:02}:00"
                lines.append(f"{name},{static},{texts[2]},{moment},{texts[3]},{texts[0]},{texts[1]}")
    left_out = next(index for index, line in enumerate(lines) if line.startswith("JFK") and "T04:00" in line)
    del lines[left_out]
    windows["JFK"][0][2] = NAN
    headers = {"Content-Type": "text/csv"}

    answer = (await ask(client, "\n".join(lines), **headers)).json()
    table = (await ask(client, "\n".join(lines), **headers, Accept="text/csv")).text.splitlines()

    assert answer["series"] == ["LGA", "JFK"]
    for found, (rows, static) in zip(answer["forecasts"], windows.values(), strict=True):
        np.testing.assert_allclose(found, right(rows, static), rtol=1e-4)
    assert answer["timestamps"][0] == answer["timestamps"][1]
    assert answer["timestamps"][0][0] == "2026-01-01T08:00:00Z"
    assert table[0] == "station,time,step,target_0,target_4"
    assert [line.split(",")[:3] for line in (table[1], table[-1])] == [
        ["LGA", "2026-01-01T08:00:00Z", "1"],
        ["JFK", "2026-01-01T12:00:00Z", "5"],
    ]


async def test_every_thing_that_tells_is_in_the_key(client: httpx.AsyncClient) -> None:
    """Other gaps, another length and other static features are other requests."""
    rows = rows_of(seed=9)
    hole = rows.copy()
    hole[3, 0] = NAN
    zero = rows.copy()
    zero[3, 0] = 0
    bodies = [{"window": listed(window), "static": [14.0]} for window in (rows, hole, zero, rows[1:])]
    bodies.append({"window": listed(rows), "static": [15.0]})

    for _ in range(2):
        answers = [await ask(client, {**body, "future": AHEAD.tolist()}) for body in bodies]

    assert [answer.headers["x-cache"] for answer in answers] == ["hit"] * 5
    assert len({str(answer.json()["forecast"]) for answer in answers}) == 5


@pytest.mark.parametrize(
    ("change", "place", "says"),
    [
        ({"window": listed(rows_of(4))}, "window", "4 rows; the model needs at least 5"),
        ({"window": listed(rows_of(9))}, "window", "9 rows; the model takes at most 8"),
        ({"window": [[None, 1, 1, 1]] * 4 + [[1, 1, 1, 1]] * 4}, "window[0][0]", "more than 3 values missing in a row"),
        ({"window": [[1, None, 1, 1]] * 5}, "window", "no value of 'future_2'"),
        ({"future": [[1]] * 4}, "future", "4 rows for 5 steps: 1 are missing"),
        ({"future": [[1]] * 4 + [[None]]}, "future[4][0]", "null, but only a window may have gaps"),
        ({"static": {"static": 1}}, "static.static_1", "missing"),
        ({"static": [1, 2]}, "static", "2 numbers; the model takes 1: static_1"),
    ],
)
async def test_refusals(client: httpx.AsyncClient, change: dict[str, object], place: str, says: str) -> None:
    """What the model cannot do without is told with its place."""
    body = {"window": listed(rows_of()), "future": AHEAD.tolist(), "static": [14.0], **change}

    response = await client.post("/forecast", params={"steps": STEPS}, json=body)

    assert response.status_code == 422
    error = response.json()["errors"][0]
    assert error["place"] == place
    assert says in error["message"]
