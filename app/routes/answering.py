"""What the forecasting endpoints share: how they ask, their refusals, and the headers of their answers."""

from fastapi import Request, Response

from app import codec
from app.handlers import header
from app.predictor import Choice, Forecast, Predictor, Query
from app.schemas import Options, refusals

PREDICTION_REFUSALS = refusals(400, 404, 413, 415, 422, 500, 503, 504)


async def forecast_of(request: Request, options: Options, *, steps: int) -> tuple[Query, Forecast]:
    """What the body asks, and the forecast for it."""
    state = request.scope["state"]
    predictor: Predictor = state["predictor"]
    predictor.check()
    content_type = header(request.scope, b"content-type")
    query = codec.read(state["body"], None if content_type is None else content_type.decode("latin-1"))
    choice = Choice(steps, options.model, options.version, options.attention, options.deadline_ms)
    return query, await predictor.forecast(query, choice)


class Answer(Response):
    """A JSON body with what it cost (Server-Timing, W3C) and whether the cache had it."""

    media_type = "application/json"

    def __init__(self, body: bytes, forecast: Forecast) -> None:
        # Not Response's own, which encodes and looks through headers that are known here.
        timing = f"queue;dur={forecast.queued_s * 1e3:.3f}, inference;dur={forecast.device_s * 1e3:.3f}"
        self.body = body
        self.status_code = 200
        self.background = None
        self.raw_headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"server-timing", timing.encode()),
        ]
        if forecast.cache is not None:
            self.raw_headers.append((b"x-cache", forecast.cache.encode()))
