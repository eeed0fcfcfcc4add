"""The Open Inference Protocol, version 2: what its answers are beside those of /forecast, and what is refused how."""

import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import numpy as np
import pytest

from models.core import Surroundings
from models.spec import Gaps
from models.store import Store
from tests.app import calibrated
from tests.app.serving import application, running, serving
from tests.builders import START, publish_tiny

TINY, FULL = "/v2/models/tiny", "/v2/models/full"
FULL_PARTS: dict[str, Any] = {
    "architecture": "attention_lstm",
    "config": {"hidden": 4, "layers": 1, "attention_size": 4},
    "roles": ("target", "past", "future", "static"),
    "window": 5,
    "horizon": 2,
    "surroundings": Surroundings(gaps=Gaps(method="carry_forward", limit=3), short=True),
    "clock": True,
    "intervals": calibrated.intervals(),
}
RANDOM = np.random.default_rng(0)
WINDOW = RANDOM.normal(10, 1, (2, 8, 1)).astype(np.float32)
ROWS = RANDOM.normal(12, 1, (2, 5, 3)).astype(np.float32)
FUTURE = RANDOM.normal(20, 1, (2, 3, 1)).astype(np.float32)
STATIC = np.array([[25.0], [26.0]], np.float32)
SECONDS = np.array([int(START.timestamp()), int(START.timestamp()) + 3600], np.int64)
BODY = {
    "windows": ROWS.tolist(),
    "future": FUTURE.tolist(),
    "static": STATIC.tolist(),
    "start": ["2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"],
}
"""What these are to /forecast."""


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """Of a model that takes a window alone, and one that takes and gives all that there is."""
    root = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root))
    publish_tiny(Store(root), "full", table=calibrated.table().pack(), **FULL_PARTS)
    async with serving(root, max_steps=50, max_body_bytes=100_000) as client:
        yield client


def tensor(name: str, values: np.ndarray, *, flat: bool = True) -> dict[str, Any]:
    """As JSON has it."""
    datatype = {"float32": "FP32", "float64": "FP64", "int64": "INT64"}[values.dtype.name]
    data = (values.ravel() if flat else values).tolist()
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "data": data}


def full() -> list[dict[str, Any]]:
    """All that the full model takes."""
    return [tensor("WINDOW", ROWS), tensor("TIME", SECONDS), tensor("FUTURE", FUTURE), tensor("STATIC", STATIC)]


def packed(request: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    """The same with all of its tensors as bytes, and the headers for it."""
    behind = b""
    for one in request["inputs"]:
        dtype = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8"}[one["datatype"]]
        content = np.array(one.pop("data"), dtype).tobytes()
        one["parameters"] = {"binary_data_size": len(content)}
        behind += content
    head = json.dumps(request).encode()
    return head + behind, {"Inference-Header-Content-Length": str(len(head))}


def outputs(response: httpx.Response) -> dict[str, np.ndarray]:
    """The tensors of an answer by name, however they are written."""
    assert response.status_code == 200, response.text
    content = response.content
    length = int(response.headers.get("inference-header-content-length", len(content)))
    head, behind = json.loads(content[:length]), content[length:]
    found = {}
    for one in head["outputs"]:
        assert one["datatype"] == "FP32"
        size = one.get("parameters", {}).get("binary_data_size")
        values = np.array(one["data"], np.float32) if size is None else np.frombuffer(behind[:size], "<f4")
        behind = behind if size is None else behind[size:]
        found[one["name"]] = values.reshape(one["shape"])
    assert behind == b""
    return found


async def infer(client: httpx.AsyncClient, path: str, inputs: list[dict[str, Any]], **fields: object) -> httpx.Response:
    """Ask it in JSON; no content type is named."""
    return await client.post(f"{path}/infer", content=json.dumps({"inputs": inputs, **fields}))


async def forecast(client: httpx.AsyncClient, model: str, body: dict[str, Any], **options: object) -> dict[str, Any]:
    """What /forecast says of the same."""
    response = await client.post("/forecast", params={"model": model, **options}, json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


# Forecasts


@pytest.mark.anyio
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("flat", [True, False])
async def test_forecast_is_that_of_the_other_endpoint(client: httpx.AsyncClient, steps: int, *, flat: bool) -> None:
    """To the last bit, for each window, however the numbers are nested."""
    response = await infer(client, TINY, [tensor("WINDOW", WINDOW, flat=flat)], parameters={"steps": steps}, id="mine")
    right = await forecast(client, "tiny", {"windows": WINDOW.tolist()}, steps=steps)

    np.testing.assert_array_equal(outputs(response)["FORECAST"], np.array(right["forecasts"], np.float32))
    said = response.json()
    assert (said["model_name"], said["model_version"], said["id"]) == ("tiny", "1", "mine")
    assert said["parameters"] == {"digest": right["digest"]}
    assert response.headers["content-type"] == "application/json"


@pytest.mark.anyio
async def test_everything_at_once(client: httpx.AsyncClient) -> None:
    """Times, known future, static features and a gap go in; attention and intervals come out, as from /forecast."""
    rows = ROWS.copy()
    rows[1, 2, 0] = np.nan
    given = full()
    given[0]["data"] = [None if np.isnan(one) else one for one in rows.ravel().tolist()]
    response = await infer(client, FULL, given, parameters={"steps": 3, "level": "80,90"})
    body = BODY | {"windows": [[[None if np.isnan(x) else x for x in row] for row in one] for one in rows.tolist()]}
    right = await forecast(client, "full", body, steps=3, level="80,90")

    found = outputs(response)
    assert list(found) == ["FORECAST", "ATTENTION", "LOWER_80", "UPPER_80", "LOWER_90", "UPPER_90"]
    wanted = {"FORECAST": right["forecasts"], "ATTENTION": right["attention"]["weights"]}
    for level in ("80", "90"):
        wanted |= {f"{side.upper()}_{level}": right["intervals"][level][side] for side in ("lower", "upper")}
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], np.array(values, np.float32))


