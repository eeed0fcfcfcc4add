"""The response cache: what is kept, under which key, and the in-process store that needs nothing installed.

Shapes: B windows, L window, F features, N steps, K known-future covariates, T targets, A attention rows.
"""

import hashlib
import struct
from typing import NamedTuple, Protocol

import numpy as np
from cachetools import TTLCache

from app.ticket import Floats, ModelId, Times

_HEADER = struct.Struct("<5I")


class Answer(NamedTuple):
    """What a model said: forecast [B, N, T], attention [B, A, L] where it was asked for."""

    forecast: Floats
    attention: Floats | None

    def pack(self) -> bytes:
        """The bytes that a cache keeps."""
        attention = np.empty((0, 0, 0), np.float32) if self.attention is None else self.attention
        header = _HEADER.pack(*self.forecast.shape, *attention.shape[1:])
        return b"".join((header, self.forecast.tobytes(), attention.tobytes()))

    @classmethod
    def unpack(cls, kept: bytes) -> "Answer":
        """The reverse of `pack`; ValueError for anything else."""
        try:
            windows, steps, targets, rows, length = _HEADER.unpack_from(kept)
        except struct.error as error:
            raise ValueError(str(error)) from error
        numbers = np.frombuffer(kept, np.float32, offset=_HEADER.size)
        split = windows * steps * targets
        if len(numbers) != split + windows * rows * length or bool(rows) != bool(length):
            raise ValueError("not as many numbers as the shapes say")
        # It may have been written by anybody who has the key of the store.
        if not np.isfinite(numbers).all():
            raise ValueError("numbers that are not finite")
        forecast = numbers[:split].reshape(windows, steps, targets)
        attention = numbers[split:].reshape(windows, rows, length) if length else None
        return cls(forecast, attention)


def key_of(model: ModelId, windows: Floats, time: Times, known: Floats, steps: int, *, attention: bool) -> str:
    """One name for all that the answer depends on: archive, numbers in their shapes, times [B] and options."""
    options = f"{model.digest} {windows.dtype} {windows.shape} {known.shape} {steps} {attention}"
    digest = hashlib.blake2b(options.encode(), digest_size=20)
    digest.update(windows.tobytes())
    digest.update(time.tobytes())
    digest.update(known.tobytes())
    return f"foretell:1:{digest.hexdigest()}"


class CacheWatcher(Protocol):
    """Who counts what the cache does (the metrics)."""

    def cached(self, result: str) -> None:
        """`hit`, `miss` or `error`."""


class Cache(Protocol):
    """Keeps packed answers for a while. It never raises: at worst it knows nothing."""

    async def get(self, key: str) -> bytes | None:
        """What was kept, or None."""

    def put(self, key: str, kept: bytes) -> None:
        """Keep it, in its own time."""

    async def close(self) -> None:
        """Let go of what it holds."""


ENTRY_BYTES = 400
"""What an entry takes besides its value, measured: key, links and the objects' own headers. One step is 24 bytes."""


class MemoryCache:
    """The least recently used go first when `size` bytes are full; everything goes after `ttl_s` seconds."""

    def __init__(self, *, size: int, ttl_s: float) -> None:
        self._kept: TTLCache[str, bytes] = TTLCache(maxsize=size, ttl=ttl_s, getsizeof=_size_of)

    async def get(self, key: str) -> bytes | None:
        return self._kept.get(key)

    def put(self, key: str, kept: bytes) -> None:
        if _size_of(kept) <= self._kept.maxsize:
            self._kept[key] = kept

    async def close(self) -> None:
        self._kept.clear()


def _size_of(kept: bytes) -> int:
    return ENTRY_BYTES + len(kept)
