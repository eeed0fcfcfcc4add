"""The cache's keys, bytes and in-process store."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays

from app.forecasts.cache import ENTRY_BYTES, Answer, MemoryCache, key_of
from tests.app.fakes import MODEL, OTHER

pytestmark = pytest.mark.anyio
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)

WINDOW = np.arange(24, dtype=np.float32).reshape(1, 4, 6)
TIME = np.array([1_370_044_800])
KNOWN = np.zeros((1, 2, 1), np.float32)


def test_key_depends_on_everything_that_changes_the_answer() -> None:
    """Model, shape, numbers, time, known future, steps and attention each make another key."""
    keys = [
        key_of(MODEL, WINDOW, TIME, KNOWN, 2, attention=True),
        key_of(OTHER, WINDOW, TIME, KNOWN, 2, attention=True),
        key_of(MODEL, WINDOW.reshape(1, 6, 4), TIME, KNOWN, 2, attention=True),
        key_of(MODEL, WINDOW.reshape(2, 2, 6), TIME, KNOWN, 2, attention=True),
        key_of(MODEL, WINDOW + 1, TIME, KNOWN, 2, attention=True),
        key_of(MODEL, WINDOW, TIME + 1, KNOWN, 2, attention=True),
        key_of(MODEL, WINDOW, TIME, KNOWN + 1, 2, attention=True),
        key_of(MODEL, WINDOW, TIME, KNOWN, 3, attention=True),
        key_of(MODEL, WINDOW, TIME, KNOWN, 2, attention=False),
    ]
    assert len(set(keys)) == len(keys)


def test_key_depends_on_nothing_else() -> None:
    """Equal numbers in another piece of memory, contiguous or not, make the same key."""
    strided = np.repeat(WINDOW, 2, axis=2)[:, :, ::2]
    assert key_of(MODEL, WINDOW, TIME, KNOWN, 2, attention=True) == key_of(
        MODEL, strided, TIME, KNOWN, 2, attention=True
    )


def test_key_follows_the_digest_alone() -> None:
    """The same archive under another name is the same model."""
    assert key_of(MODEL, WINDOW, TIME, KNOWN, 2, attention=True) == key_of(
        MODEL._replace(name="alias", version=9), WINDOW, TIME, KNOWN, 2, attention=True
    )


@given(arrays(np.float32, array_shapes(min_dims=3, max_dims=3), elements=finite))
def test_answer_survives_packing(forecast: np.ndarray) -> None:
    """What is kept comes back to the last bit, with and without attention."""
    for attention in (None, np.ones((len(forecast), 2, 5), np.float32)):
        back = Answer.unpack(Answer(forecast, attention).pack())
        assert back.forecast.tobytes() == forecast.tobytes()
        assert back.forecast.shape == forecast.shape
        assert (back.attention is None) == (attention is None)
        if attention is not None and back.attention is not None:
            assert np.array_equal(back.attention, attention)


@pytest.mark.parametrize("kept", [b"", b"garbage", b"x" * 24, b"\x00" * 19, Answer(WINDOW, None).pack()[:-4]])
def test_foreign_bytes_are_no_answer(kept: bytes) -> None:
    """Bytes that are not a packed answer raise ValueError, nothing else."""
    with pytest.raises(ValueError):  # noqa: PT011  any ValueError is what the caller handles
        Answer.unpack(kept)


async def test_memory_cache_keeps_and_forgets() -> None:
    """The least recently used entry goes first; one that is too large is not kept at all."""
    cache = MemoryCache(size=2 * (ENTRY_BYTES + 5), ttl_s=60)
    cache.put("a", b"12345")
    cache.put("b", b"12345")
    assert await cache.get("a") == b"12345"
    cache.put("c", b"12345")
    assert await cache.get("b") is None
    assert await cache.get("a") == b"12345"
    cache.put("d", b"1" * (ENTRY_BYTES + 11))
    assert await cache.get("d") is None
    assert await cache.get("a") == b"12345"
