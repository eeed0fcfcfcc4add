"""Spans as OpenTelemetry has them, sent over OTLP/HTTP by a thread beside everything else. Its only home.

A request is a SERVER span in its caller's trace. Its stages are children, made once they are over from the moments
that were noted on the way. A batch is a span in a trace of its own: it links to the requests in it, and what was
computed for a request links to its batches (docs/decisions/0028).
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.spans import CONTEXT_BYTES, Ran, SpanWatcher, Value
from app.ticket import ModelId

log = logging.getLogger(__name__)

_UNTRACED = ("/health/", "/v2/health/", "/metrics")
"""Paths that are asked every few seconds by those who watch."""
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"))
_FAILED = 500
_HUNG_UP = 499
_LONGEST_PARENT = 512
"""Bytes of a `traceparent`. The library would say of each longer one that it is."""
_LONGEST_VALUE = 1024
_MOST_PARTS = 64
"""Of one request."""
_MOST_WAITING = 4096
"""Spans that wait to be sent; some megabytes."""
_SENT_TOGETHER = 512
_PERIOD_MS = 1000.0
_GOODBYE_S = 0.9
"""For what is left at the end. An engine ends after the HTTP processes, so for all of the service it is twice that."""
_SILENCE_S = 60.0
"""Between two lines of the log about spans that cannot be sent."""
_SECOND = 1_000_000_000

_propagator = TraceContextTextMapPropagator()


class OpenTelemetry:
    """Traces what one process does (app.spans.Tracer)."""

    def __init__(self, endpoint: str, share: float, process: str, watcher: SpanWatcher) -> None:
        self._sender = _Sender(endpoint, watcher)
        self._processor = _Bounded(self._sender, watcher)
        ours = Resource(
            {"service.name": "foretell", "service.version": version("foretell"), "foretell.process": process}
        )
        # What the environment says of the service counts more than what is said here.
        self._resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
        self._requests = self._tracer(ParentBased(TraceIdRatioBased(share)))
        # Only those that some request is to be linked with are ever made.
        self._batches = self._tracer(ALWAYS_ON)

    def request(
        self,
        method: str,
        scheme: str,
        path: str,
        headers: Sequence[tuple[bytes, bytes]],
        began: float,
        **of: Value,
    ) -> "_Request | None":
        """Begin to trace a request; None where it is not among the share, or its caller's trace is not recorded."""
        if path.startswith(_UNTRACED):
            return None
        name, known = (method, method) if method in _METHODS else ("HTTP", "_OTHER")
        clock_ns = time.time_ns() - time.perf_counter_ns()
        span = self._requests.start_span(
            name,
            _parent(headers),
            SpanKind.SERVER,
            {"http.request.method": known, "url.scheme": scheme, "url.path": path, **_own(of)},
            start_time=clock_ns + _ns(began),
        )
        return _Request(self._requests, span, clock_ns, name) if span.is_recording() else None

    def batch(
        self,
        model: ModelId,
        began_ns: int,
        ended_ns: int,
        requests: Sequence[bytes],
        of: Mapping[str, Value],
        error: str | None = None,
    ) -> bytes:
        """A batch in which these were computed, in a trace of its own."""
        attributes: dict[str, Value] = {"model.name": model.name, "model.version": model.version, **of}
        span = self._batches.start_span(
            "batch",
            Context(),
            SpanKind.INTERNAL,
            _own(attributes),
            [Link(_read(context)) for context in requests],
            start_time=began_ns,
        )
        if error is not None:
            _fail(span, error)
        span.end(ended_ns)
        return _written(span.get_span_context())

    def close(self) -> None:
        """Send what there is, for a second at most."""
        # The library would wait for a collector that hangs as long as it hangs.
        ending = threading.Thread(target=self._processor.shutdown, name="spans-end", daemon=True)
        ending.start()
        ending.join(_GOODBYE_S)
        if left := self._sender.left:
            log.warning("the process ends, and %d spans may be lost", left)

    def _tracer(self, sampler: Sampler) -> trace.Tracer:
        limits = SpanLimits(max_span_attribute_length=_LONGEST_VALUE)
        provider = TracerProvider(sampler, self._resource, shutdown_on_exit=False, span_limits=limits)
        provider.add_span_processor(self._processor)
        return provider.get_tracer("foretell", version("foretell"))


class _Span:
    """A span that has begun, and may have stages and parts."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span, clock_ns: int) -> None:
        self._tracer = tracer
        self._span = span
        self._clock_ns = clock_ns
        """What the system's clock is ahead of the one that moments are of, the same for all of a request."""
        self._within = trace.set_span_in_context(span, Context())
        self._parts = 0
        self._problem: str | None = None
        self._broken = False
        found = span.get_span_context()
        self.trace_id = trace.format_trace_id(found.trace_id)
        self.span_id = trace.format_span_id(found.span_id)
        self.context = _written(found)

    def stage(self, name: str, began: float, **of: Value) -> None:
        """A stage that began then has just ended."""
        self._child(name, self._clock_ns + _ns(began), self._now(), _own(of))

    def computed(self, began: float, queued_s: float, ran: Ran | None, **of: Value) -> None:
        """An order that was given then has just been answered."""
        given, now = self._clock_ns + _ns(began), self._now()
        # Who joined another's order came later, perhaps when it was under way; and clocks can be set.
        first = min(max(given + _ns(queued_s) if ran is None else ran.began_ns, given), now)
        last = now if ran is None else min(max(ran.ended_ns, first), now)
        links: list[Link] = []
        if ran is not None:
            of = {**of, "batches": ran.batches}
            links = [Link(_read(context)) for context in _cut(ran.contexts)]
        self._child("queue", given, first, {})
        self._child("compute", first, last, _own(of), links)

    def part(self, name: str, **of: Value) -> "_Part | None":
        """Begin a part with stages of its own."""
        self._parts += 1
        if self._parts > _MOST_PARTS:
            return None
        span = self._tracer.start_span(name, self._within, SpanKind.INTERNAL, _own(of), start_time=self._now())
        return _Part(self._tracer, span, self._clock_ns)

    def problem(self, slug: str, *, broken: bool = False) -> None:
        """It was refused, or has failed."""
        self._problem, self._broken = slug, broken

    def _child(
        self, name: str, began_ns: int, ended_ns: int, attributes: dict[str, Value], links: Sequence[Link] = ()
    ) -> None:
        span = self._tracer.start_span(
            name, self._within, SpanKind.INTERNAL, attributes, links, start_time=min(began_ns, ended_ns)
        )
        span.end(ended_ns)

    def _now(self) -> int:
        return self._clock_ns + time.perf_counter_ns()


