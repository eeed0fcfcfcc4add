"""Arrow's bytes as nobody should send them: read or refused, and this process lives on.

What the reader believes could end the process or take all memory, so a fault shows as a run that dies.
"""

import itertools
from datetime import UTC, datetime, timedelta

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
from hypothesis import given

from app import codec
from app.asked.sheet import Sheet
from app.codec.series import series_of
from models.spec import Spec
from tests.app.arrows import FILE, STREAM, arrow, stream
from tests.fuzz import tries
from tests.fuzz.rubbish import damaged
from tests.fuzz.test_bodies import SPECS, laid_out, refused

HOURS = [datetime(2026, 3, 28, 22, tzinfo=UTC) + hour * timedelta(hours=1) for hour in range(6)]
_NAMES = pa.array(["a", None, "a", "b", "a name that is no part of its view", "b"])
_NUMBERS = pa.array([1.5, None, float("nan"), 1e39, -3, 0.25])
COLUMNS = {
    "time": [
        pa.array(HOURS, pa.timestamp("ns", "UTC")),
        pa.array([hour.replace(tzinfo=None) for hour in HOURS], pa.timestamp("s")),
        pa.array([hour.date() for hour in HOURS], pa.date64()),
        pa.array([hour.isoformat() for hour in HOURS], pa.string_view()),
    ],
    "name": [_NAMES, _NAMES.cast(pa.string_view()), _NAMES.cast(pa.large_string()), _NAMES.dictionary_encode()],
    "target_0": [_NUMBERS, _NUMBERS.cast(pa.float32()), _NUMBERS.dictionary_encode(), pa.array(range(6), pa.uint8())],
    "past_1": [_NUMBERS.cast(pa.float16()), pa.nulls(6), pa.array([12, None, 3, 4, 5, 6], pa.decimal128(30, 4))],
    "static_2": [pa.array([4] * 6), pa.array([True] * 6), pa.array([[1], None, [2, 3], [], [4], [5]])],
    "future_1": [pa.array([7, 6, 5, 4, 3, None], pa.int16()), pa.array([1] * 6).dictionary_encode()],
}
_BATCHES = [
    arrow(**{name: kinds[pick % len(kinds)] for name, kinds in COLUMNS.items()})
    for pick in range(max(map(len, COLUMNS.values())))
]
WHOLES = [
    stream(*batches, as_file=as_file, compression=compression)
    for batch, as_file, compression in itertools.product(_BATCHES, (False, True), (None, "lz4", "zstd"))
    for batches in ([batch], [batch.slice(0, 2), batch.slice(2)])
]
_TOKENS = [number.to_bytes(size, "little", signed=True) for size in (4, 8) for number in (-1, 0, 1, 2**20, 2**31 - 1)]


@st.composite
def turned(draw: st.DrawFn) -> bytes:
    """A whole one with some of its words replaced, as lengths and offsets that lie."""
    content = bytearray(draw(st.sampled_from(WHOLES)))
    for _ in range(draw(st.integers(1, 4))):
        word = draw(st.sampled_from(_TOKENS) | st.binary(min_size=1, max_size=8))
        place = draw(st.integers(0, len(content) - len(word)))
        content[place : place + len(word)] = word
    return bytes(content)


bodies = st.one_of(turned(), damaged(st.sampled_from(WHOLES), tuple(_TOKENS)), st.binary(max_size=40))


def read_all(body: bytes, content_type: str, spec: Spec) -> None:
    """By every way that a body may take."""
    sheet = refused(lambda: codec.read(body, content_type, most_bytes=1_000_000))
    if sheet is not None:
        assert isinstance(sheet, Sheet)
        refused(lambda: laid_out(sheet, spec))
    refused(lambda: series_of(body, content_type, spec, most_bytes=1_000_000))


@tries(600)
@given(bodies, st.sampled_from([STREAM, FILE]), st.sampled_from(SPECS))
def test_damaged(body: bytes, content_type: str, spec: Spec) -> None:
    """Whatever was done to it."""
    read_all(body, content_type, spec)


def test_every_beginning() -> None:
    """And where it ends too early."""
    whole = WHOLES[0]
    for end in range(0, len(whole), 3):
        read_all(whole[:end], STREAM, SPECS[0])


def test_whole() -> None:
    """The seeds are right: each is read, and some go all the way."""
    assert all(refused(lambda body=body: codec.read(body, STREAM)) is not None for body in WHOLES)
    assert pa.ipc.open_stream(WHOLES[0]).read_all().num_rows == 6
    plain = stream(arrow(target_0=np.arange(6.0), past_1=np.ones(6)), compression="zstd")
    assert refused(lambda: series_of(plain, STREAM, SPECS[0])) is not None
