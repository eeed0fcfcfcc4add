"""What the forecasting endpoints share: their refusals and the headers of their answers."""

from fastapi import Response

from app.predictor import Forecast
from app.schemas import refusals

PREDICTION_REFUSALS = refusals(400, 404, 413, 415, 422, 500, 503, 504)


def answer(body: bytes, forecast: Forecast) -> Response:
    """The JSON body with what it cost (Server-Timing, W3C) and whether the cache had it."""
    headers = {"Server-Timing": f"queue;dur={forecast.queued_s * 1e3:.3f}, inference;dur={forecast.device_s * 1e3:.3f}"}
    if forecast.cache is not None:
        headers["X-Cache"] = forecast.cache
    return Response(body, media_type="application/json", headers=headers)
