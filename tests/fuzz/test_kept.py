"""What caches and stores of states give back: rubbish counts as nothing, and what is read is what would be written."""

import asyncio
import struct
import zlib

import hypothesis.strategies as st
import numpy as np
import orjson
import pytest
from hypothesis import example, given

from app.forecasts.adaptive import Adaptive, FolderStates, Outcomes, State
from app.forecasts.cache import Answer
from models.intervals import Base, Table
from tests.app import calibrated
from tests.app.fakes import MODEL
from tests.app.specs import spec_of
from tests.fuzz import tries
from tests.fuzz.rubbish import damaged, overwritten

SPEC = spec_of(("target", "target"), intervals=calibrated.intervals())
FLOATS = tuple(np.array([value], "<f4").tobytes() for value in (np.nan, np.inf, -np.inf, 1e38, -0.0))
DOUBLES = tuple(np.array([value], "<f8").tobytes() for value in (np.nan, np.inf, -np.inf, 2, -1e308, 1))
WHOLE = tuple(struct.pack("<q", value) for value in (0, -1, 2**63 - 1, 2**32, 1))

answers = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2)).map(
    lambda shape: Answer(
        np.arange(np.prod(shape[:3]), dtype=np.float32).reshape(shape[:3]),
        np.ones((shape[0], shape[3], 4), np.float32) if shape[3] else None,
    ).pack()
)


@tries(400)
@given(damaged(answers, (*FLOATS, b"\0" * 4, b"\xff" * 4)) | st.binary(max_size=60))
@example(struct.pack("<5I", *[2**32 - 1] * 5))
@example(struct.pack("<5I", 0, 2**32 - 1, 2**32 - 1, 0, 0))
@example(struct.pack("<5I", 1, 0, 0, 0, 7))
def test_answers(kept: bytes) -> None:
    """Bytes of a cache are refused, or an answer that packs to the same bytes again, finite throughout."""
    try:
        answer = Answer.unpack(kept)
    except ValueError:
        return
    assert answer.pack() == kept
    assert np.isfinite(answer.forecast).all()
    assert answer.attention is None or np.isfinite(answer.attention).all()


def test_no_numbers_but_finite_ones_are_answers() -> None:
    """A NaN is none of a model's, whichever part it stands in: it would be null in an answer."""
    forecast, weights = np.ones((1, 2, 1), np.float32), np.ones((1, 2, 4), np.float32)
    for packed in (Answer(forecast, weights * np.float32(np.nan)).pack(), Answer(forecast * np.inf, None).pack()):
        with pytest.raises(ValueError, match="finite"):
            Answer.unpack(packed)


# What adaptive intervals remember


def learnt(windows: int) -> State:
    """Of so many windows."""
    state = State.fresh(SPEC)
    observed = np.ones((windows, 3, 2), np.bool_)
    names = [bytes([index] * 16) for index in range(windows)]
    p_values = np.random.default_rng(0).random((windows, 3, 2))
    state.learn(Outcomes(names, observed, p_values, np.full((3, 2), 0.01)), [80, 90])
    return state


STATES = [learnt(windows).pack() for windows in range(4)]
BROKEN = struct.pack("<4sQIIII", b"aci1", 2**64 - 1, 2, 3, 2, 0) + np.full(12, 0.1).tobytes()
packed_states = (
    overwritten(STATES, (*DOUBLES, *WHOLE))
    | damaged(st.sampled_from(STATES), (*DOUBLES, *WHOLE, b"aci1"))
    | st.binary(max_size=60)
)


@tries(400)
@given(packed_states)
@example(BROKEN)
@example(BROKEN.replace(b"\xff", b"\0")[:-8] + DOUBLES[2])
def test_states(packed: bytes) -> None:
    """They are refused, or miscoverages that mean something; what is learnt on them can be kept."""
    try:
        state = State.unpack(packed, SPEC)
    except ValueError:
        return
    assert state.pack() == packed or not packed
    assert state.alpha.shape == (2, 3, 2)
    assert (np.abs(state.alpha) <= 1).all()
    lesson = state.learn(
        Outcomes([b"w" * 16], np.ones((1, 3, 2), np.bool_), np.full((1, 3, 2), 0.5), np.zeros((3, 2))), [80, 90]
    )
    assert np.array_equal(State.unpack(state.pack(), SPEC).alpha, state.alpha)
    assert lesson.fresh.all()
    orjson.dumps(lesson.actuals)


