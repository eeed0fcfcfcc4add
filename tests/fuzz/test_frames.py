"""Frames between the processes: rubbish from one end closes that connection, and nobody else notices."""

import asyncio
import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from app.errors import ForetellError
from app.forecasts.catalogue import Model, Version
from app.link import frames
from app.link.engine import Link, Outcome, open_link
from app.link.frames import FrameError, Kind, Reader, Told
from app.processes.control import Control, Door, Snapshot
from app.spans import CONTEXT_BYTES, Ran
from tests.app.devices import Peer, Served, numbers_of, order, pair, served, spec
from tests.app.fakes import MODEL
from tests.fuzz import tries
from tests.fuzz.rubbish import damaged
from tests.patience import PATIENCE_S

HEAD = frames._HEAD
TOLD = Told(1, 2, 0.5)
PLACE = Path("model.pt")
UNREADABLE = (FrameError, struct.error)
"""What those who read frames raise of rubbish, and their callers end a connection for."""

_ORDERS = [order(1), order(2, rows=3, passes=2, attention=True), order(3, rows=9, bulk=True)]
_TRACED = order(4, rows=2, trace=bytes(range(CONTEXT_BYTES)))
_ASKING = [
    *(frames.submit(number, asked) for number, asked in enumerate([*_ORDERS, _TRACED], 1)),
    frames.short(Kind.DROP, 1),
    frames.short(Kind.PING, 7),
    frames.short(Kind.LOAD, 8, [*MODEL, "model.pt"]),
    frames.short(Kind.UNLOAD, 0, ["other", 1, "sha256:"]),
]
_TELLING = [
    *(
        b"".join(frames.answer(TOLD._replace(order=n), 0.1, 0.2, numbers_of(one).astype("f4"), None))
        for n, one in enumerate(_ORDERS, 1)
    ),
    *(
        frames.telling(Kind.REFUSED, TOLD, json.dumps(what).encode())
        for what in (
            {"slug": "queue-full", "detail": "full", "headers": {"Retry-After": "1"}},
            {"slug": []},
            [],
            None,
            {"slug": "x", "detail": 1, "headers": 3},
        )
    ),
    frames.ran(TOLD, Ran(1, 2, 3, bytes(range(CONTEXT_BYTES)) * 2)),
    frames.telling(Kind.PONG, TOLD._replace(order=0)),
    frames.telling(Kind.LOADED, TOLD, spec().model_dump_json().encode()),
    frames.telling(Kind.NOT_LOADED, TOLD, b'"no such file"'),
    frames.telling(Kind.NOT_LOADED, TOLD, b"{"),
]


def made(kind: int, length: int, rest: bytes) -> bytes:
    """Whatever it says of itself."""
    return struct.pack("<IBxxx", length, kind) + rest


lengths = st.sampled_from(
    [0, 7, 8, 15, 16, 17, 27, 28, 44, 64, 200, frames.MAX_FRAME_BYTES, frames.MAX_FRAME_BYTES + 1, 2**32 - 1]
)
strange = st.builds(made, st.integers(0, 14), lengths, st.binary(max_size=64))
short = st.integers(0, 13).flatmap(
    lambda kind: st.binary(max_size=60).map(lambda rest: made(kind, 8 + len(rest), rest))
)


def shortened(frame: bytes, size: int) -> bytes:
    """One that says that it ends sooner."""
    cut_off = frame[: max(size, 8)]
    return struct.pack("<I", len(cut_off)) + cut_off[4:]


def streams(whole: list[bytes]) -> st.SearchStrategy[bytes]:
    """Right frames, damaged ones and others, one after the other."""
    right = st.lists(st.sampled_from(whole), min_size=1, max_size=3).map(b"".join)
    cut_short = st.builds(shortened, st.sampled_from(whole), st.integers(16, 100))
    return st.lists(
        st.one_of(right, damaged(right), cut_short, strange, short, st.binary(max_size=40)), max_size=4
    ).map(b"".join)


