"""Traces: what a collector gets of requests and of batches, how they are linked, and that nobody waits for it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from opentelemetry.trace import get_current_span

from app import spans, tracing
from app.link import frames
from app.link.frames import Kind
from app.settings import Settings, SettingsError
from app.spans import CONTEXT_BYTES, Value, check_tracing, tracer_of
from app.ticket import ModelId
from app.tracing import OpenTelemetry
from models.store import Store
from tests.app import calibrated
from tests.app.asking import BOUNDED, is_right, window_of
from tests.app.collector import Collector, Seen, collector
from tests.app.devices import FakeRuntime, Heard, numbers_of, order, served
from tests.app.fakes import MODEL
from tests.app.serving import ROOT, Process, metric, process, serving, until, wait_until
from tests.builders import publish_tiny
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.anyio

KEY = "correct-horse-battery"
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLED = {"traceparent": f"00-{TRACE}-{CALLER}-01"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and one with intervals."""
    root = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root), **BOUNDED)
    calibrated.publish(root, "sure")
    return root


class Traced(NamedTuple):
    """A service in several processes, and where its spans go."""

    service: Process
    to: Collector


@pytest.fixture(scope="module")
def traced(root: Path) -> Iterator[Traced]:
    """An engine and two HTTP processes."""
    with collector() as to, process(root, HTTP_PROCESSES=2, TRACES=to.url, ADMIN_KEY=KEY) as service:
        yield Traced(service, to)


def post(url: str, trace: str | None = None, seed: int = 1, **headers: str) -> httpx.Response:
    """A window, in the trace of a caller that has one."""
    if trace is not None:
        headers["traceparent"] = f"00-{trace}-{CALLER}-01"
    return httpx.post(url, json={"window": window_of(seed)}, headers=headers, timeout=PATIENCE_S)


def new_trace() -> str:
    return os.urandom(16).hex()


def stages(to: Collector, server: Seen) -> list[str]:
    """The names of a request's stages, each within it and after the one before."""
    found = to.children(server)
    before = server.began_ns
    for stage in found:
        assert before <= stage.began_ns <= stage.ended_ns <= server.ended_ns, (stage, server)
        before = stage.ended_ns
    return [stage.name for stage in found]


# One forecast


def test_forecast_is_a_tree(traced: Traced) -> None:
    """In its caller's trace, with its stages in order, linked with the batch that its engine computed it in."""
    service, to = traced
    answer = post(
        f"{service.url}/forecast?model=tiny&steps=3", TRACE, authorization=f"Bearer {KEY}", **{"x-request-id": "mine-1"}
    )
    assert answer.status_code == 200
    (server,) = to.await_spans("POST /forecast", trace=TRACE)
    (compute,) = to.named("compute", TRACE)

    assert (server.kind, server.parent, server.failed) == ("SERVER", CALLER, False)
    assert stages(to, server) == ["read", "parse", "layout", "cache", "queue", "compute", "serialise"]
    assert server.of == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/forecast",
        "url.path": "/forecast",
        "url.scheme": "http",
        "foretell.request_id": "mine-1",
        "foretell.model.name": "tiny",
        "foretell.model.version": 1,
        "foretell.windows": 1,
        "foretell.cache": "miss",
        "foretell.key": "admin",
    }
    assert compute.of == {"foretell.windows": 1, "foretell.steps": 3, "foretell.batches": len(compute.links)}
    batches = [span for span in to.await_spans("batch") if span.itself in compute.links]
    assert len(batches) == len(compute.links) > 0
    for batch in batches:
        assert server.itself in batch.links
        assert (batch.parent, batch.trace != TRACE) == ("", True)
        assert compute.began_ns <= batch.began_ns <= batch.ended_ns <= compute.ended_ns
        assert batch.of["foretell.model.name"] == "tiny"
        assert (batch.of["foretell.rows"], batch.of["foretell.device"]) == (1, "cpu")
    assert sum(int(batch.of["foretell.steps"]) for batch in batches) >= 3
    assert {batch.resource["foretell.process"] for batch in batches} == {"engine-0"}
    assert server.resource["foretell.process"] in ("http-0", "http-1")
    assert server.resource["service.name"] == "foretell"
    (line,) = [line for line in service.logs if line.get("request_id") == "mine-1"]
    assert (line["trace_id"], line["span_id"]) == server.itself


