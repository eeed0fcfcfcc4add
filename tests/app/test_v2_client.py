"""Triton's own client, unchanged, against the real processes: everything of it that makes sense for forecasts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from models.store import Store
from tests.app import calibrated
from tests.app.keys import bearing
from tests.app.serving import Process, process, wait_until
from tests.builders import START, publish_tiny

KEY = "x" * 32
WINDOW = np.random.default_rng(0).normal(10, 1, (3, 8, 1)).astype(np.float32)
SECONDS = np.full((3, 1), int(START.timestamp()), np.int64)
PACKED = [None, "gzip", "deflate"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Two HTTP processes and an engine, with a plain model and one with a clock, attention and intervals."""
    root: Path = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root), "plain")
    calibrated.publish(
        root, "rich", clock=True, architecture="attention_lstm", config={"hidden": 4, "layers": 1, "attention_size": 4}
    )
    with process(root, HTTP_PROCESSES=2, ADMIN_KEY=KEY, ACCESS_LOG="false") as service:
        yield service


@pytest.fixture(scope="module")
def client(service: Process) -> Iterator[triton.InferenceServerClient]:
    """Triton's."""
    with triton.InferenceServerClient(service.url.removeprefix("http://")) as client:
        yield client


def inputs(model: str, *, binary: bool) -> list[triton.InferInput]:
    """What each of the models takes."""
    given = {"WINDOW": WINDOW} if model == "plain" else {"WINDOW": WINDOW, "TIME": SECONDS}
    made = []
    for name, values in given.items():
        made.append(triton.InferInput(name, list(values.shape), "INT64" if name == "TIME" else "FP32"))
        made[-1].set_data_from_numpy(values, binary_data=binary)
    return made


