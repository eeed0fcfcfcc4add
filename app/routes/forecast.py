"""POST /forecast: as many steps as asked for."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app import codec
from app.routes.answering import PREDICTION_REFUSALS, answer, forecast_of
from app.schemas import TABLE_ANSWER, Forecast, ForecastOptions, Forecasts, WindowBody, WindowsBody, body_of

router = APIRouter(tags=["forecasting"])


@router.post(
    "/forecast",
    summary="Forecast several steps",
    response_model=Forecast | Forecasts,
    responses=TABLE_ANSWER | PREDICTION_REFUSALS,
    openapi_extra=body_of(WindowBody, WindowsBody),
)
async def forecast(request: Request, options: Annotated[ForecastOptions, Query()]) -> Response:
    """The `steps` rows that follow the window. Beyond a model's horizon it goes on from its own forecast."""
    answered = await forecast_of(request, options, steps=options.steps)
    return await answer(request, answered, codec.forecast)
