"""Frames: what one side writes the other reads, however the stream cuts it, and rubbish is never taken for an order."""

import contextlib
import struct
from collections.abc import Iterator, Sequence

import hypothesis.strategies as st
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays

from app.link import frames
from app.link.frames import FrameError, Kind, Order, Reader, Told
from app.spans import CONTEXT_BYTES, Ran

DIGEST = f"sha256:{bytes(range(32)).hex()}"
ROOM = frames._ROOM
KEPT = frames._KEPT
MiB = 2**20

numbers = st.integers(0, 2**64 - 1)
counts = st.integers(0, 2**32 - 1)
seconds = st.floats(0, 2**40, width=32)
contents = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
contexts = st.binary(min_size=CONTEXT_BYTES, max_size=CONTEXT_BYTES)
tolds = st.builds(Told, numbers, counts, seconds, seconds, seconds, seconds)


def floats(*shape: int) -> st.SearchStrategy[np.ndarray]:
    """Any float32 there is: also the infinite, and NaN of whatever payload."""
    return arrays.arrays(np.float32, shape, elements=st.floats(width=32))


@st.composite
def orders(draw: st.DrawFn) -> tuple[Order, tuple[int, int], tuple[int, int]]:
    """An order, and the shapes (L, F) and (H, K) of the model that it is for."""
    rows, passes = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    window = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    known = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    order = Order(
        digest=f"sha256:{draw(st.binary(min_size=32, max_size=32)).hex()}",
        windows=draw(floats(rows, *window)),
        time=draw(arrays.arrays(np.int64, rows)),
        known=draw(floats(rows, passes * known[0], known[1])),
        passes=passes,
        attention=draw(st.booleans()),
        bulk=draw(st.booleans()),
        patience_s=draw(seconds),
        in_parts=draw(st.booleans()),
        trace=draw(st.just(b"") | contexts),
    )
    return order, window, known


def order(rows: int = 2, passes: int = 3) -> Order:
    """Of a model with windows (4, 2) and a known future of (2, 1) a pass."""
    random = np.random.default_rng(0)
    return Order(
        DIGEST,
        random.normal(size=(rows, 4, 2)).astype(np.float32),
        np.arange(rows),
        random.normal(size=(rows, passes * 2, 1)).astype(np.float32),
        passes,
        attention=True,
    )


def is_same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def read(stream: bytes, sizes: Sequence[int] = (), reader: Reader | None = None) -> Iterator[tuple[int, bytes]]:
    """The frames of a stream that arrives in pieces of these sizes, and then as it fits; with their kinds."""
    reader = reader or Reader()
    cuts = iter(sizes)
    while stream:
        room = reader.room()
        assert len(room) > 0
        size = min(next(cuts, len(stream)), len(room), len(stream))
        room[:size] = stream[:size]
        stream = stream[size:]
        for kind, frame in reader.frames(size):
            yield kind, bytes(frame)


def only(frame: bytes) -> tuple[int, memoryview]:
    """Of a stream of a single frame, its kind and itself."""
    ((kind, found),) = read(frame)
    assert found == frame
    return kind, memoryview(found)


# What is written can be read


@given(numbers, orders())
def test_order(number: int, drawn: tuple[Order, tuple[int, int], tuple[int, int]]) -> None:
    """An order comes out as it went in, bit for bit, whatever its shapes and numbers."""
    sent, window, known = drawn
    kind, frame = only(frames.submit(number, sent))
    found = frames.read_submit(frame, window, known)
    assert (kind, frames.number_of(frame), frames.read_digest(frame)) == (Kind.SUBMIT, number, sent.digest)
    assert (found.digest, found.passes) == (sent.digest, sent.passes)
    options = [(one.attention, one.bulk, one.patience_s, one.in_parts, one.trace) for one in (found, sent)]
    assert options[0] == options[1]
    assert is_same(found.windows, sent.windows)
    assert is_same(found.time, sent.time)
    assert is_same(found.known, sent.known)


@given(orders(), contexts)
def test_tracing_adds_to_an_order(drawn: tuple[Order, tuple[int, int], tuple[int, int]], context: bytes) -> None:
    """An order that is traced is as one that is not, but for a mark, its length and what comes after the numbers."""
    sent = drawn[0]
    plain, traced = (frames.submit(1, sent._replace(trace=trace)) for trace in (b"", context))
    size = frames._SUBMIT.size

    assert len(traced) == len(plain) + CONTEXT_BYTES
    assert traced[size:] == plain[size:] + context
    assert [at for at in range(4, size) if traced[at] != plain[at]] == [size - 5]


