"""POST /predict: the next step."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app import codec
from app.deps import PredictorDep
from app.predictor import Choice
from app.routes.answering import PREDICTION_REFUSALS, answer
from app.schemas import Options, Prediction, Predictions, WindowBody, WindowsBody, body_of

router = APIRouter(tags=["forecasting"])


@router.post(
    "/predict",
    summary="Forecast one step",
    response_model=Prediction | Predictions,
    responses=PREDICTION_REFUSALS,
    openapi_extra=body_of(WindowBody, WindowsBody),
)
async def predict(request: Request, options: Annotated[Options, Query()], predictor: PredictorDep) -> Response:
    """The step that follows the window, for every target. Several windows in, several predictions out, in order."""
    predictor.check()
    query = codec.read(await request.body(), request.headers.get("content-type"))
    forecast = await predictor.forecast(query, Choice(steps=1, **options.model_dump()))
    return answer(codec.prediction(forecast, single=query.single), forecast)
