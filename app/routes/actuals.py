"""POST /models/{name}/versions/{version}/actuals: what came true."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app import codec
from app.hindsight.followed import Asked
from app.routes.answering import PREDICTION_REFUSALS, followed_of, made
from app.schemas.followed import ActualsOptions, Errors, followed_body

router = APIRouter(tags=["watching"])


@router.post(
    "/models/{name}/versions/{version}/actuals",
    summary="Tell what came true",
    response_model=Errors,
    responses=PREDICTION_REFUSALS,
    openapi_extra=followed_body(),
)
async def actuals(request: Request, name: str, version: str, options: Annotated[ActualsOptions, Query()]) -> Response:
    """How far off the version was and which of its intervals held, row by row. What is told for the first time counts
    in the metrics, and moves the adaptive intervals of this version. It may be an alias or `latest`."""
    comparer, followed = await followed_of(request)
    judged = await comparer.judged(followed, Asked(name, version, options.deadline_ms))
    content = await made(partial(codec.judged, judged), codec.effort_of(judged.compared))
    return Response(content, media_type="application/json")
