"""A collector of traces: a small HTTP server that reads what OpenTelemetry's exporter sends, and can be unwell.

with collector() as spans: ... spans.named("batch")
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.app.serving import wait_until

Value = str | int | float | bool


class Seen(NamedTuple):
    """A span as it came."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    began_ns: int
    ended_ns: int
    failed: bool
    of: Mapping[str, Value]
    resource: Mapping[str, Value]
    links: frozenset[tuple[str, str]]
    """Trace and span of each."""

    @property
    def itself(self) -> tuple[str, str]:
        """As others link to it."""
        return self.trace, self.id


class Collector:
    """What has come so far, and how to answer."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.status = 200
        self.requests = 0
        self.bodies: list[bytes] = []
        """As they came."""
        self.spans: list[Seen] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def named(self, name: str, trace: str | None = None) -> list[Seen]:
        """Those of a name, and of a trace."""
        return [span for span in self.spans if span.name == name and trace in (None, span.trace)]

    def await_spans(self, name: str, count: int = 1, trace: str | None = None) -> list[Seen]:
        """The same, once there are so many."""
        wait_until(lambda: len(self.named(name, trace)) >= count)
        return self.named(name, trace)

    def children(self, parent: Seen) -> list[Seen]:
        """Of a span, in their order."""
        return sorted((span for span in self.spans if span.parent == parent.id), key=lambda span: span.began_ns)

    def take(self, body: bytes) -> int:
        """What was sent; the status to answer."""
        self.requests += 1
        self.bodies.append(body)
        self.may_answer.wait()
        if self.status == 200:
            self.spans += _read(body)
        return self.status


@contextmanager
def collector() -> Iterator[Collector]:
    """One on a free port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: _Handler(made.take, *given))
    made = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.may_answer.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 5

    def __init__(self, take: Callable[[bytes], int], *given: object) -> None:
        self._take = take
        super().__init__(*given)  # type: ignore[arg-type]  # whatever the server gives

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self._take(body) if self.path == "/v1/traces" else 404
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *_given: object) -> None:
        """Nobody reads it."""


def _read(body: bytes) -> Iterator[Seen]:
    asked = ExportTraceServiceRequest.FromString(body)
    for group in asked.resource_spans:
        resource = _values(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                yield Seen(
                    span.name,
                    Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    span.status.code == Status.STATUS_CODE_ERROR,
                    _values(span.attributes),
                    resource,
                    frozenset((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                )


def _values(attributes: list[KeyValue]) -> dict[str, Value]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value") for one in attributes}