@pytest.mark.anyio
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
async def test_tensors_as_bytes(client: httpx.AsyncClient, dtype: type) -> None:
    """In bytes they go in, and in bytes they come out where that is asked for, of all or of one."""
    in_json = outputs(await infer(client, FULL, full(), parameters={"steps": 3, "level": 80}))
    given = full()
    for index, values in ((0, ROWS), (2, FUTURE)):
        given[index] = tensor("WINDOW" if values is ROWS else "FUTURE", values.astype(dtype))
    request = {"inputs": given, "parameters": {"steps": 3, "level": 80, "binary_data_output": True}}
    body, headers = packed(request)
    every = await client.post(f"{FULL}/infer", content=body, headers=headers)
    request["inputs"] = full()
    request["outputs"] = [{"name": "ATTENTION", "parameters": {"binary_data": False}}, {"name": "LOWER_80"}]
    body, headers = packed(request)
    mixed = await client.post(f"{FULL}/infer", content=body, headers=headers)

    assert every.headers["content-type"] == mixed.headers["content-type"] == "application/octet-stream"
    found = outputs(every)
    assert list(found) == list(in_json)
    for name, values in in_json.items():
        np.testing.assert_array_equal(found[name], values)
    length = int(mixed.headers["inference-header-content-length"])
    attention, lower = json.loads(mixed.content[:length])["outputs"]
    assert "data" in attention
    assert lower["parameters"] == {"binary_data_size": 2 * 3 * 4}
    np.testing.assert_array_equal(outputs(mixed)["LOWER_80"], in_json["LOWER_80"])


@pytest.mark.anyio
async def test_bytes_in_alone_are_answered_in_json(client: httpx.AsyncClient) -> None:
    """Nothing was said of the answer."""
    body, headers = packed({"inputs": [tensor("WINDOW", WINDOW)]})
    response = await client.post(f"{TINY}/infer", content=body, headers=headers)

    assert "inference-header-content-length" not in response.headers
    assert outputs(response)["FORECAST"].shape == (2, 1, 1)


@pytest.mark.anyio
async def test_body_that_is_one_window(client: httpx.AsyncClient) -> None:
    """A raw request is a window of FP32 and nothing else; all of its outputs are bytes."""
    headers = {"Inference-Header-Content-Length": "0"}
    response = await client.post(f"{TINY}/infer", content=WINDOW[0].tobytes(), headers=headers)
    right = await forecast(client, "tiny", {"window": WINDOW[0].tolist()}, steps=1)
    refused = await client.post(f"{FULL}/infer", content=ROWS[0].tobytes(), headers=headers)

    np.testing.assert_array_equal(outputs(response)["FORECAST"][0], np.array(right["forecast"], np.float32))
    assert refused.status_code == 422
    assert refused.json()["error"].startswith("inputs: TIME and FUTURE and STATIC missing")


