"""Errors as answers: `application/problem+json` (RFC 9457), and by path what the protocols of others have for it."""

from collections.abc import Callable
from typing import NamedTuple

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from app.errors import ForetellError, InvalidError, MalformedError, MethodError, NoSuchPageError, Place
from app.spans import current

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
PROBLEM = "application/problem+json"


class Dialect(NamedTuple):
    """How errors are told below a path."""

    media_type: str
    schema: str
    """What the OpenAPI document calls it."""
    fields: Callable[[ForetellError, str], dict[str, object]]

    @property
    def content(self) -> dict[str, dict[str, object]]:
        """Of a response of the OpenAPI document."""
        return {self.media_type: {"schema": {"$ref": f"#/components/schemas/{self.schema}"}}}


def problem(error: ForetellError, request_id: str, path: str) -> Response:
    """The answer that tells a client of an error."""
    if (span := current.get()) is not None:
        span.problem(error.slug)
    dialect = dialect_of(path)
    content = orjson.dumps(dialect.fields(error, request_id))
    return Response(content, status_code=error.status, media_type=dialect.media_type, headers=error.headers)


def dialect_of(path: str) -> Dialect:
    """How errors are told there, whatever the method and whether anything is served there or not."""
    if path == "/v2" or path.startswith("/v2/"):
        return _TENSORS
    return _TIMESERIES if path.startswith("/v1/timeseries/") else _PROBLEM


def problem_fields(error: ForetellError, request_id: str) -> dict[str, object]:
    """What it tells."""
    content: dict[str, object] = {
        "type": f"urn:foretell:problem:{error.slug}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "request_id": request_id,
    }
    if error.places:
        content["errors"] = [{"place": place, "message": message} for place, message in error.places]
    return content


def _tensors_fields(error: ForetellError, _request_id: str) -> dict[str, object]:
    """As the Open Inference Protocol has it."""
    return {"error": error.detail}


def _timeseries_fields(error: ForetellError, _request_id: str) -> dict[str, object]:
    """As KServe's time series API has it."""
    param = error.places[0].place if error.places else None
    return {"error": {"code": str(error.status), "message": error.detail, "param": param, "type": error.slug}}


_PROBLEM = Dialect(PROBLEM, "Problem", problem_fields)
_TENSORS = Dialect("application/json", "InferenceError", _tensors_fields)
_TIMESERIES = Dialect("application/json", "TimeSeriesError", _timeseries_fields)


def header(scope: Scope, wanted: bytes) -> bytes | None:
    """The first header of that name, which must be in lower case, as servers give it."""
    for name, value in scope["headers"]:
        if name == wanted:
            return bytes(value)
    return None


def install(app: FastAPI) -> None:
    """Turn the framework's own errors into ours; the middleware answers them all."""
    app.add_exception_handler(HTTPException, _raise_http)
    app.add_exception_handler(RequestValidationError, _raise_validation)


def _raise_http(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 404:
        raise NoSuchPageError(f"there is nothing at {request.url.path}")
    if error.status_code == 405:
        raise MethodError(
            f"{request.method} is not allowed at {request.url.path}", headers={"Allow": ", ".join(_allowed(request))}
        )
    raise MalformedError(error.detail)


def _allowed(request: Request) -> list[str]:
    """The methods of all routes of a path: the framework tells those of the first."""
    methods = {
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    }
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))


def _raise_validation(_request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    raise InvalidError(*(Place(".".join(str(part) for part in fault["loc"]), fault["msg"]) for fault in error.errors()))