@given(tolds, numbers, numbers, counts, st.lists(contexts, max_size=3).map(b"".join))
def test_ran(told: Told, began_ns: int, ended_ns: int, batches: int, contexts: bytes) -> None:
    """In which batches an order was comes out as it went in."""
    sent = Ran(began_ns, ended_ns, batches, contexts)
    kind, frame = only(frames.ran(told, sent))

    assert (kind, frames.read_told(frame), frames.read_ran(frame)) == (Kind.RAN, told, sent)


def test_contexts_that_are_not_whole() -> None:
    """Nothing else is taken for contexts."""
    with pytest.raises(FrameError):
        frames.read_ran(memoryview(frames.ran(Told(1, 2, 0.5), Ran(1, 2, 1, b"x" * (CONTEXT_BYTES + 1)))))


def test_order_is_a_copy() -> None:
    """What is read of an order stays as it was when the frame's memory is used again."""
    sent = order()
    memory = bytearray(frames.submit(1, sent))
    found = frames.read_submit(memoryview(memory), (4, 2), (2, 1))
    memory[:] = bytes(len(memory))
    assert is_same(found.windows, sent.windows)
    assert is_same(found.time, sent.time)
    assert is_same(found.known, sent.known)


@given(st.sampled_from([Kind.DROP, Kind.PING]), numbers)
def test_words_without_content(kind: Kind, number: int) -> None:
    """A DROP and a PING are their number."""
    found, frame = only(frames.short(kind, number))
    assert (found, frames.number_of(frame)) == (kind, number)


@given(st.sampled_from([Kind.LOAD, Kind.UNLOAD]), numbers, contents.filter(lambda content: content is not None))
def test_words_with_content(kind: Kind, number: int, content: object) -> None:
    """A LOAD and an UNLOAD carry any JSON."""
    found, frame = only(frames.short(kind, number, content))
    assert (found, frames.number_of(frame)) == (kind, number)
    assert frames.content_of(frame) == content


@given(
    tolds,
    st.floats(allow_nan=False),
    st.floats(allow_nan=False),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2)).flatmap(lambda shape: floats(*shape)),
    st.none() | st.tuples(st.integers(1, 3), st.integers(1, 4)).flatmap(lambda shape: floats(*shape, 2)),
)
def test_answer(
    told: Told, queued_s: float, device_s: float, forecast: np.ndarray, attention: np.ndarray | None
) -> None:
    """An answer's numbers are those of the forecast and then those of the attention, where there is one."""
    kind, frame = only(b"".join(frames.answer(told, queued_s, device_s, forecast, attention)))
    assert (kind, frames.read_told(frame)) == (Kind.ANSWER, told)
    *times, found = frames.read_answer(frame)
    assert times == [queued_s, device_s]
    assert found.tobytes() == forecast.tobytes() + (b"" if attention is None else attention.tobytes())


def test_answer_of_a_view() -> None:
    """Views of a bigger pass, in whatever order their memory is, are written as what they show."""
    whole = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for view in (whole[:, 1:2], whole.transpose(2, 1, 0), whole[::-1, :, ::2]):
        _, frame = only(b"".join(frames.answer(Told(1, 0, 0.0), 0.0, 0.0, view, view)))
        assert np.array_equal(frames.read_answer(frame)[2], [*view.ravel(), *view.ravel()])


def test_answer_is_a_copy() -> None:
    """The numbers that are read stay as they were when the frame's memory is used again."""
    memory = bytearray(b"".join(frames.answer(Told(1, 0, 0.0), 0.0, 0.0, np.ones((1, 2, 3), np.float32), None)))
    _, _, found = frames.read_answer(memoryview(memory))
    memory[:] = bytes(len(memory))
    assert np.array_equal(found, np.ones(6))


@given(st.sampled_from([Kind.REFUSED, Kind.PONG, Kind.LOADED, Kind.NOT_LOADED, Kind.FAILING]), tolds, contents)
def test_words_of_the_engine(kind: Kind, told: Told, content: object) -> None:
    """Whatever the engine says begins with how busy it is, and carries any JSON."""
    found, frame = only(frames.telling(kind, told, orjson.dumps(content)))
    assert (found, frames.read_told(frame)) == (kind, told)
    assert orjson.loads(frames.told_content(frame)) == content
    _, bare = only(frames.telling(kind, told))
    assert (frames.read_told(bare), bytes(frames.told_content(bare))) == (told, b"")