@pytest.mark.anyio
async def test_outputs_that_were_asked_for(client: httpx.AsyncClient) -> None:
    """Those and no others, in that order; bounds need no level beside their names."""
    asked = [{"name": "UPPER_90"}, {"name": "FORECAST"}, {"name": "LOWER_85.5"}]
    found = outputs(await infer(client, FULL, full(), outputs=asked, parameters={"steps": 2, "level": "80"}))
    right = await forecast(client, "full", BODY, steps=2, level="85.5,90")

    assert list(found) == ["UPPER_90", "FORECAST", "LOWER_85.5"]
    np.testing.assert_array_equal(found["UPPER_90"], np.array(right["intervals"]["90"]["upper"], np.float32))
    np.testing.assert_array_equal(found["LOWER_85.5"], np.array(right["intervals"]["85.5"]["lower"], np.float32))


@pytest.mark.anyio
async def test_attention_is_not_computed_for_nothing(client: httpx.AsyncClient) -> None:
    """A forecast that was asked for alone is that of /forecast without attention, and the cache has it from there."""
    body = BODY | {"windows": (ROWS + 1).tolist()}
    given = [tensor("WINDOW", ROWS + 1), *full()[1:]]
    await forecast(client, "full", body, steps=3, attention="none")
    alone = await infer(client, FULL, given, outputs=[{"name": "FORECAST"}], parameters={"steps": 3})
    attended = await infer(client, FULL, given, parameters={"steps": 3, "attention": "last"})

    assert alone.headers["x-cache"] == "hit"
    assert attended.headers["x-cache"] == "miss"
    assert outputs(attended)["ATTENTION"].shape == (2, 1, 5)


@pytest.mark.anyio
async def test_steps_are_those_of_one_pass_by_default(client: httpx.AsyncClient) -> None:
    """As many as the model gives at a time; times may stand in a row or in a column."""
    given = full()
    given[1] = tensor("TIME", SECONDS[:, None])
    assert outputs(await infer(client, FULL, given))["FORECAST"].shape == (2, 2, 1)


@pytest.mark.anyio
@pytest.mark.parametrize("rows", [2, 5])
async def test_short_histories(client: httpx.AsyncClient, rows: int) -> None:
    """Where the model takes fewer rows, so does the tensor, and its time is that of the first of them."""
    given = full()
    given[0] = tensor("WINDOW", ROWS[:, :rows])
    found = outputs(await infer(client, FULL, given, parameters={"steps": 2}))
    right = await forecast(client, "full", BODY | {"windows": ROWS[:, :rows].tolist()}, steps=2)

    np.testing.assert_array_equal(found["FORECAST"], np.array(right["forecasts"], np.float32))


@pytest.mark.anyio
async def test_nan_is_a_gap(client: httpx.AsyncClient) -> None:
    """In bytes, and as the token that Triton's clients write in JSON."""
    rows = ROWS.copy()
    rows[0, 1, 1] = np.nan
    given = full()
    in_json = json.dumps({"inputs": [tensor("WINDOW", rows), *given[1:]]})
    body, headers = packed({"inputs": [tensor("WINDOW", rows), *given[1:]]})
    written = await client.post(f"{FULL}/infer", content=in_json)
    as_bytes = await client.post(f"{FULL}/infer", content=body, headers=headers)
    refused = await infer(client, TINY, [tensor("WINDOW", np.full_like(WINDOW, np.nan))])

    assert "NaN" in in_json
    np.testing.assert_array_equal(outputs(written)["FORECAST"], outputs(as_bytes)["FORECAST"])
    assert (refused.status_code, refused.json()["error"]) == (
        422,
        "WINDOW[0][0][0]: NaN, but the model does not fill gaps",
    )


