"""The recurrent networks against the textbook: every step computed from the whole sequence so far, nothing carried."""

from typing import Any

import pytest
import torch
from torch import Tensor

from models.core import Core, Shape
from models.layers.head import Head, Norm
from models.networks.attention_lstm import AttentionLSTM
from models.networks.cnn_lstm import CNNLSTM
from models.recurrent import Stacked
from tests.builders import inputs, network

ROLES = ("past", "target", "future", "target")


def longer(sequence: Tensor, core: Core, modelled: Tensor, known: Tensor) -> Tensor:
    return torch.cat([sequence, core.rows(modelled, known)], 1)


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("lstm", {}),
        ("gru", {}),
        ("lstm", {"norm": "layer"}),
        ("cnn_lstm", {}),
        ("cnn_lstm", {"kernel": 4, "convolutions": 1}),
        ("cnn_lstm", {"kernel": 1}),
    ],
)
def test_carried_state_equals_reading_everything_again(
    architecture: str, options: dict[str, Any], horizon: int
) -> None:
    """What is carried stands for the window and all of the forecast so far."""
    forecaster = network(architecture, {"hidden": 8, **options}, roles=ROLES, horizon=horizon)
    core = forecaster.core
    assert isinstance(core, Stacked | CNNLSTM)
    window, time, future = inputs(forecaster, 2, 3 * horizon)
    sequence, known = forecaster.scaler.scale_rows(window), forecaster.scaler.scale_future(future)

    with torch.inference_mode():
        found, _ = forecaster.unroll(window, time, future, 3 * horizon)
        expected = []
        for step in range(0, 3 * horizon, horizon):
            outputs, _ = core.cells(core.found(core.pad(sequence)) if isinstance(core, CNNLSTM) else sequence)
            ahead = known[:, step : step + horizon]
            expected.append(core.head(outputs[:, -1], core.modelled(sequence[:, -1:]), ahead))
            sequence = longer(sequence, core, expected[-1], ahead)

    torch.testing.assert_close(found, torch.cat(expected, 1))


@pytest.mark.parametrize("self_attention", [False, True])
@pytest.mark.parametrize("score", ["additive", "dot", "bilinear"])
def test_attention_weighs_the_states_of_the_window(score: str, self_attention: bool) -> None:
    """Weight i belongs to the encoder's state after row i of the window, at every step of the recursion."""
    horizon = 2
    config = {"hidden": 8, "score": score, "self_attention": self_attention}
    forecaster = network("attention_lstm", config, roles=ROLES, horizon=horizon)
    core = forecaster.core
    assert isinstance(core, AttentionLSTM)
    window, time, future = inputs(forecaster, 2, 3 * horizon)
    sequence, known = forecaster.scaler.scale_rows(window), forecaster.scaler.scale_future(future)

    with torch.inference_mode():
        found, attention = forecaster.unroll(window, time, future, 3 * horizon)
        values, _ = core.cells(sequence)
        if self_attention:
            states, values = values, core.refine(values)
            assert not torch.allclose(values, states, atol=1e-2)
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


@pytest.mark.parametrize("architecture", ["lstm", "gru"])
def test_a_bidirectional_network_reads_the_window_backwards_too(architecture: str) -> None:
    """Its second half is the state after the window read by the backward weights, from the newest row to the oldest."""
    forecaster = network(architecture, {"hidden": 8, "layers": 1, "bidirectional": True})
    window, time, _ = inputs(forecaster, 2, 1)
    one = getattr(torch.nn, architecture.upper())(1, 8, batch_first=True)
    weights = forecaster.core.get_submodule("cells.layer").state_dict()
    one.load_state_dict({name: weights[f"{name}_reverse"] for name in one.state_dict()})

    with torch.inference_mode():
        outputs, _ = one(forecaster.scaler.scale_rows(window).flip(1))
        found = forecaster.embed(window, time)

    assert found.shape == (2, 16)
    torch.testing.assert_close(found[:, 8:], outputs[:, -1])


def test_convolutions_look_back_alone_and_no_further_than_their_reach() -> None:
    """What they find at a row depends on that row and the `reach` before it, and on no other."""
    core = network("cnn_lstm", {"kernel": 3, "convolutions": 2, "channels": 4}, window=12).core
    assert isinstance(core, CNNLSTM)
    rows = torch.randn(1, 12, 1, generator=torch.Generator().manual_seed(0), requires_grad=True)

    (gradient,) = torch.autograd.grad(core.found(core.pad(rows))[:, 8].square().sum(), rows)

    assert core.reach == 4
    assert gradient.flatten().nonzero().flatten().tolist() == [4, 5, 6, 7, 8]


def test_convolutions_longer_than_the_window_are_refused() -> None:
    """With the options that make them so long."""
    with pytest.raises(ValueError, match=r"convolutions \(2\) of kernel 5 reach 8 rows back; .* window \(8\)"):
        network("cnn_lstm", {"kernel": 5}, window=8)


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_a_norm_is_taken_of_the_features_that_the_forecast_is_made_of(norm: Norm) -> None:
    """In training over the batch or over each row's own features; the last row and the future are as they were."""
    torch.manual_seed(0)
    head = Head(6, Shape(window=8, horizon=2, roles=("target", "future")), dropout=0.0, norm=norm)
    features, last, future = 3 + 2 * torch.randn(16, 6), torch.randn(16, 1, 1), torch.randn(16, 2, 1)

    found = head(features, last, future)

    if norm != "none":
        axis = 0 if norm == "batch" else 1
        variance, mean = torch.var_mean(features, axis, correction=0, keepdim=True)
        features = (features - mean) / (variance + 1e-5).sqrt()
    expected = head.read(torch.cat([features, future.flatten(1)], 1)).view(16, 2, 1) + last
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("horizon", [8, 13])
def test_a_window_shorter_than_a_pass_is_corrected_to_its_own_length(horizon: int) -> None:
    """It moves on to the newest of the rows that came, and the next pass goes on from them alone."""
    forecaster = network("linear", roles=ROLES, window=8, horizon=horizon)
    core = forecaster.core
    window, time, future = inputs(forecaster, 2, 2 * horizon)
    first, second = forecaster.scaler.scale_future(future).split(horizon, 1)
    came = torch.randn(2, horizon, len(ROLES))

    with torch.inference_mode():
        state = core.correct(core.decode(forecaster.encode(window, time), first)[2], came)
        found, *_ = core.decode(state, second)
        expected, *_ = core.decode(core.encode(came[:, -8:], time), second)

    torch.testing.assert_close(found, expected)
