"""The OpenAPI document: what it lists, whether it is true, and whether its pages work without the internet."""

import io
import re
from collections.abc import AsyncIterator, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from openapi_spec_validator import validate
from schemathesis import GenerationMode, checks
from schemathesis.schemas import BaseSchema

from app.codec.tables import ARROWS
from models.core import Surroundings
from models.spec import Gaps
from models.store import Store
from tests.app import calibrated
from tests.app.serving import process, serving
from tests.builders import publish_tiny

BINARY = ("application/x-npy", *ARROWS)
ADMINISTRATION = {
    "DELETE /models/{name}/aliases/{alias}",
    "GET /audit",
    "POST /models/{name}/aliases/{alias}/rollback",
    "POST /models/{name}/versions/{version}/load",
    "POST /models/{name}/versions/{version}/unload",
    "POST /v2/repository/models/{name}/load",
    "POST /v2/repository/models/{name}/unload",
    "PUT /models/{name}/aliases/{alias}",
}
"""With a key; tests/fuzz has one."""
PUBLIC = {
    "GET /health/live",
    "GET /health/ready",
    "GET /metrics",
    "GET /models",
    "GET /models/{name}",
    "GET /models/{name}/aliases/{alias}",
    "GET /models/{name}/versions/{version}",
    "GET /models/{name}/versions/{version}/report",
    "GET /models/{name}/versions/{version}/report/{file}",
    "POST /anomalies",
    "POST /backtest",
    "POST /batch",
    "POST /forecast",
    "POST /models/{name}/versions/{version}/actuals",
    "POST /predict",
}
PROTOCOLS = {
    "GET /v1/timeseries/models",
    "GET /v2",
    "GET /v2/health/live",
    "GET /v2/health/ready",
    "GET /v2/models/stats",
    "GET /v2/models/{name}",
    "GET /v2/models/{name}/config",
    "GET /v2/models/{name}/ready",
    "GET /v2/models/{name}/stats",
    "GET /v2/models/{name}/versions/{version}",
    "GET /v2/models/{name}/versions/{version}/config",
    "GET /v2/models/{name}/versions/{version}/ready",
    "GET /v2/models/{name}/versions/{version}/stats",
    "POST /v1/timeseries/forecast",
    "POST /v2/models/{name}/infer",
    "POST /v2/models/{name}/versions/{version}/infer",
    "POST /v2/repository/index",
}
"""Of others; tests/fuzz asks them, with names that there are."""
SURFACE = ADMINISTRATION | PROTOCOLS | PUBLIC


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """A service with one model."""
    root = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root))
    async with serving(root) as client:
        yield client


@pytest.fixture(scope="module")
async def document(client: httpx.AsyncClient) -> dict[str, Any]:
    """What /openapi.json says."""
    return (await client.get("/openapi.json")).json()


@pytest.mark.anyio
async def test_document_is_valid(document: dict[str, Any]) -> None:
    """It is an OpenAPI document by the letter of the specification."""
    validate(document)


@pytest.mark.anyio
async def test_surface_is_what_we_mean_it_to_be(document: dict[str, Any]) -> None:
    """Whoever adds an endpoint or takes one away changes this list, and so shows it."""
    assert {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods} == SURFACE


@pytest.mark.anyio
async def test_operations_are_told_apart(document: dict[str, Any]) -> None:
    """Each operation has a summary, a description, a tag and an id of its own."""
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]

    assert all(operation["summary"] and operation["description"] and operation["tags"] for operation in operations)
    assert len({operation["operationId"] for operation in operations}) == len(SURFACE)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "others"), [("/predict", set()), ("/forecast", {"application/x-ndjson", "text/event-stream"})]
)
async def test_forecasting_declares_every_status(document: dict[str, Any], path: str, others: set[str]) -> None:
    """Both endpoints declare the answer and each refusal, the refusals as problem documents."""
    responses = document["paths"][path]["post"]["responses"]

    assert responses.keys() == {"200", "400", "404", "408", "413", "415", "422", "500", "503", "504"}
    for status, response in responses.items():
        media_types = (
            {"application/json", "text/csv", ARROWS[0]} | others if status == "200" else {"application/problem+json"}
        )
        assert response["content"].keys() == media_types
    assert responses["422"]["content"]["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/Problem"}


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/predict", "/forecast"])
async def test_bodies_are_described_as_they_are_read(document: dict[str, Any], path: str) -> None:
    """One window or several; `future` and `start` may be left out but are never null and never empty."""
    content = document["paths"][path]["post"]["requestBody"]["content"]
    schema = content["application/json"]["schema"]

    assert content.keys() == {"application/json", "text/csv", "application/x-npy", *ARROWS}
    assert all("example" in kind or "examples" in kind for name, kind in content.items() if name not in BINARY)
    one, several = schema["anyOf"]
    assert (one["required"], several["required"]) == (["window"], ["windows"])
    for body, depth in ((one, 2), (several, 3)):
        assert body["additionalProperties"] is False
        field = body["properties"]["future"]
        for _ in range(depth):
            assert (field["type"], field["minItems"]) == ("array", 1)
            field = field["items"]
        assert field == {"type": "number"}
        cell = body["properties"]["window" if depth == 2 else "windows"]
        for _ in range(depth):
            cell = cell["items"]
        assert cell == {"anyOf": [{"type": "number"}, {"type": "null"}]}
    start, starts = one["properties"]["start"], several["properties"]["start"]
    assert (start["type"], start["format"]) == ("string", "date-time")
    assert (starts["type"], starts["minItems"]) == ("array", 1)
    assert starts["items"] == {"type": "string", "format": "date-time"}


