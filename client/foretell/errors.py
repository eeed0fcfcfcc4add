"""Everything that may go wrong, in one tree.

ForetellError
├── DataError                  what was given cannot be sent; nothing was asked
├── UnreachableError           no answer: no connection, or it ended before the answer did
│   └── TimedOutError          none within the time
├── UnreadableError            an answer, and not one of a Foretell service
└── ProblemError               the service says no (RFC 9457): status, slug, detail, places
    ├── MalformedError         400
    ├── UnauthorizedError      401
    ├── ForbiddenError         403
    ├── NotFoundError          404
    │   ├── UnknownModelError
    │   └── UnknownVersionError
    ├── ConflictError          409
    ├── BodyTooLargeError      413
    ├── InvalidError           422
    │   └── NotFiniteError
    ├── FailedError            500
    └── NotNowError            may go well later: 408, 502 and 504 of a proxy
        ├── QuotaError         429
        ├── UnavailableError   503
        └── DeadlineError      504
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple


class Place(NamedTuple):
    """Where bad data is (`window[3][2]`, `query.steps`) and what is wrong there."""

    place: str
    message: str


class ForetellError(Exception):
    """Anything that went wrong between this program and a service."""


class DataError(ForetellError):
    """What was given cannot be sent."""


class UnreachableError(ForetellError):
    """No answer came. `request_id` is in the service's log, if it got so far."""

    def __init__(self, detail: str, *, request_id: str = "") -> None:
        super().__init__(detail)
        self.request_id = request_id

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), str(self), {"request_id": self.request_id})


class TimedOutError(UnreachableError):
    """No answer came within the time."""


class UnreadableError(ForetellError):
    """What came is no answer of a Foretell service."""

    def __init__(self, detail: str, *, request_id: str = "") -> None:
        super().__init__(detail)
        self.request_id = request_id

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), str(self), {"request_id": self.request_id})


class ProblemError(ForetellError):
    """The service says no. `slug` is the end of the problem's type, "" where a proxy answered in its place."""

    status_of_class: ClassVar[int] = 0
    slug_of_class: ClassVar[str] = ""

    def __init__(
        self,
        detail: str,
        *,
        status: int,
        slug: str = "",
        title: str = "",
        places: Sequence[Place] = (),
        request_id: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status
        self.slug = slug
        self.title = title
        self.places = tuple(places)
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        names = ("status", "slug", "title", "places", "request_id", "retry_after_s")
        return _again, (type(self), self.detail, {name: getattr(self, name) for name in names})


class MalformedError(ProblemError):
    status_of_class = 400


class UnauthorizedError(ProblemError):
    status_of_class = 401


class ForbiddenError(ProblemError):
    status_of_class = 403


class NotFoundError(ProblemError):
    status_of_class = 404


class UnknownModelError(NotFoundError):
    slug_of_class = "unknown-model"


class UnknownVersionError(NotFoundError):
    slug_of_class = "unknown-version"


class ConflictError(ProblemError):
    status_of_class = 409


class BodyTooLargeError(ProblemError):
    status_of_class = 413


class InvalidError(ProblemError):
    """`places` says where."""

    status_of_class = 422


class NotFiniteError(InvalidError):
    status_of_class = 0
    slug_of_class = "not-finite"


class FailedError(ProblemError):
    status_of_class = 500


class NotNowError(ProblemError):
    """What may go well later."""


class QuotaError(NotNowError):
    status_of_class = 429


class UnavailableError(NotNowError):
    status_of_class = 503


class DeadlineError(NotNowError):
    """The request's own deadline passed, where `slug` is not empty."""

    status_of_class = 504


def _again(kind: Callable[..., ForetellError], detail: str, named: Mapping[str, Any]) -> ForetellError:
    """What pickle calls: without it an error from a process of a pool would end the pool."""
    return kind(detail, **named)


def class_of(status: int, slug: str) -> type[ProblemError]:
    """Which of these a problem is."""
    for kind in (UnknownModelError, UnknownVersionError, NotFiniteError):
        if kind.slug_of_class == slug:
            return kind
    for other in _BY_STATUS:
        if other.status_of_class == status:
            return other
    return NotNowError if status in (408, 502) else ProblemError


_BY_STATUS: tuple[type[ProblemError], ...] = (
    MalformedError,
    UnauthorizedError,
    ForbiddenError,
    NotFoundError,
    ConflictError,
    BodyTooLargeError,
    InvalidError,
    FailedError,
    QuotaError,
    UnavailableError,
    DeadlineError,
)
