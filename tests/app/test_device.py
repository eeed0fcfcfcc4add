"""The engine's side of the socket: what it answers, and that nobody who is connected can harm anybody else."""

import math
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from app.device.loop import Device
from app.errors import DeviceLostError
from app.link import frames
from app.link.frames import Busy, Kind
from app.link.running import running_in
from app.ticket import ModelId
from models.artifact import DigestError
from models.spec import Spec
from tests.app.devices import FakeRuntime, Peer, numbers_of, order, pair, served, spec
from tests.app.fakes import MODEL, OTHER, FakeWatcher
from tests.patience import PATIENCE_S

# Orders


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize(("rows", "passes"), [(1, 1), (1, 3), (3, 1), (4, 2)])
def test_order_is_answered(rows: int, passes: int, attention: bool) -> None:
    """Forecast and attention of every window and every pass come back, under the order's number."""
    with served() as s:
        asked = order(1, rows=rows, passes=passes, attention=attention)
        s.peers[0].ask(5, asked)
        heard = s.peers[0].hear()
        assert heard.told[:4] == (5, 0, 0, 0)
        assert np.array_equal(heard.numbers, numbers_of(asked))
        assert len(s.runtime.passes) == passes


@pytest.mark.parametrize("rows", [4, 5, 8, 11])
def test_order_of_more_windows_than_a_pass_takes(rows: int) -> None:
    """It is split over passes and put together in order; nobody's windows wait for more room than there is."""
    with served(batch_rows=4) as s:
        asked = order(1, rows=rows, passes=3, attention=True)
        s.peers[0].ask(1, asked)
        assert np.array_equal(s.peers[0].hear().numbers, numbers_of(asked))
        assert max(sum(ticket.rows for ticket in batch) for batch in s.runtime.passes) == 4
        assert len(s.runtime.passes) == 3 * -(-rows // 4)


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("rows", [1, 6])
def test_steps_are_told_as_they_are_done(rows: int, attention: bool) -> None:
    """To who wants them in parts, in order and none twice, of all windows; the answer has all of them again."""
    with served(batch_rows=4) as s:
        asked = order(1, rows=rows, passes=4, attention=attention)._replace(in_parts=True)
        s.peers[0].ask(5, asked)
        heard = s.peers[0].hear()
        forecasts, weights = [], []
        while heard.kind == Kind.PART:
            assert heard.told.order == 5
            passes, numbers = frames.read_part(memoryview(heard.frame))
            split = rows * passes * spec().horizon * spec().outputs
            forecasts.append(numbers[:split].reshape(rows, -1))
            weights.append(numbers[split:].reshape(rows, passes, -1))
            heard = s.peers[0].hear()
        assert np.array_equal(heard.numbers, numbers_of(asked))
        assert forecasts
        split = rows * 4 * spec().horizon * spec().outputs
        told = np.concatenate(forecasts, 1)
        assert np.array_equal(told, heard.numbers[:split].reshape(rows, -1)[:, : told.shape[1]])
        told = np.concatenate(weights, 1)
        expected = heard.numbers[split:].reshape(rows, 4, -1)[:, : told.shape[1]]
        assert np.array_equal(told, expected)
        assert told.shape[1] < 4


def test_dropped_order_is_told_no_further_step() -> None:
    """Nor one of a client that has gone; the others are told theirs."""
    runtime = FakeRuntime(held=True)
    with served(runtime, clients=2, batch_rows=4) as s:
        for peer in s.peers:
            peer.ask(1, order(1, passes=9)._replace(in_parts=True))
        s.peers[1].ask(2, order(7, passes=3)._replace(in_parts=True))
        runtime.begun()
        s.peers[0].close()
        s.peers[1].drop(1)
        runtime.let_go()
        heard = [s.peers[1].hear()]
        while (heard[-1].told.order, heard[-1].kind) != (2, Kind.ANSWER):
            heard.append(s.peers[1].hear())
        # Of the pass that was under way, at most.
        assert sum(one.told.order == 1 for one in heard) <= 1
        s.peers[1].ping()


def test_passes_follow_in_a_row_only_while_nobody_else_wants_anything() -> None:
    """A long order may go straight on while it is alone, and not from the moment when anything arrives."""
    runtime = FakeRuntime(held=True)
    with served(runtime, clients=2, batch_rows=1) as s:
        long, short, other = order(1, passes=3), order(2), order(3)
        s.peers[0].ask(1, long)
        runtime.begun()
        assert runtime.go_on()
        s.peers[1].ask(2, short)
        s.peers[1].ask(3, other)
        assert not runtime.go_on()
        runtime.step()
        runtime.begun()
        assert not runtime.go_on()  # the third waits in the queue
        runtime.let_go()
        assert np.array_equal(s.peers[1].hear().numbers, numbers_of(short))
        assert np.array_equal(s.peers[1].hear().numbers, numbers_of(other))
        assert np.array_equal(s.peers[0].hear().numbers, numbers_of(long))


@pytest.mark.parametrize(("turn_s", "stays"), [(math.inf, True), (0.0, False)])
def test_in_a_crowd_those_in_a_pass_keep_their_places_for_a_while(turn_s: float, stays: bool) -> None:
    """Where those who wait have all begun, passes follow in a row although somebody always wants something."""
    runtime = FakeRuntime(held=True)
    with served(runtime, clients=2, batch_rows=1, turn_s=turn_s) as s:
        one, other = order(1, passes=3), order(2, passes=3)
        s.peers[0].ask(1, one)
        runtime.begun()
        s.peers[1].ask(2, other)
        for _ in range(2):
            runtime.step()
            runtime.begun()
        assert runtime.go_on() == stays
        s.peers[1].send(frames.short(Kind.PING, 1))
        assert runtime.go_on() == stays
        runtime.let_go()
        assert np.array_equal(s.peers[0].hear().numbers, numbers_of(one))


def test_wide_order_lets_others_between() -> None:
    """A one-step order need not wait for all windows of a big one."""
    runtime = FakeRuntime(held=True)
    with served(runtime, clients=2, batch_rows=2) as s:
        wide, small = order(1, rows=20), order(90)
        s.peers[0].ask(1, wide)
        runtime.begun()
        s.peers[1].ask(1, small)
        runtime.let_go()
        assert np.array_equal(s.peers[1].hear().numbers, numbers_of(small))
        assert np.array_equal(s.peers[0].hear().numbers, numbers_of(wide))


def test_several_clients_share_passes_and_numbers() -> None:
    """Orders of several clients run together, and each gets its own answer although the numbers are the same."""
    runtime = FakeRuntime(held=True)
    with served(runtime, clients=3) as s:
        blocker = order(90)
        s.peers[0].ask(9, blocker)
        runtime.begun()
        asked = [order(tag) for tag in (1, 2, 3)]
        for peer, one in zip(s.peers, asked, strict=True):
            peer.ask(1, one)
        runtime.let_go()
        assert np.array_equal(s.peers[0].answers(1)[9], numbers_of(blocker))
        for peer, one in zip(s.peers, asked, strict=True):
            assert np.array_equal(peer.answers(1)[1], numbers_of(one))
        assert [len(batch) for batch in runtime.passes] == [1, 3]


def test_many_orders_of_many_clients() -> None:
    """Of many orders of all sizes none is lost, doubled or mixed up."""
    with served(clients=3, queue_rows=10_000) as s:
        asked = {
            (client, number): order(
                10 * number + client, rows=1 + number % 7, passes=1 + number % 3, attention=number % 2 == 0
            )
            for number in range(60)
            for client in range(3)
        }
        for (client, number), one in asked.items():
            s.peers[client].ask(number, one)
        for client, peer in enumerate(s.peers):
            for number, found in peer.answers(60).items():
                assert np.array_equal(found, numbers_of(asked[client, number]))
        assert s.peers[0].ping().rows == 0


def test_order_that_comes_in_crumbs() -> None:
    """However the stream is cut, an order is an order, and half of one keeps nobody waiting."""
    with served(clients=2) as s:
        asked, other = order(1, rows=2), order(5)
        frame = frames.submit(1, asked)
        for index in range(len(frame)):
            s.peers[0].send(frame[index : index + 1])
            if index % 50 == 0:
                s.peers[1].ask(index, other)
                assert np.array_equal(s.peers[1].answers(1)[index], numbers_of(other))
        assert np.array_equal(s.peers[0].answers(1)[1], numbers_of(asked))


class Counting(socket.socket):
    """Remembers what was sent at a time."""

    def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override]  # as it is called
        self.sent: list[bytes] = [*getattr(self, "sent", []), bytes(data)]
        return super().send(data, flags)


