"""The naive service that most people write first: FastAPI, a pydantic body, a sync handler, one worker.

FastAPI's documentation recommends nothing else for one process: `uvicorn[standard]` brings uvloop and httptools, and
a sync handler runs in the thread pool, so that torch (which releases the interpreter) does not stop the event loop.
No batching: FastAPI has none.
"""

import argparse
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI
from network import Network
from pydantic import BaseModel

Row = list[float]


class Predict(BaseModel):
    window: list[Row] | None = None
    windows: list[list[Row]] | None = None


class Forecast(BaseModel):
    window: list[Row]
    steps: int


class Prediction(BaseModel):
    prediction: Row
    attention: Row


class Predictions(BaseModel):
    predictions: list[Row]
    attentions: list[Row]


class Forecasted(BaseModel):
    forecast: list[Row]


def create_app(archive: Path) -> FastAPI:
    """The service."""
    app = FastAPI()
    network = Network(archive)

    @app.post("/predict")
    def predict(body: Predict) -> Prediction | Predictions:
        given = [body.window] if body.windows is None else body.windows
        forecast, attention = network.predict(np.array(given, np.float32))
        if body.windows is None:
            return Prediction(prediction=forecast[0].tolist(), attention=attention[0].tolist())
        return Predictions(predictions=forecast.tolist(), attentions=attention.tolist())

    @app.post("/forecast")
    def forecast(body: Forecast) -> Forecasted:
        found = network.forecast(np.array([body.window], np.float32), [body.steps])
        return Forecasted(forecast=found[0].tolist())

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--endpoints", help="has both, for nothing")
    options = parser.parse_args()
    uvicorn.run(create_app(options.archive), port=options.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