def cut(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """The slow way: the frames at the front of a stream; FrameError where one is none."""
    while len(stream) >= HEAD.size:
        length, kind, _ = HEAD.unpack_from(stream)
        if not HEAD.size <= length <= frames.MAX_FRAME_BYTES or kind not in frozenset(Kind):
            raise FrameError
        if len(stream) < length:
            return
        yield kind, stream[:length]
        stream = stream[length:]


def listed(found: Iterator[tuple[int, object]]) -> tuple[list[tuple[int, bytes]], bool]:
    """Until they end or go wrong, and whether they go wrong."""
    seen = []
    try:
        for kind, frame in found:
            seen.append((kind, bytes(frame)))
    except FrameError:
        return seen, True
    return seen, False


def read_in_parts(stream: bytes, sizes: list[int]) -> Iterator[tuple[int, object]]:
    """As a reader gets them that is given so many bytes at a time."""
    reader, place = Reader(), 0
    while place < len(stream):
        part = stream[place : place + (sizes.pop() if sizes else len(stream))]
        place += len(part)
        reader.room()[: len(part)] = part
        yield from reader.frames(len(part))


@tries(300)
@given(streams(_ASKING + _TELLING), st.lists(st.integers(1, 40), max_size=40))
def test_reader(stream: bytes, sizes: list[int]) -> None:
    """However the stream comes in, its frames are those at its front, and the first that is none ends it."""
    assert listed(read_in_parts(stream, sizes)) == listed(cut(stream))


@tries(300)
@given(streams(_ASKING), st.tuples(st.integers(0, 9), st.integers(0, 3)))
def test_orders(stream: bytes, shape: tuple[int, int]) -> None:
    """What is read as an order has the shapes that it must have."""
    for _, frame in listed(cut(stream))[0]:
        try:
            read = frames.read_submit(memoryview(frame), shape, (2, 1))
        except UNREADABLE:
            continue
        rows = len(read.windows)
        assert read.windows.shape == (rows, *shape)
        assert read.time.shape == (rows,)
        assert read.known.shape == (rows, 2 * read.passes, 1)
        assert min(rows, read.passes) > 0
        assert len(read.trace) in (0, CONTEXT_BYTES)


# A device


@pytest.fixture(scope="module")
def device() -> Iterator[tuple[Served, Peer]]:
    """One that serves somebody well all the time, and gets another connection for each piece of rubbish."""
    doors: list[socket.socket] = []

    def listen(made: object) -> None:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        doors.append(listener)
        made.listen(listener)  # type: ignore[attr-defined]

    with served(prepare=listen, queue_rows=10_000) as found:
        found.door = doors[0].getsockname()  # type: ignore[attr-defined]
        yield found, found.peers[0]
    doors[0].close()


@tries(150)
@given(streams(_ASKING), st.booleans())
def test_device(device: tuple[Served, Peer], stream: bytes, ends: bool) -> None:
    """Rubbish ends the connection that it came on; everybody else's orders are answered, and nothing is left of it."""
    found, good = device
    bad = socket.create_connection(found.door)  # type: ignore[attr-defined]
    bad.settimeout(PATIENCE_S)
    try:
        bad.sendall(stream)
        bad.shutdown(socket.SHUT_WR) if ends else None
    except OSError:
        pass  # it hung up at the first of it
    wrong = listed(cut(stream))[1]
    if wrong or ends:
        with_end = Peer(bad)
        while True:
            try:
                if not with_end.connection.recv(65536):
                    break
            except ConnectionResetError:
                break
    bad.close()
    asked = order(5, passes=2, attention=True)
    assert good.load().kind == Kind.LOADED  # it may have been told to forget the model
    good.ask(4, asked)
    assert good.answers(1)[4].tolist() == numbers_of(asked).tolist()
    while good.ping().rows:
        pass
    assert found.error is None
    while len(found.device._clients) > 1:
        good.ping()


# Those who ask


async def talk(stream: bytes, sizes: list[int]) -> tuple[list[object], list[object], list[dict[str, object]]]:
    """What is told to those who wait on a link while an engine says this and hangs up; and complaints of the loop."""
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    ours, theirs = pair()
    link: Link = await open_link(ours, queue_rows=100)
    told: list[object] = []
    for asked in _ORDERS:
        link.submit(asked, told.append)
    loading = asyncio.gather(
        *(asyncio.ensure_future(link.load(MODEL, spec_path)) for spec_path in (PLACE, PLACE)), return_exceptions=True
    )
    link.ping()
    await asyncio.sleep(0)
    theirs.setblocking(True)
    place = 0
    while place < len(stream):
        part = stream[place : place + (sizes.pop() if sizes else len(stream))]
        place += len(part)
        try:
            theirs.sendall(part)
        except OSError:
            break
        await asyncio.sleep(0)
    theirs.close()
    async with asyncio.timeout(PATIENCE_S):
        await link.lost
        loads = await loading
    # Whatever came, these neither fail nor wait.
    assert (link.alive, link.bulk_rows) == (False, 0)
    assert link.rows >= 0
    link.close()
    await link.drained()
    return told, loads, complaints


@tries(200)
@given(streams(_TELLING), st.lists(st.integers(1, 40), max_size=20))
def test_link(stream: bytes, sizes: list[int]) -> None:
    """Everybody who waits is told once, an answer that came whole or an error, and the link is lost."""
    told, loads, complaints = asyncio.run(talk(stream, sizes))
    assert len(told) == len(_ORDERS)
    assert all(isinstance(one, Outcome | ForetellError) for one in told)
    assert len(loads) == 2
    # asyncio ends a connection whose protocol raises, and says so; nothing else may go wrong.
    assert all("protocol" in one for one in complaints), complaints


# What the supervisor tells


_SNAPSHOT = Snapshot(
    devices={0: Door(path="x", generation=1)},
    models={"tiny": Model({1: Version(MODEL, "ready", spec=spec())}, {"production": 1})},
    processes={"engine-0": 1},
).pack()
_HEADS = [b'{"snapshot":{},"specs":{"x":-1}}', b'{"snapshot":{},"specs":{"x":99999999}}', b"[]", b'{"snapshot":{}}']
snapshots = st.one_of(
    damaged(st.just(_SNAPSHOT), (b"null", b"{", b"\xff", b"1e400")),
    st.binary(max_size=40),
    (st.binary(max_size=20) | st.sampled_from(_HEADS)).map(lambda head: struct.pack("<I", len(head)) + head),
    st.just(_SNAPSHOT * 2),
)


async def tell(stream: bytes) -> tuple[int, BaseException | None]:
    """How many snapshots are read of this before the supervisor is gone, and what is raised."""
    ours, theirs = pair()
    ours.setblocking(False)
    theirs.sendall(stream)
    theirs.shutdown(socket.SHUT_WR)
    count = 0
    try:
        async with asyncio.timeout(PATIENCE_S):
            async for snapshot in Control(ours).snapshots():
                assert isinstance(snapshot, Snapshot)
                count += 1
    except ValueError as error:
        return count, error
    finally:
        theirs.close()
    return count, None


@tries(150)
@given(snapshots)
def test_snapshots(stream: bytes) -> None:
    """Rubbish is a ValueError, which ends the process and has it started again; what is cut short is the end."""
    count, error = asyncio.run(tell(stream))
    assert count <= 2
    assert stream != _SNAPSHOT * 2 or (count, error) == (2, None)