# Without the internet


class References(HTMLParser):
    """Collects whatever a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in {"src", "href", "spec-url"} and value is not None]


@pytest.mark.anyio
@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_pages_fetch_nothing_from_elsewhere(client: httpx.AsyncClient, page: str) -> None:
    """Scripts, styles, icon and document of the pages come from the service itself, and are there."""
    html = (await client.get(page)).text
    references = References()
    references.feed(html)
    fetched = references.found + re.findall(r"\burl: '([^']+)'", html)

    assert any(reference.endswith(".js") for reference in fetched)
    assert "/openapi.json" in fetched
    for reference in fetched:
        assert urlsplit(urljoin("http://test/", reference)).netloc == "test", reference
        response = await client.get(reference)
        assert response.status_code == 200, reference
        assert response.content, reference
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", html)


@pytest.mark.anyio
async def test_styles_fetch_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    """Nor does the style sheet load fonts or pictures from another host."""
    style = (await client.get("/static-offline-docs/swagger-ui.css")).text

    assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style)


# Is it true?


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BaseSchema]:
    """The document of a service over HTTP, with a model that takes what the document gives as examples, and less."""
    root: Path = tmp_path_factory.mktemp("store")
    fills = Surroundings(gaps=Gaps(method="carry_forward", limit=3), short=True)
    known = {"table": calibrated.table().pack(), "intervals": calibrated.intervals()}
    publish_tiny(Store(root), roles=("target", "past"), window=4, surroundings=fills, **known)
    with process(root, MAX_STEPS=50, ACCESS_LOG="false") as service:
        yield schemathesis.openapi.from_url(f"{service.url}/openapi.json")


def no_fault_of_ours(_: object, response: schemathesis.Response, _case: schemathesis.Case) -> None:
    """A deadline of a millisecond may pass, and that is documented; a 500 never is what somebody asked for."""
    assert response.status_code != 500


CONFORMANCE = [
    no_fault_of_ours,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def array_of(shape: tuple[int, ...], number: float) -> bytes:
    """As NumPy writes it."""
    content = io.BytesIO()
    np.save(content, np.full(shape, number, np.float32))
    return content.getvalue()


def arrow_of(numbers: list[float], as_file: bool) -> bytes:
    """As pyarrow writes it."""
    batch = pa.record_batch({"target_0": numbers, "past_1": numbers})
    content = io.BytesIO()
    with (pa.ipc.new_file if as_file else pa.ipc.new_stream)(content, batch.schema) as writer:
        writer.write_batch(batch)
    return content.getvalue()


# The document says of these kinds of body what they mean, not which bytes they are.
schemathesis.openapi.media_type(
    "text/csv", st.one_of(NUMBERS.map(lambda number: f"target_0,past_1\n{number},0\n".encode()), st.binary(max_size=20))
)
schemathesis.openapi.media_type(
    "application/x-npy",
    st.one_of(
        st.builds(array_of, st.sampled_from([(1, 2), (2, 1, 2), (1, 1), (2,)]), NUMBERS),
        st.binary(max_size=20),
    ),
)


for media_type in ARROWS:
    schemathesis.openapi.media_type(
        media_type,
        st.builds(arrow_of, st.lists(NUMBERS, min_size=1, max_size=3), st.booleans()),
    )


def statuses(described: BaseSchema, operation: str, mode: GenerationMode) -> set[tuple[int, str | None]]:
    """Send what schemathesis thinks up for an operation, hold each answer against the document.

    Which statuses came, and of what kind of body.
    """
    method, path = operation.split()
    seen = set()

    # Those that take bodies of many kinds, more often: of each kind some are to be answered, on a busy machine too.
    tries = 180 if operation in ("POST /forecast", "POST /predict") else 60

    @settings(max_examples=tries, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=described[path][method].as_strategy(generation_mode=mode))
    def send(case: schemathesis.Case) -> None:
        seen.add((case.call_and_validate(checks=CONFORMANCE).status_code, case.media_type))

    send()
    return seen


@pytest.mark.parametrize("operation", sorted(PUBLIC))
def test_answers_to_what_is_documented(described: BaseSchema, operation: str) -> None:
    """Whatever the document allows, the answer is one that it declares, and no 500; only names, and series
    that are long enough, are hard to guess."""
    seen = statuses(described, operation, GenerationMode.POSITIVE)

    assert ({status for status, _ in seen} >= {200}) != ("{name}" in operation or operation == "POST /backtest")
    if operation in ("POST /forecast", "POST /predict"):
        kinds = {kind for status, kind in seen if status == 200}
        assert "application/json" in kinds
        assert kinds & {"text/csv", "application/x-npy", *ARROWS}


@pytest.mark.parametrize("operation", ["POST /anomalies", "POST /forecast", "POST /predict"])
def test_answers_to_what_is_not_documented(described: BaseSchema, operation: str) -> None:
    """Whatever the document does not allow, the refusal is one that it declares."""
    seen = statuses(described, operation, GenerationMode.NEGATIVE)

    assert 422 in {status for status, _ in seen}
