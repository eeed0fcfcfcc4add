"""POST /backtest: what a model's errors would have been over a long series, told while they are found."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request, Response

from app.codec.series import series_of
from app.codec.streamed_answers import LINES
from app.deps import PartsDep, SettingsDep, TablesDep
from app.errors import InvalidError, Place
from app.forecasts.bands import Tables, Wanted, base_of, check, intervals, levels_of
from app.handlers import header
from app.hindsight.backtest import Backtest, Bounds, Job, Line
from app.routes.flowing import Flowing
from app.schemas import ARROW_BODY, BacktestOptions, refusals
from app.ticket import ModelId
from models.spec import Spec

router = APIRouter(tags=["forecasting"])

PATH = "/backtest"

_TABLE = """time,load,temperature
2013-06-01T00:00:00Z,812.5,17.2
2013-06-01T01:00:00Z,790.1,16.9
"""
_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "text/csv": {
            "schema": {
                "type": "string",
                "description": "A header row that names the model's features in any order, an optional column of times "
                "and one of the series' names; of each series the oldest row first. An empty cell is a missing value.",
            },
            "example": _TABLE,
        },
        "application/x-npy": {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": "A NumPy array [rows, C] of float32 or float64; NaN is a missing value.",
            },
        },
        **ARROW_BODY,
    },
}
_LINES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Lines of JSON: what is to be done, then how it goes (`done`, `windows`, `mae`), a hundred of "
        "these at most, then the `result`; or, where it could not go on, an `error` with the fields of a problem",
        "content": {LINES: {"schema": {"type": "string"}}},
    }
}


@router.post(
    PATH,
    summary="Score a model on a long series",
    response_class=Response,
    responses={**_LINES, **refusals(400, 404, 413, 415, 422, 500, 503)},
    openapi_extra={"requestBody": _BODY},
)
async def backtest(
    request: Request,
    options: Annotated[BacktestOptions, Query()],
    parts: PartsDep,
    tables: TablesDep,
    settings: SettingsDep,
) -> Response:
    """Every window of the series, `stride` rows apart, is forecast as `/forecast` does it and compared with the rows
    that follow it, behind all other requests. The errors come by target and step, beside those of the seasonal-naive
    forecast.
    """
    deadline = None if options.deadline_ms is None else asyncio.get_running_loop().time() + options.deadline_ms / 1000
    model, spec, _ = parts.catalogue.resolve(options.model, options.version)
    if options.steps > settings.max_steps:
        raise InvalidError(Place("query.steps", f"{options.steps} is above the ceiling of {settings.max_steps}"))
    bounds = await _bounds(options, model, spec, tables)
    content_type = (header(request.scope, b"content-type") or b"").decode("latin-1")
    rows = min(settings.backtest_rows, parts.engine.queue_rows)

    def ready(body: bytes) -> Backtest:
        series = series_of(body, content_type, spec, most_bytes=settings.max_series_bytes)
        job = Job(model, spec, series, options.steps, options.stride, bounds, deadline)
        return Backtest(job, parts.engine.submit, rows=rows)

    # Beside the event loop, which the parsing would stall; and the body is kept no longer than for that.
    made = await asyncio.to_thread(ready, request.scope["state"].pop("body"))
    return Flowing(b"", _lines(made.lines()), LINES, what="backtest", told=lambda problem: _line({"error": problem}))


async def _bounds(options: BacktestOptions, model: ModelId, spec: Spec, tables: Tables) -> Bounds | None:
    """What makes the intervals that are asked for; InvalidError where the model has none of these levels."""
    if options.level is None:
        return None
    table, wanted = await tables.of(model, spec), Wanted(levels_of(options.level))
    check(table, wanted, options.steps)
    return lambda windows, outputs: intervals(table, base_of(table, spec, windows, outputs), wanted).bounds


async def _lines(lines: AsyncGenerator[Line, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(lines):
        async for line in lines:
            yield _line(line)


def _line(content: Line) -> bytes:
    return orjson.dumps(content) + b"\n"
