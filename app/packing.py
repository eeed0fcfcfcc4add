"""Answers packed as clients ask for it (Accept-Encoding)."""

import zlib

from app.codec.accepted import qualities

_WINDOW_BITS = {"gzip": 31, "deflate": 15}
"""What is spoken, the best first, and what zlib calls it."""
_FEWEST = 1024
"""Bytes that are worth it."""
_LEVEL = 1
"""Of 9: numbers pack badly, and the rest of the levels take longer to make little of it."""


def packing_of(accepted: bytes | None, size: int) -> str | None:
    """How to pack an answer of so many bytes; None where it goes as it is."""
    if accepted is None or size < _FEWEST:
        return None
    wanted = qualities(accepted, unreadable=0.0)
    best = max(_WINDOW_BITS, key=lambda name: wanted.get(name, 0.0))
    return best if wanted.get(best, 0.0) > 0 else None


def packed(body: bytes, name: str) -> bytes:
    """The body, packed."""
    packer = zlib.compressobj(_LEVEL, wbits=_WINDOW_BITS[name])
    return packer.compress(body) + packer.flush()
