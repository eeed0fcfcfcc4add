"""Endpoints that FastAPI documents and does not run.

What FastAPI does for a request (its middleware, matching routes, solving dependencies, exit stacks) takes longer than
a small network's pass. Here an endpoint is called with the request and its validated options, and that is all.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, get_type_hints
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


class Named:
    """A route's endpoint, which takes `request` and the names in its path, and gives a Response."""

    def __init__(self, route: APIRoute) -> None:
        names = list(route.param_convertors)
        if list(get_type_hints(route.endpoint)) != ["request", *names, "return"]:
            raise TypeError(f"{route.name} must take a request and {', '.join(names)}, and say what it gives")
        self._route = route
        self._match = route.path_regex.match
        self._endpoint: Callable[..., Awaitable[Response]] = route.endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self._route
        match = self._match(scope["path"])
        response = await self._endpoint(Request(scope, receive), *(match.groups() if match else ()))
        await response(scope, receive, send)


class Shortcuts(NamedTuple):
    """By method and path, endpoints within what surrounds every request."""

    exact: Mapping[tuple[str, str], ASGIApp] = {}
    named: Sequence[tuple[str, re.Pattern[str], ASGIApp]] = ()
    """Those with names in their paths."""

    def find(self, method: str, path: str) -> ASGIApp | None:
        """None where there is no shortcut."""
        found = self.exact.get((method, path))
        if found is not None:
            return found
        for named, pattern, app in self.named:
            if named == method and pattern.match(path):
                return app
        return None


def shortcuts(routers: Iterable[APIRouter], surroundings: Surroundings) -> Shortcuts:
    """To the endpoints of these routers."""
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    plain = [route for route in routes if not route.param_convertors]
    return Shortcuts(
        {(method, route.path): surroundings(Direct(route)) for route in plain for method in route.methods or ()},
        [
            (method, route.path_regex, surroundings(Named(route)))
            for route in routes
            if route.param_convertors
            for method in route.methods or ()
        ],
    )
