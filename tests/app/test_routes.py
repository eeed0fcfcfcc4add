"""The HTTP interface from the outside: what it answers, what it refuses and where it says the fault is."""

import asyncio
import csv
import hashlib
import io
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import orjson
import pytest
import torch
from torch import Tensor

from app import schemas
from app.device.runtime import Runtime
from app.device.scheduler import Scheduler
from app.lifecycle import Lifecycle
from app.ticket import Part, Ticket
from models import artifact
from models.forecaster import Forecaster
from models.store import ARCHIVE, INDEX, Store
from tests.app.serving import application, metric, running, serving, until
from tests.builders import features, network, publish_tiny, spec_for

pytestmark = pytest.mark.anyio

PLAIN: dict[str, Any] = {"seed": 1}
LEAP: dict[str, Any] = {"roles": ("target", "target"), "horizon": 2}
RICH: dict[str, Any] = {
    "architecture": "attention_lstm",
    "config": {"hidden": 4, "layers": 1, "attention_size": 4},
    "roles": ("target", "past", "future", "target"),
    "horizon": 3,
}
MODELS = {"plain": PLAIN, "leap": LEAP, "rich": RICH}
"""One target a step; two targets in twos; two targets in threes with attention and a known-future covariate."""
ROLES = {name: parts.get("roles", ("target",)) for name, parts in MODELS.items()}


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """A service of all three models, for tests that do not care what was asked before."""
    root = tmp_path_factory.mktemp("store")
    for name, parts in MODELS.items():
        publish_tiny(Store(root), name, **parts)
    async with serving(root, max_queue_rows=20, max_batch_rows=8) as client:
        yield client


def window_of(name: str, seed: int = 0) -> list[list[float]]:
    """Plausible rows for one of the models."""
    columns = features(ROLES[name])
    random = np.random.default_rng(seed)
    rows = random.normal([c.statistics.mean for c in columns], [c.statistics.std for c in columns], (8, len(columns)))
    return rows.astype(np.float32).tolist()


def future_of(steps: int, seed: int = 0) -> list[list[float]]:
    """The known future of the rich model."""
    return np.random.default_rng(seed).normal(20, 3, (steps, 1)).astype(np.float32).tolist()


def body_of(name: str, steps: int = 1, seed: int = 0) -> dict[str, Any]:
    """A whole body for one of the models."""
    body: dict[str, Any] = {"window": window_of(name, seed)}
    return body | {"future": future_of(steps, seed)} if name == "rich" else body


def rolled_out(name: str, body: dict[str, Any], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """What the network itself says: forecast [N, T] and attention [rows, L]."""
    window = torch.tensor([body["window"]])
    future = torch.tensor([body["future"]]) if "future" in body else torch.zeros(1, steps, 0)
    with torch.inference_mode():
        forecast, attention = network(**MODELS[name]).rollout(window, torch.zeros(1, dtype=torch.int64), future, steps)
    return forecast[0].numpy(), attention[0].numpy()


async def ask(client: httpx.AsyncClient, path: str, body: object, **options: object) -> dict[str, Any]:
    """The answer to a request that must go well."""
    response = await client.post(path, json=body, params=options)
    assert response.status_code == 200, response.text
    return orjson.loads(response.content)


# What is answered


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 24])
@pytest.mark.parametrize("name", MODELS)
async def test_forecast_is_what_the_network_says(client: httpx.AsyncClient, name: str, steps: int) -> None:
    """However many passes the steps take, forecast and attention are those of the network rolled out."""
    body = body_of(name, steps)

    answer = await ask(client, "/forecast", body, model=name, steps=steps)

    forecast, attention = rolled_out(name, body, steps)
    np.testing.assert_allclose(answer["forecast"], forecast, rtol=1e-5, atol=1e-5)
    assert answer["steps"] == steps
    if name == "rich":
        assert answer["attention"]["steps_per_row"] == 3
        assert len(answer["attention"]["weights"]) == math.ceil(steps / 3)
        np.testing.assert_allclose(answer["attention"]["weights"], attention, atol=1e-5)
    else:
        assert answer["attention"] is None


@pytest.mark.parametrize("name", MODELS)
async def test_prediction_is_the_first_step(client: httpx.AsyncClient, name: str) -> None:
    """/predict says what /forecast says of the first step, for every target."""
    body = body_of(name)

    answer = await ask(client, "/predict", body, model=name)

    np.testing.assert_allclose(answer["prediction"], rolled_out(name, body, 1)[0][0], rtol=1e-5, atol=1e-5)
    assert "steps" not in answer
    assert answer["targets"] == [f"target_{n}" for n, role in enumerate(ROLES[name]) if role == "target"]


