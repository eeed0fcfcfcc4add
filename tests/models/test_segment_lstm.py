"""The flagship against its definition: one real step of the cells a segment ahead, weights that lie where they say."""

import pytest
import torch

from models.core import Shape
from models.layers.segments import Cells, GRUCells, LSTMCells
from models.networks.segment_lstm import Config, SegmentLSTM
from models.spec import Derived
from tests import builders

ROLES = ("past", "target", "future", "target")


def segment_lstm(window: int = 26, horizon: int = 8, **options: object) -> tuple[SegmentLSTM, torch.Tensor]:
    config = {"segment": 4, "hidden": 8, **options}
    forecaster = builders.network("segment_lstm", config, roles=ROLES, window=window, horizon=horizon)
    assert isinstance(forecaster.core, SegmentLSTM)
    return forecaster.core, builders.inputs(forecaster, 3, horizon)[0]


@pytest.mark.parametrize("cells", [LSTMCells(6), GRUCells(6)])
def test_asking_is_one_step_of_the_cells_for_every_query(cells: Cells) -> None:
    """The products that all answers share change nothing: each is the state after reading its own query."""
    segments, queries = torch.randn(4 * 3, 5, 6), torch.randn(4, 3, 2, 6)

    with torch.inference_mode():
        _, state = cells(segments)
        found = cells.ask(queries, state, 3)
        for ahead in range(2):
            asked = torch.cat([segments, queries[:, :, ahead].reshape(12, 1, 6)], 1)
            outputs, _ = cells(asked)
            torch.testing.assert_close(found[:, :, ahead], outputs[:, -1].view(4, 3, 6))


@pytest.mark.parametrize(
    ("horizon", "segment", "ahead"), [(1, 24, 1), (24, 24, 1), (96, 24, 4), (100, 24, 5), (97, 24, 97), (3, 2, 3)]
)
def test_a_horizon_is_cut_in_equal_segments(horizon: int, segment: int, ahead: int) -> None:
    """None is longer than asked, and together they are the horizon: attention rows divide it, as the contract wants."""
    core, _ = segment_lstm(window=200, horizon=horizon, segment=segment)

    assert core.attention_rows == core.ahead == ahead
    assert core.head.out_features * ahead == horizon


def test_a_short_window_is_halved() -> None:
    """Cells that read one segment would have nothing to attend to."""
    core, _ = segment_lstm(window=7, horizon=1, segment=24)

    assert (core.segment, core.read) == (3, 2)


def test_attention_lies_on_the_rows_of_its_segments() -> None:
    """Rows of one segment share its weight; the oldest rows, which are left over, have none."""
    core, window = segment_lstm()

    _, attention = core.predict(window, torch.zeros(3, 8, 1))

    assert attention.shape == (3, 2, 26)
    assert not attention[:, :, :2].any()
    for first in range(2, 26, 4):
        part = attention[:, :, first : first + 4]
        torch.testing.assert_close(part, part[:, :, :1].expand(-1, -1, 4))


def test_features_are_forecast_apart() -> None:
    """Without mixing no feature's forecast depends on another one; with it, all do."""
    for mixing in (False, True):
        core, window = segment_lstm(mixing=mixing)
        other = window.clone()
        other[:, :, 0] += torch.randn(3, 26)

        found, changed = (core.predict(rows, torch.zeros(3, 8, 1))[0] for rows in (window, other))

        assert not torch.allclose(found[:, :, 0], changed[:, :, 0])
        assert torch.allclose(found[:, :, 1:], changed[:, :, 1:]) is not mixing


def test_the_linear_map_alone_starts_as_no_change() -> None:
    """Before training, a forecast without what the cells say is the level of the window."""
    core, window = segment_lstm(normalisation="last")
    core.head.weight.data.zero_()
    core.head.bias.data.zero_()

    forecast, _, _ = core.decode(core.encode(window, torch.zeros(3)), torch.zeros(3, 8, 1))

    torch.testing.assert_close(forecast, window[:, -1:, [0, 1, 3]].expand(-1, 8, -1))


def test_derived_features_need_mixing() -> None:
    """Where nothing would read them, they are refused."""
    mean = Derived(of="target_0", kind="mean", rows=2)
    shape = Shape(window=8, horizon=1, roles=("target",), derived=((0, mean),))

    with pytest.raises(ValueError, match="mixing"):
        Config().build(shape)
    assert Config(mixing=True).build(shape).embed_others.in_features == 4 * 2
