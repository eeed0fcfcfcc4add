"""Errors as answers: `application/problem+json` (RFC 9457), the same shape for all of them."""

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from app.errors import ForetellError, InvalidError, MalformedError, MethodError, NoSuchPageError, Place

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
PROBLEM = "application/problem+json"


def problem(error: ForetellError, request_id: str) -> Response:
    """The answer that tells a client of an error."""
    content = orjson.dumps(problem_fields(error, request_id))
    return Response(content, status_code=error.status, media_type=PROBLEM, headers=error.headers)


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
