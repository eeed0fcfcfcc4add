"""What goes over the Unix socket between those who ask and the engine: frames of plain bytes, never pickled objects.

A frame begins with its length in bytes, itself included, and its kind. Numbers are little-endian, arrays float32 and
int64 in C order. Shapes: n windows, L window, F features, H steps a pass, P passes, K known-future covariates,
T targets, R attention rows a pass.
"""

import math
import struct
from collections.abc import Iterator
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import orjson

from app.errors import QueueFullError
from app.spans import CONTEXT_BYTES, Ran
from app.ticket import Floats, Times

MAX_FRAME_BYTES = 2**30
"""More than any body or answer may have: whoever announces it does not speak this language."""
SHARE = 1 / 8
"""Of the rows that a queue has room for: a model that holds fewer gets in although others have filled it."""
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
    FAILING = 11
    """Which model fails again and again, and how: name, version, digest, reason. Nobody asked."""
    PART = 12
    """What some passes more gave an order whose steps are wanted as they are done; its ANSWER has all of them again."""
    RAN = 13
    """In which batches an order that is traced was computed; its ANSWER follows."""


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
    patience_s: float = math.inf
    """Seconds from now after which nobody waits for the answer any more."""
    in_parts: bool = False
    """Whether its steps are wanted as they are done."""
    trace: bytes = b""
    """The context of what it is computed for, where that is traced (app.spans)."""


class Busy(NamedTuple):
    """What an order of some model that came now would have before it on a device; bulk orders count for nothing."""

    rows: int
    """Accepted and not yet through, of all models."""
    backlog_s: float
    """How long those will take."""
    wait_s: float
    """How long it would wait for its first pass."""
    row_s: float
    """What a row's share of a pass of that model takes, as passes went lately; 0 before the first."""
    pass_s: float
    """What a pass of that model takes."""

    def check(self, rows: int, passes: int, patience_s: float, max_wait_s: float) -> None:
        """QueueFullError where so many rows would wait too long for their first pass, or not be done in time.

        Before each of its passes whoever waits gets one, as long as they have any left to do.
        """
        if self.wait_s > max_wait_s:
            raise QueueFullError(
                f"the wait is about {self.wait_s:.1f} s, of at most {max_wait_s:g} s",
                retry_after_s=math.ceil(self.wait_s),
            )
        wait_s = min(self.backlog_s, passes * self.wait_s)
        # A lone row has made passes dear; the same passes may well take this order's rows all at once.
        done_s = wait_s + passes * min(rows * self.row_s, self.pass_s)
        if done_s > patience_s:
            raise QueueFullError(
                f"the forecast would take about {done_s:.1f} s, of at most {max(0.0, patience_s):.1f} s",
                retry_after_s=max(1, math.ceil(wait_s)),
            )


class Told(NamedTuple):
    """What every frame of the engine begins with: which order it is about, and how busy the device is (Busy).

    That is as an order of the same model would find it; where the frame is about no order, of a model that nothing is
    known of.
    """

    order: int
    rows: int
    backlog_s: float
    wait_s: float = 0.0
    row_s: float = 0.0
    pass_s: float = 0.0

    @property
    def busy(self) -> Busy:
        """How busy the device is."""
        return Busy(*self[1:])


_HEAD = struct.Struct("<IBxxxQ")
_SUBMIT = struct.Struct("<IBxxxQ32sIIBBB?f")
_TOLD = struct.Struct("<IBxxxQIffff")
_ANSWER = struct.Struct("<IBxxxQIffffdd")
_PART = struct.Struct("<IBxxxQIffffI")
_RAN = struct.Struct("<IBxxxQIffffQQI")
_DIGEST = "sha256:"


def submit(number: int, order: Order) -> bytes:
    """An order, known by that number until it is answered."""
    arrays = b"".join((order.time.tobytes(), order.windows.tobytes(), order.known.tobytes(), order.trace))
    length, windows = _SUBMIT.size + len(arrays), len(order.windows)
    kinds = order.attention, order.bulk, order.in_parts, bool(order.trace), order.patience_s
    return _SUBMIT.pack(length, Kind.SUBMIT, number, raw(order.digest), windows, order.passes, *kinds) + arrays


@lru_cache(maxsize=1024)
def raw(digest: str) -> bytes:
    """The bytes of a digest."""
    return bytes.fromhex(digest.removeprefix(_DIGEST))


def readable(digest: bytes) -> str:
    """A digest as people, the index and the spec have it."""
    return _DIGEST + digest.hex()


def read_digest(frame: memoryview) -> str:
    """Which model a SUBMIT is for."""
    return readable(bytes(frame[16:48]))


def read_submit(frame: memoryview, window: tuple[int, int], known: tuple[int, int]) -> Order:
    """An order of windows of that shape (L, F) with a known future of that shape a pass (H, K).

    The arrays are copies: the frame's memory is used again. FrameError where it is not of these shapes.
    """
    _, _, _, digest, rows, passes, attention, bulk, in_parts, is_traced, patience_s = _SUBMIT.unpack_from(frame)
    if not rows or not passes:
        raise FrameError(f"an order of {rows} windows and {passes} passes")
    split = rows * window[0] * window[1]
    floats_end = 8 * rows + 4 * (split + rows * passes * known[0] * known[1])
    length = _SUBMIT.size + floats_end + CONTEXT_BYTES * is_traced
    if len(frame) != length:
        raise FrameError(f"an order of {len(frame)} bytes, expected {length}")
    data = bytes(frame[_SUBMIT.size :])
    floats = np.frombuffer(data, np.float32, floats_end // 4 - 2 * rows, offset=8 * rows)
    return Order(
        readable(digest),
        floats[:split].reshape(rows, *window),
        np.frombuffer(data, np.int64, rows),
        floats[split:].reshape(rows, passes * known[0], known[1]),
        passes,
        bool(attention),
        bool(bulk),
        patience_s,
        bool(in_parts),
        data[floats_end:],
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
    *_, queued_s, device_s = _ANSWER.unpack_from(frame)
    return queued_s, device_s, np.frombuffer(bytes(frame[_ANSWER.size :]), np.float32)


def part(told: Told, passes: int, forecast: Floats, attention: Floats | None) -> list[bytes]:
    """What so many passes p more gave an order: forecast [n, p * H, T], attention [n, p * R, L] where it is wanted."""
    arrays = [forecast.tobytes()] if attention is None else [forecast.tobytes(), attention.tobytes()]
    length = _PART.size + sum(map(len, arrays))
    return [_PART.pack(length, Kind.PART, *told, passes), *arrays]


def read_part(frame: memoryview) -> tuple[int, Floats]:
    """How many passes more, and all numbers of their forecast and of their attention after it."""
    *_, passes = _PART.unpack_from(frame)
    return passes, np.frombuffer(bytes(frame[_PART.size :]), np.float32)


def ran(told: Told, batches: Ran) -> bytes:
    """In which batches an order was computed."""
    length = _RAN.size + len(batches.contexts)
    return _RAN.pack(length, Kind.RAN, *told, *batches[:3]) + batches.contexts


def read_ran(frame: memoryview) -> Ran:
    """The same; FrameError where the contexts are not whole."""
    *_, began_ns, ended_ns, batches = _RAN.unpack_from(frame)
    contexts = bytes(frame[_RAN.size :])
    if len(contexts) % CONTEXT_BYTES:
        raise FrameError(f"contexts of {len(contexts)} bytes")
    return Ran(began_ns, ended_ns, batches, contexts)


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
