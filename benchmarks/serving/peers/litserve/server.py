"""LitServe: `fast_queue`, two API servers, dynamic batching up to 64.

- `fast_queue=True` and several API servers are what its documentation recommends for many requests a second; one
  API server for each of the two cores.
- `max_batch_size=64` as for everyone. `batch_timeout`: the worker always waits that long for a batch to fill, so it
  is kept short; 0 makes the worker spin, which takes one of two cores from the API servers.
- The answer leaves the worker as finished JSON in a `Response`: FastAPI would walk through a dict of floats.
- An endpoint is a worker process of its own, so a long forecast does not stand before a one-step request.
"""

import argparse
from pathlib import Path
from typing import Any

import litserve as ls
import numpy as np
import orjson
from fastapi import Response
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BATCH = 64
BATCH_TIMEOUT_S = 0.001


def answer(content: dict[str, Any]) -> Response:
    """Finished JSON."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


class PredictAPI(ls.LitAPI):
    """One step; the windows of several requests become one batch."""

    def __init__(self, archive: Path) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=BATCH_TIMEOUT_S, api_path="/predict")
        self._archive = archive

    def setup(self, device: str) -> None:  # noqa: ARG002  CPU only
        # Here and not above, so that the API servers do without torch.
        from network import Network

        self._network = Network(self._archive)

    def decode_request(self, request: dict[str, Any]) -> tuple[bool, Floats]:
        single = "window" in request
        return single, np.array([request["window"]] if single else request["windows"], np.float32)

    def batch(self, inputs: list[tuple[bool, Floats]]) -> list[tuple[bool, Floats]]:
        return inputs

    def predict(self, x: list[tuple[bool, Floats]]) -> list[tuple[bool, Floats, Floats]]:
        forecast, attention = self._network.predict(np.concatenate([windows for _, windows in x]))
        found, start = [], 0
        for single, windows in x:
            end = start + len(windows)
            found.append((single, forecast[start:end], attention[start:end]))
            start = end
        return found

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: tuple[bool, Floats, Floats]) -> Response:
        single, forecast, attention = output
        if single:
            return answer({"prediction": forecast[0], "attention": attention[0]})
        return answer({"predictions": np.ascontiguousarray(forecast), "attentions": np.ascontiguousarray(attention)})


class ForecastAPI(ls.LitAPI):
    """Many steps, by predicting one after the other."""

    def __init__(self, archive: Path) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=BATCH_TIMEOUT_S, api_path="/forecast")
        self._archive = archive

    def setup(self, device: str) -> None:  # noqa: ARG002  CPU only
        # Here and not above, so that the API servers do without torch.
        from network import Network

        self._network = Network(self._archive)

    def decode_request(self, request: dict[str, Any]) -> tuple[Floats, int]:
        return np.array(request["window"], np.float32), request["steps"]

    def batch(self, inputs: list[tuple[Floats, int]]) -> list[tuple[Floats, int]]:
        return inputs

    def predict(self, x: list[tuple[Floats, int]]) -> list[Floats]:
        return self._network.forecast(np.stack([window for window, _ in x]), [steps for _, steps in x])

    def unbatch(self, output: list[Floats]) -> list[Floats]:
        return output

    def encode_response(self, output: Floats) -> Response:
        return answer({"forecast": output})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--endpoints", default="predict,forecast")
    options = parser.parse_args()
    kinds = {"predict": PredictAPI, "forecast": ForecastAPI}
    server = ls.LitServer(
        [kinds[name](options.archive) for name in options.endpoints.split(",")],
        accelerator="cpu",
        fast_queue=True,
        timeout=60,
    )
    server.run(
        host="127.0.0.1",
        port=options.port,
        num_api_servers=2,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )


if __name__ == "__main__":
    main()
