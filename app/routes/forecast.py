"""POST /forecast: as many steps as asked for."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app import codec
from app.deps import PredictorDep
from app.predictor import Choice
from app.routes.answering import PREDICTION_REFUSALS, answer
from app.schemas import Forecast, ForecastOptions, Forecasts, WindowBody, WindowsBody, body_of

router = APIRouter(tags=["forecasting"])


@router.post(
    "/forecast",
    summary="Forecast several steps",
    response_model=Forecast | Forecasts,
    responses=PREDICTION_REFUSALS,
    openapi_extra=body_of(WindowBody, WindowsBody),
)
async def forecast(request: Request, options: Annotated[ForecastOptions, Query()], predictor: PredictorDep) -> Response:
    """The `steps` rows that follow the window. Beyond a model's horizon it goes on from its own forecast."""
    predictor.check()
    query = codec.read(await request.body(), request.headers.get("content-type"))
    forecast = await predictor.forecast(query, Choice(**options.model_dump()))
    return answer(codec.forecast(forecast, single=query.single), forecast)