@pytest.mark.anyio
@pytest.mark.parametrize(
    "parameters",
    [
        {"priority": 1, "timeout": 20_000_000},
        {"priority": 7},
        {"priority": "bulk"},
        {"priority": "interactive"},
        {"triton_enable_empty_final_response": True, "sequence_id": 0, "timeout": 0},
        {"level": 80, "band": "path"},
        {"level": "80", "adaptive": True},
    ],
)
async def test_parameters_are_taken(client: httpx.AsyncClient, parameters: dict[str, Any]) -> None:
    """Those that are options elsewhere, those of Triton, and those that its clients may send."""
    response = await infer(client, FULL, full(), parameters=parameters)
    assert response.status_code == 200, response.text


@pytest.mark.anyio
async def test_deadline_in_microseconds(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A timeout that passes is the 504 of a deadline that does; it is never rounded down to none."""
    root = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root))
    async with serving(root, max_steps=100_000, max_row_steps=200_000) as client:
        response = await infer(client, TINY, [tensor("WINDOW", WINDOW)], parameters={"steps": 50_000, "timeout": 1})
    assert response.status_code in (503, 504)
    assert response.json().keys() == {"error"}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("accepted", "name", "unpack"),
    [
        ("gzip", "gzip", gzip.decompress),
        ("deflate", "deflate", zlib.decompress),
        ("deflate;q=1, gzip;q=0.5", "deflate", zlib.decompress),
        ("br, gzip;q=0", None, bytes),
        ("gzip;q=x", None, bytes),
        ("identity", None, bytes),
    ],
)
async def test_answers_are_packed_as_asked(
    client: httpx.AsyncClient, accepted: str, name: str | None, unpack: Callable[[bytes], bytes]
) -> None:
    """With gzip or deflate where the client takes it, and the length of the JSON is that of what was packed."""
    several = np.tile(WINDOW, (4, 1, 1))
    request = {"inputs": [tensor("WINDOW", several)], "parameters": {"steps": 50, "binary_data_output": True}}
    headers = {"Accept-Encoding": accepted, "Content-Encoding": "gzip"}
    content = gzip.compress(json.dumps(request).encode())
    async with client.stream("POST", f"{TINY}/infer", content=content, headers=headers) as response:
        sent = b"".join([piece async for piece in response.aiter_raw()])
    plain = unpack(sent)

    assert response.headers.get("content-encoding") == name
    assert response.headers["vary"] == "Accept-Encoding"
    length = int(response.headers["inference-header-content-length"])
    assert len(plain) == length + 8 * 50 * 4
    assert json.loads(plain[:length])["outputs"][0]["shape"] == [8, 50, 1]


# What is refused


def changed(index: int, **fields: object) -> list[dict[str, Any]]:
    """What the full model takes, with one tensor otherwise."""
    given = full()
    given[index] |= fields
    return given


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no inputs": ({}, "inputs: needed"),
    "empty inputs": ({"inputs": []}, "inputs: 0 of them"),
    "field": ({"inputs": full(), "output": []}, "output: unknown field; did you mean 'outputs'?"),
    "field of an input": ({"inputs": changed(0, type="FP32")}, "inputs[0].type: unknown field"),
    "parameter": ({"inputs": full(), "parameters": {"step": 3}}, "parameters.step: unknown parameter; did you mean"),
    "steps": ({"inputs": full(), "parameters": {"steps": "3"}}, "parameters.steps: "),
    "many steps": ({"inputs": full(), "parameters": {"steps": 51}}, "parameters.steps: 51 is above the ceiling of 50"),
    "level": ({"inputs": full(), "parameters": {"level": "x"}}, "parameters.level: 'x' is no percentage"),
    "uncalibrated": ({"inputs": full(), "parameters": {"level": 80, "steps": 4}}, "FUTURE: 3 rows for 4 steps"),
    "priority": ({"inputs": full(), "parameters": {"priority": -1}}, "parameters.priority: "),
    "timeout": ({"inputs": full(), "parameters": {"timeout": 10**9}}, "parameters.timeout: at most 30000"),
    "adaptive": ({"inputs": full(), "parameters": {"adaptive": True}}, "parameters: band and adaptive are of"),
    "adaptive band": (
        {"inputs": full(), "parameters": {"adaptive": True, "band": "path", "level": 80}},
        "parameters.adaptive: ",
    ),
    "sequence": ({"inputs": full(), "parameters": {"sequence_id": 5}}, "parameters.sequence_id: the service keeps"),
    "no attention": (
        {"inputs": full(), "outputs": [{"name": "ATTENTION"}], "parameters": {"attention": "none"}},
        "parameters.attention: none, but ATTENTION is among the outputs",
    ),
    "id": ({"inputs": full(), "id": 5}, "id: a string is needed, not a number"),
    "output": ({"inputs": full(), "outputs": [{"name": "FORCAST"}]}, "outputs[0].name: the model gives no 'FORCAST'"),
    "long level": ({"inputs": full(), "outputs": [{"name": "LOWER_80.0"}]}, "outputs[0].name: the model gives no"),
    "output twice": ({"inputs": full(), "outputs": [{"name": "FORECAST"}] * 2}, "outputs[1].name: 'FORECAST' is there"),
    "classes": (
        {"inputs": full(), "outputs": [{"name": "FORECAST", "parameters": {"classification": 2}}]},
        "outputs[0].parameters.classification: there are no classes",
    ),
    "shared memory": (
        {"inputs": changed(0, parameters={"shared_memory_region": "x"})},
        "inputs[0].parameters.shared_memory_region: there is no shared memory",
    ),
    "missing input": ({"inputs": full()[:1]}, "inputs: TIME and FUTURE and STATIC missing"),
    "strange input": ({"inputs": changed(0, name="WINDOWS")}, "inputs[0].name: the model takes no 'WINDOWS'; did you"),
    "input twice": ({"inputs": [full()[0], *full()]}, "inputs[1].name: 'WINDOW' is there twice"),
    "datatype": ({"inputs": changed(0, datatype="FP16")}, "inputs[0].datatype: 'FP16' is not taken for WINDOW"),
    "datatype of times": ({"inputs": changed(1, datatype="FP32")}, "inputs[1].datatype: 'FP32' is not taken for TIME"),
    "dimensions": ({"inputs": changed(0, shape=[5, 3])}, "inputs[0].shape: 2 dimensions; WINDOW has 3: [-1, -1, 3]"),
    "no size": ({"inputs": changed(0, shape=[2, 0, 3])}, "inputs[0].shape[1]: a size is a whole number from 1 on"),
    "numbers": ({"inputs": changed(0, shape=[2, 5, 4])}, "inputs[0].data: 30 numbers, but the shape is [2, 5, 4]"),
    "columns": ({"inputs": changed(0, shape=[2, 5, 2], data=[1.0] * 20)}, "WINDOW[0][0]: 2 numbers; the model takes 3"),
    "text": ({"inputs": changed(0, data=["a"] * 30)}, "inputs[0].data[0]: a number is needed, not a string"),
    "boolean": ({"inputs": changed(0, data=[1.0] * 29 + [True])}, "inputs[0].data[29]: a number is needed"),
    "too large": ({"inputs": changed(0, data=[1.0] * 29 + [1e39])}, "inputs[0].data[29]: 1e+39 is not a finite"),
    "ragged": ({"inputs": changed(0, data=[[[1.0] * 3] * 5, [[1.0] * 3] * 4])}, "inputs[0].data[1]: 4 items"),
    "known gap": ({"inputs": changed(2, data=[1.0, None] * 3)}, "inputs[2].data[1]: null, but only a window may"),
    "times": ({"inputs": changed(1, data=[0, 1.5])}, "inputs[1].data[1]: whole numbers of 64 bits are needed"),
    "before 1970": ({"inputs": changed(1, data=[0, -1])}, "TIME[1]: -1 is not within the years 1970 to 9999"),
    "one time": ({"inputs": changed(1, data=[0], shape=[1])}, "inputs[1].shape: for 1 windows, but there are 2"),
    "static rows": ({"inputs": changed(3, data=[0.0], shape=[1, 1])}, "inputs[3].shape: for 1 windows, but there"),
    "static columns": ({"inputs": changed(3, data=[0.0] * 4, shape=[2, 2])}, "STATIC[0]: 2 numbers; the model takes 1"),
    "both": ({"inputs": changed(0, parameters={"binary_data_size": 4})}, "inputs[0]: exactly one of 'data' and"),
    "beyond": (
        {"inputs": [{**full()[0], "data": None, "parameters": {"binary_data_size": 4}}]},
        "inputs[0].parameters.binary_data_size: not a number of bytes within the 0 that are left",
    ),
}


@pytest.mark.anyio
@pytest.mark.parametrize("case", REFUSED)
async def test_refusal_names_the_place(client: httpx.AsyncClient, case: str) -> None:
    """In the words of the protocol, with the status that the same fault has elsewhere."""
    request, error = REFUSED[case]
    response = await client.post(f"{FULL}/infer", content=json.dumps(request))

    assert response.status_code == 422
    assert response.json().keys() == {"error"}
    assert response.json()["error"].startswith(error)


@pytest.mark.anyio
@pytest.mark.parametrize("length", ["-1", "x", "99", "9" * 30, ""])
async def test_lengths_that_are_none(client: httpx.AsyncClient, length: str) -> None:
    """A header that says nothing sensible of the body is refused, whatever the body is."""
    headers = {"Inference-Header-Content-Length": length}
    response = await client.post(f"{TINY}/infer", content=b"{}", headers=headers)
    assert response.status_code == 400
    assert response.json()["error"].startswith("Inference-Header-Content-Length: ")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("shape", "size", "error"),
    [
        ([2**31 - 1] * 3, 64, "inputs[0]: 64 bytes, but the shape"),
        ([2, 8, 1], 60, "64 bytes behind the JSON, of which the inputs are 60"),
        ([2, 8, 1], 68, "inputs[0].parameters.binary_data_size: not a number"),
        ([2, 8, 1], True, "inputs[0].parameters.binary_data_size: not a number"),
    ],
)
async def test_sizes_that_do_not_fit(client: httpx.AsyncClient, shape: list[int], size: int, error: str) -> None:
    """Bytes are as many as the shape says and as are sent; nothing is made room for on the word of either."""
    one = {"name": "WINDOW", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [one]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    response = await client.post(f"{TINY}/infer", content=head + WINDOW.tobytes(), headers=headers)

    assert response.status_code == (400 if size == 60 else 422)
    assert response.json()["error"].startswith(error)


@pytest.mark.anyio
async def test_numbers_in_bytes_that_are_none(client: httpx.AsyncClient) -> None:
    """Infinity, and what no float32 holds, are told where they are."""
    for values, error in (
        (np.where(np.arange(16).reshape(2, 8, 1) == 9, np.inf, WINDOW), "WINDOW[1][1][0]: inf is not a finite"),
        (np.full((2, 8, 1), 1e39), "WINDOW[0][0][0]: 1e+39 is not a finite"),
    ):
        body, headers = packed({"inputs": [tensor("WINDOW", values)]})
        response = await client.post(f"{TINY}/infer", content=body, headers=headers)
        assert (response.status_code, response.json()["error"].partition(" 32")[0]) == (422, error)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/nobody", 404),
        ("POST", "/v2/models/nobody/infer", 404),
        ("POST", "/v2/models/tiny/versions/7/infer", 404),
        ("GET", "/v2/models/tiny/versions/x/stats", 404),
        ("GET", "/v2/models/tiny/infer", 405),
        ("POST", "/v2/models/tiny", 405),
        ("DELETE", "/v2", 405),
        ("POST", "/v2/models/tiny/infer?steps=3", 422),
        ("POST", "/v2/repository/models/tiny/load", 403),
        ("POST", "/v2/models/tiny/infer", 400),
    ],
)
async def test_errors_have_the_shape_of_the_protocol(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    """Whoever raises them: routing, the gate, or what reads bodies."""
    response = await client.request(method, path, content=b"[")
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.json().keys() == {"error"}
    assert response.json()["error"]


@pytest.mark.anyio
async def test_errors_of_what_surrounds_requests(client: httpx.AsyncClient) -> None:
    """Bodies that are too large, or packed in ways that nobody reads, are told in the same shape."""
    large = await client.post(f"{TINY}/infer", content=b"x" * 200_000)
    strange = await client.post(f"{TINY}/infer", content=b"x", headers={"Content-Encoding": "zstd"})
    elsewhere = await client.post("/v1/timeseries/forecast", content=b"x" * 200_000)

    assert (large.status_code, strange.status_code, elsewhere.status_code) == (413, 415, 413)
    assert large.json().keys() == strange.json().keys() == {"error"}
    assert elsewhere.json()["error"]["type"] == "body-too-large"


@pytest.mark.anyio
async def test_overload_is_told_when_to_come_again(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A 503 has its Retry-After here too; a server without a model is not ready."""
    store = Store(tmp_path_factory.mktemp("store"))
    publish_tiny(store)
    store.want("tiny", 1, loaded=False)
    async with running(application(store.root)) as client:
        infer_, ready, live = [
            await client.request(*asked)
            for asked in (("POST", f"{TINY}/infer"), ("GET", "/v2/health/ready"), ("GET", "/v2/health/live"))
        ]
        model = await client.get(f"{TINY}/ready")

    assert (infer_.status_code, infer_.headers["retry-after"]) == (503, "1")
    assert infer_.json()["error"] == "tiny: no version of it is ready"
    assert (ready.status_code, ready.json()) == (503, {"live": True, "ready": False})
    assert (live.status_code, live.json()) == (200, {"live": True})
    assert (model.status_code, model.json()) == (503, {"name": "tiny", "ready": False})


# What is said of models


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v2", "/v2/"])
async def test_server(client: httpx.AsyncClient, path: str) -> None:
    """It says its name and which extensions it has."""
    said = (await client.get(path)).json()
    assert said["name"] == "foretell"
    assert {"binary_tensor_data", "statistics", "model_configuration", "model_repository"} <= set(said["extensions"])


@pytest.mark.anyio
async def test_health(client: httpx.AsyncClient) -> None:
    """Server and models are ready, a version by whatever name."""
    assert (await client.get("/v2/health/live")).json() == {"live": True}
    assert (await client.get("/v2/health/ready")).json() == {"live": True, "ready": True}
    for path in (f"{TINY}/ready", f"{TINY}/versions/1/ready", f"{TINY}/versions/latest/ready"):
        assert (await client.get(path)).json() == {"name": "tiny", "ready": True}


@pytest.mark.anyio
@pytest.mark.parametrize("part", ["", "/versions/1", "/versions/latest"])
async def test_metadata_is_what_is_taken_and_given(client: httpx.AsyncClient, part: str) -> None:
    """All tensors with their types and shapes, and no others; the configuration says the same without the windows."""
    said = (await client.get(f"{FULL}{part}")).json()
    configured = (await client.get(f"{FULL}{part}/config")).json()

    assert (said["name"], said["versions"], said["platform"]) == ("full", ["1"], "pytorch_torchscript")
    assert [(one["name"], one["datatype"], one["shape"]) for one in said["inputs"]] == [
        ("WINDOW", "FP32", [-1, -1, 3]),
        ("TIME", "INT64", [-1, 1]),
        ("FUTURE", "FP32", [-1, -1, 1]),
        ("STATIC", "FP32", [-1, 1]),
    ]
    bounds = [(f"{side}_{level}", [-1, -1, 1]) for level in (80, 90) for side in ("LOWER", "UPPER")]
    assert [(one["name"], one["shape"]) for one in said["outputs"]] == [
        ("FORECAST", [-1, -1, 1]),
        ("ATTENTION", [-1, -1, 5]),
        *bounds,
    ]
    assert said["properties"]["columns"] == "target_0,past_1,future_2"
    for kind in ("input", "output"):
        assert [(one["name"], one["dims"]) for one in configured[kind]] == [
            (one["name"], one["shape"][1:]) for one in said[f"{kind}s"]
        ]
    assert configured["max_batch_size"] == 1024
    assert configured["response_cache"] == {"enable": True}


@pytest.mark.anyio
async def test_what_metadata_lists_can_all_be_asked_for(client: httpx.AsyncClient) -> None:
    """Every output, by name, at once."""
    listed = [one["name"] for one in (await client.get(FULL)).json()["outputs"]]
    found = outputs(await infer(client, FULL, full(), outputs=[{"name": name} for name in listed]))
    assert list(found) == listed


@pytest.mark.anyio
async def test_plain_model_says_so(client: httpx.AsyncClient) -> None:
    """It takes a whole window and gives a forecast."""
    said = (await client.get(TINY)).json()
    assert [(one["name"], one["shape"]) for one in said["inputs"]] == [("WINDOW", [-1, 8, 1])]
    assert [one["name"] for one in said["outputs"]] == ["FORECAST"]
