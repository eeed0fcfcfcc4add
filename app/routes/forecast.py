"""POST /forecast: as many steps as asked for."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app import codec
from app.handlers import header
from app.routes.answering import PREDICTION_REFUSALS, answer, forecast_of
from app.routes.streamed import streamed
from app.schemas import FLOWING_ANSWER, Forecast, ForecastOptions, Forecasts, WindowBody, WindowsBody, asking_of

router = APIRouter(tags=["forecasting"])


@router.post(
    "/forecast",
    summary="Forecast several steps",
    response_model=Forecast | Forecasts,
    responses=FLOWING_ANSWER | PREDICTION_REFUSALS,
    openapi_extra=asking_of(WindowBody, WindowsBody),
)
async def forecast(request: Request, options: Annotated[ForecastOptions, Query()]) -> Response:
    """The `steps` rows that follow the window. Beyond a model's horizon it goes on from its own forecast; with `Accept:
    application/x-ndjson` or `text/event-stream` the steps are sent as they are computed."""
    media_type = codec.wants_stream(header(request.scope, b"accept"))
    if media_type is not None:
        return await streamed(request, options, media_type, steps=options.steps)
    answered = await forecast_of(request, options, steps=options.steps)
    return await answer(request, answered, codec.forecast)
