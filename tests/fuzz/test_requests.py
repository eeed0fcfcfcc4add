"""Whole requests, whatever the OpenAPI document lists and whatever it does not: each is answered as documented, none
with a 500, and a forecast is right afterwards.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import hypothesis.strategies as st
import numpy as np
import pytest
import requests
import schemathesis
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import example, given
from hypothesis.errors import Unsatisfiable
from openapi_spec_validator import validate
from schemathesis import GenerationMode, checks
from schemathesis.schemas import BaseSchema

from app.handlers import dialect_of
from models.core import Surroundings
from models.spec import Gaps
from models.store import Store
from tests.app import calibrated
from tests.app.asking import BOUNDED, right, window_of
from tests.app.serving import serving
from tests.builders import publish_tiny
from tests.fuzz import tries
from tests.fuzz.rubbish import damaged
from tests.fuzz.test_bodies import csv_bodies, every_json, npy_bodies

KEY = "x" * 32
BASE = "http://test"
_NAMES = {"name": ["tiny", "other", "nobody"], "version": ["1", "latest", "2", "0", "x"], "alias": ["production", "no"]}
_CHECKS = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]


class Service(NamedTuple):
    """An application in a thread of its own, and what it says of itself."""

    portal: BlockingPortal
    client: httpx.AsyncClient
    described: BaseSchema
    document: dict[str, Any]

    def send(self, request: httpx.Request) -> httpx.Response:
        """Ask it, with the key for administration."""
        request.headers["authorization"] = f"Bearer {KEY}"
        return self.portal.call(self.client.send, request)

    def forecasts_rightly(self) -> bool:
        """Whether an ordinary request is answered as ever."""
        window = window_of(1)
        request = self.client.build_request("POST", "/forecast?model=tiny&version=1&steps=3", json={"window": window})
        response = self.send(request)
        return response.status_code == 200 and np.allclose(response.json()["forecast"], right(window, 3), rtol=1e-4)


@asynccontextmanager
async def _serving(root: Path) -> AsyncIterator[httpx.AsyncClient]:
    # Of little room, so that what is beyond it is not far.
    settings = {"max_steps": 50, "max_body_bytes": 20_000, "max_series_bytes": 20_000, "access_log": False}
    async with serving(root, admin_key=KEY, **settings) as client:
        yield client


@pytest.fixture(scope="module", params=["as it is", "administered"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Of two models: one that needs a whole window, and one that fills gaps and has intervals.

    Twice, since what administration does to one is for no other test to find.
    """
    root: Path = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root), **BOUNDED)
    fills = Surroundings(gaps=Gaps(method="carry_forward", limit=3), short=True)
    known = {"table": calibrated.table().pack(), "intervals": calibrated.intervals()}
    publish_tiny(Store(root), "other", roles=("target", "past"), window=4, surroundings=fills, **known)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(_serving(root)) as client:
        document = portal.call(client.get, "/openapi.json").json()
        yield Service(portal, client, schemathesis.openapi.from_dict(document), document)