def right(service: Process, model: str, steps: int, **options: object) -> dict[str, Any]:
    """What /forecast says of the same."""
    body: dict[str, Any] = {"windows": WINDOW.tolist()}
    if model == "rich":
        body["start"] = [START.isoformat()] * len(WINDOW)
    response = httpx.post(f"{service.url}/forecast", params={"model": model, "steps": steps, **options}, json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_health(client: triton.InferenceServerClient) -> None:
    """Live, ready, and the models by version; what is not there is not."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("plain")
    assert client.is_model_ready("rich", "1")
    assert not client.is_model_ready("nobody")


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("model", ["plain", "rich"])
def test_forecast_is_that_of_the_service(
    service: Process, client: triton.InferenceServerClient, model: str, packing: str | None, *, binary: bool
) -> None:
    """To the last bit: in JSON and in bytes, packed in either way or not, with what the client sends by itself."""
    outputs = None if binary else [triton.InferRequestedOutput("FORECAST", binary_data=False)]
    result = client.infer(
        model,
        inputs(model, binary=binary),
        outputs=outputs,
        request_id="mine",
        priority=1,
        timeout=20_000_000,
        request_compression_algorithm=packing,
        response_compression_algorithm=packing,
        parameters={"steps": 200},
    )

    np.testing.assert_array_equal(
        result.as_numpy("FORECAST"), np.array(right(service, model, 200)["forecasts"], np.float32)
    )
    said = result.get_response()
    assert (said["model_name"], said["model_version"], said["id"]) == (model, "1", "mine")


def test_attention_and_intervals(service: Process, client: triton.InferenceServerClient) -> None:
    """They are among the outputs, and those of /forecast."""
    result = client.infer("rich", inputs("rich", binary=True), parameters={"steps": 3, "level": "80"})
    said = right(service, "rich", 3, level="80")

    for name, values in (
        ("ATTENTION", said["attention"]["weights"]),
        ("LOWER_80", said["intervals"]["80"]["lower"]),
        ("UPPER_80", said["intervals"]["80"]["upper"]),
    ):
        np.testing.assert_array_equal(result.as_numpy(name), np.array(values, np.float32))


def test_metadata_leads_to_a_forecast(client: triton.InferenceServerClient) -> None:
    """Whoever knows nothing but what the server says can ask every model for every output."""
    for name in ("plain", "rich"):
        said, config = client.get_model_metadata(name), client.get_model_config(name)
        assert [one["name"] for one in config["input"]] == [one["name"] for one in said["inputs"]]
        given = []
        for one in said["inputs"]:
            shape = [2 if size == -1 else size for size in one["shape"]]
            values = np.ones(shape, {"FP32": np.float32, "INT64": np.int64}[one["datatype"]])
            given.append(triton.InferInput(one["name"], shape, one["datatype"]))
            given[-1].set_data_from_numpy(values)
        outputs = [triton.InferRequestedOutput(one["name"]) for one in said["outputs"]]
        result = client.infer(name, given, outputs=outputs)
        for one in said["outputs"]:
            found = result.as_numpy(one["name"])
            assert [size for size, listed in zip(found.shape, one["shape"], strict=True) if listed != -1] == [
                size for size in one["shape"] if size != -1
            ]
    assert client.get_server_metadata()["name"] == "foretell"


def test_statistics_are_of_all_processes(service: Process, client: triton.InferenceServerClient) -> None:
    """Requests on many connections come to every HTTP process; whichever is asked soon tells of all of them."""
    before = client.get_inference_statistics("plain")["model_stats"][0]
    body = {"inputs": [{"name": "WINDOW", "datatype": "FP32", "shape": [1, 8, 1], "data": list(range(8))}]}
    for seed in range(30):
        body["inputs"][0]["data"][0] = seed + 100
        if seed % 2:
            response = httpx.post(f"{service.url}/v2/models/plain/infer", json=body)
        else:
            window = [[float(one)] for one in body["inputs"][0]["data"]]
            response = httpx.post(f"{service.url}/predict?model=plain", json={"window": window})
        assert response.status_code == 200

    def seen() -> set[tuple[int, int, int]]:
        """What some connections find: requests, windows and passes."""
        found = [httpx.get(f"{service.url}/v2/models/plain/stats").json()["model_stats"][0] for _ in range(6)]
        return {
            (one["inference_stats"]["success"]["count"], one["inference_count"], one["execution_count"])
            for one in found
        }

    wanted = (before["inference_stats"]["success"]["count"], before["inference_count"], before["execution_count"])
    wait_until(lambda: seen() == {tuple(one + 30 for one in wanted)})


def test_repository(service: Process, client: triton.InferenceServerClient) -> None:
    """The client lists, unloads and loads, with a key."""
    assert {(one["name"], one["state"]) for one in client.get_model_repository_index()} == {
        ("plain", "READY"),
        ("rich", "READY"),
    }
    with pytest.raises(InferenceServerException, match="a key is needed"):
        client.unload_model("plain")
    client.unload_model("plain", headers=bearing(KEY))
    wait_until(lambda: set(service.statuses("/v2/models/plain/ready")) == {503})
    client.load_model("plain", headers=bearing(KEY))
    wait_until(lambda: set(service.statuses("/v2/models/plain/ready")) == {200})


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({"model_name": "nobody"}, "404", "there is no model 'nobody'"),
        ({"model_version": "7"}, "404", "plain has no version '7'"),
        ({"parameters": {"step": 3}}, "422", "parameters.step: unknown parameter; did you mean 'steps'?"),
        ({"outputs": [triton.InferRequestedOutput("ATTENTION")]}, "422", "outputs[0].name: the model gives no"),
        ({"sequence_id": 5, "sequence_start": True}, "422", "parameters.sequence_id: the service keeps nothing"),
    ],
)
def test_errors(client: triton.InferenceServerClient, asked: dict[str, Any], status: str, message: str) -> None:
    """They reach the client with their status and their words."""
    with pytest.raises(InferenceServerException) as raised:
        client.infer(**{"model_name": "plain", "inputs": inputs("plain", binary=True), **asked})
    assert raised.value.status() == f"{status}"
    assert raised.value.message().startswith(message)


@pytest.mark.anyio
async def test_client_of_asyncio(service: Process) -> None:
    """The other one of Triton's clients."""
    async with triton_aio.InferenceServerClient(service.url.removeprefix("http://")) as client:
        assert await client.is_model_ready("plain")
        result = await client.infer("plain", inputs("plain", binary=True), parameters={"steps": 3})
        with pytest.raises(InferenceServerException, match="there is no model"):
            await client.get_model_metadata("nobody")

    np.testing.assert_array_equal(
        result.as_numpy("FORECAST"), np.array(right(service, "plain", 3)["forecasts"], np.float32)
    )
