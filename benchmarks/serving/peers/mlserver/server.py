"""MLServer: a custom runtime for each endpoint, adaptive batching up to 64. `main` writes its settings and starts it.

- `max_batch_time`: its documentation leaves the value to experiment and 0 turns batching off. It is waited for in
  full whenever fewer than 64 requests are there; 1 ms was better here than 5, with 1 connection and with 128.
- `parallel_workers` 1, the default: inference in a process of its own beside the one that speaks HTTP. 0 is quicker
  with one connection, but slower, and with a long tail, with 128.
- `autogenerate_inference_pool_gid`: a process for each model, so a long forecast does not stand before a one-step
  request.
- Metrics stay on, as by default, since every other server here counts as well; gzip off (nobody asks for it).
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BATCH = 64
MAX_BATCH_TIME_S = 0.001


class Model(MLModel):
    """Loads the archive; V2 tensors in and out."""

    async def load(self) -> bool:
        # Here and not above, so that the process that speaks HTTP does without torch.
        from network import Network

        self.network = Network(Path(os.environ["BENCHMARK_ARCHIVE"]))
        return True

    def tensors(self, payload: InferenceRequest) -> dict[str, NDArray[Any]]:
        return {given.name: NumpyCodec.decode_input(given) for given in payload.inputs}

    def answer(self, **tensors: Floats) -> InferenceResponse:
        outputs = [NumpyCodec.encode_output(name, array) for name, array in tensors.items()]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)


class Predict(Model):
    """One step."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        forecast, attention = self.network.predict(self.tensors(payload)["window"])
        return self.answer(prediction=forecast, attention=attention)


class Forecast(Model):
    """Many steps, by predicting one after the other; one tensor answers a batch, so its rows have the same length."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        given = self.tensors(payload)
        steps = [int(count) for count in given["steps"].flatten()]
        longest = max(steps)
        found = self.network.forecast(given["window"], steps)
        padded = [np.pad(rows, ((0, longest - len(rows)), (0, 0))) for rows in found]
        return self.answer(forecast=np.stack(padded))


def write_settings(folder: Path, endpoints: list[str], ports: list[int]) -> None:
    """`settings.json`, and a folder with `model-settings.json` for each endpoint."""
    http, grpc, metrics = ports
    settings = {
        "host": "127.0.0.1",
        "http_port": http,
        "grpc_port": grpc,
        "metrics_port": metrics,
        "metrics_dir": str(folder / "metrics"),
        "environments_dir": str(folder / "environments"),
        "parallel_workers": 1,
        "gzip_enabled": False,
        "debug": False,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    for name in endpoints:
        (folder / name).mkdir()
        model = {
            "name": name,
            "implementation": f"server.{name.capitalize()}",
            "max_batch_size": BATCH,
            "max_batch_time": MAX_BATCH_TIME_S,
            "parameters": {"autogenerate_inference_pool_gid": len(endpoints) > 1},
        }
        (folder / name / "model-settings.json").write_text(json.dumps(model))


def main() -> None:
    from mlserver.cli import main as command_line

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder for its settings")
    parser.add_argument("--ports", type=int, nargs=3, required=True, help="HTTP, gRPC, metrics")
    parser.add_argument("--endpoints", default="predict,forecast")
    options = parser.parse_args()
    write_settings(options.folder, options.endpoints.split(","), options.ports)
    os.chdir(options.folder)
    sys.argv = ["mlserver", "start", str(options.folder)]
    command_line()


if __name__ == "__main__":
    main()