def test_results_of_one_turn_are_sent_together() -> None:
    """What a pass finishes for one client goes out in one piece."""
    runtime, made = FakeRuntime(held=True), []

    def counting() -> tuple[socket.socket, socket.socket]:
        ours, theirs = pair()
        made.append(Counting(fileno=theirs.detach()))
        return ours, made[-1]

    with served(runtime, theirs=counting) as s:
        s.peers[0].ask(1, order(1))
        runtime.begun()
        for number in (2, 3, 4):
            s.peers[0].ask(number, order(number))
        runtime.let_go()
        s.peers[0].answers(4)
    # The LOADED, the first answer, and then three answers at once.
    lengths = [len(sent) for sent in made[0].sent]
    assert len(lengths) == 3
    assert lengths[2] == 3 * lengths[1]


def test_answers_tell_how_much_is_left() -> None:
    """With every answer comes how many rows still wait there, and the metrics are told the same."""
    with served(batch_rows=2) as s:
        s.peers[0].send(frames.submit(1, order(1, rows=2)), frames.submit(2, order(3, rows=2, passes=2)))
        assert [s.peers[0].hear().told.rows for _ in range(2)] == [2, 0]
        s.peers[0].ping()
    assert s.watcher.rows[-1] == ("fake", 0)
    assert ("fake", 2) in s.watcher.rows


# Refusals


def test_unknown_model_is_refused() -> None:
    """An order for a model that is not loaded here is told so, and nothing runs."""
    with served() as s:
        s.peers[0].ask(3, order(1, model=OTHER))
        heard = s.peers[0].hear()
        assert (heard.kind, heard.told.order) == (Kind.REFUSED, 3)
        assert isinstance(heard.content, dict)
        assert heard.content["slug"] == "not-ready"
        assert s.runtime.passes == []


def test_full_queue_refuses() -> None:
    """What does not fit is refused at once, whole, with a time to come back; then there is room again."""
    runtime = FakeRuntime(held=True)
    with served(runtime, queue_rows=5, batch_rows=2) as s:
        s.peers[0].ask(1, order(1, rows=2, passes=2))
        runtime.begun()
        s.peers[0].ask(2, order(3, rows=4))
        s.peers[0].ask(3, order(7, rows=3))
        runtime.let_go()
        heard = [s.peers[0].hear() for _ in range(3)]
        refused = next(one for one in heard if one.kind == Kind.REFUSED)
        assert refused.told.order == 2
        assert isinstance(refused.content, dict)
        assert refused.content["slug"] == "queue-full"
        assert int(refused.content["headers"]["Retry-After"]) >= 1
        assert {one.told.order for one in heard if one.kind == Kind.ANSWER} == {1, 3}
        assert {int(tag) for batch in runtime.passes for one in batch for tag in one.window[:, 0, 0]} == {1, 2, 7, 8, 9}


