"""POST /anomalies: how unusual the rows are that followed a window."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app import codec
from app.hindsight.followed import Asked
from app.routes.answering import PREDICTION_REFUSALS, followed_of
from app.schemas_followed import Anomalies, AnomaliesOptions, followed_body

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
    comparer, followed = followed_of(request)
    asked = Asked(options.model, options.version, options.deadline_ms)
    surprises = await comparer.surprises(followed, options.level, asked)
    return Response(codec.surprises(surprises, options.level), media_type="application/json")
