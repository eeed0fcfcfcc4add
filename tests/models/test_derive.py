"""Derived features against numpy, and a network that reads them at every step of its recursion."""

import numpy as np
import pytest
import torch

from models import artifact, networks
from models.layers.derive import Derive
from models.spec import Derived
from tests import builders

ROLES = ("target", "future", "past")


def of(kind: str, rows: int, column: str = "target_0") -> Derived:
    return Derived.model_validate({"of": column, "kind": kind, "rows": rows})


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mean", lambda rows: rows.mean()),
        ("variance", lambda rows: rows.var()),
        ("trend", lambda rows: np.polyfit(np.arange(len(rows)), rows, 1)[0]),
        ("difference", lambda rows: rows[-1] - rows[0]),
    ],
)
def test_a_derived_feature_is_what_its_name_says(kind: str, expected: object) -> None:
    """Each row's value is that of the last rows, of which the first is repeated where the window has no more."""
    assert callable(expected)
    values = np.random.default_rng(0).normal(size=10)
    rows = torch.tensor(values, dtype=torch.float32).view(1, 10, 1)
    span = 4 + (kind == "difference")
    padded = np.concatenate([np.repeat(values[:1], span - 1), values])

    found = Derive([(0, of(kind, 4))], 1).extend(rows)

    assert torch.equal(found[:, :, :1], rows)
    wanted = [expected(padded[place : place + span]) for place in range(10)]
    np.testing.assert_allclose(found[0, :, 1].numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_a_variance_keeps_its_digits_far_from_zero() -> None:
    """A level that no scaling takes off, such as an air pressure, drowns no spread."""
    values = 1013 + np.random.default_rng(0).normal(size=50) / 10
    rows = torch.tensor(values, dtype=torch.float32).view(1, 50, 1)

    found = Derive([(0, of("variance", 4))], 1).extend(rows)[0, 3:, 1]

    wanted = np.lib.stride_tricks.sliding_window_view(rows.view(50).double().numpy(), 4).var(1)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-3, atol=1e-5)


def test_each_derived_feature_has_its_own_column_and_reach() -> None:
    """Several of them, over different spans of different features, stand behind the window's own in their order."""
    rows = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))

    found = Derive([(0, of("mean", 2)), (2, of("difference", 5))], 3).extend(rows)

    assert found.shape == (2, 9, 5)
    torch.testing.assert_close(found[:, 1:, 3], (rows[:, 1:, 0] + rows[:, :-1, 0]) / 2)
    torch.testing.assert_close(found[:, 5:, 4], rows[:, 5:, 2] - rows[:, :-5, 2])


@pytest.mark.parametrize("normalisation", ["none", "standard"])
@pytest.mark.parametrize("architecture", ["lstm", "gru", "attention_lstm"])
def test_a_carried_state_derives_what_the_whole_sequence_would(architecture: str, normalisation: str) -> None:
    """Between passes only the rows that are needed are kept, and the derived features are those of all rows."""
    columns = builders.features(ROLES)
    derived = [of("mean", 3), of("trend", 4, "past_2"), of("difference", 2, "future_1"), of("variance", 5)]
    config = {"hidden": 8, "normalisation": normalisation}
    torch.manual_seed(0)
    network = networks.build(
        architecture, config, columns, networks.shape_of(columns, window=9, horizon=2, derived=derived)
    ).eval()
    seen: list[torch.Tensor] = []
    core = network.core
    hook = core.cells.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    window, time, future = builders.inputs(network, 2, 6)

    with torch.inference_mode():
        modelled, _ = network.unroll(window, time, future, 6)
        given = network.scaler.scale_rows(window)
        shift, scale = core.measure(given) if normalisation != "none" else (0.0, 1.0)
        sequence = torch.cat([given, core.rows(modelled, network.scaler.scale_future(future))], 1)
        expected = core.derive.extend((sequence - shift) / scale)
    hook.remove()
    read = torch.cat(seen, 1)
    # The last pass's forecast is read by nobody; attention reads the window's newest rows twice.
    wanted = expected[:, :13]
    if architecture == "attention_lstm":
        wanted = torch.cat([expected[:, :9], expected[:, 7:13]], 1)
    torch.testing.assert_close(read, wanted, rtol=1e-4, atol=1e-4)
    artifact.export(network, window, time, future, 5)


def test_a_network_that_reads_features_alone_refuses_derived_ones() -> None:
    """An option that would do nothing is an error."""
    columns = builders.features(ROLES)
    with pytest.raises(ValueError, match="derived"):
        networks.build("linear", {}, columns, networks.shape_of(columns, window=8, horizon=1, derived=[of("mean", 3)]))