# However the stream cuts it


@given(
    st.lists(st.binary(max_size=100), max_size=20),
    st.lists(st.integers(1, 40), max_size=100),
)
def test_frames_are_cut_right_whatever_the_pieces(bodies: list[bytes], sizes: list[int]) -> None:
    """However a stream arrives, byte by byte or all at once, its frames are whole, in order, and none is missed."""
    sent = [(number % 10 + 1, frame_of(number % 10 + 1, body)) for number, body in enumerate(bodies)]
    assert list(read(b"".join(frame for _, frame in sent), sizes)) == sent


@given(st.lists(st.integers(1, 3 * ROOM), max_size=6), st.lists(st.integers(1, 2 * ROOM), max_size=20))
def test_long_frames_are_cut_right(lengths: list[int], sizes: list[int]) -> None:
    """Frames that are longer than the reader's memory was are whole too, and so are those around them."""
    random = np.random.default_rng(0)
    sent = [(9, frame_of(9, random.bytes(length))) for length in lengths]
    assert list(read(b"".join(frame for _, frame in sent), sizes)) == sent


def frame_of(kind: int, body: bytes) -> bytes:
    return struct.pack("<IBxxxQ", 16 + len(body), kind, 7) + body


def test_every_byte_alone() -> None:
    """A stream that comes byte by byte gives each frame with its last byte, not before and not after."""
    reader, stream, ends = Reader(), b"".join([frame_of(1, b"abc"), frame_of(2, b""), frame_of(3, b"d")]), []
    for index in range(len(stream)):
        reader.room()[0] = stream[index]
        ends += [index + 1 for _ in reader.frames(1)]
    assert ends == [19, 35, 52]


def test_frames_of_one_piece_are_their_own_until_there_is_room_again() -> None:
    """Several frames that came together can all be looked at before the next bytes are asked for."""
    reader, bodies = Reader(), [b"one", b"two", b"three"]
    stream = b"".join(frame_of(1, body) for body in bodies)
    reader.room()[: len(stream)] = stream
    assert [bytes(frame[16:]) for frame in [frame for _, frame in reader.frames(len(stream))]] == bodies


def test_there_is_always_room() -> None:
    """However much of a long frame is there, the next piece of it may be big: it is not read in crumbs."""
    reader, length = Reader(), 8 * MiB
    stream, arrived, reads = frame_of(1, bytes(length)), 0, 0
    while arrived < len(stream):
        room = reader.room()
        assert len(room) >= ROOM // 2
        size = min(len(room), len(stream) - arrived)
        room[:size] = stream[arrived : arrived + size]
        arrived += size
        reads += 1
        found = [len(frame) for _, frame in reader.frames(size)]
    assert found == [len(stream)]
    assert reads < 10


def test_memory_of_a_giant_is_given_back() -> None:
    """After a frame that is longer than what is worth keeping, the reader is as small as it was."""
    reader, before = Reader(), len(Reader().room())
    assert [len(frame) for _, frame in read(frame_of(1, bytes(KEPT)), reader=reader)] == [KEPT + 16]
    assert len(reader.room()) == before
    assert list(read(frame_of(2, b"after"), reader=reader)) == [(2, frame_of(2, b"after"))]


def test_memory_of_a_long_frame_is_used_again() -> None:
    """A second frame of the same length costs no more memory than the first."""
    reader = Reader()
    list(read(frame_of(1, bytes(4 * MiB)), reader=reader))
    grown = len(reader.room())
    list(read(frame_of(1, bytes(4 * MiB)) * 3, reader=reader))
    assert len(reader.room()) == grown


# What is no frame


@pytest.mark.parametrize("length", [0, 1, 15, frames.MAX_FRAME_BYTES + 1, 2**32 - 1])
def test_impossible_length(length: int) -> None:
    """A frame that says that it is shorter than its head, or longer than anything may be, is none."""
    with pytest.raises(FrameError, match=f"a frame of {length} bytes"):
        list(read(struct.pack("<IBxxxQ", length, 1, 1)))


def test_frames_before_a_wrong_one_are_given() -> None:
    """Those that were whole before the stream went wrong are still understood."""
    stream, found = frame_of(1, b"fine") + bytes(16), []
    with pytest.raises(FrameError):
        found.extend(kind for kind, _ in read(stream))
    # `extend` of a generator that raises keeps what it had before.
    assert found == [1]


