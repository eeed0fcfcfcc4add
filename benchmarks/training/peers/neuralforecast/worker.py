"""NeuralForecast: `LSTM` with direct forecasts and one linear layer above it; covariates are its historic exogenous.

It draws each batch from all windows; an epoch is as many batches as would hold them all. Its own scaling of each window
is off, for nobody else does that here.
"""

from typing import Any

import numpy as np
import pandas as pd
from hooks import Hooks
from meter import Meter, Task
from neuralforecast import NeuralForecast
from neuralforecast.losses.pytorch import MSE
from neuralforecast.models import LSTM
from torch import Tensor


def main() -> None:
    task = Task()
    meter = Meter(task)

    def watch(module: Any) -> None:  # noqa: ANN401  the library's module
        def forecast(windows: Tensor) -> Tensor:
            states, _ = module.hist_encoder(windows)
            found: Tensor = module.mlp_decoder(states[:, -task.horizon :])[:, :, 0]
            return found

        meter.watch(module.hist_encoder, forecast)

    covariates = [f"x{index}" for index in range(1, task.features)]
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    model = LSTM(
        h=task.horizon,
        input_size=task.length,
        encoder_n_layers=task.layers,
        encoder_hidden_size=task.hidden,
        decoder_layers=1,
        recurrent=False,
        hist_exog_list=covariates or None,
        loss=MSE(),
        learning_rate=task.learning_rate,
        max_steps=task.steps * task.epochs,
        batch_size=1,
        windows_batch_size=task.batch,
        scaler_type="identity",
        random_seed=task.seed,
        accelerator="cpu",
        callbacks=[Hooks(meter, watch)],
        **(quiet if task.threads else {}),
    )
    rows = task.values[: task.train]
    frame = pd.DataFrame({"unique_id": "series", "ds": np.arange(len(rows)), "y": rows[:, 0]})
    for index, name in enumerate(covariates, 1):
        frame[name] = rows[:, index]
    NeuralForecast(models=[model], freq=1).fit(frame)
    meter.report()


if __name__ == "__main__":
    main()
