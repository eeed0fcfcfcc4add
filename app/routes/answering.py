"""What the forecasting endpoints share: how they ask, their refusals, and what their answers are written as."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from fastapi import Request, Response

from app import codec
from app.access.gate import principal_of
from app.access.keyring import ANONYMOUS
from app.asked.query import Followed, Query
from app.asked.sheet import Sheet
from app.codec import tables
from app.costs import Cost
from app.forecasts.bands import Wanted, levels_of
from app.forecasts.predictor import Choice, Forecast, Predictor
from app.handlers import header
from app.hindsight.followed import Comparer
from app.schemas import Options, refusals
from app.spans import current

T = TypeVar("T")

_MOST_EFFORT = 50_000
"""Numbers that are read or written on the event loop, in some milliseconds: a thread takes longer to begin than most
answers to be made."""
_NUMBER_BYTES = 8
"""Of a body, about."""

_KINDS = {None: b"application/json", tables.CSV: b"text/csv; charset=utf-8", tables.ARROW: tables.ARROW.encode()}
"""What answers are said to be."""

CLIENT = b"x-client-id"
_LONGEST_CLIENT = 256

PREDICTION_REFUSALS = refusals(400, 404, 408, 413, 415, 422, 500, 503, 504)


async def forecast_of(request: Request, options: Options, *, steps: int) -> Forecast:
    """The forecast that the body asks for."""
    asked, choice, cost = await asked_of(request, options, steps=steps)
    forecast = await predictor_of(request).forecast(asked, choice)
    note(cost, forecast)
    return forecast


def predictor_of(request: Request) -> Predictor:
    """What makes forecasts."""
    predictor: Predictor = request.scope["state"]["predictor"]
    return predictor


async def asked_of(request: Request, options: Options, *, steps: int) -> tuple[Query | Sheet, Choice, Cost]:
    """What the body and the options ask for, and what that takes so far."""
    state = request.scope["state"]
    meant = predictor_of(request).meant(options.model, options.version, partial(client_of, request))
    cost = state["cost"] = Cost(meant.id)
    began = time.perf_counter()
    content_type = header(request.scope, b"content-type")
    said = None if content_type is None else content_type.decode("latin-1")
    read = partial(codec.read, state["body"], said, most_bytes=state["settings"].max_body_bytes)
    asked = await asyncio.to_thread(read) if codec.is_slow(content_type) else read()
    cost.parse_s = time.perf_counter() - began
    if (span := current.get()) is not None:
        span.stage("parse", began)
    bulk = options.priority == "bulk"
    return asked, Choice(meant, steps, options.attention, options.deadline_ms, wanted_of(options), bulk), cost


def wanted_of(options: Options) -> Wanted | None:
    """The intervals that the options ask for."""
    return None if options.level is None else Wanted(levels_of(options.level), options.band, options.adaptive)


def note(cost: Cost, forecast: Forecast) -> None:
    """What a forecast took."""
    cost.windows = len(forecast.forecast)
    cost.cache = forecast.cache
    cost.parse_s += forecast.layout_s
    cost.cache_s = forecast.cache_s
    cost.queue_s = forecast.queued_s
    cost.compute_s = forecast.device_s


def client_of(request: Request) -> str:
    """Who asks, as far as a split of traffic is concerned: as the client says, else its key, else its address."""
    given = header(request.scope, CLIENT)
    if given is not None:
        return f"client {given[:_LONGEST_CLIENT].decode('latin-1')}"
    principal = principal_of(request.scope)
    if principal.name != ANONYMOUS.name:
        return f"key {principal.name}"
    return f"address {request.client.host if request.client else ''}"


async def followed_of(request: Request) -> tuple[Comparer, Followed]:
    """Who compares, and with what: the windows of the body and the rows that followed them."""
    state = request.scope["state"]
    content_type = header(request.scope, b"content-type")
    body: bytes = state["body"]
    read = partial(codec.read_followed, body, None if content_type is None else content_type.decode("latin-1"))
    return state["comparer"], await made(read, len(body) // _NUMBER_BYTES)


async def made(make: Callable[[], T], effort: int) -> T:
    """What it makes; beside the event loop where that takes as long as to write many numbers."""
    return await asyncio.to_thread(make) if effort > _MOST_EFFORT else make()


async def answer(request: Request, forecast: Forecast, write: Callable[[Forecast], bytes]) -> "Answer":
    """A forecast as a table where that is what the client would rather have, else as what `write` makes of it, JSON."""
    table = codec.wants_table(header(request.scope, b"accept"))
    write = write if table is None else partial(codec.table, media_type=table)
    began = time.perf_counter()
    body = await made(partial(write, forecast), codec.effort(forecast, table))
    request.scope["state"]["cost"].write_s = time.perf_counter() - began
    if (span := current.get()) is not None:
        span.stage("serialise", began, bytes=len(body))
    return Answer(body, forecast, _KINDS[table])


class Answer(Response):
    """A forecast with what it cost (Server-Timing, W3C) and whether the cache had it."""

    def __init__(
        self,
        body: bytes,
        forecast: Forecast,
        media_type: bytes,
        *,
        vary: bytes = b"Accept",
        others: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        # Not Response's own, which encodes and looks through headers that are known here.
        timing = f"queue;dur={forecast.queued_s * 1e3:.3f}, inference;dur={forecast.device_s * 1e3:.3f}"
        self.body = body
        self.status_code = 200
        self.background = None
        self.raw_headers = [
            (b"content-type", media_type),
            (b"content-length", b"%d" % len(body)),
            (b"vary", vary),
            (b"server-timing", timing.encode()),
            *others,
        ]
        if forecast.cache is not None:
            self.raw_headers.append((b"x-cache", forecast.cache.encode()))