@pytest.mark.parametrize("count", [1, 3, 19])
async def test_several_windows_keep_their_order(client: httpx.AsyncClient, count: int) -> None:
    """Each of several windows is answered as it would be alone, in order, also where they fill several passes."""
    bodies = [body_of("rich", 4, seed) for seed in range(count)]
    several = {"windows": [body["window"] for body in bodies], "future": [body["future"] for body in bodies]}

    predictions = await ask(client, "/predict", several, model="rich")
    forecasts = await ask(client, "/forecast", several, model="rich", steps=4)

    assert "prediction" not in predictions
    assert "forecast" not in forecasts
    for index, body in enumerate(bodies):
        forecast, attention = rolled_out("rich", body, 1)
        np.testing.assert_allclose(predictions["predictions"][index], forecast[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(predictions["attention"]["weights"][index], attention, atol=1e-5)
        forecast, attention = rolled_out("rich", body, 4)
        np.testing.assert_allclose(forecasts["forecasts"][index], forecast, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(forecasts["attention"]["weights"][index], attention, atol=1e-5)


async def test_attention_as_asked_for(client: httpx.AsyncClient) -> None:
    """All rows, the last alone, or no such field; the forecast is the same."""
    body = body_of("rich", 7)

    every, last, none = [
        await ask(client, "/forecast", body, model="rich", steps=7, attention=choice)
        for choice in ("all", "last", "none")
    ]

    assert len(every["attention"]["weights"]) == 3
    assert last["attention"] == {"steps_per_row": 3, "weights": every["attention"]["weights"][-1:]}
    assert "attention" not in none
    assert every["forecast"] == last["forecast"] == none["forecast"]
    np.testing.assert_allclose(np.sum(every["attention"]["weights"], 1), 1, atol=1e-5)


async def test_known_future_changes_the_forecast(client: httpx.AsyncClient) -> None:
    """Each row of the known future tells on its own pass, and rows beyond the last pass on none."""
    body = body_of("rich", 6)
    other = {**body, "future": [*future_of(6)[:4], [50.0], [50.0]]}
    longer = {**body, "future": [*future_of(6), [99.0], [99.0]]}

    usual, changed, more = [
        np.array((await ask(client, "/forecast", b, model="rich", steps=6))["forecast"]) for b in (body, other, longer)
    ]

    assert np.array_equal(usual[:3], changed[:3])
    assert not np.allclose(usual[3:], changed[3:])
    assert np.array_equal(usual, more)


@pytest.mark.parametrize("steps", [1, 2, 6])
async def test_missing_known_future_is_counted(client: httpx.AsyncClient, steps: int) -> None:
    """A known future that is too short is refused with the number of rows that are missing."""
    body = {"window": window_of("rich"), "future": future_of(1)}

    response = await client.post("/forecast", json=body, params={"model": "rich", "steps": steps + 1})

    assert response.status_code == 422
    assert response.json()["errors"] == [
        {"place": "future", "message": f"1 rows for {steps + 1} steps: {steps} are missing"}
    ]


async def test_answers_fit_the_documented_models(client: httpx.AsyncClient) -> None:
    """What the codec writes is, field for field, what the models of the OpenAPI page say."""
    one, several = body_of("rich"), {"windows": [window_of("plain")] * 2}
    answers = [
        (schemas.Prediction, await ask(client, "/predict", one, model="rich")),
        (schemas.Predictions, await ask(client, "/predict", several, model="plain")),
        (schemas.Forecast, await ask(client, "/forecast", one, model="rich", steps=1, attention="none")),
        (schemas.Forecasts, await ask(client, "/forecast", several, model="plain", steps=3)),
        (schemas.ModelList, (await client.get("/models")).json()),
        (schemas.ListedModel, (await client.get("/models/rich")).json()),
        (schemas.Problem, (await client.post("/predict", json={"window": 1})).json()),
    ]

    for model, answer in answers:
        assert model.model_validate(answer, strict=True).model_dump(exclude_unset=True) == answer


async def test_whole_numbers_are_numbers(client: httpx.AsyncClient) -> None:
    """Integers, however long, are read like the same numbers with a point."""
    body = {"window": [[10], [2**40], [-3], [2**63], [2**70], [0], [1], [-1]]}

    answer = await ask(client, "/predict", body, model="plain")

    as_floats = {"window": [[float(value) for value in row] for row in body["window"]]}
    np.testing.assert_allclose(answer["prediction"], rolled_out("plain", as_floats, 1)[0][0], rtol=1e-4)


async def test_quantiles_are_not_shown(tmp_path: Path) -> None:
    """Of a network that forecasts quantiles besides, the answer has the forecast alone, computed or kept."""
    parts: dict[str, Any] = {**LEAP, "architecture": "lstm", "config": {"hidden": 4, "layers": 1}, "quantiles": 2}
    publish_tiny(Store(tmp_path), **parts)
    body = body_of("leap")

    async with serving(tmp_path) as client:
        responses = [await client.post("/forecast?steps=3", json=body) for _ in range(2)]

    with torch.inference_mode():
        outputs, _ = network(**parts).rollout(
            torch.tensor([body["window"]]), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 3, 0), 3
        )
    assert outputs.shape == (1, 3, 6)
    assert [response.headers["x-cache"] for response in responses] == ["miss", "hit"]
    for response in responses:
        np.testing.assert_allclose(response.json()["forecast"], outputs[0, :, :2], rtol=1e-5)


# Other bodies and answers


def table_of(names: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    """As Python writes it."""
    text = io.StringIO()
    csv.writer(text).writerows([names, *rows])
    return text.getvalue().encode()


async def test_one_request_in_three_kinds_of_body(client: httpx.AsyncClient) -> None:
    """JSON, CSV and an array that say the same are the same request: the first is computed, the others are kept."""
    body = body_of("leap", seed=500)
    table = table_of(["target_1", "target_0"], [row[::-1] for row in body["window"]])
    options = {"model": "leap", "steps": 5}

    def ask_as(content_type: str, content: bytes) -> Awaitable[httpx.Response]:
        return client.post("/forecast", content=content, params=options, headers={"Content-Type": content_type})

    first = await ask_as("application/json", orjson.dumps(body))
    others = [await ask_as("text/csv", table), await ask_as("application/x-npy", array_of(body["window"], "f8"))]

    assert first.headers["x-cache"] == "miss"
    for other in others:
        assert other.headers["x-cache"] == "hit"
        assert other.content == first.content


async def test_several_windows_as_an_array(client: httpx.AsyncClient) -> None:
    """An array of three dimensions gets as many forecasts."""
    windows = [window_of("plain", seed) for seed in range(3)]

    response = await client.post(
        "/predict?model=plain", content=array_of(windows), headers={"Content-Type": "application/x-npy"}
    )

    expected = await ask(client, "/predict", {"windows": windows}, model="plain")
    assert response.json() == expected


async def test_known_future_in_a_table(client: httpx.AsyncClient) -> None:
    """Rows behind the window in which nothing else is filled."""
    body = body_of("rich", 4)
    ahead = [["", "", value, ""] for (value,) in body["future"]]
    table = table_of(["target_0", "past_1", "future_2", "target_3"], [*body["window"], *ahead])

    response = await client.post(
        "/forecast?model=rich&steps=4", content=table, headers={"Content-Type": "text/csv; charset=utf-8"}
    )

    assert response.json() == await ask(client, "/forecast", body, model="rich", steps=4)


async def test_answer_as_a_table(client: httpx.AsyncClient) -> None:
    """Accept: text/csv gets the numbers that JSON has; either says that it depends on that."""
    body = body_of("leap", seed=3) | {"start": "2013-06-01T00:00:00Z"}

    table = await client.post("/forecast?model=leap&steps=3", json=body, headers={"Accept": "text/csv"})
    plain = await client.post("/forecast?model=leap&steps=3", json=body, headers={"Accept": "*/*"})

    header, *rows = csv.reader(io.StringIO(table.text, newline=""))
    assert header == ["time", "step", "target_0", "target_1"]
    assert [row[0] for row in rows] == plain.json()["timestamps"]
    assert [[float(cell) for cell in row[2:]] for row in rows] == plain.json()["forecast"]
    assert table.headers["content-type"] == "text/csv; charset=utf-8"
    assert [response.headers["vary"] for response in (table, plain)] == ["Accept", "Accept"]
    assert plain.headers["content-type"] == "application/json"


async def test_refusals_stay_problems(client: httpx.AsyncClient) -> None:
    """Whatever the client would accept, an error is told in the one way that errors are told."""
    response = await client.post("/predict?model=plain", json={}, headers={"Accept": "text/csv"})

    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")


# Which model


async def test_model_may_be_left_out_where_there_is_one(tmp_path: Path) -> None:
    """The one model that is served needs no name; the answer says which version and archive it was."""
    publish_tiny(Store(tmp_path), "only")

    async with serving(tmp_path) as client:
        answer = await ask(client, "/predict", body_of("plain"))

    digest = Store(tmp_path).index().models["only"].versions[1]
    assert (answer["model"], answer["version"], answer["digest"]) == ("only", 1, digest)


async def test_model_is_needed_where_there_are_several(client: httpx.AsyncClient) -> None:
    """Left out among several, the refusal names them."""
    response = await client.post("/predict", json=body_of("plain"))

    assert response.status_code == 422
    assert response.json()["errors"] == [
        {"place": "query.model", "message": "needed, since several are served: leap, plain, rich"}
    ]


async def test_versions_by_number_alias_and_latest(tmp_path: Path) -> None:
    """A number, an alias and `latest` choose a version; without any it is `production` where that is set."""
    store = Store(tmp_path)
    for seed in range(3):
        publish_tiny(store, seed=seed)
    store.point("tiny", "production", 2)
    store.point("tiny", "canary", 3)
    chosen = {"1": 1, "2": 2, "3": 3, "latest": 3, "production": 2, "canary": 3}

    async with serving(tmp_path, versions="all") as client:
        by_name = {
            wanted: (await ask(client, "/predict", body_of("plain"), version=wanted))["version"] for wanted in chosen
        }
        by_default = await ask(client, "/predict", body_of("plain"))
        unknown = [
            await client.post("/predict", json=body_of("plain"), params={"version": wanted})
            for wanted in ("4", "0", "01", "-1", "", "staging", "1.0", "9" * 40)
        ]
        listed = (await client.get("/models/tiny")).json()

    assert by_name == chosen
    assert by_default["version"] == 2
    assert {(response.status_code, response.json()["type"]) for response in unknown} == {
        (404, "urn:foretell:problem:unknown-version")
    }
    assert listed["aliases"] == {"production": 2, "canary": 3}


async def test_only_chosen_versions_are_loaded(tmp_path: Path) -> None:
    """The newest is served, and what an alias stands for; an older one says that it was not chosen."""
    store = Store(tmp_path)
    for seed in range(3):
        publish_tiny(store, seed=seed)
    store.point("tiny", "steady", 1)

    async with serving(tmp_path, versions="latest:1") as client:
        states = {v["version"]: v["state"] for v in (await client.get("/models/tiny")).json()["versions"]}
        refused = await client.post("/predict", json=body_of("plain"), params={"version": 2})

    assert states == {1: "ready", 2: "unloaded", 3: "ready"}
    assert refused.status_code == 503
    assert "not chosen by FORETELL_VERSIONS" in refused.json()["detail"]


# Headers


async def test_cache_answers_the_second_time(tmp_path: Path) -> None:
    """An equal request is a hit with an equal answer; a change in what matters is a miss, in what does not a hit."""
    publish_tiny(Store(tmp_path), **RICH)
    body = body_of("rich", 5)

    async with serving(tmp_path) as client:

        async def post(sent: object = body, path: str = "/forecast", **options: object) -> httpx.Response:
            return await client.post(path, json=sent, params=options)

        first, again = await post(steps=5), await post(steps=5)
        same = [await post(steps=5, attention="last"), await post(steps=5, version=1, model="tiny", deadline_ms=9999)]
        other = [
            await post(steps=4),
            await post(steps=5, attention="none"),
            await post(body_of("rich", 5, seed=1), steps=5),
            await post({**body, "future": future_of(5, seed=1)}, steps=5),
            await post(path="/predict"),
        ]

    assert (first.headers["x-cache"], again.headers["x-cache"]) == ("miss", "hit")
    assert first.content == again.content
    assert [response.headers["x-cache"] for response in same] == ["hit", "hit"]
    assert [response.headers["x-cache"] for response in other] == ["miss"] * 5


async def test_without_a_cache_there_is_no_word_of_it(tmp_path: Path) -> None:
    """With the cache off, equal requests are computed again and X-Cache is not sent."""
    publish_tiny(Store(tmp_path))

    async with serving(tmp_path, cache_bytes=0) as client:
        responses = [await client.post("/predict", json=body_of("plain")) for _ in range(2)]

    assert [response.headers.get("x-cache") for response in responses] == [None, None]
    assert responses[0].content == responses[1].content


async def test_server_timing(client: httpx.AsyncClient) -> None:
    """Server-Timing tells what queue and inference took; a hit took neither."""
    body = body_of("plain", seed=77)

    miss, hit = [await client.post("/predict", json=body, params={"model": "plain"}) for _ in range(2)]

    queue, inference = [part.split(";dur=") for part in miss.headers["server-timing"].split(", ")]
    assert (queue[0], inference[0]) == ("queue", "inference")
    assert float(queue[1]) >= 0
    assert float(inference[1]) > 0
    assert hit.headers["server-timing"] == "queue;dur=0.000, inference;dur=0.000"


@pytest.mark.parametrize("path", ["/predict", "/models", "/nowhere", "/health/live", "/metrics"])
async def test_request_id_is_echoed(client: httpx.AsyncClient, path: str) -> None:
    """A proper X-Request-ID comes back with every kind of answer, and in the body of a refusal."""
    response = await client.get(path, headers={"X-Request-ID": "a-1.b/2"})

    assert response.headers["x-request-id"] == "a-1.b/2"
    if response.status_code >= 400:
        assert response.json()["request_id"] == "a-1.b/2"


@pytest.mark.parametrize("odd", [None, "", "two words", "x" * 129, "tab\there", "bücher", "a\x7f"])
async def test_odd_request_id_is_replaced(client: httpx.AsyncClient, odd: str | None) -> None:
    """Where the request names none that is fit for a log line, it gets one of its own."""
    headers = {} if odd is None else {"X-Request-ID": odd.encode()}

    made = [(await client.get("/models", headers=headers)).headers["x-request-id"] for _ in range(2)]

    assert made[0] != made[1]
    assert all(len(identity) == 32 and identity.isalnum() for identity in made)


# What is refused


class Refusal(NamedTuple):
    """A request to the plain model, and what it must get."""

    status: int
    slug: str
    place: str | None
    """Where the fault is said to be; None where that is no question."""
    says: str
    """A part of the detail."""
    body: bytes | dict[str, object]
    path: str = "/predict?model=plain"
    content_type: str = "application/json"


ROWS: list[list[Any]] = [[float(row)] for row in range(8)]


def with_cell(value: object) -> dict[str, object]:
    """A window with something odd in its third row."""
    return {"window": [*ROWS[:2], [value], *ROWS[3:]]}


def replaced(token: bytes) -> bytes:
    """The same with a token that Python's json would not write."""
    return orjson.dumps(with_cell(1.5)).replace(b"1.5", token)


def array_of(rows: object, dtype: str = "f4") -> bytes:
    """As NumPy writes it."""
    content = io.BytesIO()
    np.save(content, np.array(rows, dtype))
    return content.getvalue()


GOOD: dict[str, object] = {"window": ROWS}
REFUSALS = {
    "too short": Refusal(422, "invalid", "window", "7 rows; the model takes exactly 8", {"window": ROWS[1:]}),
    "too long": Refusal(422, "invalid", "window", "9 rows; the model takes exactly 8", {"window": [*ROWS, [8]]}),
    "short ones": Refusal(422, "invalid", "windows[0]", "7 rows", {"windows": [ROWS[1:], ROWS[1:]]}),
    "NaN": Refusal(422, "invalid", "window[2][0]", "nan is not a finite", replaced(b"NaN")),
    "Infinity": Refusal(422, "invalid", "window[2][0]", "inf is not a finite", replaced(b"-Infinity")),
    "NaN in the second": Refusal(
        422, "invalid", "windows[1][2][0]", "nan", b'{"windows": [[[1],[2],[3]],[[1],[2],[NaN]]]}'
    ),
    "null": Refusal(422, "invalid", "window[2][0]", "null, but the model does not fill gaps", with_cell(None)),
    "true": Refusal(422, "invalid", "window[2][0]", "not a boolean", with_cell(value=True)),
    "string": Refusal(422, "invalid", "window[2][0]", "not a string", with_cell("1.5")),
    "list": Refusal(422, "invalid", "window[2][0]", "not a list", with_cell([1.5])),
    "object": Refusal(422, "invalid", "window[2][0]", "not an object", with_cell({})),
    "beyond float32": Refusal(422, "invalid", "window[2][0]", "1e+39 is not a finite 32-bit", with_cell(1e39)),
    "long integer": Refusal(422, "invalid", "window[2][0]", "not a finite 32-bit number", replaced(b"9" * 60)),
    "beyond float64": Refusal(400, "malformed", None, "not JSON", replaced(b"1e400")),
    "endless integer": Refusal(400, "malformed", None, "not JSON", replaced(b"9" * 5000)),
    "ragged": Refusal(
        422,
        "invalid",
        "window[2]",
        "2 items, but the first beside it has 1",
        {"window": [*ROWS[:2], [2, 2], *ROWS[3:]]},
    ),
    "ragged windows": Refusal(
        422, "invalid", "windows[1]", "7 rows; the model takes exactly 8", {"windows": [ROWS, ROWS[1:]]}
    ),
    "too many columns": Refusal(
        422, "invalid", "window[0]", "2 numbers; the model takes 1: target_0", {"window": [[1, 2]] * 8}
    ),
    "flat": Refusal(422, "invalid", "window[0]", "a list is needed", {"window": [1, 2, 3]}),
    "one too deep": Refusal(422, "invalid", "window[0][0]", "a number is needed, not a list", {"window": [ROWS]}),
    "one too flat": Refusal(422, "invalid", "windows[0][0]", "a list is needed", {"windows": [[1, 2, 3]]}),
    "window is null": Refusal(422, "invalid", "window", "a list is needed, not null", {"window": None}),
    "window is an object": Refusal(422, "invalid", "window", "a list is needed, not an object", {"window": {}}),
    "no rows": Refusal(422, "invalid", "window", "an empty list", {"window": []}),
    "empty rows": Refusal(422, "invalid", "window[0]", "an empty list", {"window": [[]]}),
    "no windows": Refusal(422, "invalid", "windows", "an empty list", {"windows": []}),
    "empty windows": Refusal(422, "invalid", "windows[0]", "an empty list", {"windows": [[]]}),
    "both": Refusal(422, "invalid", "body", "exactly one of", {"window": ROWS, "windows": [ROWS]}),
    "neither": Refusal(422, "invalid", "body", "exactly one of", {}),
    "a list": Refusal(422, "invalid", "body", "a JSON object is needed, not a list", b"[]"),
    "a number": Refusal(422, "invalid", "body", "a JSON object is needed, not a number", b"NaN"),
    "unknown field": Refusal(422, "invalid", "wndow", "unknown field; did you mean 'window'?", {"wndow": ROWS}),
    "endless field": Refusal(422, "invalid", "z" * 80, "unknown field", {"z" * 100_000: 1}),
    "strange field": Refusal(422, "invalid", "zzz", "unknown field", {**GOOD, "zzz": 1}),
    "many windows": Refusal(
        422, "invalid", "windows", "21 windows; a request may have at most 20", {"windows": [ROWS] * 21}
    ),
    "needless future": Refusal(422, "invalid", "future", "no known-future covariates", {**GOOD, "future": [[1.0]]}),
    "needless static": Refusal(422, "invalid", "static", "no static features", {**GOOD, "static": {"area": 1}}),
    "early start": Refusal(422, "invalid", "start", "not within the years", {**GOOD, "start": "1969-06-01T00:00:00Z"}),
    "null future": Refusal(422, "invalid", "future", "not null", {**GOOD, "future": None}),
    "no future": Refusal(
        422,
        "invalid",
        "future",
        "needed: 2 rows of future_2",
        {"window": [[1, 2, 3, 4]] * 8},
        "/forecast?model=rich&steps=2",
    ),
    "wide future": Refusal(
        422,
        "invalid",
        "future",
        "2 numbers a row; the model takes 1",
        {"window": [[1, 2, 3, 4]] * 8, "future": [[1, 2]]},
        "/predict?model=rich",
    ),
    "null in the future": Refusal(
        422,
        "invalid",
        "future[0][0]",
        "null, but only a window may have gaps",
        {"window": [[1, 2, 3, 4]] * 8, "future": [[None]]},
        "/predict?model=rich",
    ),
    "futures for one": Refusal(
        422,
        "invalid",
        "future",
        "for 1 windows, but there are 2",
        {"windows": [[[1, 2, 3, 4]] * 8] * 2, "future": [[[1]]]},
        "/predict?model=rich",
    ),
    "empty body": Refusal(400, "malformed", None, "not JSON", b""),
    "not UTF-8": Refusal(400, "malformed", None, "not JSON", b'{"window": "\xff"}'),
    "cut short": Refusal(400, "malformed", None, "not JSON", b'{"window": [[1],'),
    "text after it": Refusal(400, "malformed", None, "not JSON", b'{"window": [[1]]} x'),
    "nested brackets": Refusal(400, "malformed", None, "not JSON", b"[" * 100_000),
    "nested brackets with NaN": Refusal(400, "malformed", None, "not JSON", b"[" * 100_000 + b"NaN" + b"]" * 100_000),
    "deep in a cell": Refusal(
        422, "invalid", "window[0][0]", "not a list", b'{"window":' + b"[" * 900 + b"1" + b"]" * 900 + b"}"
    ),
    "half a character": Refusal(400, "malformed", None, "not JSON", b'{"window": [[NaN]], "\\ud800": 1}'),
    "another type": Refusal(
        415, "unsupported-media-type", None, "'text/xml' is not read here", GOOD, content_type="text/xml"
    ),
    "no type at all": Refusal(415, "unsupported-media-type", None, "is not read here", GOOD, content_type=";;"),
    "CSV without a column": Refusal(
        422, "invalid", "csv header", "no column 'target_0'", b"target\n1\n", content_type="text/csv; charset=utf-8"
    ),
    "CSV cell": Refusal(
        422,
        "invalid",
        "csv row 2, column 'target_0'",
        "'x' is not a number",
        b"target_0\n1\nx\n",
        content_type="text/csv",
    ),
    "CSV row": Refusal(422, "invalid", "csv row 2", "2 cells", b"target_0\n1\n1,2\n", content_type="text/csv"),
    "open quote": Refusal(400, "malformed", None, "not CSV", b'target_0\n"1\n', content_type="text/csv"),
    "no CSV": Refusal(422, "invalid", "csv header", "there is none", b"", content_type="text/csv"),
    "another charset": Refusal(
        415, "unsupported-media-type", None, "'utf-7' is not read", b"a\n1", content_type="text/csv; charset=utf-7"
    ),
    "no array": Refusal(400, "malformed", None, "not .npy", b"", content_type="application/x-npy"),
    "array of whole numbers": Refusal(
        422, "invalid", "array", "its numbers are int64", array_of(ROWS, "i8"), content_type="application/x-npy"
    ),
    "array with a gap": Refusal(
        422,
        "invalid",
        "array[2][0]",
        "NaN, but the model does not fill gaps",
        array_of([*ROWS[:2], [math.nan], *ROWS[3:]]),
        content_type="application/x-npy",
    ),
    "array of another length": Refusal(
        422, "invalid", "array[0]", "7 rows", array_of([ROWS[1:]] * 2), content_type="application/x-npy"
    ),
    "array without a future": Refusal(
        422,
        "invalid",
        "future",
        "needed: 1 rows of future_2; an array cannot tell: send JSON or CSV",
        array_of([[1, 2, 3, 4]] * 8),
        "/predict?model=rich",
        "application/x-npy",
    ),
    "million steps": Refusal(
        422,
        "invalid",
        "query.steps",
        "1000000 is above the ceiling of 1000",
        GOOD,
        "/forecast?model=plain&steps=1000000",
    ),
    "no steps": Refusal(
        422, "invalid", "query.steps", "greater than or equal to 1", GOOD, "/forecast?model=plain&steps=0"
    ),
    "steps left out": Refusal(422, "invalid", "query.steps", "required", GOOD, "/forecast?model=plain"),
    "steps in words": Refusal(422, "invalid", "query.steps", "valid integer", GOOD, "/forecast?model=plain&steps=ten"),
    "endless steps": Refusal(
        422, "invalid", "query.steps", "above the ceiling", GOOD, f"/forecast?model=plain&steps={'9' * 100}"
    ),
    "unknown option": Refusal(
        422, "invalid", "query", "unknown option 'step'; did you mean 'steps'?", GOOD, "/forecast?model=plain&step=3"
    ),
    "steps of a prediction": Refusal(
        422, "invalid", "query", "unknown option 'steps'", GOOD, "/predict?model=plain&steps=3"
    ),
    "attention in words": Refusal(
        422, "invalid", "query.attention", "'all', 'last' or 'none'", GOOD, "/predict?attention=some"
    ),
    "patience": Refusal(
        422, "invalid", "query.deadline_ms", "at most 30000", GOOD, "/predict?model=plain&deadline_ms=30001"
    ),
    "no patience": Refusal(
        422, "invalid", "query.deadline_ms", "greater than", GOOD, "/predict?model=plain&deadline_ms=0"
    ),
    "unknown model": Refusal(404, "unknown-model", None, "there is no model 'plan'", GOOD, "/predict?model=plan"),
    "unknown version": Refusal(404, "unknown-version", None, "no version '2'", GOOD, "/predict?model=plain&version=2"),
    "odd model": Refusal(
        404, "unknown-model", None, "there is no model", GOOD, "/predict?model=../../etc/passwd%00%FF"
    ),
    "elsewhere": Refusal(404, "not-found", None, "there is nothing at /forcast", GOOD, "/forcast"),
    "not allowed": Refusal(405, "method-not-allowed", None, "POST is not allowed at /models", GOOD, "/models"),
}


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS.keys())
async def test_refusals(client: httpx.AsyncClient, case: Refusal) -> None:
    """Every refusal is a problem document with its status, its kind and the place of the fault, and gives no inside."""
    content = case.body if isinstance(case.body, bytes) else orjson.dumps(case.body)

    response = await client.post(case.path, content=content, headers={"Content-Type": case.content_type})

    assert response.status_code == case.status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    told = schemas.Problem.model_validate_json(response.content)
    assert told.type == f"urn:foretell:problem:{case.slug}"
    assert told.status == case.status
    assert told.request_id == response.headers["x-request-id"]
    assert case.says in told.detail
    assert [error.place for error in told.errors] == ([case.place] if case.place else [])
    assert len(response.content) < 2000
    assert not any(inside in response.text for inside in ("Traceback", ".py", "/work", "/tmp", "site-packages"))


async def test_method_not_allowed_names_those_that_are(client: httpx.AsyncClient) -> None:
    """A 405 says what would be allowed."""
    response = await client.get("/predict")

    assert response.status_code == 405
    assert response.headers["allow"] == "POST"


async def test_deadline_that_passes(tmp_path: Path) -> None:
    """A forecast that cannot be done in time is given up with 504, and its rows leave the queue."""
    publish_tiny(Store(tmp_path))

    async with serving(tmp_path, max_steps=10**6, max_row_steps=10**8) as client:
        options = {"steps": 10**6, "deadline_ms": 20}
        response = await client.post("/forecast", json=body_of("plain"), params=options)
        await until(lambda: nobody_waits(client))
        figures = (await client.get("/metrics")).text

    assert response.status_code == 504
    assert response.json()["type"] == "urn:foretell:problem:deadline"
    assert metric(figures, "foretell_rejected_total", reason="deadline") == 1


async def nobody_waits(client: httpx.AsyncClient) -> bool:
    """Whether the scheduler is empty."""
    return metric((await client.get("/metrics")).text, "foretell_waiting_rows") == 0


async def test_forecast_that_is_not_finite(tmp_path: Path) -> None:
    """A window on which the model overflows is refused with its place, every time, and never kept."""
    publish_tiny(Store(tmp_path), **PLAIN)
    wild = [[3e38 * (-1) ** row] for row in range(8)]

    async with serving(tmp_path) as client:
        alone = [await client.post("/predict", json={"window": wild}) for _ in range(2)]
        among = await client.post("/predict", json={"windows": [window_of("plain"), wild]})
        fine = await ask(client, "/predict", {"window": window_of("plain")})
        figures = (await client.get("/metrics")).text

    for response in alone:
        assert response.status_code == 422
        assert response.json()["type"] == "urn:foretell:problem:not-finite"
        assert response.json()["errors"][0]["place"] == "window"
        assert "target_0 is not finite from step 1 on" in response.json()["detail"]
        assert "x-cache" not in response.headers
    assert among.json()["errors"][0]["place"] == "windows[1]"
    assert math.isfinite(fine["prediction"][0])
    assert metric(figures, "foretell_cache_total", result="hit") == 0


# What is published


async def test_models_are_shown(client: httpx.AsyncClient) -> None:
    """The list, a model and a version tell the same of it; a ready version shows its spec with the example."""
    listed = (await client.get("/models")).json()["models"]
    shown = (await client.get("/models/rich")).json()
    version = (await client.get("/models/rich/versions/1")).json()

    assert sorted(model["name"] for model in listed) == ["leap", "plain", "rich"]
    assert shown in listed
    assert shown["versions"] == [{"version": 1, "state": "ready", "digest": version["digest"]}]
    assert (version["state"], version["reason"]) == ("ready", None)
    assert version["spec"]["window"] == 8
    assert version["spec"]["frequency"] == "PT1H"


async def test_example_of_a_spec_can_be_tried(client: httpx.AsyncClient) -> None:
    """The example that a version shows, sent as it is, gives the answer that it shows."""
    example = (await client.get("/models/rich/versions/1")).json()["spec"]["example"]

    body = {"window": example["window"], "future": example["future"]}
    answer = await ask(client, "/forecast", body, model="rich", steps=example["steps"])

    np.testing.assert_allclose(answer["forecast"], example["forecast"], rtol=1e-5)
    np.testing.assert_allclose(answer["attention"]["weights"], example["attention"], atol=1e-5)


@pytest.mark.parametrize(
    ("path", "status", "slug"),
    [
        ("/models/nothing", 404, "unknown-model"),
        ("/models/rich/versions/2", 404, "unknown-version"),
        ("/models/rich/versions/0", 404, "unknown-version"),
        (f"/models/rich/versions/{'9' * 30}", 404, "unknown-version"),
        ("/models/rich/versions/production", 404, "unknown-version"),
        ("/models/rich/versions", 404, "not-found"),
        ("/models/%2e%2e%2f%2e%2e%2fetc", 404, "not-found"),
        ("/models/%F0%9F%92%A5%00%FF", 404, "unknown-model"),
    ],
)
async def test_what_is_not_published(client: httpx.AsyncClient, path: str, status: int, slug: str) -> None:
    """Names, versions and aliases that do not exist are 404."""
    response = await client.get(path)

    assert (response.status_code, response.json()["type"]) == (status, f"urn:foretell:problem:{slug}")


async def test_the_latest_version_can_be_asked_for(client: httpx.AsyncClient) -> None:
    """By that name, as for a forecast."""
    latest = await client.get("/models/rich/versions/latest")
    assert (latest.status_code, latest.json()["version"]) == (200, 1)


async def test_damaged_archives_stay_out_and_say_why(tmp_path: Path) -> None:
    """Versions whose archive is altered, cut short or gone have failed with a reason; the others serve."""
    store = Store(tmp_path)
    for seed in range(4):
        publish_tiny(store, seed=seed)
    altered, short, gone = (store.archive("tiny", version) for version in (2, 3, 4))
    altered.write_bytes(altered.read_bytes()[:-1] + b"\xff")
    short.write_bytes(short.read_bytes()[:100])
    gone.unlink()

    async with serving(tmp_path, versions="all") as client:
        versions = [(await client.get(f"/models/tiny/versions/{number}")).json() for number in (1, 2, 3, 4)]
        answer = await ask(client, "/predict", body_of("plain"))
        refused = await client.post("/predict", json=body_of("plain"), params={"version": 3})
        figures = (await client.get("/metrics")).text

    assert [version["state"] for version in versions] == ["ready", "failed", "failed", "failed"]
    assert versions[1]["reason"].startswith("digest is sha256:")
    assert versions[2]["reason"].startswith("digest is sha256:")
    assert versions[3]["reason"] == "No such file or directory"
    assert [version["spec"] for version in versions[1:]] == [None] * 3
    assert answer["version"] == 1
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["type"] == "urn:foretell:problem:not-ready"
    assert str(tmp_path) not in refused.text + str(versions)
    for number, state in ((1, "ready"), (2, "failed"), (3, "failed"), (4, "failed")):
        assert metric(figures, "foretell_model_state", version=str(number), state=state) == 1


@pytest.mark.parametrize("index", [None, "{", '{"models": {"tiny": {"versions": {"0": "x"}}}}'])
async def test_store_without_models_is_alive_and_not_ready(tmp_path: Path, index: str | None) -> None:
    """With no index, or one that cannot be read, the service answers that it has nothing to serve."""
    if index is not None:
        (tmp_path / INDEX).write_text(index)
    app = application(tmp_path)

    async with running(app) as client:
        live, ready = await client.get("/health/live"), await client.get("/health/ready")
        listed = await client.get("/models")
        refused = await client.post("/predict", json=body_of("plain"))

    assert (live.status_code, live.json()) == (200, {"live": True})
    assert (ready.status_code, ready.json()) == (503, {"ready": False})
    assert listed.json() == {"models": []}
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:foretell:problem:not-ready")


async def test_archive_that_fails_to_load_keeps_no_other_out(tmp_path: Path) -> None:
    """Where the only archive of a model is none at all, the model is out and the next one still loads."""
    store = Store(tmp_path)
    store.publish("a", write_rubbish)
    publish_tiny(store, "b")

    async with serving(tmp_path) as client:
        failed = (await client.get("/models/a/versions/1")).json()
        answer = await ask(client, "/predict", body_of("plain"))

    assert (failed["state"], failed["reason"]) == ("failed", "not an archive: damaged or cut short")
    assert answer["model"] == "b"


def write_rubbish(_version: int, folder: Path) -> str:
    """What a publisher that went mad would publish, with the right digest of it."""
    (folder / ARCHIVE).write_bytes(b"rubbish")
    return f"sha256:{hashlib.sha256(b'rubbish').hexdigest()}"


class OneRowOnly(Forecaster):
    """A network that cannot be batched, which its example does not show."""

    def encode(self, window: Tensor, time: Tensor) -> list[Tensor]:
        if window.size(0) > 1:
            raise RuntimeError("one row only")
        return self.core.encode(self.scaler.scale_rows(window), time)


async def test_network_that_fails_in_company_keeps_no_other_out(tmp_path: Path) -> None:
    """A network that fails when it is warmed up is out with a reason, and the models after it still load."""
    store = Store(tmp_path)
    built = network()
    brittle = OneRowOnly(built.core, built.scaler).eval()
    store.publish("a", lambda version, folder: artifact.save(brittle, spec_for(brittle, name="a"), folder / ARCHIVE))
    publish_tiny(store, "b")

    async with serving(tmp_path) as client:
        failed = (await client.get("/models/a/versions/1")).json()
        answer = await ask(client, "/predict", body_of("plain"))

    assert (failed["state"], failed["reason"]) == ("failed", "its network fails: Error")
    assert answer["model"] == "b"


# When things go wrong


@asynccontextmanager
async def under_way(client: httpx.AsyncClient, body: object) -> AsyncIterator[asyncio.Task[httpx.Response]]:
    """A forecast that takes far longer than the test."""
    asking = asyncio.create_task(client.post("/forecast", json=body, params={"steps": 10**6}))

    async def accepted() -> bool:
        return metric((await client.get("/metrics")).text, "foretell_waiting_rows") > 0

    await until(accepted)
    yield asking
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking


async def test_full_queue_refuses_at_once(tmp_path: Path) -> None:
    """With as many rows accepted as allowed the next is refused with 503 and Retry-After; then there is room again."""
    publish_tiny(Store(tmp_path))
    two = {"windows": [window_of("plain"), window_of("plain", 1)]}

    async with serving(tmp_path, max_queue_rows=2, max_steps=10**6, max_row_steps=10**8) as client:
        async with under_way(client, two):
            refused = await client.post("/predict", json=body_of("plain", seed=2))
            unread = await client.post("/predict", content=b"not even JSON")
            figures = (await client.get("/metrics")).text
        await ask(client, "/predict", body_of("plain", seed=2))

    for response in (refused, unread):
        assert (response.status_code, response.json()["type"]) == (503, "urn:foretell:problem:queue-full")
        assert int(response.headers["retry-after"]) >= 1
    assert metric(figures, "foretell_rejected_total", reason="queue-full") == 2


async def test_model_that_fails_on_a_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A window on which the model raises is a 500 that tells nothing of it; its neighbours are answered."""
    publish_tiny(Store(tmp_path), **PLAIN)
    run = Runtime.run

    def stumble(self: Runtime, tickets: Sequence[Ticket], go_on: Callable[[], bool]) -> list[Part]:
        if any(ticket.window[0, 0, 0] == 13.0 for ticket in tickets):
            raise RuntimeError("CUDA error at /secret/place")
        return run(self, tickets, go_on)

    monkeypatch.setattr(Runtime, "run", stumble)
    bodies = [body_of("plain", seed=seed) for seed in range(9)]
    bad = {"window": [[13.0]] * 8}

    async with serving(tmp_path) as client:
        answers = await asyncio.gather(
            *(client.post("/predict", json=body) for body in [*bodies[:5], bad, *bodies[5:]])
        )
        again = await client.post("/predict", json=bad)
        live = await client.get("/health/live")

    failed = answers.pop(5)
    for response in (failed, again):
        assert (response.status_code, response.json()["type"]) == (500, "urn:foretell:problem:failed")
        assert "secret" not in response.text
    assert "CUDA error at /secret/place" in caplog.text
    assert live.status_code == 200
    for answer, body in zip(answers, bodies, strict=True):
        np.testing.assert_allclose(answer.json()["prediction"], rolled_out("plain", body, 1)[0][0], rtol=1e-5)


async def test_engine_that_died_is_told_to_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the scheduler's own loop dies, whoever waits is told, and the service is neither alive nor ready."""
    publish_tiny(Store(tmp_path))

    def die(_: Scheduler) -> list[Ticket]:
        raise AssertionError("a bug")

    async with (
        serving(tmp_path, max_steps=10**6, max_row_steps=10**8) as client,
        under_way(client, body_of("plain")) as asking,
    ):
        monkeypatch.setattr(Scheduler, "_next_batch", die)
        waited = await asking
        later = await client.post("/predict", json=body_of("plain", seed=1))
        live, ready = await client.get("/health/live"), await client.get("/health/ready")

    for response in (waited, later):
        assert (response.status_code, response.json()["type"]) == (503, "urn:foretell:problem:engine-died")
    assert (live.status_code, live.json()) == (503, {"live": False})
    assert (ready.status_code, ready.json()) == (503, {"ready": False})


# Health and metrics


async def test_health_of_a_ready_service(client: httpx.AsyncClient) -> None:
    """With a warm model it is alive and ready."""
    live, ready = await client.get("/health/live"), await client.get("/health/ready")

    assert (live.status_code, live.json()) == (200, {"live": True})
    assert (ready.status_code, ready.json()) == (200, {"ready": True})


async def test_draining_is_not_ready_and_still_answers(tmp_path: Path) -> None:
    """Once told to drain it is alive, no longer ready, and answers those who still come."""
    publish_tiny(Store(tmp_path))
    lifecycle = Lifecycle()

    async with running(application(tmp_path, lifecycle)) as client:
        lifecycle.draining = True
        ready, live = await client.get("/health/ready"), await client.get("/health/live")
        await ask(client, "/predict", body_of("plain"))

    assert (ready.status_code, live.status_code) == (503, 200)


async def test_metrics_tell_what_happened(tmp_path: Path) -> None:
    """Counters and histograms equal the traffic that was sent, by route template, status, result and reason."""
    publish_tiny(Store(tmp_path), **PLAIN)
    two = {"windows": [window_of("plain"), window_of("plain", 1)]}

    async with serving(tmp_path) as client:
        before = (await client.get("/metrics")).text
        for _ in range(3):
            await ask(client, "/predict", body_of("plain"))
        await ask(client, "/forecast", two, steps=5)
        for content in (b"", b"{}", b"[]"):
            await client.post("/forecast?steps=2", content=content)
        await client.post("/predict?model=nobody", json=body_of("plain"))
        await client.get("/models/tiny/versions/1")
        await client.get("/no/such/page/1")
        await client.get("/no/such/page/2")
        after = (await client.get("/metrics")).text

    def grown(name: str, **labels: str) -> float:
        return metric(after, name, **labels) - metric(before, name, **labels)

    assert grown("foretell_requests_total", method="POST", route="/predict", status="200") == 3
    assert grown("foretell_requests_total", method="POST", route="/predict", status="404") == 1
    assert grown("foretell_requests_total", route="/forecast", status="200") == 1
    assert grown("foretell_requests_total", route="/forecast", status="400") == 1
    assert grown("foretell_requests_total", route="/forecast", status="422") == 2
    assert grown("foretell_requests_total", route="/models/{name}/versions/{version}") == 1
    assert grown("foretell_requests_total", route="none", status="404") == 2
    assert grown("foretell_requests_total") == 12  # and the first look at /metrics
    assert grown("foretell_request_seconds_count") == 12
    assert grown("foretell_request_seconds_count", route="/forecast") == 4
    assert grown("foretell_cache_total", result="hit") == 2
    assert grown("foretell_cache_total", result="miss") == 2
    assert grown("foretell_cache_total", result="error") == 0
    assert grown("foretell_rejected_total", reason="malformed") == 1
    assert grown("foretell_rejected_total", reason="invalid") == 2
    assert grown("foretell_rejected_total", reason="unknown-model") == 1
    assert grown("foretell_rejected_total", reason="not-found") == 2
    assert grown("foretell_rejected_total") == 6
    assert grown("foretell_pass_rows_count", model="tiny", version="1") == 6
    assert grown("foretell_pass_rows_sum", model="tiny") == 11
    assert grown("foretell_pass_rows_bucket", le="1.0") == 1
    assert grown("foretell_pass_seconds_count") == 6
    assert grown("foretell_queue_seconds_count") == 2
    assert metric(after, "foretell_waiting_rows") == 0
    assert metric(after, "foretell_model_state", model="tiny", version="1", state="ready") == 1
    assert "no/such/page" not in after


async def test_answer_of_gigabytes_is_refused(tmp_path: Path) -> None:
    """A small request whose answer would be huge is refused with its size; without attention it is served."""
    publish_tiny(Store(tmp_path), architecture="attention_lstm")
    body = {"windows": [window_of("plain")] * 3}

    async with serving(tmp_path, max_answer_numbers=100) as client:
        refused = await client.post("/forecast", json=body, params={"steps": 10})
        served = await client.post("/forecast", json=body, params={"steps": 10, "attention": "none"})

    assert refused.status_code == 422
    assert "the answer would have 270 numbers, of at most 100; attention=none" in refused.json()["detail"]
    assert served.status_code == 200
    assert "attention" not in served.json()


async def test_timestamps_count_for_the_size_of_an_answer(tmp_path: Path) -> None:
    """Each takes as long to write as twenty numbers, once for all windows that end together."""
    publish_tiny(Store(tmp_path))
    windows, starts = [window_of("plain")] * 3, [f"2026-01-0{day}T00:00:00Z" for day in (1, 2, 3)]

    async with serving(tmp_path, max_answer_numbers=100) as client:
        apart = await client.post("/forecast?steps=3", json={"windows": windows, "start": starts})
        together = await client.post("/forecast?steps=3", json={"windows": windows, "start": starts[:1] * 3})

    assert apart.json()["errors"][0]["message"] == (
        "the answer would have 189 numbers, of at most 100; timestamps count for 180 of them"
    )
    assert together.status_code == 200