def test_bulk_order_gives_way() -> None:
    """It runs in passes of its own size, and whoever comes in the middle is in the very next one."""
    runtime = FakeRuntime(held=True)
    with served(runtime, clients=2, batch_rows=8, bulk_batch_rows=3) as s:
        bulk, small, wide = order(1, rows=10, passes=2, bulk=True), order(50), order(60, rows=8)
        s.peers[0].ask(1, bulk)
        runtime.begun()
        s.peers[1].ask(1, small)
        s.peers[1].ask(2, wide)
        runtime.let_go()
        found = s.peers[1].answers(2)
        assert np.array_equal(found[1], numbers_of(small))
        assert np.array_equal(found[2], numbers_of(wide))
        assert np.array_equal(s.peers[0].hear().numbers, numbers_of(bulk))
        rows = [sum(ticket.rows for ticket in batch) for batch in runtime.passes]
        assert rows == [3, 1, 8, 3, 3, 1, 3, 3, 3, 1]
        assert [batch[0].bulk for batch in runtime.passes[:4]] == [True, False, False, True]


def test_bulk_order_fills_a_pass() -> None:
    """Where there is room in a pass of the same model for one of its parts, it comes along."""
    runtime = FakeRuntime(held=True)
    with served(runtime, clients=2, batch_rows=8, bulk_batch_rows=3) as s:
        s.peers[0].ask(1, order(1))
        runtime.begun()
        bulk, small = order(10, rows=2, bulk=True), order(50)
        s.peers[0].ask(2, bulk)
        s.peers[1].ask(1, small)
        runtime.let_go()
        assert np.array_equal(s.peers[1].hear().numbers, numbers_of(small))
        assert np.array_equal(s.peers[0].answers(2)[2], numbers_of(bulk))
        assert [[ticket.rows for ticket in batch] for batch in runtime.passes] == [[1], [1, 2]]


def test_bulk_orders_have_room_of_their_own() -> None:
    """Neither kind of order fills the queue for the other, and those that are not bulk are told nothing of them."""
    asked = [order(1, rows=5, bulk=True), order(10, rows=5), order(20, bulk=True)]
    with served(queue_rows=5, batch_rows=5) as s:
        s.peers[0].send(*(frames.submit(number, one) for number, one in enumerate(asked, 1)))
        heard = s.peers[0].hear()
        assert (heard.kind, heard.told.order) == (Kind.REFUSED, 3)
        assert heard.told.rows == 5
        assert s.peers[0].answers(2).keys() == {1, 2}
    assert ("fake", 10) in s.watcher.rows
    assert s.watcher.rows[-1] == ("fake", 0)


def test_passes_of_bulk_work_follow_in_a_row_while_nobody_is_in_a_hurry() -> None:
    """More bulk work is no reason to stop, and whoever is in a hurry is one."""
    runtime = FakeRuntime(held=True)
    with served(runtime, clients=2, batch_rows=1) as s:
        asked = [order(tag, passes=3, bulk=True) for tag in (1, 2)]
        s.peers[0].send(*(frames.submit(number, one) for number, one in enumerate(asked)))
        runtime.begun()
        assert runtime.go_on()
        s.peers[1].ask(1, order(3))
        assert not runtime.go_on()
        runtime.let_go()
        assert np.array_equal(s.peers[1].hear().numbers, numbers_of(order(3)))


def test_bulk_order_of_a_client_that_hangs_up_costs_no_further_pass() -> None:
    """However many passes it would have taken."""
    runtime = FakeRuntime(held=True)
    with served(runtime, clients=2, batch_rows=2) as s:
        s.peers[0].ask(1, order(1, rows=20, passes=5, bulk=True))
        runtime.begun()
        s.peers[0].close()
        s.peers[1].ask(1, order(90))
        runtime.let_go()
        assert np.array_equal(s.peers[1].hear().numbers, numbers_of(order(90)))
        assert s.peers[1].ping().rows == 0
        assert len(runtime.passes) == 2


def test_order_that_never_fits_is_refused() -> None:
    """More windows than the queue may ever have are refused although it is empty."""
    with served(queue_rows=5) as s:
        s.peers[0].ask(1, order(1, rows=6))
        assert s.peers[0].hear().kind == Kind.REFUSED
        assert s.peers[0].ping().rows == 0


def test_failing_window_fails_its_order_alone() -> None:
    """The order with the bad window is refused, its neighbours of the pass are answered, and it serves on."""
    runtime = FakeRuntime(held=True)
    with served(runtime) as s:
        runtime.bad = {2}
        s.peers[0].ask(9, order(9))
        runtime.begun()
        for number in (1, 2, 3):
            s.peers[0].ask(number, order(number))
        runtime.let_go()
        heard = {one.told.order: one for one in (s.peers[0].hear() for _ in range(4))}
        assert isinstance(heard[2].content, dict)
        assert (heard[2].kind, heard[2].content["slug"]) == (Kind.REFUSED, "failed")
        assert "bad row" not in heard[2].frame.decode(errors="replace")
        for number in (1, 3, 9):
            assert np.array_equal(heard[number].numbers, numbers_of(order(number)))
        assert s.peers[0].ping().rows == 0


def test_wide_order_with_a_failing_window_is_told_once() -> None:
    """When one part of a split order fails, the order is refused once and its other parts cost no further pass."""
    with served(batch_rows=2) as s:
        s.runtime.bad = {3}
        s.peers[0].ask(1, order(1, rows=8, passes=5))
        assert s.peers[0].hear().kind == Kind.REFUSED
        assert s.peers[0].ping().rows == 0
        # The first part had its first pass before the second failed.
        assert [int(batch[0].window[0, 0, 0]) for batch in s.runtime.passes] == [1, 3]


# Who leaves


