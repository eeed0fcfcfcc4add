"""What is traced of a request, said without the library that does it: that is in app/tracing.py, which nothing imports
where tracing is off.

Moments are of `time.perf_counter`, in seconds, or of the system's clock, in nanoseconds since the epoch (`_ns`). A
context is CONTEXT_BYTES bytes: the id of a trace and of a span in it, as W3C Trace Context has them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import NamedTuple, Protocol

from app.settings import PREFIX, Settings, SettingsError
from app.ticket import ModelId

CONTEXT_BYTES = 24

Value = str | int | float | bool


class Ran(NamedTuple):
    """Which batches an order was computed in, as its device says."""

    began_ns: int
    """Of the first of them,"""
    ended_ns: int
    """and of the last."""
    batches: int
    """How many there were."""
    contexts: bytes
    """Of the spans of the first of them, one after the other."""


class Span(Protocol):
    """A request under way that is traced, or a part of one."""

    trace_id: str
    span_id: str
    context: bytes

    def stage(self, name: str, began: float, **of: Value) -> None:
        """A stage that began then has just ended."""

    def computed(self, began: float, queued_s: float, ran: Ran | None, **of: Value) -> None:
        """An order that was given then has just been answered: how long it waited, how long it took, and with whom."""

    def part(self, name: str, **of: Value) -> "Part | None":
        """Begin a part with stages of its own; None where there have been so many that no more are traced."""

    def problem(self, slug: str, *, broken: bool = False) -> None:
        """It was refused, or has failed; `broken` where the answer had begun as a right one."""


class Part(Span, Protocol):
    """Some windows of a request of many."""

    def end(self) -> None:
        """It is over."""


class Request(Span, Protocol):
    """A whole request."""

    def end(self, status: int, route: str | None, **of: Value) -> None:
        """It was answered."""


class Batches(Protocol):
    """Who traces what a device does."""

    def batch(
        self,
        model: ModelId,
        began_ns: int,
        ended_ns: int,
        requests: Sequence[bytes],
        of: Mapping[str, Value],
        error: str | None = None,
    ) -> bytes:
        """A batch in which these were computed, by their contexts; gives its own."""


class Tracer(Batches, Protocol):
    """Who traces in one process."""

    def request(
        self,
        method: str,
        scheme: str,
        path: str,
        headers: Sequence[tuple[bytes, bytes]],
        began: float,
        **of: Value,
    ) -> Request | None:
        """Begin to trace a request; None where it is none of those that are traced."""

    def close(self) -> None:
        """Send what there is, and end, within seconds. It may block."""


class SpanWatcher(Protocol):
    """Who counts (the metrics)."""

    def spans(self, result: str, count: int) -> None:
        """So many were `sent`, or were lost: the queue was `full`, or the collector has `failed`."""


current: ContextVar[Span | None] = ContextVar("span", default=None)
"""Of the request that is being answered; None where it is not traced."""


@contextmanager
def part(name: str, **of: Value) -> Iterator[None]:
    """What is done within is a part of its own, where the request is traced."""
    span = current.get()
    if span is None:
        yield
        return
    of_its_own = span.part(name, **of)
    token = current.set(of_its_own)
    try:
        yield
    finally:
        current.reset(token)
        if of_its_own is not None:
            of_its_own.end()


def check_tracing(settings: Settings) -> None:
    """SettingsError where spans are wanted and what makes them is not installed."""
    if settings.traces is not None and not _is_installed():
        raise SettingsError(f"{PREFIX}TRACES takes the extra `tracing`: pip install 'foretell[tracing]'")


def tracer_of(settings: Settings, process: str, watcher: SpanWatcher) -> Tracer | None:
    """For the process of that name; None where nothing is to be traced. SettingsError as `check_tracing`."""
    if settings.traces is None:
        return None
    check_tracing(settings)
    # OpenTelemetry is only in processes that use it.
    from app.tracing import OpenTelemetry

    return OpenTelemetry(settings.traces, settings.traces_share, process, watcher)


def _is_installed() -> bool:
    try:
        return all(find_spec(f"opentelemetry.{name}") for name in ("sdk.trace", "exporter.otlp.proto.http"))
    except ModuleNotFoundError:
        return False
