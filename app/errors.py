"""Everything that the service refuses or fails at, with the status each has (docs/decisions/0002).

ForetellError
├── MalformedError             400  not JSON, not an array
├── UnauthorizedError          401  a key is needed, and there is none or an unknown one
├── ForbiddenError             403  the key is not for this
├── UnknownModelError          404
├── UnknownVersionError        404
├── NoSuchPageError            404
├── MethodError                405
├── SlowRequestError           408  the body did not arrive in time
├── ConflictError              409  the change contradicts what is served
├── BodyTooLargeError          413
├── MediaTypeError             415
├── InvalidError               422  well-formed but wrong; `places` says where
│   └── NotFiniteError         422  the model gives no finite forecast for this window
├── QuotaError                 429  the key has used up what it may for now
├── FailedError                500  a pass failed; the cause is in the log alone
├── UnavailableError           503
│   ├── QueueFullError
│   ├── DrainingError
│   ├── NotReadyError          no version of the model is ready
│   ├── EngineDiedError
│   └── DeviceLostError        the device failed: its loop ends, and the process is not live any more
└── DeadlineError              504
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, NamedTuple


class Place(NamedTuple):
    """Where bad data is (`window[3][2]`, `steps`) and what is wrong there."""

    place: str
    message: str


class ForetellError(Exception):
    """What a client may be told. `slug` names it in problem types and metrics."""

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, *, places: Sequence[Place] = (), headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.places = tuple(places)
        self.headers = dict(headers or {})

    def packed(self) -> dict[str, object]:
        """What another process needs to raise it again."""
        return {"slug": self.slug, "detail": self.detail, "headers": self.headers}


class MalformedError(ForetellError):
    status, slug, title = 400, "malformed", "Malformed request"


class UnauthorizedError(ForetellError):
    """RFC 6750 says how a key is given."""

    status, slug, title = 401, "unauthorized", "A key is needed"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class ForbiddenError(ForetellError):
    status, slug, title = 403, "forbidden", "Forbidden"


class UnknownModelError(ForetellError):
    status, slug, title = 404, "unknown-model", "Unknown model"


class UnknownVersionError(ForetellError):
    status, slug, title = 404, "unknown-version", "Unknown version"


class NoSuchPageError(ForetellError):
    status, slug, title = 404, "not-found", "Not found"


class MethodError(ForetellError):
    status, slug, title = 405, "method-not-allowed", "Method not allowed"


class SlowRequestError(ForetellError):
    """What is left of the body would be read as the next request, so the connection ends."""

    status, slug, title = 408, "slow-request", "The request did not arrive in time"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Connection": "close"})


class ConflictError(ForetellError):
    status, slug, title = 409, "conflict", "Conflict"


class BodyTooLargeError(ForetellError):
    status, slug, title = 413, "body-too-large", "Body too large"


class MediaTypeError(ForetellError):
    status, slug, title = 415, "unsupported-media-type", "Unsupported media type"


class InvalidError(ForetellError):
    """Its detail is made of its places, so that a client that shows the detail alone shows where."""

    status, slug, title = 422, "invalid", "Invalid request"

    def __init__(self, *places: Place) -> None:
        super().__init__("; ".join(f"{place}: {message}" for place, message in places), places=places)


class NotFiniteError(InvalidError):
    slug, title = "not-finite", "No finite forecast"


class QuotaError(ForetellError):
    """Try again after `retry_after_s`."""

    status, slug, title = 429, "over-quota", "Over the quota"

    def __init__(self, detail: str, *, retry_after_s: int = 1) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after_s)})


class FailedError(ForetellError):
    status, slug, title = 500, "failed", "The forecast failed"


class UnavailableError(ForetellError):
    """Try again after `retry_after_s`."""

    status, slug, title = 503, "unavailable", "Unavailable"

    def __init__(self, detail: str, *, retry_after_s: int = 1) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after_s)})


class QueueFullError(UnavailableError):
    slug, title = "queue-full", "Overloaded"


class DrainingError(UnavailableError):
    slug, title = "draining", "Shutting down"


class NotReadyError(UnavailableError):
    slug, title = "not-ready", "No ready model"


class EngineDiedError(UnavailableError):
    slug, title = "engine-died", "The engine stopped"


class DeviceLostError(UnavailableError):
    slug, title = "device-lost", "The device failed"


class DeadlineError(ForetellError):
    status, slug, title = 504, "deadline", "Deadline passed"


def unpacked(content: Mapping[str, Any]) -> ForetellError:
    """The error of another process; of no kind in particular where it is of none that is known here."""
    error = ForetellError.__new__(_by_slug().get(content["slug"], ForetellError))
    ForetellError.__init__(error, content["detail"], headers=content["headers"])
    return error


@cache
def _by_slug() -> dict[str, type[ForetellError]]:
    kinds = [ForetellError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return {kind.slug: kind for kind in kinds}
