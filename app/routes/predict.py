"""POST /predict: the next step."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app import codec
from app.routes.answering import PREDICTION_REFUSALS, answer, forecast_of
from app.schemas import TABLE_ANSWER, Options, Prediction, Predictions, WindowBody, WindowsBody, asking_of

router = APIRouter(tags=["forecasting"])


@router.post(
    "/predict",
    summary="Forecast one step",
    response_model=Prediction | Predictions,
    responses=TABLE_ANSWER | PREDICTION_REFUSALS,
    openapi_extra=asking_of(WindowBody, WindowsBody),
)
async def predict(request: Request, options: Annotated[Options, Query()]) -> Response:
    """The step that follows the window, for every target. Several windows in, several predictions out, in order."""
    answered = await forecast_of(request, options, steps=1)
    return await answer(request, answered, codec.prediction)