def test_dropped_order_costs_no_further_pass() -> None:
    """Between two passes of an order its DROP ends it, without a word; its neighbour goes on."""
    runtime = FakeRuntime(held=True)
    with served(runtime) as s:
        stays = order(2, passes=3)
        s.peers[0].send(frames.submit(1, order(1, passes=500)), frames.submit(2, stays))
        runtime.begun()
        s.peers[0].drop(1)
        runtime.let_go()
        heard = s.peers[0].hear()
        assert heard.told[:2] == (2, 0)
        assert np.array_equal(heard.numbers, numbers_of(stays))
        assert [len(batch) for batch in runtime.passes] == [2, 1, 1]


def test_dropped_wide_order_costs_no_further_pass() -> None:
    """The parts of a split order that have not run yet go with it."""
    runtime = FakeRuntime(held=True)
    with served(runtime, batch_rows=2) as s:
        s.peers[0].ask(1, order(1, rows=8))
        runtime.begun()
        s.peers[0].drop(1)
        runtime.let_go()
        assert s.peers[0].ping().rows == 0
        assert len(runtime.passes) == 1


def test_drop_of_what_is_not_there_is_nothing() -> None:
    """One that was answered already, or never was, can be dropped; another client's order of that number stays."""
    runtime = FakeRuntime()
    with served(runtime, clients=2) as s:
        s.peers[0].ask(1, order(1))
        s.peers[0].hear()
        for number in (1, 2, 2**64 - 1):
            s.peers[0].drop(number)
        assert s.peers[0].ping().rows == 0
        runtime.begun()
        runtime._held = True
        s.peers[1].ask(1, order(2))
        runtime.begun()
        s.peers[0].drop(1)
        runtime.let_go()
        assert np.array_equal(s.peers[1].answers(1)[1], numbers_of(order(2)))


def test_client_that_hangs_up_costs_no_further_pass() -> None:
    """All that a client asked for goes with its connection; the others' goes on."""
    runtime = FakeRuntime(held=True)
    with served(runtime, clients=2, batch_rows=2) as s:
        stays = order(50, passes=3)
        s.peers[0].send(frames.submit(1, order(1, rows=7, passes=500)), frames.submit(2, order(20, passes=500)))
        runtime.begun()
        s.peers[1].ask(1, stays)
        s.peers[0].close()
        runtime.let_go()
        assert np.array_equal(s.peers[1].answers(1)[1], numbers_of(stays))
        assert s.peers[1].ping().rows == 0
        assert [len(batch) for batch in runtime.passes] == [1, 1, 1, 1]


def test_client_that_hangs_up_before_its_answer() -> None:
    """An answer that nobody takes is no harm."""
    runtime = FakeRuntime(held=True)
    with served(runtime, clients=2) as s:
        s.peers[0].ask(1, order(1))
        runtime.begun()
        s.peers[0].close()
        runtime.let_go()
        assert s.peers[1].ping().rows == 0


def test_client_that_hangs_up_while_it_loads() -> None:
    """What it asked for is loaded all the same, nobody is told, and the device serves on."""
    runtime = FakeRuntime()
    runtime.may_load.clear()
    with served(runtime, clients=2, loaded=False) as s:
        s.peers[0].send(frames.short(Kind.LOAD, 1, [*OTHER, "model.pt"]))
        s.peers[0].close()
        # Between two answers it takes in all that is there: also the end of the other connection.
        s.peers[1].ping()
        s.peers[1].ping()
        runtime.may_load.set()
        while OTHER not in runtime.models:
            s.peers[1].ping()
        s.peers[1].ping()
        assert s.peers[1].load().kind == Kind.LOADED


# Rubbish


GARBAGE = {
    "no length": bytes(16),
    "too long": b"\xff" * 16,
    "TLS": b"\x16\x03\x01\xff\xff\x01\x00\x01\xfc\x03\x03" + bytes(32),
    "an unknown kind": frames.short(99, 1),  # type: ignore[arg-type]  # what nobody should send
    "a frame of the engine's": frames.telling(Kind.PONG, frames.Told(1, 0, 0.0)),
    "a load of nothing": frames.short(Kind.LOAD, 1),
    "a load that is no JSON": frames._HEAD.pack(18, Kind.LOAD, 1) + b"{]",
    "a load of other things": frames.short(Kind.LOAD, 1, {"name": "tiny"}),
    "a load of too little": frames.short(Kind.LOAD, 1, ["tiny", 1, "sha256:0"]),
    "an unload of other things": frames.short(Kind.UNLOAD, 1, ["tiny", "one", "sha256:0"]),
    "an order cut short": frames._HEAD.pack(60, Kind.SUBMIT, 1) + frames.submit(1, order(1))[16:60],
    "an order without its arrays": frames._HEAD.pack(64, Kind.SUBMIT, 1) + frames.submit(1, order(1))[16:64],
    "an order of one byte too many": struct.pack("<I", len(frames.submit(1, order(1))) + 1)
    + frames.submit(1, order(1))[4:]
    + b"!",
    "an order of no windows": frames.submit(1, order(1, rows=0)),
    "an order of no passes": frames.submit(1, order(1, passes=0)),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=list(GARBAGE))
