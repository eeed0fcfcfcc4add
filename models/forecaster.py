"""The shell around every network: raw units in and out, and the four methods of the artifact contract.

Shapes: B rows, L window, F features, H steps a pass, N steps, T targets, Q quantiles of each, K features known
ahead, M = F - K modelled features (targets and past covariates, which are forecast together), O = M + Q * T outputs, R
attention rows a pass.
"""

from typing import Final

import torch
from torch import Tensor, nn

from models.core import Core
from models.layers.scaler import Scaler


class Forecaster(nn.Module):
    """A core between a scaler and its inverse; what gets scripted into an artifact.

    The core is handed scaled windows [B, L, F] and gives scaled outputs [B, H, O]; nothing outside this
    class needs to know that there is a scale.
    """

    horizon: Final[int]
    attention_rows: Final[int]

    def __init__(self, core: Core, scaler: Scaler) -> None:
        super().__init__()
        self.core = core
        self.scaler = scaler
        self.horizon = core.shape.horizon
        self.attention_rows = core.attention_rows

    def encode(self, window: Tensor, time: Tensor) -> list[Tensor]:
        """Window [B, L, F] in raw units, time of its last row int64 [B] -> state, every tensor batch-first."""
        return self.core.encode(self.scaler.scale_rows(window), time)

    def decode(self, state: list[Tensor], future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """One pass: state and future [B, H, K] -> forecast [B, H, T + Q * T], attention [B, R, L], next state."""
        outputs, attention, state = self.core.decode(state, self.scaler.scale_future(future))
        return self.scaler.unscale_targets(outputs), attention, state

    def forward(self, window: Tensor, time: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
        """One encode and one decode: forecast [B, H, T + Q * T], attention [B, R, L]."""
        forecast, attention, _ = self.decode(self.encode(window, time), future)
        return forecast, attention

    def rollout(self, window: Tensor, time: Tensor, future: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """As many passes as `steps` needs: forecast [B, N, T + Q * T], attention [B, R * ceil(N / H), L]."""
        outputs, attention = self.unroll(window, time, future, steps)
        return self.scaler.unscale_targets(outputs), attention

    def embed(self, window: Tensor, time: Tensor) -> Tensor:
        """What the encoder makes of the window, [B, E]: for a look inside, or for clustering."""
        return self.core.embed(self.scaler.scale_rows(window), time)

    def heads(self, window: Tensor, time: Tensor) -> Tensor:
        """What each attention head looks at in the first pass, [B, A, L]: the attention row is their mean."""
        return self.core.heads(self.scaler.scale_rows(window), time)

    def unroll(
        self,
        window: Tensor,
        time: Tensor,
        future: Tensor,
        steps: int,
        truth: Tensor | None = None,
        forcing: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Like `rollout`, but the scaled outputs [B, N, O]: what the training loss is taken of.

        Passes are whole: `future` [B, N, K] or longer goes on as in its last row to the end of the last one, and the
        steps beyond N are cut off again. With teacher forcing, each row's next pass goes on from what really came,
        `truth` [B, N, F] in raw units, with the probability `forcing` instead of from its own forecast; what of it is
        missing stays as forecast.
        """
        passes = (steps + self.horizon - 1) // self.horizon
        missing = passes * self.horizon - future.size(1)
        if missing > 0:
            future = torch.cat([future, future[:, -1:].expand(-1, missing, -1)], 1)
        state = self.encode(window, time)
        forecasts: list[Tensor] = []
        attentions: list[Tensor] = []
        for index in range(passes):
            known = future[:, index * self.horizon : (index + 1) * self.horizon]
            outputs, attention, state = self.core.decode(state, self.scaler.scale_future(known))
            forecasts.append(outputs)
            attentions.append(attention)
            if truth is not None and index + 1 < passes:
                came = self.scaler.scale_rows(truth[:, index * self.horizon : (index + 1) * self.horizon])
                forced = torch.rand(came.size(0), 1, 1, device=came.device) < forcing
                own = self.core.rows(outputs, self.scaler.scale_future(known))
                state = self.core.correct(state, torch.where(forced & ~came.isnan(), came, own))
        return torch.cat(forecasts, 1)[:, :steps], torch.cat(attentions, 1)