def operations(document: dict[str, Any], mode: GenerationMode) -> Iterator[tuple[str, str, bool]]:
    """Method and path of each that can be asked in that way, and whether only administration may."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if mode == GenerationMode.POSITIVE or operation.get("parameters") or operation.get("requestBody"):
                yield method.upper(), path, bool(operation.get("security"))


def takes_more_than_names(operation: dict[str, Any]) -> bool:
    """Whether there is anything to think up besides the names in its path."""
    given = operation.get("parameters", [])
    return "requestBody" in operation or any(one["in"] != "path" for one in given)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.name.lower())
def test_every_operation(service: Service, mode: GenerationMode, request: pytest.FixtureRequest) -> None:
    """Whatever is thought up for an operation of the document, the answer is one that it declares, and no 500."""
    validate(service.document)
    administered = request.node.callspec.params["service"] == "administered"
    seen = []
    for method, path, guarded in operations(service.document, mode):
        if guarded != administered:
            continue
        strategy = service.described[path][method].as_strategy(generation_mode=mode)
        seen.append(path)

        @tries(25 if takes_more_than_names(service.document["paths"][path][method.lower()]) else 8)
        @given(case=strategy, names=st.fixed_dictionaries({key: st.sampled_from(all_) for key, all_ in _NAMES.items()}))
        def send(case: schemathesis.Case, names: dict[str, str]) -> None:
            # Names that are thought up are nearly never there.
            for name in case.path_parameters or {}:
                case.path_parameters[name] = names.get(name, case.path_parameters[name])
            if "wait_s" in (case.query or {}):
                case.query["wait_s"] = 0
            made = requests.Request(**_without_rest(case.as_transport_kwargs(base_url=BASE))).prepare()
            content = made.body.encode() if isinstance(made.body, str) else made.body
            asked = httpx.Request(made.method, made.url, headers=_sendable(made.headers), content=content)
            response = service.send(asked)
            check(response)
            case.validate_response(response, checks=_CHECKS)

        # There are operations that nothing but a strange name can be wrong about, which any text is not.
        with suppress(Unsatisfiable) if mode == GenerationMode.NEGATIVE else nullcontext():
            send()
    assert seen
    assert administered or service.forecasts_rightly()


def _without_rest(kwargs: dict[str, Any]) -> dict[str, Any]:
    """What `requests` takes of them."""
    return {name: kwargs.get(name) for name in ("method", "url", "headers", "params", "json", "data", "cookies")}


def _sendable(headers: Any) -> list[tuple[bytes, bytes]]:  # noqa: ANN401  of requests
    return [(_latin(name), _latin(value)) for name, value in headers.items() if name.lower() != "content-length"]


def _latin(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1", "replace")


def check(response: httpx.Response) -> None:
    """It is no fault of the service, and where it is a refusal told in the shape that its path has for these."""
    assert response.status_code < 500 or response.status_code in (503, 504), response.text
    assert response.headers["x-request-id"]
    # An orchestrator reads the status of these two, and the rest is for whoever looks.
    path = response.request.url.path
    is_health = response.status_code == 503 and (path.startswith("/health/") or path.endswith(("/ready", "/live")))
    if response.status_code >= 400 and response.request.method != "HEAD" and not is_health:
        dialect = dialect_of(path)
        assert response.headers["content-type"] == dialect.media_type, response.text
        problem = response.json()
        if dialect.schema != "Problem":
            assert problem.keys() == {"error"}
            assert problem["error"]
            return
        assert problem["status"] == response.status_code
        assert problem["request_id"] == response.headers["x-request-id"]
        assert problem["detail"]


# What no client would send


_methods = st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "get", "X"])
_paths = st.one_of(
    st.sampled_from(
        [
            *(
                "/forecast",
                "/predict",
                "/anomalies",
                "/backtest",
                "/models/tiny",
                "/models/tiny/versions/1/actuals",
                "/v2/models/tiny/infer",
                "/v1/timeseries/forecast",
                "/",
            ),
            *(
                "/audit",
                "/metrics",
                "/health/ready",
                "/models/tiny/versions/1",
                "/docs",
                "/static-offline-docs/x",
                "//",
            ),
            *("/static-offline-docs/../../etc/passwd", "/static-offline-docs/%2e%2e/%2e%2e/app/main.py", "/models/%00"),
            *("/models/%ff/versions/%f0%9f%98%80", "/models/tiny/versions/" + "9" * 5000, "/forecast/", "/Forecast"),
        ]
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="?#"), max_size=20).map(
        lambda t: f"/{t}"
    ),
)
_queries = st.one_of(
    st.just("steps=3&model=tiny"),
    st.lists(
        st.tuples(
            st.sampled_from(
                ["steps", "model", "version", "level", "band", "adaptive", "attention", "deadline_ms", "x", ""]
            ),
            st.sampled_from(
                [
                    "1",
                    "3",
                    "-1",
                    "0",
                    "9" * 5000,
                    "tiny",
                    "80",
                    "path",
                    "true",
                    "%00",
                    "%ff",
                    "%F0%9F%98%80",
                    "a;b",
                    "NaN",
                    "",
                ]
            ),
        ).map("=".join),
        max_size=4,
    ).map("&".join),
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=30),
)
_values = st.binary(max_size=30).filter(lambda value: not set(value) & set(b"\r\n\0"))
_headers = st.lists(
    st.one_of(
        st.tuples(
            st.just(b"content-type"),
            st.sampled_from([b"application/json", b"text/csv", b"application/x-npy", b";", b"\xff"]),
        ),
        st.tuples(st.just(b"accept"), st.sampled_from([b"text/csv", b"*/*;q=0", b";;,,q=\xff", b"," * 1000])),
        st.tuples(st.just(b"x-request-id"), st.sampled_from([b"mine", b"a b", b"\xe4", b"x" * 129, b""]) | _values),
        st.tuples(st.just(b"host"), st.sampled_from([b"", b"[", b"[::1", b"a:b:c", b"\xff", b"x" * 300, b"a/b?c#d"])),
        st.tuples(st.just(b"inference-header-content-length"), st.sampled_from([b"0", b"1", b"30"]) | _values),
        st.tuples(st.just(b"accept-encoding"), st.sampled_from([b"gzip", b"deflate;q=\xff"]) | _values),
        st.tuples(st.just(b"content-encoding"), st.sampled_from([b"gzip", b"identity", b"\xff"])),
        st.tuples(st.just(b"origin"), _values),
        st.tuples(st.just(b"x-client-id"), _values),
        st.tuples(
            st.just(b"authorization"),
            st.sampled_from([b"Bearer", b"Bearer  ", b"Basic eA==", b"Bearer \xff"]) | _values,
        ),
        st.tuples(
            st.sampled_from([b"cookie", b"range", b"if-none-match", b"if-modified-since", b"forwarded", b"expect"]),
            _values,
        ),
    ),
    max_size=4,
)
_bodies = st.one_of(st.just(b""), every_json, csv_bodies(), damaged(npy_bodies()), st.just(b"x" * 25_000))


@tries(600)
@given(_methods, _paths, _queries, _headers, _bodies)
@example("GET", "/nowhere", "", [(b"host", b"[")], b"")
@example("GET", "/docs", "", [(b"host", b"[")], b"")
@example("POST", "/models/tiny", "", [(b"host", b"[::1")], b"")
def test_anything(
    service: Service, method: str, path: str, query: str, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    """Every request that a server lets through is answered, with a problem where it is refused."""
    url = httpx.URL(BASE, raw_path=f"{path}?{query}".encode())
    asked = httpx.Request(method, url, headers=headers, content=body)
    response = service.portal.call(service.client.send, asked)
    check(response)


def test_forecasts_after_all_that(service: Service, request: pytest.FixtureRequest) -> None:
    """The service is as it was."""
    if request.node.callspec.params["service"] == "as it is":
        assert service.forecasts_rightly()
