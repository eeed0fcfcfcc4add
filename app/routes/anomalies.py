"""POST /anomalies: how unusual the rows are that followed a window."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app import codec
from app.errors import InvalidError, Place
from app.forecasts.bands import levels_of
from app.hindsight.followed import Asked
from app.routes.answering import PREDICTION_REFUSALS, followed_of, made
from app.schemas.followed import Anomalies, AnomaliesOptions, followed_body

router = APIRouter(tags=["watching"])


@router.post(
    "/anomalies",
    summary="Find anomalies",
    response_model=Anomalies,
    responses=PREDICTION_REFUSALS,
    openapi_extra=followed_body(),
)
async def anomalies(request: Request, options: Annotated[AnomaliesOptions, Query()]) -> Response:
    """Of every value in the rows that followed a window, its conformal p-value: the share of forecasts that were off
    by as much in calibration, and whether it is outside of the prediction interval of the level."""
    levels = levels_of(options.level)
    if len(levels) > 1:
        raise InvalidError(Place("query.level", f"one level is taken here, not {len(levels)}"))
    comparer, followed = await followed_of(request)
    asked = Asked(options.model, options.version, options.deadline_ms)
    surprises = await comparer.surprises(followed, levels[0], asked)
    content = await made(partial(codec.surprises, surprises, levels[0]), codec.effort_of(surprises.compared))
    return Response(content, media_type="application/json")
