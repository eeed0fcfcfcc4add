"""What goes over the Unix socket between those who ask and the engine: frames of plain bytes, never pickled objects.

A frame begins with its length in bytes, itself included, and its kind. Numbers are little-endian, arrays float32 and
int64 in C order. Shapes: n windows, L window, F features, H steps a pass, P passes, K known-future covariates,
T targets, R attention rows a pass.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import orjson

from app.ticket import Floats, Times

MAX_FRAME_BYTES = 2**30
"""More than any body or answer may have: whoever announces it does not speak this language."""
_ROOM = 2**18
_KEPT = 2**24
"""So much memory a reader keeps for the next long frame."""


class Kind(IntEnum):
    """What a frame says."""

    SUBMIT = 1
    """Forecast these windows."""
    DROP = 2
    """Nobody waits for that order any more."""
    PING = 3
    LOAD = 4
    """Read, verify and warm that archive."""
    UNLOAD = 5
    ANSWER = 6
    """The forecast of an order."""
    REFUSED = 7
    """Why an order gets none."""
    PONG = 8
    LOADED = 9
    """The spec of what was loaded."""
    NOT_LOADED = 10
    """Why it was not."""


_KINDS = frozenset(Kind)


class FrameError(Exception):
    """Bytes that are no frame of ours: the connection is of no more use."""


class Order(NamedTuple):
    """A SUBMIT: windows [n, L, F], time [n], known [n, P * H, K] of the model with that digest.

    Whoever waits for a `bulk` order is in no hurry: it gives way to those that are not.
    """

    digest: str
    windows: Floats
    time: Times
    known: Floats
    passes: int
    attention: bool
    bulk: bool = False


class Told(NamedTuple):
    """What every frame of the engine begins with: which order it is about, and how busy the device is."""

    order: int
    rows: int
    """Accepted and not yet through, but for those of bulk orders."""
    backlog_s: float
    """How long those will take."""


_HEAD = struct.Struct("<IBxxxQ")
_SUBMIT = struct.Struct("<IBxxxQ32sIIBB6x")
_TOLD = struct.Struct("<IBxxxQIf")
_ANSWER = struct.Struct("<IBxxxQIfdd")
_DIGEST = "sha256:"


def submit(number: int, order: Order) -> bytes:
    """An order, known by that number until it is answered."""
    arrays = b"".join((order.time.tobytes(), order.windows.tobytes(), order.known.tobytes()))
    length, windows = _SUBMIT.size + len(arrays), len(order.windows)
    kinds = order.attention, order.bulk
    return _SUBMIT.pack(length, Kind.SUBMIT, number, _raw(order.digest), windows, order.passes, *kinds) + arrays


@lru_cache(maxsize=1024)
def _raw(digest: str) -> bytes:
    return bytes.fromhex(digest.removeprefix(_DIGEST))


def read_digest(frame: memoryview) -> str:
    """Which model a SUBMIT is for."""
    return _DIGEST + bytes(frame[16:48]).hex()


def read_submit(frame: memoryview, window: tuple[int, int], known: tuple[int, int]) -> Order:
    """An order of windows of that shape (L, F) with a known future of that shape a pass (H, K).

    The arrays are copies: the frame's memory is used again. FrameError where it is not of these shapes.
    """
    _, _, _, digest, rows, passes, attention, bulk = _SUBMIT.unpack_from(frame)
    if not rows or not passes:
        raise FrameError(f"an order of {rows} windows and {passes} passes")
    split = rows * window[0] * window[1]
    length = _SUBMIT.size + 8 * rows + 4 * (split + rows * passes * known[0] * known[1])
    if len(frame) != length:
        raise FrameError(f"an order of {len(frame)} bytes, expected {length}")
    data = bytes(frame[_SUBMIT.size :])
    floats = np.frombuffer(data, np.float32, offset=8 * rows)
    return Order(
        _DIGEST + digest.hex(),
        floats[:split].reshape(rows, *window),
        np.frombuffer(data, np.int64, rows),
        floats[split:].reshape(rows, passes * known[0], known[1]),
        passes,
        bool(attention),
        bool(bulk),
    )


def short(kind: Kind, number: int, content: object = None) -> bytes:
    """A frame to the engine of a kind that carries JSON or nothing."""
    body = b"" if content is None else orjson.dumps(content)
    return _HEAD.pack(_HEAD.size + len(body), kind, number) + body


def number_of(frame: memoryview) -> int:
    """The order that a frame to the engine is about."""
    return int(_HEAD.unpack_from(frame)[2])


def content_of(frame: memoryview) -> object:
    """The JSON of a frame to the engine."""
    return _json(frame, _HEAD.size)


def answer(told: Told, queued_s: float, device_s: float, forecast: Floats, attention: Floats | None) -> list[bytes]:
    """The forecast [n, P * H, T] of an order, with its attention [n, P * R, L] where it was asked for."""
    arrays = [forecast.tobytes()] if attention is None else [forecast.tobytes(), attention.tobytes()]
    length = _ANSWER.size + sum(map(len, arrays))
    return [_ANSWER.pack(length, Kind.ANSWER, *told, queued_s, device_s), *arrays]


def read_answer(frame: memoryview) -> tuple[float, float, Floats]:
    """Seconds queued, seconds on the device, and all numbers of the forecast and the attention after it."""
    _, _, _, _, _, queued_s, device_s = _ANSWER.unpack_from(frame)
    return queued_s, device_s, np.frombuffer(bytes(frame[_ANSWER.size :]), np.float32)


def telling(kind: Kind, told: Told, content: bytes = b"") -> bytes:
    """A frame of the engine that carries JSON or nothing."""
    return _TOLD.pack(_TOLD.size + len(content), kind, *told) + content


def read_told(frame: memoryview) -> Told:
    """How every frame of the engine begins."""
    _, _, *told = _TOLD.unpack_from(frame)
    return Told(*told)


def told_content(frame: memoryview) -> memoryview:
    """The JSON of a frame of the engine, as bytes."""
    return frame[_TOLD.size :]


def _json(frame: memoryview, start: int) -> object:
    try:
        return orjson.loads(frame[start:])
    except orjson.JSONDecodeError as error:
        raise FrameError(str(error)) from error


class Reader:
    """Cuts what arrives on a stream into frames. Its memory grows with the longest frame and is used again."""

    def __init__(self) -> None:
        self._memory = bytearray(_ROOM)
        self._start = 0
        self._end = 0

    def room(self) -> memoryview:
        """Where the next bytes go; at least `_ROOM` // 2 of them."""
        if self._start:
            # What is left is part of one frame; it moves to the front.
            rest = self._end - self._start
            self._memory[:rest] = self._memory[self._start : self._end]
            self._start, self._end = 0, rest
        if len(self._memory) - self._end < _ROOM // 2:
            self._memory = self._memory + bytearray(max(_ROOM, len(self._memory)))
        return memoryview(self._memory)[self._end :]

    def frames(self, received: int) -> Iterator[tuple[int, memoryview]]:
        """The whole frames, each with its kind, once so many bytes have been put into `room`.

        A frame's memory is its own until the next call of `room`. FrameError for what is no frame.
        """
        self._end += received
        memory = memoryview(self._memory)
        while self._end - self._start >= _HEAD.size:
            length, kind, _ = _HEAD.unpack_from(memory, self._start)
            if not _HEAD.size <= length <= MAX_FRAME_BYTES or kind not in _KINDS:
                raise FrameError(f"a frame of {length} bytes and of kind {kind}")
            if self._end - self._start < length:
                break
            frame = memory[self._start : self._start + length]
            self._start += length
            yield kind, frame
        if self._start == self._end:
            self._start = self._end = 0
            if len(self._memory) > _KEPT:
                self._memory = bytearray(_ROOM)
