"""Self-attention against torch's own: the same weights, read by an implementation that shares nothing with ours."""

import math

import pytest
import torch
from torch import Tensor, nn

from models.layers.self_attention import Block, Encoder, Pooling, SelfAttention
from models.networks.transformer import waves
from tests import builders

WIDTH, HEADS, INNER = 8, 2, 12


def rows() -> Tensor:
    return torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(0))


def shaken(module: nn.Module) -> nn.Module:
    """With other weights everywhere, those that begin as 0 or 1 too."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


def torch_attention(ours: SelfAttention) -> nn.MultiheadAttention:
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([torch.zeros(2 * WIDTH), ours.value.bias]))
        theirs.out_proj.load_state_dict(ours.merge.state_dict())
    return theirs.eval()


def torch_block(ours: Block) -> nn.TransformerEncoderLayer:
    theirs = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, dropout=0.0, batch_first=True, norm_first=True)
    theirs.self_attn = torch_attention(ours.attention)
    theirs.norm1.load_state_dict(ours.attention.norm.state_dict())
    theirs.norm2.load_state_dict(ours.feed_forward.norm.state_dict())
    theirs.linear1.load_state_dict(ours.feed_forward.up.state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward.down.state_dict())
    return theirs.eval()


def encoder(pooling: Pooling, blocks: int) -> Encoder:
    made = shaken(Encoder(WIDTH, heads=HEADS, blocks=blocks, inner=INNER, dropout=0.1, pooling=pooling))
    assert isinstance(made, Encoder)
    return made


@pytest.mark.parametrize("asking", [slice(None), slice(-1, None)])
def test_attention_is_that_of_torch_behind_a_layer_norm(asking: slice) -> None:
    """What the heads see of the normalised rows is added to the rows; the weights are those of every head."""
    ours, given = SelfAttention(WIDTH, HEADS, 0.1), rows()
    shaken(ours)

    with torch.no_grad():
        found, weights = ours.look(given[:, asking], given)
        normal = ours.norm(given)
        seen, expected = torch_attention(ours)(normal[:, asking], normal, normal, average_attn_weights=False)

        torch.testing.assert_close(weights, expected)
        torch.testing.assert_close(found, given[:, asking] + seen)
        torch.testing.assert_close(ours(given)[:, asking], found)


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
@pytest.mark.parametrize("blocks", [1, 3])
def test_an_encoder_is_that_of_torch_then_pooled(pooling: Pooling, blocks: int) -> None:
    """The blocks with their norm, and of what comes out the last row, the mean, or one that learnt shares weigh."""
    ours, given = encoder(pooling, blocks), rows()

    with torch.no_grad():
        pooled, seen = ours(given)
        expected = given
        for block in [*ours.earlier, ours.final]:
            assert isinstance(block, Block)
            before, expected = expected, torch_block(block)(expected)
        normal = ours.final.attention.norm(before)
        _, weights = torch_attention(ours.final.attention)(normal, normal, normal, average_attn_weights=False)
        expected = ours.norm(expected)
        shares = torch.zeros(3, 7)
        shares[:, -1] = 1
        if pooling == "mean":
            shares = torch.full((3, 7), 1 / 7)
        if pooling == "attention":
            shares = (expected @ ours.energy.weight[0]).softmax(1)
            assert shares.std() > 0.01

    torch.testing.assert_close(pooled, torch.einsum("bl,bld->bd", shares, expected))
    torch.testing.assert_close(seen, torch.einsum("bq,baql->bal", shares, weights))


def test_dropout_is_off_in_evaluation_and_on_in_training() -> None:
    """In every part of a block: what it adds differs from pass to pass."""
    block, given = Block(WIDTH, HEADS, INNER, 0.5), rows()

    for part in (block.attention, block.feed_forward):
        part.train()
        assert not torch.allclose(part(given), part(given))
        part.eval()
        assert torch.equal(part(given), part(given))


@pytest.mark.parametrize("width", [6, 7])
def test_positions_are_the_waves_of_the_paper(width: int) -> None:
    """Sine at even and cosine at odd places of the encoding, of the row over 10000 to the power of the place."""
    found = waves(5, width)

    for row in range(5):
        for place in range(width):
            angle = row / 10000 ** (2 * (place // 2) / width)
            expected = math.cos(angle) if place % 2 else math.sin(angle)
            assert found[row, place].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("architecture", ["transformer", "transformer_lstm"])
def test_the_order_of_rows_matters(architecture: str) -> None:
    """Attention alone does not see it: positions or cells do. The last row, from which changes count, stays."""
    network = builders.network(architecture, {"hidden": 8})
    window, time, future = builders.inputs(network, 2, 1)
    turned = torch.cat([window[:, :-1].flip(1), window[:, -1:]], 1)

    with torch.inference_mode():
        forecast, _ = network(window, time, future)
        other, _ = network(turned, time, future)

    assert not torch.allclose(forecast, other, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("transformer", {}), ("transformer_lstm", {}), ("attention_lstm", {"self_attention": True})],
)
def test_heads_that_cannot_share_the_width_are_refused(architecture: str, options: dict[str, object]) -> None:
    """Both options are named with their values."""
    with pytest.raises(ValueError, match=r"heads \(3\) must divide hidden \(8\)"):
        builders.network(architecture, {"hidden": 8, "heads": 3, **options})
