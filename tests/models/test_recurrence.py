"""The recurrent networks against the textbook: every step computed from the whole sequence so far, nothing carried."""

import pytest
import torch
from torch import Tensor

from models.networks.attention_lstm import AttentionLSTM
from models.networks.lstm import StackedLSTM
from tests.builders import inputs, network

ROLES = ("past", "target", "future", "target")


def longer(sequence: Tensor, core: StackedLSTM | AttentionLSTM, modelled: Tensor, known: Tensor) -> Tensor:
    return torch.cat([sequence, core.rows(modelled, known)], 1)


@pytest.mark.parametrize("horizon", [1, 3])
def test_carried_state_equals_reading_everything_again(horizon: int) -> None:
    """The carried hidden and cell states stand for the window and all of the forecast so far."""
    forecaster = network("lstm", {"hidden": 8}, roles=ROLES, horizon=horizon)
    core = forecaster.core
    assert isinstance(core, StackedLSTM)
    window, time, future = inputs(forecaster, 2, 3 * horizon)
    sequence, known = forecaster.scaler.scale_rows(window), forecaster.scaler.scale_future(future)

    with torch.inference_mode():
        found, _ = forecaster.unroll(window, time, future, 3 * horizon)
        expected = []
        for step in range(0, 3 * horizon, horizon):
            outputs, _ = core.cells(sequence)
            ahead = known[:, step : step + horizon]
            expected.append(core.head(outputs[:, -1], core.modelled(sequence[:, -1:]), ahead))
            sequence = longer(sequence, core, expected[-1], ahead)

    torch.testing.assert_close(found, torch.cat(expected, 1))


@pytest.mark.parametrize("score", ["additive", "dot", "bilinear"])
def test_attention_weighs_the_states_of_the_window(score: str) -> None:
    """Weight i belongs to the encoder's state after row i of the window, at every step of the recursion."""
    horizon = 2
    forecaster = network("attention_lstm", {"hidden": 8, "score": score}, roles=ROLES, horizon=horizon)
    core = forecaster.core
    assert isinstance(core, AttentionLSTM)
    window, time, future = inputs(forecaster, 2, 3 * horizon)
    sequence, known = forecaster.scaler.scale_rows(window), forecaster.scaler.scale_future(future)

    with torch.inference_mode():
        found, attention = forecaster.unroll(window, time, future, 3 * horizon)
        values, _ = core.cells(sequence)
        expected, weights = [], []
        for step in range(0, 3 * horizon, horizon):
            outputs, _ = core.cells(sequence)
            query = outputs[:, -1]
            weights.append(core.score.weigh(query, core.score.prepare(values)))
            context = (weights[-1].transpose(1, 2) * values).sum(1)
            ahead = known[:, step : step + horizon]
            features = torch.cat([query, context], 1)
            expected.append(core.head(features, core.modelled(sequence[:, -1:]), ahead))
            sequence = longer(sequence, core, expected[-1], ahead)

    torch.testing.assert_close(found, torch.cat(expected, 1))
    torch.testing.assert_close(attention, torch.cat(weights, 1))


def test_scores_are_those_of_the_papers() -> None:
    """Dot: q·k/sqrt(D); bilinear: q·Wk; additive: v·tanh(Wq + Uk); each through a softmax over the window."""
    torch.manual_seed(0)
    query, values = torch.randn(2, 8), torch.randn(2, 5, 8)
    for name in ("additive", "dot", "bilinear"):
        score = network("attention_lstm", {"hidden": 8, "score": name, "attention_size": 4}).core.get_submodule("score")
        if name == "dot":
            energy = torch.einsum("bd,bld->bl", query, values) / 8**0.5
        elif name == "bilinear":
            energy = torch.einsum("bd,de,ble->bl", query, score.of_key.weight, values)
        else:
            inner = score.of_query(query)[:, None] + values @ score.of_key.weight.T
            energy = (inner.tanh() * score.read.weight[0]).sum(-1)
        expected = energy.softmax(-1).unsqueeze(1)
        torch.testing.assert_close(score.weigh(query, score.prepare(values)), expected)