def test_nothing_secret_is_sent(traced: Traced) -> None:
    """Neither a key nor what is in a body or an answer is in any span."""
    service, to = traced
    trace = new_trace()
    window = [[value + 0.123456789] for (value,) in window_of(5)]
    answer = httpx.post(
        f"{service.url}/forecast?model=tiny&steps=2",
        json={"window": window},
        headers={"traceparent": f"00-{trace}-{CALLER}-01", "authorization": f"Bearer {KEY}", "cookie": "a=secret"},
    )
    assert answer.status_code == 200
    to.await_spans("POST /forecast", trace=trace)

    sent = repr(to.spans) + repr(to.bodies)
    for secret in (KEY, "secret", "123456", str(answer.json()["forecast"][0][0])):
        assert secret not in sent


def test_two_requests_in_one_batch(traced: Traced) -> None:
    """Both link to its span, and it to both."""
    service, to = traced

    def shared() -> list[Seen]:
        """Batches of several requests, of those that are computed meanwhile."""
        with ThreadPoolExecutor(4) as pool:
            seeds = [seed + 100 * len(to.spans) for seed in range(4)]
            answers = list(
                pool.map(lambda seed: post(f"{service.url}/forecast?model=tiny&steps=900", None, seed), seeds)
            )
        assert all(answer.status_code == 200 for answer in answers)
        return [span for span in to.named("batch") if len(span.links) > 1]

    wait_until(lambda: bool(shared()))
    batch = shared()[0]
    wait_until(lambda: len([span for span in to.spans if span.itself in batch.links]) == len(batch.links))
    wait_until(lambda: len([span for span in to.named("compute") if batch.itself in span.links]) > 1)
    servers = {span.itself: span for span in to.spans if span.itself in batch.links}
    computed = [span for span in to.named("compute") if batch.itself in span.links]

    assert {span.kind for span in servers.values()} == {"SERVER"}
    assert {(span.trace, span.parent) for span in computed} <= set(servers)
    assert int(batch.of["foretell.rows"]) == int(batch.of["foretell.orders"]) >= len(batch.links)


def test_pipelined_requests(traced: Traced) -> None:
    """The second of two that come in one piece is not traced, and adds nothing to the span of the first."""
    service, to = traced
    trace, other = new_trace(), new_trace()
    sent = [
        httpx.Request(
            "POST",
            f"{service.url}/predict?model=tiny",
            json={"window": window_of(50 + number)},
            headers={"traceparent": f"00-{whose}-{CALLER}-0{flag}"},
        )
        for number, (whose, flag) in enumerate([(trace, 1), (other, 0)])
    ]
    with socket.create_connection(service.address) as connection:
        connection.settimeout(PATIENCE_S)
        connection.sendall(b"".join(map(raw, sent)))
        received = b""
        while received.count(b"HTTP/1.1 200") < 2 or not received.endswith(b"}"):
            received += connection.recv(65536)
    post(f"{service.url}/predict?model=tiny", last := new_trace())
    to.await_spans("POST /predict", trace=last)
    (server,) = to.await_spans("POST /predict", trace=trace)

    assert stages(to, server) == ["read", "parse", "layout", "cache", "queue", "compute", "serialise"]
    assert not [span for span in to.spans if span.trace == other]


def raw(request: httpx.Request) -> bytes:
    """As it goes over the wire."""
    head = b"".join(b"%s: %s\r\n" % field for field in request.headers.raw)
    return b"%s %s HTTP/1.1\r\n%s\r\n%s" % (request.method.encode(), request.url.raw_path, head, request.content)


def test_from_the_cache(traced: Traced) -> None:
    """What the cache has waits for nothing and links with nothing."""
    service, to = traced
    traces = [new_trace(), new_trace()]
    with httpx.Client() as client:  # one connection, so one process and its cache
        for trace in traces:
            headers = {"traceparent": f"00-{trace}-{CALLER}-01"}
            answer = client.post(
                f"{service.url}/predict?model=tiny", json={"window": window_of(77)}, headers=headers, timeout=PATIENCE_S
            )
            assert answer.status_code == 200
    (server,) = to.await_spans("POST /predict", trace=traces[1])

    assert stages(to, server) == ["read", "parse", "layout", "cache", "serialise"]
    assert [span.of["foretell.hit"] for span in to.children(server) if span.name == "cache"] == [True]


