"""Endpoints that FastAPI documents and does not run.

What FastAPI does for a request (its middleware, matching routes, solving dependencies, exit stacks) takes longer than
a small network's pass. Here an endpoint is called with the request and its validated options, and that is all.
"""

from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache
from typing import Any, get_type_hints
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import InvalidError, Place
from app.schemas import Options

_SHORT = 256
"""Query strings up to this long are read once and remembered; clients use few different ones."""

Surroundings = Callable[[ASGIApp], ASGIApp]


class Direct:
    """A route's endpoint, which takes `request` and `options`, a model of the query, and gives a Response.

    Other parameters are refused at the start: they would be documented and never given.
    """

    def __init__(self, route: APIRoute) -> None:
        hints = get_type_hints(route.endpoint)
        if list(hints) != ["request", "options", "return"] or not issubclass(hints["options"], Options):
            raise TypeError(f"{route.name} must take a request and options, and say what it gives")
        self._route = route
        self._model: type[Options] = hints["options"]
        self._endpoint: Callable[[Request, Options], Awaitable[Response]] = route.endpoint
        self._remembered = lru_cache(maxsize=256)(self._read)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self._route
        query = scope["query_string"]
        options = self._remembered(query) if len(query) <= _SHORT else self._read(query)
        response = await self._endpoint(Request(scope, receive), options)
        await response(scope, receive, send)

    def _read(self, query: bytes) -> Options:
        given: dict[str, Any] = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        try:
            return self._model.model_validate(given)
        except ValidationError as error:
            places = [Place(".".join(["query", *map(str, fault["loc"])]), fault["msg"]) for fault in error.errors()]
            raise InvalidError(*places) from None


def shortcuts(routers: Iterable[APIRouter], surroundings: Surroundings) -> dict[tuple[str, str], ASGIApp]:
    """By method and path, the endpoints of these routers within what surrounds every request."""
    return {
        (method, route.path): surroundings(Direct(route))
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