def test_garbage_closes_its_connection_alone(garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Who does not speak the language is hung up on, with a line in the log, and all it asked for is called off."""
    runtime = FakeRuntime(held=True)
    with served(runtime, clients=2) as s:
        good = order(7, passes=2)
        s.peers[0].ask(1, order(1, passes=500))
        runtime.begun()
        s.peers[1].ask(1, good)
        s.peers[0].send(garbage)
        runtime.let_go()
        assert np.array_equal(s.peers[1].answers(1)[1], numbers_of(good))
        assert s.peers[1].ping().rows == 0
        assert s.peers[0].has_ended()
        assert "a connection to fake is closed" in caplog.text


@contextmanager
def unserved() -> Iterator[tuple[Device, Peer, Peer]]:
    """A device with MODEL loaded whose turns the test takes itself, in this thread."""
    with device_of(FakeRuntime()) as (device, peers):
        device._models[MODEL.digest] = (MODEL, spec())
        yield device, *peers


@contextmanager
def device_of(runtime: FakeRuntime) -> Iterator[tuple[Device, tuple[Peer, Peer]]]:
    device = Device(runtime, FakeWatcher(), queue_rows=100, batch_rows=4, bulk_batch_rows=4)
    pairs = pair(), pair()
    for _, theirs in pairs:
        device.connect(theirs)
    peers = Peer(pairs[0][0]), Peer(pairs[1][0])
    try:
        yield device, peers
    finally:
        device.close()
        device.serve()
        for peer in peers:
            peer.close()


@given(st.binary(max_size=600))
@settings(max_examples=200)
def test_rubbish_is_no_harm(rubbish: bytes) -> None:
    """Whatever bytes a client sends, the loop goes on and the next client is served."""
    survives(rubbish)


GOOD = b"".join(
    [
        frames.submit(1, order(1, rows=2)),
        frames.short(Kind.DROP, 1),
        frames.short(Kind.UNLOAD, 2, list(OTHER)),
        frames.submit(3, order(2, rows=5)),
        frames.short(Kind.PING, 4),
    ]
)


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=200)
def test_damaged_words_are_no_harm(damages: list[tuple[int, int]]) -> None:
    """Nor do good frames with some bytes changed."""
    stream = bytearray(GOOD)
    for place, value in damages:
        stream[place] = value
    survives(bytes(stream))


def survives(rubbish: bytes) -> None:
    with unserved() as (device, bad, good):
        bad.send(rubbish)
        bad.close()
        good.send(frames.short(Kind.PING, 1))
        for _ in range(4):
            device._take_in()
            device._send_out()
            if good._heard or device._scheduler.idle:
                break
        assert good.hear().kind == Kind.PONG


def test_slow_reader_holds_up_nobody() -> None:
    """Who does not read their answers gets them when they do, whole; meanwhile the others are served."""

    def narrow() -> tuple[socket.socket, socket.socket]:
        ours, theirs = pair()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return ours, theirs

    with served(clients=2, batch_rows=64, queue_rows=1000, theirs=narrow) as s:
        slow, quick = s.peers
        big = [order(100 * number, rows=40, passes=20, attention=True) for number in range(5)]
        for number, one in enumerate(big):
            slow.ask(number, one)
        for number in range(50):
            quick.ask(number, order(number))
            assert np.array_equal(quick.answers(1)[number], numbers_of(order(number)))
        while quick.ping().rows:
            pass
        quick.ask(99, order(99))
        assert np.array_equal(quick.answers(1)[99], numbers_of(order(99)))
        found = slow.answers(5)
        assert all(np.array_equal(found[number], numbers_of(one)) for number, one in enumerate(big))
        # Once it has taken all, it is one like any other.
        slow.ask(7, order(7))
        assert np.array_equal(slow.answers(1)[7], numbers_of(order(7)))


def test_slow_reader_that_hangs_up() -> None:
    """Who leaves with unsent answers is forgotten like anybody else."""

    def narrow() -> tuple[socket.socket, socket.socket]:
        ours, theirs = pair()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return ours, theirs

    with served(clients=2, batch_rows=64, theirs=narrow) as s:
        s.peers[0].ask(1, order(1, rows=40, passes=50, attention=True))
        while not s.device._clients or not any(client.stuffed for client in list(s.device._clients)):
            s.peers[1].ping()
        s.peers[0].close()
        s.peers[1].ping()
        s.peers[1].ping()
        assert len(s.device._clients) == 1


# Models


def test_load_tells_the_spec() -> None:
    """LOADED carries the whole spec of what was loaded, and from then on orders for it are answered."""
    with served(loaded=False) as s:
        heard = s.peers[0].load(OTHER, "/store/other/1/model.pt")
        assert (heard.kind, heard.told.order) == (Kind.LOADED, 99)
        found = Spec.model_validate_json(bytes(frames.told_content(memoryview(heard.frame))))
        assert found == spec().model_copy(update={"name": "other"})
        assert s.runtime.loaded == [(OTHER, Path("/store/other/1/model.pt"))]
        asked = order(1, model=OTHER)
        s.peers[0].ask(1, asked)
        assert np.array_equal(s.peers[0].answers(1)[1], numbers_of(asked))


def test_passes_run_while_a_model_loads() -> None:
    """Loading takes its time in a thread of its own; orders for other models are answered meanwhile."""
    with served() as s:
        s.runtime.may_load.clear()
        s.peers[0].send(frames.short(Kind.LOAD, 1, [*OTHER, "model.pt"]))
        s.peers[0].ask(2, order(1))
        assert np.array_equal(s.peers[0].answers(1)[2], numbers_of(order(1)))
        s.peers[0].ask(3, order(1, model=OTHER))
        assert s.peers[0].hear().kind == Kind.REFUSED
        s.runtime.may_load.set()
        assert s.peers[0].hear().told.order == 1


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_thread_that_loads_gives_way() -> None:
    """Its priority is lower than that of the threads that answer, which keep theirs."""
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    with served() as s:
        assert s.runtime.niceness > ours or ours >= 10
        assert os.getpriority(os.PRIO_PROCESS, s.thread.native_id or 0) == ours


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DigestError("digest is sha256:0"), "digest is sha256:0"),
        (FileNotFoundError(2, "No such file or directory", "/secret/model.pt"), "No such file or directory"),
        (OSError("whatever"), "unreadable"),
        (RuntimeError("/secret/place"), "its network fails: RuntimeError"),
        (ValueError("embedded null byte"), "its network fails: ValueError"),
        (MemoryError(), "its network fails: MemoryError"),
    ],
)
def test_load_that_fails_tells_why(error: Exception, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a load fails with, its reason comes back without paths, and the device serves on."""
    with served() as s:
        s.runtime.load_error = error
        heard = s.peers[0].load(OTHER)
        assert (heard.kind, heard.told.order, heard.content) == (Kind.NOT_LOADED, 99, reason)
        s.peers[0].ask(1, order(1, model=OTHER))
        assert s.peers[0].hear().kind == Kind.REFUSED
        s.peers[0].ask(2, order(2))
        assert np.array_equal(s.peers[0].answers(1)[2], numbers_of(order(2)))
        s.runtime.load_error = None
        assert s.peers[0].load(OTHER).kind == Kind.LOADED
    assert ("does not load" in caplog.text) == reason.startswith("its network")


def test_archive_of_another_model_is_not_served() -> None:
    """What the spec inside says must be what was asked for, in name and version."""
    with served() as s:
        s.runtime.name = "evil"
        heard = s.peers[0].load(OTHER)
        assert (heard.kind, heard.content) == (Kind.NOT_LOADED, "the archive is of evil version 1")
        assert s.runtime.models == [MODEL]


def test_unloaded_model_is_refused() -> None:
    """After UNLOAD its orders are refused; unloading what is not there is nothing."""
    with served() as s:
        for _ in range(2):
            s.peers[0].send(frames.short(Kind.UNLOAD, 0, list(MODEL)))
        s.peers[0].ask(1, order(1))
        assert s.peers[0].hear().kind == Kind.REFUSED
        assert s.runtime.models == []


def unload(peer: Peer, model: ModelId = MODEL) -> None:
    """Have a model unloaded; it has been obeyed."""
    peer.send(frames.short(Kind.UNLOAD, 0, list(model)))
    peer.ping()


def test_unloaded_model_finishes_what_it_accepted() -> None:
    """After UNLOAD the rows that were accepted go through all their passes; the model goes with the last of them."""
    runtime = FakeRuntime(held=True)
    with served(runtime, clients=2) as s:
        long, queued = order(1, passes=3), order(50, rows=9)
        s.peers[0].ask(1, long)
        runtime.begun()
        s.peers[0].ask(2, queued)
        s.peers[1].send(frames.short(Kind.UNLOAD, 0, list(MODEL)))
        s.peers[1].ask(3, order(90))
        runtime.step()
        runtime.begun()
        assert runtime.models == [MODEL]
        runtime.let_go()
        assert s.peers[1].hear().kind == Kind.REFUSED
        answers = s.peers[0].answers(2)
        assert np.array_equal(answers[1], numbers_of(long))
        assert np.array_equal(answers[2], numbers_of(queued))
        s.peers[0].ping()
        assert runtime.models == []
        assert s.device._scheduler._records == {}


def test_unloaded_model_goes_with_the_last_who_waits() -> None:
    """Whoever hangs up is waited for no longer; the memory of the model is given back then, and once."""
    runtime = FakeRuntime(held=True)
    with served(runtime, clients=2) as s:
        s.peers[0].ask(1, order(1, passes=500))
        runtime.begun()
        s.peers[1].send(frames.short(Kind.UNLOAD, 0, list(MODEL)))
        s.peers[0].close()
        runtime.let_go()
        s.peers[1].ping()
        s.peers[1].ping()
        assert runtime.models == []
        assert len(runtime.passes) < 500


def test_load_of_what_is_leaving_brings_it_back() -> None:
    """All of it is still there: nothing is read, who was accepted goes on, and orders are taken again."""
    runtime = FakeRuntime(held=True)
    with served(runtime) as s:
        long = order(1, passes=3)
        s.peers[0].ask(1, long)
        runtime.begun()
        s.peers[0].send(frames.short(Kind.UNLOAD, 0, list(MODEL)), frames.short(Kind.LOAD, 7, [*MODEL, "model.pt"]))
        s.peers[0].ask(2, order(50))
        runtime.let_go()
        loaded = s.peers[0].hear()
        assert (loaded.kind, loaded.told.order, len(runtime.loaded)) == (Kind.LOADED, 7, 1)
        assert Spec.model_validate_json(bytes(frames.told_content(memoryview(loaded.frame)))) == spec()
        answers = s.peers[0].answers(2)
        assert np.array_equal(answers[1], numbers_of(long))
        assert np.array_equal(answers[2], numbers_of(order(50)))
        s.peers[0].ping()
        assert runtime.models == [MODEL]


def test_load_after_it_has_left_is_a_new_one() -> None:
    """Once the last row is gone the archive is read again."""
    with served() as s:
        unload(s.peers[0])
        assert s.runtime.models == []
        assert s.peers[0].load().kind == Kind.LOADED
        assert len(s.runtime.loaded) == 2
        s.peers[0].ask(1, order(1))
        assert np.array_equal(s.peers[0].answers(1)[1], numbers_of(order(1)))


def test_load_that_was_called_off_is_not_installed() -> None:
    """An UNLOAD while the archive is read is not forgotten when it has been; a later LOAD is another matter."""
    with served() as s:
        s.runtime.may_load.clear()
        s.peers[0].send(frames.short(Kind.LOAD, 1, [*OTHER, "model.pt"]))
        unload(s.peers[0], OTHER)
        s.peers[0].send(frames.short(Kind.LOAD, 2, [*OTHER, "model.pt"]))
        s.peers[0].ping()
        s.runtime.may_load.set()
        heard = {one.told.order: one for one in (s.peers[0].hear(), s.peers[0].hear())}
        assert (heard[1].kind, heard[1].content) == (Kind.NOT_LOADED, "it was unloaded before it was loaded")
        assert heard[2].kind == Kind.LOADED
        assert s.runtime.models == [MODEL, OTHER]
        assert s.device._loads == set()


def test_unload_calls_off_the_reload_of_what_serves() -> None:
    """A model that serves and is being read again is gone all the same, now and afterwards."""
    with served() as s:
        s.runtime.may_load.clear()
        s.peers[0].send(frames.short(Kind.LOAD, 1, [*MODEL, "model.pt"]))
        unload(s.peers[0])
        s.runtime.may_load.set()
        assert s.peers[0].hear().kind == Kind.NOT_LOADED
        s.peers[0].ask(2, order(1))
        assert s.peers[0].hear().kind == Kind.REFUSED
        assert s.runtime.models == []


def test_memory_that_cannot_be_given_back(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the device serves on."""
    runtime, called = FakeRuntime(), threading.Event()

    def give_back() -> None:
        called.set()
        raise RuntimeError("no")

    runtime.give_back = give_back  # type: ignore[method-assign]
    with served(runtime) as s:
        unload(s.peers[0])
        assert called.wait(PATIENCE_S)
        assert s.peers[0].load().kind == Kind.LOADED


# Models that fail


def test_failing_model_is_told_to_everybody() -> None:
    """After so many windows in a row every client hears which model it is and how it fails, once for each load."""
    with served(clients=2, failures=3) as s:
        s.runtime.bad = {*range(100)}
        for tag in range(5):
            s.peers[0].ask(tag, order(tag))
        heard = [s.peers[0].hear() for _ in range(6)]
        (failing,) = [one for one in heard if one.kind == Kind.FAILING]
        reason = "it failed 3 times in a row while it served (ValueError)"
        assert failing.content == [*MODEL, reason]
        assert [one.kind for one in heard].count(Kind.REFUSED) == 5
        assert s.peers[1].hear().content == [*MODEL, reason]
        assert s.peers[1].load().kind == Kind.LOADED
        for tag in range(3):
            s.peers[0].ask(tag, order(tag))
        assert s.peers[1].hear().kind == Kind.FAILING


def test_model_that_leaves_is_not_told() -> None:
    """Whoever has unloaded a model need not hear that it fails on the last of its rows."""
    runtime = FakeRuntime(held=True)
    with served(runtime, failures=1) as s:
        runtime.bad = {2}
        s.peers[0].ask(1, order(1))
        runtime.begun()
        s.peers[0].ask(2, order(2))
        s.peers[0].send(frames.short(Kind.UNLOAD, 0, list(MODEL)))
        runtime.let_go()
        assert [s.peers[0].hear().kind for _ in range(2)] == [Kind.ANSWER, Kind.REFUSED]
        s.peers[0].ping()


def test_pass_that_does_not_fit_into_memory() -> None:
    """An order as wide as a pass is answered whole, though its second pass must be taken in pieces."""
    runtime = FakeRuntime(held=True)
    with served(runtime, batch_rows=8) as s:
        wide = order(1, rows=16, passes=2, attention=True)
        s.peers[0].ask(1, wide)
        runtime.begun()
        runtime.step()
        runtime.begun()
        runtime.most = 3
        runtime.let_go()
        assert np.array_equal(s.peers[0].answers(1)[1], numbers_of(wide))
        begun = len(runtime.passes)
        s.peers[0].ask(2, wide)
        assert np.array_equal(s.peers[0].answers(1)[2], numbers_of(wide))
        # Cut to what fits from the start.
        assert {sum(one.rows for one in batch) for batch in runtime.passes[begun:]} == {2}
    assert s.watcher.starved
    assert set(s.watcher.starved) == {MODEL}


# Its last words


def test_says_whose_pass_is_under_way(tmp_path: Path) -> None:
    """The file names the model during its pass and nobody between two, also after one that failed."""
    runtime, path = FakeRuntime(held=True), tmp_path / "running"
    path.write_bytes(b"what another has left")
    with served(runtime, running=path) as s:
        assert running_in(path) is None
        s.peers[0].load(OTHER)
        for number, (model, bad) in enumerate([(OTHER, False), (MODEL, True)]):
            runtime.bad = {number} if bad else set()
            s.peers[0].ask(number, order(number, model=model))
            runtime.begun()
            assert running_in(path) == model.digest
            runtime.step()
            s.peers[0].hear()
            s.peers[0].ping()
            assert running_in(path) is None
        s.peers[0].ask(9, order(9))
        runtime.begun()
        assert running_in(path) == MODEL.digest


@pytest.mark.parametrize("left", [None, b"", b"x" * 31, bytes(32)])
def test_no_last_words(tmp_path: Path, left: bytes | None) -> None:
    """Of an engine that never ran a pass, or never got to make the file, nothing is known."""
    if left is not None:
        (tmp_path / "running").write_bytes(left)
    assert running_in(tmp_path / "running") is None


# Refusals by an estimate


def test_order_that_cannot_be_done_in_time_is_refused() -> None:
    """What an order says of its patience counts, as does how long the device lets anybody wait."""
    runtime = FakeRuntime(held=True)
    with served(runtime, batch_rows=1, queue_rows=1000) as s:
        s.peers[0].ask(1, order(1, passes=1000))
        runtime.begun()
        # It has never run a pass, so nothing is estimated.
        s.peers[0].ask(2, order(2, patience_s=0.0))
        runtime.step()
        runtime.begun()
        s.peers[0].ask(3, order(3, patience_s=0.0))
        s.peers[0].ask(4, order(4))
        runtime.let_go()
        heard = s.peers[0].hear()
        while heard.told.order != 3:
            heard = s.peers[0].hear()
        assert heard.kind == Kind.REFUSED
        assert heard.content["slug"] == "queue-full"
        assert int(heard.content["headers"]["Retry-After"]) >= 1
        assert heard.told.row_s > 0


def test_pong_tells_how_busy_it_is_for_each_model() -> None:
    """Whoever has sent a model nothing for a while learns there what a newcomer of it has before it."""
    runtime = FakeRuntime(held=True)
    with served(runtime) as s:
        s.peers[0].load(OTHER)
        s.peers[0].ask(1, order(1, rows=4, passes=1000))
        for _ in range(2):
            runtime.begun()
            runtime.step()
        runtime.begun()
        s.peers[0].send(frames.short(Kind.PING, 77))
        runtime.let_go()
        told = s.peers[0].hear().content
        assert set(told) == {MODEL.digest, OTHER.digest}
        mine, others = Busy(*told[MODEL.digest]), Busy(*told[OTHER.digest])
        assert mine.rows == others.rows == 4
        assert mine.backlog_s == others.backlog_s > 0
        assert mine.wait_s == pytest.approx(4 * mine.row_s)
        assert others.wait_s == pytest.approx(mine.pass_s)
        assert others.row_s == 0


def test_full_queue_lets_another_model_in() -> None:
    """Up to an eighth of it."""
    runtime = FakeRuntime(held=True)
    with served(runtime, queue_rows=8) as s:
        s.peers[0].load(OTHER)
        s.peers[0].ask(1, order(1, rows=8, passes=2))
        runtime.begun()
        s.peers[0].ask(2, order(50, model=OTHER))
        s.peers[0].ask(3, order(60, model=OTHER))
        runtime.let_go()
        heard = {one.told.order: one for one in (s.peers[0].hear() for _ in range(3))}
        assert {number: one.kind for number, one in heard.items()} == {
            1: Kind.ANSWER,
            2: Kind.ANSWER,
            3: Kind.REFUSED,
        }


# Its end


def test_close_ends_it_for_everybody() -> None:
    """Told to close, the loop ends although nothing arrives, and who is connected sees the end."""
    with served(clients=2) as s:
        s.device.close()
        s.wait()
        assert [peer.has_ended() for peer in s.peers] == [True, True]
        assert s.error is None
        s.device.close()  # once more is no harm


def test_close_waits_for_the_pass_under_way_alone() -> None:
    """The pass is finished, no other begins."""
    runtime = FakeRuntime(held=True)
    with served(runtime) as s:
        s.peers[0].ask(1, order(1, passes=500))
        runtime.begun()
        s.device.close()
        runtime.let_go()
        s.wait()
        assert len(runtime.passes) == 1


@pytest.mark.parametrize("busy", [False, True])
def test_leash(busy: bool) -> None:
    """A word over its leash ends the device, idle or in the middle of its work."""
    ours, theirs = pair()
    runtime = FakeRuntime(held=busy)
    with theirs, ours, served(runtime, prepare=lambda device: device.leash(theirs)) as s:
        if busy:
            s.peers[0].ask(1, order(1, passes=500))
            runtime.begun()
        ours.sendall(b"!")
        runtime.let_go()
        s.wait()
        assert s.peers[0].has_ended()
        assert s.error is None


def test_leash_that_breaks() -> None:
    """Once whoever held it has died, the device serves those that are connected on, and ends with the last of them."""
    ours, theirs = pair()
    with theirs, served(clients=2, prepare=lambda device: device.leash(theirs)) as s:
        ours.close()
        for peer in s.peers:
            peer.ask(1, order(1))
            assert np.array_equal(peer.answers(1)[1], numbers_of(order(1)))
            peer.connection.close()
        s.wait()
        assert s.error is None


def test_leash_that_breaks_when_nobody_is_there() -> None:
    """Then it ends at once."""
    ours, theirs = pair()
    with theirs, served(clients=0, loaded=False, prepare=lambda device: device.leash(theirs)) as s:
        ours.close()
        s.wait()
        assert s.error is None


def test_lost_device_ends_the_loop() -> None:
    """A device that has failed ends `serve` with DeviceLostError, and all who are connected see the end at once."""
    runtime = FakeRuntime()
    with served(runtime, clients=2) as s:
        runtime.bad, runtime.error = {1}, DeviceLostError("an illegal memory access")
        s.peers[0].ask(1, order(1))
        s.wait()
        assert isinstance(s.error, DeviceLostError)
        assert [peer.has_ended() for peer in s.peers] == [True, True]


def test_load_that_ends_after_the_loop() -> None:
    """A loader that comes too late finds nobody, and that is no error."""
    runtime = FakeRuntime()
    with served(runtime) as s:
        runtime.may_load.clear()
        s.peers[0].send(frames.short(Kind.LOAD, 1, [*OTHER, "model.pt"]))
        s.peers[0].ping()
        s.device.close()
        s.wait()
        runtime.may_load.set()
        for thread in threading.enumerate():
            if thread.name == "loader-fake":
                thread.join(PATIENCE_S)


def test_connections_are_taken_while_it_serves(tmp_path: Path) -> None:
    """Who connects to its listening socket is served like anybody else, also during passes."""
    runtime = FakeRuntime(held=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "engine"))
        listener.listen()
        with served(runtime, prepare=lambda device: device.listen(listener)) as s:
            s.peers[0].ask(1, order(1, passes=3))
            runtime.begun()
            for _ in range(2):
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(str(tmp_path / "engine"))
                s.peers.append(Peer(connection))
                s.peers[-1].ask(1, order(5))
            runtime.let_go()
            for peer in s.peers[1:]:
                assert np.array_equal(peer.answers(1)[1], numbers_of(order(5)))
            assert np.array_equal(s.peers[0].answers(1)[1], numbers_of(order(1, passes=3)))