def test_intervals(traced: Traced) -> None:
    """What they take is told: reading the table, and the bands themselves."""
    service, to = traced
    trace = new_trace()
    answer = post(f"{service.url}/predict?model=sure&level=80", trace)
    assert answer.status_code == 200, answer.text
    (server,) = to.await_spans("POST /predict", trace=trace)

    assert "calibration" in stages(to, server)
    assert stages(to, server)[-2:] == ["bands", "serialise"]


def test_streamed_forecast(traced: Traced) -> None:
    """Its steps are sent while it is computed; its compute stage links with its first batches, however many."""
    service, to = traced
    trace = new_trace()
    answer = post(f"{service.url}/forecast?model=tiny&steps=700", trace, seed=9, accept="application/x-ndjson")
    assert answer.status_code == 200
    assert "done" in answer.text.splitlines()[-1]
    (server,) = to.await_spans("POST /forecast", trace=trace)
    (compute,) = to.named("compute", trace)
    (stream,) = to.named("stream", trace)
    names = [span.name for span in to.children(server)]

    assert names[:5] == ["read", "parse", "layout", "cache", "queue"]
    assert sorted(names[5:]) == ["compute", "stream"]
    assert 1 <= len(compute.links) <= 16
    assert int(compute.of["foretell.batches"]) >= len(compute.links)
    assert compute.ended_ns <= stream.ended_ns <= server.ended_ns


def test_inference_protocol(traced: Traced) -> None:
    """Its requests are as others."""
    service, to = traced
    trace = new_trace()
    values = np.asarray(window_of(3), np.float32)
    tensor = {"name": "WINDOW", "datatype": "FP32", "shape": [1, *values.shape], "data": values.ravel().tolist()}
    answer = httpx.post(
        f"{service.url}/v2/models/tiny/infer",
        json={"inputs": [tensor]},
        headers={"traceparent": f"00-{trace}-{CALLER}-01"},
    )
    assert answer.status_code == 200, answer.text
    (server,) = to.await_spans("POST /v2/models/{name}/infer", trace=trace)

    assert stages(to, server) == ["read", "parse", "layout", "cache", "queue", "compute", "serialise"]
    assert server.of["url.path"] == "/v2/models/tiny/infer"


def test_batch_of_windows(traced: Traced) -> None:
    """Each part of it has stages of its own, which link with batches that link back to the part; the first 64 have."""
    service, to = traced
    trace = new_trace()
    lines = b"".join(json.dumps({"window": window_of(seed)}).encode() + b"\n" for seed in range(100))
    answer = httpx.post(
        f"{service.url}/batch?model=tiny&steps=1000&attention=none",
        content=lines,
        headers={"content-type": "application/x-ndjson", "traceparent": f"00-{trace}-{CALLER}-01"},
        timeout=PATIENCE_S,
    )
    assert answer.status_code == 200
    (server,) = to.await_spans("POST /batch", trace=trace)
    parts = to.named("windows", trace)

    assert server.of["foretell.windows"] == 100
    assert 1 < len(parts) <= 64
    assert {part.parent for part in parts} == {server.id}
    for part in parts:
        assert [span.name for span in to.children(part)] == ["layout", "cache", "queue", "compute"]
    links = frozenset.union(*(span.links for span in to.named("compute", trace)))
    batches = [span for span in to.await_spans("batch") if span.itself in links]
    assert {link for batch in batches for link in batch.links} & {part.itself for part in parts}


# What goes wrong