class _Counts:
    """Of states that failed."""

    failed = 0

    def adaptive_failed(self) -> None:
        self.failed += 1


@tries(150)
@given(packed_states)
@example(BROKEN)
def test_states_in_files(tmp_path_factory: pytest.TempPathFactory, packed: bytes) -> None:
    """Whatever lies in the file, there are miscoverages, and something is learnt and can be read again."""
    folder = tmp_path_factory.mktemp("states", numbered=True)
    states = FolderStates(folder)
    (states._folder).mkdir(exist_ok=True)
    states._file(MODEL.digest).write_bytes(packed)
    watcher = _Counts()
    adaptive = Adaptive(states, watcher)

    async def use() -> None:
        found = await adaptive.alphas(MODEL, SPEC, ["80", "90"], 5)
        assert found is not None
        assert found.alpha.shape == (2, 5, 2)
        assert not np.isnan(found.alpha).any()
        told = Outcomes([b"w" * 16], np.ones((1, 3, 2), np.bool_), np.full((1, 3, 2), 0.5), np.zeros((3, 2)))
        assert (await adaptive.learn(MODEL, SPEC, told)) is not None
        assert (await adaptive.learn(MODEL, SPEC, told)) is not None

    asyncio.run(use())
    assert not watcher.failed
    State.unpack(states._file(MODEL.digest).read_bytes(), SPEC)


# Tables of calibration errors


TABLES = [
    calibrated.table(targets=2).pack(),
    calibrated.table(extrapolate=True).pack(),
    calibrated.table(symmetric=True).pack(),
]


def resealed(packed: bytes) -> bytes:
    """With a checksum that is right, so that what is behind it is looked at."""
    body = packed[17:]
    return packed[:9] + struct.pack("<I", zlib.crc32(body)) + packed[13:17] + body


_BIG = (b"9" * 30, b"0", b"-1", b"1", b"2", b'"cqr"', b'"scaled"', b"true", b"[", b"null")
packed_tables = damaged(st.sampled_from(TABLES), (*_BIG, *FLOATS, *WHOLE))


@st.composite
def reworded(draw: st.DrawFn) -> bytes:
    """With another header."""
    packed = draw(st.sampled_from(TABLES))
    length = struct.unpack_from("<I", packed, 13)[0]
    header = orjson.loads(packed[17 : 17 + length])
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(header)))
        numbers = st.sampled_from([0, 1, 2, 3, 4, 99, 2**31, 2**62, True, "x", "cqr", "scaled", "conformal", None])
        header[name] = draw(numbers | st.lists(st.sampled_from([1, 2, 3, 4, 199, 2**62]), min_size=4, max_size=4))
    try:
        text = orjson.dumps(header)
    except orjson.JSONEncodeError:
        text = b"{}"
    return packed[:13] + struct.pack("<I", len(text)) + text + packed[17 + length :]


@tries(400)
@given(
    (packed_tables | reworded() | overwritten(TABLES, (*FLOATS, *WHOLE))).map(resealed)
    | packed_tables
    | st.binary(max_size=40)
)
def test_tables(packed: bytes) -> None:
    """They are refused, or make intervals that are finite, in order, and nest."""
    try:
        table = Table.unpack(packed)
    except ValueError:
        return
    assert Table.unpack(table.pack()).pack() == table.pack()
    steps = min(table.steps, 4)
    if table.targets > 4:
        return
    zeros = np.zeros((2, steps, table.targets), np.float32)
    base = Base(zeros, zeros, zeros, np.ones((2, table.targets)))
    level = table.largest_level(steps)
    if level:
        (outer,) = table.bounds(base, [level])
        (lower, upper) = outer
        assert np.isfinite(lower).all()
        assert np.isfinite(upper).all()
        assert (lower <= upper).all()
        found, _ = table.adaptive_bounds(base, np.full((steps, table.targets), 0.5))
        assert (found.lower >= lower).all()
        assert (found.upper <= upper).all()
    p_values = table.p_values(base, zeros)
    assert ((p_values >= 0) & (p_values <= 1)).all()
    if (path := table.largest_level(steps, "path")) > 0:
        assert np.isfinite(table.bounds(base, [path], "path")[0].upper).all()