class _Part(_Span):
    def end(self) -> None:
        """It is over."""
        self._span.end(self._now())


class _Request(_Span):
    def __init__(self, tracer: trace.Tracer, span: trace.Span, clock_ns: int, name: str) -> None:
        super().__init__(tracer, span, clock_ns)
        self._name = name

    def end(self, status: int, route: str | None, **of: Value) -> None:
        """It was answered."""
        span = self._span
        span.set_attributes({"http.response.status_code": status, **_own(of)})
        if route is not None:
            span.set_attribute("http.route", route)
            span.update_name(f"{self._name} {route}")
        if status == _HUNG_UP:
            # Nobody was left to be told of a problem; calling the work off looked like one.
            self._problem, self._broken = None, False
        if self._problem is not None:
            span.set_attribute("foretell.problem", self._problem)
        if self._broken or status >= _FAILED:
            _fail(span, self._problem or str(status))
        if self._parts > _MOST_PARTS:
            span.set_attribute("foretell.parts", self._parts)
        span.end(self._now())


class _Bounded(BatchSpanProcessor):
    """The library's, whose thread sends; but what does not fit into the queue is counted."""

    def __init__(self, sender: "_Sender", watcher: SpanWatcher) -> None:
        super().__init__(sender, _MOST_WAITING, _PERIOD_MS, _SENT_TOGETHER)
        self._sender = sender
        self._watcher = watcher

    def on_end(self, span: ReadableSpan) -> None:
        """Have it wait, where there is room."""
        if self._sender.expect():
            super().on_end(span)
        else:
            self._watcher.spans("full", 1)


class _Sender(SpanExporter):
    """The library's, but it counts, and says only now and then what is wrong."""

    def __init__(self, endpoint: str, watcher: SpanWatcher) -> None:
        self.waiting = 0
        """Spans in the queue."""
        self._under_way = 0
        self._lock = threading.Lock()
        self._endpoint = endpoint
        self._watcher = watcher
        self._exporter = OTLPSpanExporter(endpoint)
        self._failing = False
        self._told = -_SILENCE_S

    def expect(self) -> bool:
        """A span is about to wait; whether there is room for it."""
        with self._lock:
            has_room = self.waiting < _MOST_WAITING
            self.waiting += has_room
        return has_room

    @property
    def left(self) -> int:
        """Spans of which nobody knows that they came to the collector."""
        return self.waiting + self._under_way

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send them; in the thread that does so."""
        with self._lock:
            self.waiting -= len(spans)
            self._under_way = len(spans)
        _said.first = None
        result = self._exporter.export(spans)
        self._under_way = 0
        if result is SpanExportResult.SUCCESS:
            self._watcher.spans("sent", len(spans))
            if self._failing:
                self._failing = False
                log.info("spans can be sent to %s again", self._endpoint)
            return result
        self._watcher.spans("failed", len(spans))
        self._failing = True
        now = time.monotonic()
        if now - self._told >= _SILENCE_S:
            self._told = now
            log.warning("spans cannot be sent to %s and are lost: %s", self._endpoint, _said.first)
        return result

    def shutdown(self) -> None:
        """Send no more."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


class _Said(threading.local):
    """What the library has said first of what this thread sends."""

    first: str | None = None


class _Quiet(logging.Filter):
    """Keeps its lines, one or several for all that cannot be sent, out of the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        if _said.first is None:
            _said.first = record.getMessage()
        return False


_said = _Said()
logging.getLogger(OTLPSpanExporter.__module__).addFilter(_Quiet())


def _parent(headers: Sequence[tuple[bytes, bytes]]) -> Context:
    """The caller's span, as W3C Trace Context says it; nothing where that is not said, or not rightly."""
    given: dict[str, list[str]] = {}
    for name, value in headers:
        if name in (b"traceparent", b"tracestate"):
            given.setdefault(name.decode(), []).append(value.decode("latin-1"))
    parents = given.get("traceparent", ())
    if len(parents) != 1 or len(parents[0]) > _LONGEST_PARENT:
        return Context()
    return _propagator.extract(given, Context())


def _fail(span: trace.Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))


def _own(of: Mapping[str, Value]) -> dict[str, Value]:
    """Attributes that no convention has a name for."""
    return {f"foretell.{name}": value for name, value in of.items()}


def _ns(seconds: float) -> int:
    return int(seconds * _SECOND)


def _written(context: SpanContext) -> bytes:
    return context.trace_id.to_bytes(16, "big") + context.span_id.to_bytes(8, "big")


def _read(context: bytes) -> SpanContext:
    ids = int.from_bytes(context[:16], "big"), int.from_bytes(context[16:], "big")
    return SpanContext(*ids, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _cut(contexts: bytes) -> list[bytes]:
    return [contexts[start : start + CONTEXT_BYTES] for start in range(0, len(contexts), CONTEXT_BYTES)]