@pytest.mark.parametrize(
    ("path", "status", "slug", "route"),
    [
        ("/forecast?steps=3&model=nobody", 404, "unknown-model", "/forecast"),
        ("/predict?model=tiny&steps=0", 422, "invalid", "/predict"),
        ("/models/tiny/versions/1/load", 401, "unauthorized", None),
        ("/nowhere", 404, "not-found", None),
    ],
)
def test_a_clients_mistake(traced: Traced, path: str, status: int, slug: str, route: str | None) -> None:
    """It is told by the kind of problem, and is no error of the service."""
    service, to = traced
    trace = new_trace()
    answer = post(f"{service.url}{path}", trace)
    name = "POST" if route is None else f"POST {route}"
    (server,) = to.await_spans(name, trace=trace)

    assert answer.status_code == server.of["http.response.status_code"] == status
    assert (server.of["foretell.problem"], server.failed, server.of.get("http.route")) == (slug, False, route)
    assert "error.type" not in server.of


def test_a_missed_deadline(traced: Traced) -> None:
    """It is an error, and how long was waited is told."""
    service, to = traced
    trace = new_trace()
    answer = post(f"{service.url}/forecast?model=tiny&steps=1000&deadline_ms=1", trace, seed=1011)
    (server,) = to.await_spans("POST /forecast", trace=trace)

    assert answer.status_code in (503, 504)
    slug = answer.json()["type"].removeprefix("urn:foretell:problem:")
    assert (server.failed, server.of["error.type"]) == (True, slug)
    assert [span.of["foretell.problem"] for span in to.named("compute", trace)] == [slug]


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "nonsense",
        f"00-{TRACE}-{CALLER}",
        f"ff-{TRACE}-{CALLER}-01",
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{CALLER}-01-more",
        f"00-{TRACE.upper()}-{CALLER}-01",
        "0" * 600,
    ],
)
def test_a_parent_that_is_none(traced: Traced, parent: str) -> None:
    """It is passed over: the request begins a trace of its own."""
    service, to = traced
    identity = f"alone-{os.urandom(4).hex()}"
    headers = {"traceparent": parent, "x-request-id": identity}
    httpx.get(f"{service.url}/models", headers=headers)

    wait_until(lambda: any(span.of.get("foretell.request_id") == identity for span in to.spans))
    (server,) = [span for span in to.spans if span.of.get("foretell.request_id") == identity]
    assert (server.name, server.parent, server.trace != TRACE) == ("GET /models", "", True)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"traceparent", b"tracestate", b"accept"]),
            st.binary(max_size=600)
            | st.from_regex(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?|(.=.,)*"),
        ),
        max_size=4,
    )
)
def test_whatever_headers_say(headers: list[tuple[bytes, bytes]]) -> None:
    """There is one parent, which can be a parent, or none."""
    parent = get_current_span(tracing._parent(headers)).get_span_context()
    wanted = [value for name, value in headers if name == b"traceparent"]
    assert not parent.is_valid or (len(wanted) == 1 and f"{parent.trace_id:032x}".encode() in wanted[0])


def test_two_parents(traced: Traced) -> None:
    """Nobody knows which is meant, so neither is."""
    service, to = traced
    headers = [("traceparent", f"00-{TRACE}-{CALLER}-01"), ("traceparent", f"00-{TRACE[::-1]}-{CALLER}-01")]
    httpx.get(f"{service.url}/models", headers=[*headers, ("x-request-id", "torn")])

    wait_until(lambda: any(span.of.get("foretell.request_id") == "torn" for span in to.spans))
    (server,) = [span for span in to.spans if span.of.get("foretell.request_id") == "torn"]
    assert server.parent == ""


def test_watchers_are_not_traced(traced: Traced) -> None:
    """Nothing tells of health checks and metrics, of which there were many by the time that others are told of."""
    service, to = traced
    for path in ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/metrics"):
        httpx.get(f"{service.url}{path}", headers={"traceparent": f"00-{TRACE}-{CALLER}-01"})
    trace = new_trace()
    with httpx.Client() as client:
        client.get(f"{service.url}/models", headers={"traceparent": f"00-{trace}-{CALLER}-01"})
    to.await_spans("GET /models", trace=trace)

    paths = {str(span.of.get("url.path")) for span in to.spans}
    assert not any("health" in path or "metrics" in path for path in paths)


def test_sent_spans_are_counted(traced: Traced) -> None:
    """In the metrics of all processes."""
    service, to = traced
    post(f"{service.url}/predict?model=tiny", new_trace())

    wait_until(lambda: service.metric("foretell_spans_total", result="sent") >= len(to.spans) > 0)
    assert service.metric("foretell_spans_total", result="failed") == 0


