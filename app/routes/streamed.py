"""A forecast whose steps are sent as they are computed."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import Request, Response

from app.codec.streamed_answers import Line, lines, written
from app.costs import Cost
from app.forecasts.streaming import Stream
from app.routes.answering import asked_of, predictor_of
from app.routes.flowing import Flowing
from app.schemas import Options


async def streamed(request: Request, options: Options, media_type: str, *, steps: int) -> Response:
    """The answer, once its first steps are there: what goes wrong before that is told as in any other."""
    asked, choice, cost = await asked_of(request, options, steps=steps)
    stream = await predictor_of(request).stream(asked, choice)
    pieces = _pieces(stream, cost, media_type)
    first = await anext(pieces)
    headers = {"Vary": "Accept", "X-Accel-Buffering": "no"}
    if stream.cache is not None:
        headers["X-Cache"] = stream.cache
    return Flowing(
        first,
        pieces,
        media_type,
        what="forecast",
        told=lambda problem: written([Line("error", {"error": problem})], media_type),
        headers=headers,
    )


async def _pieces(stream: Stream, cost: Cost, media_type: str) -> AsyncGenerator[bytes, None]:
    cost.windows = stream.job.windows
    cost.cache = stream.cache
    cost.parse_s += stream.layout_s
    cost.cache_s = stream.cache_s
    async with aclosing(stream.pieces()) as pieces, aclosing(lines(stream, pieces)) as found:
        async for told in found:
            if stream.computed is not None:
                cost.queue_s, cost.compute_s = stream.computed.queued_s, stream.computed.device_s
            yield written(told, media_type)