@given(orders(), st.integers(-70, 70).filter(bool))
def test_order_of_another_size(drawn: tuple[Order, tuple[int, int], tuple[int, int]], change: int) -> None:
    """An order that is longer or shorter than its counts say is none, in whichever way it is cut short."""
    sent, window, known = drawn
    whole = frames.submit(1, sent)
    wrong = whole[:change] if change < 0 else whole + bytes(change)
    with pytest.raises((FrameError, struct.error)):
        frames.read_submit(memoryview(wrong), window, known)


@pytest.mark.parametrize(
    ("window", "known"), [((5, 2), (2, 1)), ((4, 3), (2, 1)), ((4, 2), (3, 1)), ((4, 2), (2, 0)), ((4, 2), (2, 2))]
)
def test_order_of_other_shapes(window: tuple[int, int], known: tuple[int, int]) -> None:
    """An order that is not of the model's shapes is none."""
    with pytest.raises(FrameError, match="an order of"):
        frames.read_submit(memoryview(frames.submit(1, order())), window, known)


@pytest.mark.parametrize(("rows", "passes"), [(0, 3), (2, 0), (0, 0)])
def test_order_of_nothing(rows: int, passes: int) -> None:
    """An order without windows or without passes is none: nothing would ever answer it."""
    with pytest.raises(FrameError, match=f"an order of {rows} windows and {passes} passes"):
        frames.read_submit(memoryview(frames.submit(1, order(rows, passes))), (4, 2), (2, 1))


@pytest.mark.parametrize("body", [b"", b"{", b"nonsense", b'"\xff"', b"[" * 10_000, b"NaN"])
def test_content_that_is_no_json(body: bytes) -> None:
    """Whatever is no JSON is no content."""
    with pytest.raises(FrameError):
        frames.content_of(memoryview(frame_of(Kind.LOAD, body)))


def understand(stream: bytes, sizes: Sequence[int]) -> int:
    """Read a stream as the engine does, as far as it can be; how many frames were understood."""
    understood = 0
    with contextlib.suppress(FrameError, struct.error):
        for kind, content in read(stream, sizes):
            frame = memoryview(content)
            frames.number_of(frame)
            if kind == Kind.SUBMIT:
                frames.read_digest(frame)
                found = frames.read_submit(frame, (4, 2), (2, 1))
                assert found.windows.shape == (len(found.time), 4, 2)
                assert found.known.shape == (len(found.time), found.passes * 2, 1)
                assert found.passes > 0
                assert len(found.time) > 0
            elif kind in (Kind.LOAD, Kind.UNLOAD):
                frames.content_of(frame)
            understood += 1
    return understood


@given(st.binary(max_size=300), st.lists(st.integers(1, 50)))
def test_rubbish(stream: bytes, sizes: list[int]) -> None:
    """Of any bytes at all, nothing but FrameError or struct.error comes."""
    understand(stream, sizes)


@given(
    st.lists(st.tuples(st.sampled_from([*Kind, 0, 11, 255]), st.binary(max_size=100)), max_size=5),
    st.lists(st.integers(1, 50)),
)
def test_rubbish_in_frames(content: list[tuple[int, bytes]], sizes: list[int]) -> None:
    """Nor of any bytes that are framed well."""
    understand(b"".join(frame_of(kind, body) for kind, body in content), sizes)


GOOD = b"".join(
    [
        frames.submit(1, order()),
        frames.short(Kind.DROP, 1),
        frames.short(Kind.LOAD, 2, ["tiny", 1, DIGEST, "model.pt"]),
        frames.submit(3, order(1, 1)),
        frames.short(Kind.PING, 4),
    ]
)


@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=5),
    st.lists(st.integers(1, 99)),
)
def test_damaged_stream(damages: list[tuple[int, int]], sizes: list[int]) -> None:
    """Nor of a good stream with some bytes changed; what is still understood is of the right shapes."""
    stream = bytearray(GOOD)
    for place, value in damages:
        stream[place] = value
    understood = understand(bytes(stream), sizes)
    assert damages or understood == 5


def test_random_megabytes() -> None:
    """Nor of long noise, which is given up at its first impossible length."""
    random = np.random.default_rng(0)
    for _ in range(20):
        assert understand(random.bytes(MiB), ()) == 0
