"""Darts: `BlockRNNModel`, as its guide for torch models has it: float32, one call of `fit`.

Its output layer reads the last H states of the LSTM; the past covariates are further inputs.
"""

from typing import Any

import torch
from darts import TimeSeries
from darts.models import BlockRNNModel
from hooks import Hooks
from meter import Meter, Task
from torch import Tensor


def main() -> None:
    task = Task()
    meter = Meter(task)

    def watch(module: Any) -> None:  # noqa: ANN401  the library's module
        def forecast(windows: Tensor) -> Tensor:
            states, _ = module.rnn(windows)
            found: Tensor = module.fc(states[:, -task.horizon :])[:, :, 0]
            return found

        meter.watch(module.rnn, forecast)

    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    model = BlockRNNModel(
        input_chunk_length=task.length,
        output_chunk_length=task.horizon,
        model="LSTM",
        hidden_dim=task.hidden,
        n_rnn_layers=task.layers,
        dropout=0.0,
        batch_size=task.batch,
        n_epochs=task.epochs,
        loss_fn=torch.nn.MSELoss(),
        optimizer_cls=torch.optim.Adam,
        optimizer_kwargs={"lr": task.learning_rate},
        random_state=task.seed,
        pl_trainer_kwargs={
            "accelerator": "cpu",
            "callbacks": [Hooks(meter, watch)],
            **(quiet if task.threads else {}),
        },
    )
    target = TimeSeries.from_values(task.values[: task.train, :1])
    covariates = TimeSeries.from_values(task.values[: task.train, 1:]) if task.features > 1 else None
    model.fit(target, past_covariates=covariates)
    meter.report()


if __name__ == "__main__":
    main()
