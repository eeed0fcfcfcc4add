"""How a request is repeated, and what an answer that is none becomes; nothing here sends or sleeps.

A flow yields what is to be done and is sent what came of it, so that both clients share all of it:

    Flow     a call of the interface: yields Requests, is sent the Replies that it waits for
    Steps    the same made persistent: yields Exchanges and Pauses, is sent Replies and Failures
"""

import json
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from foretell.errors import (
    ForetellError,
    Place,
    ProblemError,
    TimedOutError,
    UnreachableError,
    UnreadableError,
    class_of,
)
from foretell.given import JSON, Content

T = TypeVar("T")

PROBLEM = "application/problem+json"
_PREFIX = "urn:foretell:problem:"
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_JITTER = 0.25
"""Of a pause that the service asks for, so much is added at most, so that not all who were refused come at once."""
_SHOWN = 120
_SECONDS = re.compile(r"\d{1,9}")
_REFUSALS = (429, 503)
_OF_PROXIES = (502, 504)


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be asked."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    content: Content = b""
    content_type: str = ""
    accept: str = JSON
    repeatable: bool = True
    """Whether it may be sent again where nobody knows what became of it."""
    extra_s: float = 0.0
    """How long the service itself may take its time for it."""
    answers: tuple[int, ...] = ()
    """Statuses that are answers, besides those from 200 to 299."""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Nothing came, or half of it."""

    detail: str
    sent: bool
    """Whether the service may have got the request."""
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Exchange:
    """Send it, and wait so long at most."""

    request: Request
    within_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient and how persistent."""

    timeout_s: float
    retries: int
    clock: Callable[[], float]
    """Seconds, of any origin."""
    random: Callable[[], float]
    """0 to 1."""
    identity: Callable[[], str]
    """A new request id."""


Flow = Generator[Request, Reply, T]
Steps = Generator[Exchange | Pause, Reply | Failure | None, T]


def persistently(flow: Flow[T], policy: Policy, request_id: str | None = None) -> Steps[T]:
    """All steps of a call; whatever goes wrong is a ForetellError."""
    request = next(flow)
    while True:
        named = replace(request, request_id=request_id or policy.identity())
        reply = yield from answered(named, policy)
        try:
            request = flow.send(reply)
        except StopIteration as stop:
            value: T = stop.value
            return value
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            # Reading is all that a flow does with a reply, and these are what it gives where the fields are others.
            raise _unreadable(reply, error) from error


def answered(request: Request, policy: Policy) -> Steps[Reply]:
    """Ask until there is an answer, or a reason to ask no more."""
    end = policy.clock() + policy.timeout_s + request.extra_s
    for attempt in range(policy.retries + 1):
        came = yield Exchange(request, max(0.001, end - policy.clock()))
        if isinstance(came, Reply):
            if 200 <= came.status < 300 or came.status in request.answers:
                return came
            error: ForetellError = problem_of(came)
        elif isinstance(came, Failure):
            kind = TimedOutError if came.timed_out else UnreachableError
            error = kind(came.detail, request_id=request.request_id)
        else:
            raise TypeError(f"a flow that was sent {came!r}")  # the fault of whoever runs it
        if attempt == policy.retries or not is_worth_repeating(request, came, error):
            raise error
        pause_s = pause_before(attempt, error, policy.random())
        if policy.clock() + pause_s >= end:
            raise error
        yield Pause(pause_s)
    raise AssertionError("unreachable: the last attempt returns or raises")


def is_worth_repeating(request: Request, came: Reply | Failure, error: ForetellError) -> bool:
    """Whether the same again may do better, and does no harm."""
    if isinstance(came, Failure):
        return not came.sent or (request.repeatable and not came.timed_out)
    if not isinstance(error, ProblemError):
        return False
    if error.status == 429:
        return True  # refused before anything was looked at
    if error.status in _REFUSALS:
        return request.repeatable
    # A 504 of the service itself is the request's own deadline, which has passed.
    return error.status in _OF_PROXIES and not error.slug and request.repeatable


def pause_before(attempt: int, error: ForetellError, random: float) -> float:
    """How long to wait, never less than the service asks for."""
    asked_s = error.retry_after_s if isinstance(error, ProblemError) else None
    if asked_s is None:
        longest: float = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt)
        return longest * (1 + random) / 2
    return asked_s + random * max(_FIRST_PAUSE_S, _JITTER * asked_s)


def problem_of(reply: Reply) -> ForetellError:
    """The error that an answer tells of."""
    retry_after_s = _retry_after(reply.headers.get("retry-after"))
    if reply.headers.get("content-type", "").partition(";")[0].strip().lower() == PROBLEM:
        try:
            said = json.loads(reply.content)
            return problem_from(said, retry_after_s=retry_after_s)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return _unreadable(reply, error)
    if reply.status < 400:
        where = reply.headers.get("location", "")
        return UnreadableError(
            f"status {reply.status}{f', to {where[:_SHOWN]}' if where else ''}: is that the address of the service?",
            request_id=reply.request_id,
        )
    detail = f"status {reply.status}, and not from a Foretell service: {_shown(reply.content)}"
    return class_of(reply.status, "")(
        detail, status=reply.status, request_id=reply.request_id, retry_after_s=retry_after_s
    )


def problem_from(said: Mapping[str, Any], *, retry_after_s: float | None = None) -> ProblemError:
    """The error of a problem document; ValueError, KeyError or TypeError where it is none."""
    status, slug = int(said["status"]), str(said["type"]).removeprefix(_PREFIX)
    return class_of(status, slug)(
        str(said["detail"]),
        status=status,
        slug=slug,
        title=str(said["title"]),
        places=[Place(str(one["place"]), str(one["message"])) for one in said.get("errors", [])],
        request_id=str(said["request_id"]),
        retry_after_s=retry_after_s,
    )


def _retry_after(text: str | None) -> float | None:
    """Seconds from now; a date is what some proxies give."""
    if text is None:
        return None
    if _SECONDS.fullmatch(text.strip()):
        return float(text)
    try:
        when = parsedate_to_datetime(text)
        return max(0.0, (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp())
    except (ValueError, OverflowError):
        return None


def _unreadable(reply: Reply, error: Exception) -> UnreadableError:
    return UnreadableError(
        f"status {reply.status} with something unexpected ({type(error).__name__}: {error}): {_shown(reply.content)}",
        request_id=reply.request_id,
    )


def _shown(content: bytes) -> str:
    text = content[: 4 * _SHOWN].decode("utf-8", "replace")
    return repr(text[:_SHOWN]) if text else "nothing"