# Which requests


async def test_share_of_none(root: Path) -> None:
    """Only those are traced whose callers say so; those of whose callers nothing is known, or who do not, never."""
    with collector() as to:
        async with serving(root, traces=to.url, traces_share=0) as client:
            for flags in (None, "00", "01"):
                trace = new_trace()
                headers = {} if flags is None else {"traceparent": f"00-{trace}-{CALLER}-{flags}"}
                answer = await client.post("/predict?model=tiny", json={"window": window_of(1)}, headers=headers)
                assert answer.status_code == 200
        assert {span.trace for span in to.named("POST /predict")} == {trace}
        assert {span.name for span in to.spans} >= {"parse", "serialise"}
        assert all(span.trace == trace for span in to.spans if span.name != "batch")


async def test_everything_in_one_process(root: Path) -> None:
    """Its device's batches are linked as those of an engine process, and all is sent before it ends."""
    with collector() as to:
        async with serving(root, traces=f"{to.url}/", cache_bytes=0) as client:
            answer = await client.post("/predict?model=tiny", json={"window": window_of(1)}, headers=CALLED)
            assert answer.status_code == 200
        (server,) = to.named("POST /predict", TRACE)
        (compute,) = to.named("compute", TRACE)
        (batch,) = to.named("batch")

    assert stages(to, server) == ["read", "parse", "layout", "queue", "compute", "serialise"]
    assert (compute.links, batch.links) == ({batch.itself}, {server.itself})
    assert {span.resource["foretell.process"] for span in to.spans} == {"service"}


