"""POST /batch: forecasts of files that are too long for one request."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from app.asked.query import Query as Asked
from app.codec.batch_answers import head, lines, written
from app.codec.batch_bodies import LINES, queries
from app.costs import Cost
from app.deps import PartsDep, SettingsDep
from app.errors import ForetellError, InvalidError, Place
from app.forecasts.batch import Batch
from app.forecasts.predictor import Choice
from app.handlers import header, problem_fields
from app.logs import request_id
from app.routes.answering import client_of, predictor_of, wanted_of
from app.routes.flowing import Flowing
from app.schemas import ARROW_BODY, CLIENT_ID, BatchOptions, refusals
from app.spans import current

router = APIRouter(tags=["forecasting"])

PATH = "/batch"

_TABLE = """series,time,load,temperature
north,2013-06-01T00:00:00Z,812.5,17.2
north,2013-06-01T01:00:00Z,790.1,16.9
south,2013-06-01T00:00:00Z,301.7,22.8
"""
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "text/csv": {
            "schema": {
                "type": "string",
                "description": "As `/forecast` takes a table: of each series the last rows count, and those of the "
                "known future behind them.",
            },
            "example": _TABLE,
        },
        LINES: {
            "schema": {
                "type": "string",
                "description": "On each line a JSON object as `/forecast` takes it, with one `window`.",
            },
            "example": '{"window": [[812.5, 17.2], [790.1, 16.9]]}\n',
        },
        "application/x-npy": {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": "A NumPy array [L, C] or [B, L, C] of float32 or float64; NaN is a missing value.",
            },
        },
        **ARROW_BODY,
    },
}
_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Lines of JSON: what is to be done; for each window, in order, its `forecast`, or an `error` "
        "with the fields of a problem; at last how many there were (`done`) and how many of them `failed`. Where it "
        "could not go on, the last line is an `error` of no `window`",
        "content": {LINES: {"schema": {"type": "string"}}},
    }
}


@router.post(
    PATH,
    summary="Forecast many windows",
    response_class=Response,
    responses={**_ANSWER, **refusals(400, 404, 408, 413, 415, 422, 500, 503, 504)},
    openapi_extra={"parameters": [CLIENT_ID], "requestBody": _BODY},
)
async def batch(
    request: Request, options: Annotated[BatchOptions, Query()], parts: PartsDep, settings: SettingsDep
) -> Response:
    """Of each window what `/forecast` says, behind all other requests, sent as it is computed. A window that is wrong,
    or that the model fails on, costs no other."""
    predictor = predictor_of(request)
    meant = predictor.meant(options.model, options.version, partial(client_of, request))
    if options.steps > settings.max_steps:
        raise InvalidError(Place("query.steps", f"{options.steps} is above the ceiling of {settings.max_steps}"))
    content_type = (header(request.scope, b"content-type") or b"").decode("latin-1")

    def read(body: bytes) -> list[Asked]:
        return queries(body, content_type, meant.spec, options.steps, most_bytes=settings.max_series_bytes)

    # Beside the event loop, which the parsing would stall; and the body is kept no longer than for that.
    began = time.perf_counter()
    asked = await asyncio.to_thread(read, request.scope["state"].pop("body"))
    if (span := current.get()) is not None:
        span.stage("parse", began)
    choice = Choice(meant, options.steps, options.attention, None, wanted_of(options), bulk=True)
    deadline_s = None if options.deadline_ms is None else options.deadline_ms / 1000
    rows = min(settings.backtest_rows, parts.engine.queue_rows)
    cost = request.scope["state"]["cost"] = Cost(meant.id)
    pieces = _pieces(Batch(predictor, asked, choice, rows=rows, deadline_s=deadline_s), choice, cost)
    first = await anext(pieces)
    return Flowing(first, pieces, LINES, what="batch", told=lambda problem: written({"error": problem}))


async def _pieces(batch: Batch, choice: Choice, cost: Cost) -> AsyncGenerator[bytes, None]:
    failed = 0
    found = [head(batch, choice)]
    async with aclosing(batch.answers()) as answers:
        async for answered in answers:
            told = None
            if isinstance(answered.result, ForetellError):
                failed += 1
                told = problem_fields(answered.result, request_id.get() or "")
            else:
                cost.windows += len(answered.result.forecast)
                cost.queue_s += answered.result.queued_s
                cost.compute_s += answered.result.device_s
            yield b"".join([*found, lines(answered, told)])
            found = []
    yield written({"done": batch.windows, "failed": failed})
