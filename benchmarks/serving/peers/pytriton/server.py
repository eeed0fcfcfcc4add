"""Triton through PyTriton: V2 over HTTP, dynamic batching up to 64.

- The dynamic batcher with its defaults: Triton's documentation says to begin with them, and a delay of 0 means that
  a batch is what has come while the last one ran.
- HTTP only; gRPC and metrics are not asked and would only cost memory. Triton's own front end parses the JSON.
- Models are bound one by one, so a long forecast does not stand before a one-step request.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from network import Floats, Network
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

BATCH = 64
WINDOW, FEATURES = 96, 7


def bind_predict(triton: Triton, network: Network) -> None:
    """One step; Triton hands over whole batches."""

    @batch
    def predict(window: Floats) -> dict[str, Floats]:
        forecast, attention = network.predict(window)
        return {"prediction": forecast, "attention": attention}

    triton.bind(
        model_name="predict",
        infer_func=predict,
        inputs=[Tensor(name="window", dtype=np.float32, shape=(WINDOW, FEATURES))],
        outputs=[
            Tensor(name="prediction", dtype=np.float32, shape=(FEATURES,)),
            Tensor(name="attention", dtype=np.float32, shape=(WINDOW,)),
        ],
        config=ModelConfig(max_batch_size=BATCH, batcher=DynamicBatcher()),
    )


def bind_forecast(triton: Triton, network: Network) -> None:
    """Many steps, by predicting one after the other."""

    def forecast(requests: list[Any]) -> list[dict[str, Floats]]:
        windows = np.concatenate([request["window"] for request in requests])
        steps = [int(count) for request in requests for count in request["steps"].flatten()]
        found = iter(network.forecast(windows, steps))
        return [{"forecast": np.stack([next(found) for _ in request["window"]])} for request in requests]

    triton.bind(
        model_name="forecast",
        infer_func=forecast,
        inputs=[
            Tensor(name="window", dtype=np.float32, shape=(WINDOW, FEATURES)),
            Tensor(name="steps", dtype=np.int32, shape=(1,)),
        ],
        outputs=[Tensor(name="forecast", dtype=np.float32, shape=(-1, FEATURES))],
        config=ModelConfig(max_batch_size=BATCH, batcher=DynamicBatcher()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--ports", type=int, nargs=3, required=True, help="HTTP, gRPC, metrics")
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--endpoints", default="predict,forecast")
    options = parser.parse_args()
    http, grpc, metrics = options.ports
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=http,
        grpc_address="127.0.0.1",
        grpc_port=grpc,
        allow_metrics=False,
        metrics_port=metrics,
        log_verbose=0,
    )
    binders = {"predict": bind_predict, "forecast": bind_forecast}
    with Triton(config=config, workspace=str(options.workspace)) as triton:
        for name in options.endpoints.split(","):
            binders[name](triton, Network(options.archive))
        triton.serve()


if __name__ == "__main__":
    main()