async def test_the_frameworks_own_are_off(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI would trace the same requests, with their query strings, where variables of its own say so."""
    with collector() as to:
        monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", to.url)
        async with serving(root, traces=to.url) as client:
            assert (await client.get("/models?a=secret")).status_code == 200
        assert {span.name for span in to.spans} == {"GET /models"}
        assert b"secret" not in b"".join(to.bodies)


# Collectors that are not well


@pytest.mark.parametrize("trouble", ["absent", "broken"])
async def test_collector_that_takes_nothing(
    root: Path, trouble: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are right, what is lost is counted, and the log says so once."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")  # in which it would try again
    with collector() as to:
        to.status = 500
        async with serving(root, traces=to.url if trouble == "broken" else nowhere()) as client:
            for seed in range(3 if trouble == "broken" else 1):
                answer = await client.post(
                    "/forecast?model=tiny&steps=3", json={"window": window_of(seed)}, headers=CALLED
                )
                assert is_right(answer, window_of(seed), 3)
                await until(lambda wanted=seed: lost(client, more_than=5 * wanted))
    assert to.spans == []
    # What was under way at the end may get a line of its own.
    (line,) = [record.getMessage() for record in caplog.records if "spans cannot be sent" in record.getMessage()]
    assert " to http://127.0.0.1:" in line
    assert not any(record.name.startswith("opentelemetry") for record in caplog.records)


async def lost(client: httpx.AsyncClient, more_than: int) -> bool:
    exposition = (await client.get("/metrics")).text
    return metric(exposition, "foretell_spans_total", result="failed") > more_than


def nowhere() -> str:
    """Where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_collector_that_hangs(root: Path) -> None:
    """Answers are right, and the service ends though the collector still has not answered."""
    with collector() as to, process(root, HTTP_PROCESSES=1, TRACES=to.url, GRACE_S=0) as service:
        to.may_answer.clear()
        answer = post(f"{service.url}/forecast?model=tiny&steps=3", seed=1)
        wait_until(lambda: to.requests > 1)  # of the HTTP process and of the engine
        assert is_right(answer, window_of(1), 3)
        assert is_right(post(f"{service.url}/forecast?model=tiny&steps=3", seed=2), window_of(2), 3)
        service.signal(signal.SIGTERM)
        status = service.wait()

        assert not to.may_answer.is_set()
    assert status == 0
    assert to.spans  # they came, and nobody was told so
    told = [str(line["message"]) for line in service.logs if line["level"] != "INFO"]
    assert len(told) == 2  # by each of the two
    assert all("spans may be lost" in line for line in told)


class Counted:
    """Who counts spans."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}

    def spans(self, result: str, count: int) -> None:
        self.of[result] = self.of.get(result, 0) + count


@pytest.mark.parametrize(("status", "failed"), [(200, True), (499, False)])
def test_an_answer_that_breaks_off(status: int, failed: bool) -> None:
    """It is an error though its status was 200; of a client that has hung up it is none."""
    with collector() as to:
        tracer = OpenTelemetry(f"{to.url}/v1/traces", 1.0, "http-0", Counted())
        request = tracer.request("BREW", "http", "/pot", [], time.perf_counter())
        assert request is not None
        request.problem("draining", broken=True)
        request.end(status, None)
        tracer.close()
    (span,) = to.spans

    assert (span.name, span.failed, "foretell.problem" in span.of) == ("HTTP", failed, failed)
    assert (span.of["http.request.method"], span.of["http.response.status_code"]) == ("_OTHER", status)


def test_queue_is_bounded() -> None:
    """What does not fit beside what waits for a collector that hangs is counted, and let go."""
    counted = Counted()
    with collector() as to:
        to.may_answer.clear()
        tracer = OpenTelemetry(f"{to.url}/v1/traces", 1.0, "engine-0", counted)
        tracer.batch(MODEL, 1, 2, [b"x" * CONTEXT_BYTES], {})
        wait_until(lambda: to.requests == 1)
        for _ in range(4096 + 10):
            tracer.batch(MODEL, 1, 2, [b"x" * CONTEXT_BYTES], {})
        assert counted.of == {"full": 10}
        to.may_answer.set()
        wait_until(lambda: counted.of.get("sent") == 4096 + 1)
        tracer.close()
    assert len(to.named("batch")) == 4096 + 1


# Off, and not there


def test_nothing_is_imported_where_it_is_off() -> None:
    """Nobody pays for what is not used; FastAPI and redis import parts of the library, but no spans."""
    code = """import sys
from app.main import create_app
from app.lifecycle import Lifecycle
from app.processes.backend import Local
from app.settings import Settings
import app.device.loop, app.device.runtime
create_app(Settings(), Lifecycle(), Local())
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk.trace", "opentelemetry.exporter"))])"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert tracer_of(Settings(), "service", Counted()) is None


def test_without_the_extra(root: Path) -> None:
    """The start ends with a line that names the setting and the extra."""
    code = "import sys; sys.modules['opentelemetry'] = None; from app.__main__ import main; main()"
    environment = {**os.environ, "FORETELL_TRACES": "http://127.0.0.1:4318", "FORETELL_ARTIFACTS": str(root)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert done.stderr == "foretell: FORETELL_TRACES takes the extra `tracing`: pip install 'foretell[tracing]'\n"


def test_an_extra_that_is_half_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may have brought the SDK; without the exporter it is not enough."""
    monkeypatch.setattr(spans, "find_spec", lambda name: None if "exporter" in name else object())
    with pytest.raises(SettingsError, match="foretell\\[tracing\\]"):
        check_tracing(Settings(traces="http://127.0.0.1:4318"))
    check_tracing(Settings())


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
        ("https://collector.example/otlp/v1/traces", "https://collector.example/otlp/v1/traces"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
    ],
)
def test_address(given: str, meant: str) -> None:
    """Without a path it is the one that collectors have."""
    assert Settings(traces=given).traces == meant


@pytest.mark.parametrize(
    "given",
    [
        "127.0.0.1:4318",
        "grpc://h:4317",
        "http://",
        "http://user:pass@h",
        "http://h?key=x",
        "http://h:99999",
        "http://h h",
    ],
)
def test_no_address(given: str) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="traces"):
        Settings(traces=given)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_no_share(share: float) -> None:
    """A share is between 0 and 1."""
    with pytest.raises(ValueError, match="traces_share"):
        Settings(traces_share=share)


# A device


class Batch(NamedTuple):
    requests: Sequence[bytes]
    of: Mapping[str, Value]
    error: str | None


class Batches:
    """Keeps what is said of batches; the context of each is its number."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def batch(
        self,
        model: ModelId,
        began_ns: int,
        ended_ns: int,
        requests: Sequence[bytes],
        of: Mapping[str, Value],
        error: str | None = None,
    ) -> bytes:
        assert (model, 0 < began_ns <= ended_ns) == (MODEL, True)
        self.batches.append(Batch(requests, of, error))
        return len(self.batches).to_bytes(CONTEXT_BYTES, "big")


A, B = b"a" * CONTEXT_BYTES, b"b" * CONTEXT_BYTES


def ran_of(heard: Heard) -> tuple[int, list[int]]:
    """How many batches an order was in, and the numbers of those that are told."""
    assert heard.kind == Kind.RAN
    ran = frames.read_ran(memoryview(heard.frame))
    assert 0 < ran.began_ns <= ran.ended_ns
    contexts = [ran.contexts[at : at + CONTEXT_BYTES] for at in range(0, len(ran.contexts), CONTEXT_BYTES)]
    return ran.batches, [int.from_bytes(context, "big") for context in contexts]


def test_device_tells_of_its_batches() -> None:
    """Who is in a batch with others is told of the same one; of an order that is not traced nothing is told."""
    tracer, runtime = Batches(), FakeRuntime(held=True)
    first, second, plain = order(1, passes=2, trace=A), order(3, rows=2, trace=B), order(7)
    with served(runtime, tracer=tracer) as s:
        (peer,) = s.peers
        peer.ask(1, first)
        runtime.begun()
        peer.ask(2, second)
        peer.ask(3, plain)
        peer.send()
        runtime.step()
        assert len(runtime.begun()) == 3
        runtime.step()
        told = {}
        answers = {}
        while len(answers) < 3:
            heard = peer.hear()
            if heard.told.order in told or heard.told.order == 3:
                answers[heard.told.order] = heard.numbers
            else:
                told[heard.told.order] = ran_of(heard)

    assert told == {1: (2, [1, 2]), 2: (1, [2])}
    assert [answers[number].tolist() for number in (1, 2, 3)] == [
        numbers_of(o).tolist() for o in (first, second, plain)
    ]
    of = {"device": "fake", "passes": 1, "steps": 2}
    assert tracer.batches == [
        Batch([A], {**of, "rows": 1, "orders": 1}, None),
        Batch(sorted([A, B], key=tracer.batches[1].requests.index), {**of, "rows": 4, "orders": 3}, None),
    ]


def test_a_long_forecast_has_its_first_batches() -> None:
    """Of hundreds sixteen are told of, and no others are traced for it; but how many there were is."""
    tracer = Batches()
    with served(tracer=tracer) as s:
        s.peers[0].ask(1, order(1, passes=40, trace=A))
        told = ran_of(s.peers[0].hear())

    assert told == (40, list(range(1, 17)))
    assert len(tracer.batches) == 16


def test_windows_that_do_not_fit_into_one_pass() -> None:
    """One order of several tickets is in several batches, and once in each."""
    tracer = Batches()
    with served(tracer=tracer, batch_rows=2) as s:
        s.peers[0].ask(1, order(1, rows=5, trace=A))
        told = ran_of(s.peers[0].hear())

    assert told == (3, [1, 2, 3])
    assert [batch.requests for batch in tracer.batches] == [[A]] * 3


def test_a_batch_that_fails() -> None:
    """Its span says so, and those of the halves that run after it say what became of them."""
    tracer, runtime = Batches(), FakeRuntime(held=True)
    runtime.bad = {2}
    with served(runtime, tracer=tracer) as s:
        (peer,) = s.peers
        peer.ask(9, order(9))
        runtime.begun()
        peer.ask(1, order(1, trace=A))
        peer.ask(2, order(2, trace=B))
        runtime.let_go()
        kinds = {}
        while len(kinds) < 3:
            heard = peer.hear()
            kinds[heard.told.order] = heard.kind

    assert [(list(batch.requests), batch.error) for batch in tracer.batches] == [
        ([A, B], "ValueError"),
        ([A], None),
        ([B], "ValueError"),
    ]


def test_without_a_tracer() -> None:
    """A device that does not trace answers an order that is traced as any other."""
    asked = order(1, trace=A)
    with served() as s:
        s.peers[0].ask(1, asked)
        assert s.peers[0].answers(1)[1].tolist() == numbers_of(asked).tolist()
