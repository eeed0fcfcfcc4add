"""POST /v1/timeseries/forecast: forecasts by KServe's time series API."""

import time
from functools import partial

from fastapi import APIRouter, Request, Response

from app.codec import timeseries
from app.costs import Cost
from app.deps import PartsDep
from app.errors import InvalidError
from app.forecasts.bands import Wanted
from app.forecasts.predictor import Choice, Predictor
from app.logs import request_id
from app.routes.answering import Answer, client_of, made, note
from app.schemas import refusals
from app.schemas.timeseries import TIMESERIES_BODY, TimeSeriesResponse
from app.spans import current

router = APIRouter(prefix="/v1/timeseries", tags=["time series API"])

_PATH = "/v1/timeseries/forecast"


@router.post(
    "/forecast",
    summary="Forecast time series",
    response_model=TimeSeriesResponse,
    responses=refusals(400, 404, 408, 413, 415, 422, 500, 503, 504, path=_PATH),
    openapi_extra=TIMESERIES_BODY,
)
async def forecast(request: Request) -> Response:
    """As many steps as `options.horizon` says after each of the series, in the way of KServe."""
    state = request.scope["state"]
    predictor: Predictor = state["predictor"]
    began = time.perf_counter()
    asked = timeseries.read(state["body"])
    meant = predictor.meant(asked.model, None, partial(client_of, request))
    cost = state["cost"] = Cost(meant.id)
    try:
        query = timeseries.query_of(asked, meant.spec)
        cost.parse_s = time.perf_counter() - began
        if (span := current.get()) is not None:
            span.stage("parse", began)
        wanted = Wanted(asked.levels) if asked.levels else None
        found = await predictor.forecast(query, Choice(meant, asked.horizon, "none", wanted=wanted))
    except InvalidError as error:
        raise timeseries.renamed(error) from error
    note(cost, found)
    began = time.perf_counter()
    write = partial(timeseries.write, asked, found, f"forecast-{request_id.get()}")
    body = await made(write, timeseries.effort(asked, found))
    cost.write_s = time.perf_counter() - began
    if span is not None:
        span.stage("serialise", began, bytes=len(body))
    return Answer(body, found, b"application/json")


@router.get("/models", summary="List the models of the time series API")
async def models(parts: PartsDep) -> list[str]:
    """Those of which a version is ready."""
    return [name for name, model in parts.catalogue.models.items() if model.newest_ready() is not None]
