"""The way to the devices: where orders go, and what is told when a device is busy, stuck, dead or out of its mind."""

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import anyio
import numpy as np
import orjson
import pytest

from app.errors import (
    DeviceLostError,
    DrainingError,
    EngineDiedError,
    FailedError,
    ForetellError,
    NotReadyError,
    QueueFullError,
    UnavailableError,
)
from app.link import engine as engine_module
from app.link import frames
from app.link.engine import Engine, EngineStoppedError, Link, LoadError, Outcome, open_link
from app.link.frames import Busy, Kind, Order, Told
from models.artifact import ArtifactError
from tests.app.devices import FakeRuntime, Served, is_answer, order, pair, served, spec
from tests.app.fakes import MODEL, OTHER, settle
from tests.app.serving import until
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.anyio

ARCHIVE = Path("/store/tiny/1/model.pt")


@pytest.fixture(scope="module", params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both loops: the service runs on uvloop, the supervisor does not."""
    return "asyncio", {"use_uvloop": request.param}


class Asked:
    """An order under way and what it was told."""

    def __init__(self, engine: Engine, asked: Order) -> None:
        self.order = asked
        self.told: list[Outcome | ForetellError] = []
        self._heard = asyncio.Event()
        self.call_off = engine.submit(asked, self._hear)

    def _hear(self, outcome: Outcome | ForetellError) -> None:
        self.told.append(outcome)
        self._heard.set()

    async def outcome(self) -> Outcome | ForetellError:
        """Wait for what it is told; that it is told twice would show."""
        with anyio.fail_after(PATIENCE_S):
            await self._heard.wait()
        (outcome,) = self.told
        return outcome

    async def is_right(self) -> bool:
        """Whether it is answered as it must be."""
        return is_answer(await self.outcome(), self.order)


@dataclass
class World:
    """An engine with a device in a thread for every runtime, each with MODEL loaded."""

    engine: Engine
    devices: list[Served]
    links: list[Link]

    def ask(self, asked: Order) -> Asked:
        return Asked(self.engine, asked)


@asynccontextmanager
async def world(*runtimes: FakeRuntime, queue_rows: int = 10_000, batch_rows: int = 4) -> AsyncIterator[World]:
    engine = Engine(queue_rows=queue_rows)
    with ExitStack() as stack:
        made = World(engine, [], [])
        try:
            for number, runtime in enumerate(runtimes):
                ours, theirs = pair()
                device = stack.enter_context(
                    served(
                        runtime,
                        clients=0,
                        loaded=False,
                        queue_rows=queue_rows,
                        batch_rows=batch_rows,
                        prepare=lambda device, theirs=theirs: device.connect(theirs),
                    )
                )
                link = await open_link(ours, queue_rows=queue_rows)
                await link.load(MODEL, ARCHIVE)
                engine.use(number, link)
                made.devices.append(device)
                made.links.append(link)
            yield made
        finally:
            for runtime in runtimes:
                runtime.let_go()
            with anyio.fail_after(PATIENCE_S):
                await engine.close(PATIENCE_S)


class Script:
    """The device's side of a link, as the test plays it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def hear(self) -> tuple[int, int]:
        """The kind and the number of the next frame that is sent there."""
        with anyio.fail_after(PATIENCE_S):
            length = int.from_bytes(head := await self._reader.readexactly(4), "little")
            frame = head + await self._reader.readexactly(length - 4)
        return frame[4], frames.number_of(memoryview(frame))

    async def say(self, *said: bytes) -> None:
        """Send frames; once they have been obeyed, go on."""
        self._writer.write(b"".join(said))
        await self._writer.drain()
        await settle()

    async def hang_up(self) -> None:
        """Close the connection."""
        self._writer.close()
        await self._writer.wait_closed()


@asynccontextmanager
async def script(queue_rows: int = 100) -> AsyncIterator[tuple[Link, Script]]:
    """A link, and the other side of it."""
    ours, theirs = pair()
    made = Script(*await asyncio.open_unix_connection(sock=theirs))
    link = await open_link(ours, queue_rows=queue_rows)
    try:
        yield link, made
    finally:
        link.close()
        await link.lost
        await made.hang_up()


@asynccontextmanager
async def scripts(
    count: int, queue_rows: int = 100, max_wait_s: float = math.inf
) -> AsyncIterator[tuple[Engine, list[Link], list[Script]]]:
    """An engine of so many devices that the test plays."""
    engine = Engine(queue_rows=queue_rows, max_wait_s=max_wait_s)
    async with contexts([script(queue_rows) for _ in range(count)]) as made:
        for number, (link, _) in enumerate(made):
            engine.use(number, link)
        try:
            yield engine, [link for link, _ in made], [other for _, other in made]
        finally:
            with anyio.fail_after(PATIENCE_S):
                await engine.close(0)


@asynccontextmanager
async def contexts(pairs: list) -> AsyncIterator[list]:  # type: ignore[type-arg]
    made = [await one.__aenter__() for one in pairs]
    try:
        yield made
    finally:
        for one in pairs:
            await one.__aexit__(None, None, None)


def answer(number: int, rows: int = 0, backlog_s: float = 0.0) -> bytes:
    """An answer of the number itself."""
    return b"".join(
        frames.answer(Told(number, rows, backlog_s), 0.25, 0.5, np.full((1, 1, 1), number, np.float32), None)
    )


def told(kind: Kind, number: int, content: object = None, *, rows: int = 0, backlog_s: float = 0.0) -> bytes:
    said = {} if kind == Kind.PONG and content is None else content
    return frames.telling(kind, Told(number, rows, backlog_s), orjson.dumps(said))


async def holds(condition: Callable[[], bool]) -> None:
    """Wait until it does."""

    async def is_true() -> bool:
        return condition()

    await until(is_true)


# Answers


@pytest.mark.parametrize("attention", [False, True])
async def test_order_is_answered(attention: bool) -> None:
    """What the device computed comes back, with the times that it took."""
    async with world(FakeRuntime()) as w:
        asked = w.ask(order(1, rows=7, passes=3, attention=attention))
        outcome = await asked.outcome()
        assert is_answer(outcome, asked.order)
        assert isinstance(outcome, Outcome)
        assert outcome.queued_s >= 0
        assert outcome.device_s >= 0
        assert w.engine.rows == 0


async def test_times_are_the_devices() -> None:
    """Queued and computed are what the device says of them."""
    async with scripts(1) as (engine, _, (device,)):
        asked = Asked(engine, order(1))
        _, number = await device.hear()
        await device.say(answer(number))
        outcome = await asked.outcome()
        assert isinstance(outcome, Outcome)
        assert (outcome.queued_s, outcome.device_s, outcome.numbers.tolist()) == (0.25, 0.5, [number])


async def test_devices_share_the_work() -> None:
    """Of many orders over two devices none is lost, told twice or mixed up, and each device has a part in it."""
    runtimes = FakeRuntime(), FakeRuntime()
    async with world(*runtimes) as w:
        asked = [
            w.ask(order(10 * tag, rows=1 + tag % 9, passes=1 + tag % 5, attention=tag % 2 == 0)) for tag in range(200)
        ]
        assert all([await one.is_right() for one in asked])
        await settle()
        assert [len(one.told) for one in asked] == [1] * 200
        assert all(runtime.passes for runtime in runtimes)
        assert w.engine.rows == 0


async def test_big_orders_and_answers_are_whole() -> None:
    """Orders and answers of megabytes, more than any buffer on the way has, arrive like small ones."""
    async with world(FakeRuntime(), batch_rows=1000, queue_rows=100_000) as w:
        asked = [w.ask(order(tag, rows=9000, passes=5, attention=True)) for tag in range(3)]
        assert all([await one.is_right() for one in asked])


async def test_answers_in_any_order_and_in_crumbs() -> None:
    """Who is answered is told by the number alone, however the stream is cut."""
    async with scripts(1) as (engine, _, (device,)):
        asked = [Asked(engine, order(tag)) for tag in range(4)]
        numbers = [(await device.hear())[1] for _ in asked]
        stream = b"".join(answer(number) for number in (numbers[2], numbers[0], numbers[3], numbers[1]))
        for start in range(0, len(stream), 7):
            await device.say(stream[start : start + 7])
        found = [await one.outcome() for one in asked]
        assert [int(one.numbers[0]) for one in found if isinstance(one, Outcome)] == numbers


# Where orders go


async def test_orders_go_where_fewest_rows_wait() -> None:
    """With one device busy the next order runs on the other, by rows and not by orders."""
    first, second = FakeRuntime(held=True), FakeRuntime(held=True)
    async with world(first, second) as w:
        wide, one, two, three = (w.ask(asked) for asked in (order(10, rows=3), order(1), order(2), order(3)))
        assert w.engine.rows == 6
        for runtime in (first, second):
            runtime.let_go()
        assert all([await asked.is_right() for asked in (wide, one, two, three)])
        tags = [{int(t.window[0, 0, 0]) for batch in r.passes for t in batch} for r in (first, second)]
        assert tags == [{10}, {1, 2, 3}]


async def test_rows_of_others_count() -> None:
    """A device that other processes keep busy says so with whatever it says, and gets less."""
    async with scripts(2) as (engine, links, devices):
        links[0].ping()
        await devices[0].hear()
        await devices[0].say(told(Kind.PONG, 0, rows=50))
        assert engine.rows == 50
        Asked(engine, order(1))
        assert (await devices[1].hear())[0] == Kind.SUBMIT
        links[0].ping()
        await devices[0].hear()
        await devices[0].say(told(Kind.PONG, 0, rows=0))
        Asked(engine, order(2))
        assert (await devices[0].hear())[0] == Kind.SUBMIT


async def test_dead_device_leaves_the_others_serving() -> None:
    """Work goes on where it can; the engine serves, and says that it is not healthy."""
    first, second = FakeRuntime(), FakeRuntime()
    async with world(first, second) as w:
        assert w.engine.healthy(60)
        w.devices[0].device.close()
        await w.links[0].lost
        asked = [w.ask(order(tag)) for tag in range(20)]
        assert all([await one.is_right() for one in asked])
        assert first.passes == []
        assert w.engine.serves(60)
        assert not w.engine.healthy(60)


async def test_last_dead_device_refuses() -> None:
    """With no device left a request is refused at once, before and after it is parsed."""
    async with world(FakeRuntime()) as w:
        w.devices[0].device.close()
        await w.links[0].lost
        for refuse in (w.engine.check, lambda: w.ask(order(1))):
            with pytest.raises(EngineDiedError):
                refuse()
        assert not w.engine.serves(60)


async def test_no_device_yet() -> None:
    """Before the first device is ready, requests are told that none is; that is not unhealthy."""
    async with scripts(0) as (engine, _, _):
        with pytest.raises(NotReadyError):
            engine.check()
        assert not engine.serves(60)
        assert engine.healthy(60)
        assert engine.rows == 0


async def test_device_in_place_of_a_dead_one() -> None:
    """A device that comes under the number of one that died serves in its place, and all is well again."""
    async with scripts(2) as (engine, links, devices), script() as (link, device):
        await devices[0].hang_up()
        await links[0].lost
        assert not engine.healthy(60)
        engine.use(0, link)
        assert engine.healthy(60)
        Asked(engine, order(1))
        assert await device.hear() == (Kind.SUBMIT, 1)


# Refusals


async def test_refusal_comes_through() -> None:
    """What the device refuses with is raised here as it was there, with its headers."""
    async with scripts(1) as (engine, _, (device,)):
        for error in (
            QueueFullError("full", retry_after_s=17),
            NotReadyError("not on this device"),
            FailedError("the model failed on this window"),
        ):
            asked = Asked(engine, order(1))
            _, number = await device.hear()
            await device.say(told(Kind.REFUSED, number, error.packed()))
            found = await asked.outcome()
            assert type(found) is type(error)
            assert isinstance(found, ForetellError)
            assert (found.detail, found.headers, found.status) == (error.detail, error.headers, error.status)


async def test_refusal_of_an_unknown_kind() -> None:
    """One of a kind that is not known here is an internal error, and not nothing."""
    async with scripts(1) as (engine, _, (device,)):
        asked = Asked(engine, order(1))
        _, number = await device.hear()
        await device.say(told(Kind.REFUSED, number, {"slug": "new", "detail": "new", "headers": {}}))
        found = await asked.outcome()
        assert type(found) is ForetellError
        assert found.status == 500


async def test_full_queue_refuses_here_already() -> None:
    """More rows than the device would take are refused without asking it, by when it says that there is room."""
    async with scripts(1, queue_rows=5) as (engine, links, (device,)):
        asked = Asked(engine, order(1, rows=3))
        _, number = await device.hear()
        links[0].ping()
        await device.hear()
        await device.say(told(Kind.PONG, 0, backlog_s=6.5))
        with pytest.raises(QueueFullError, match="3 rows are waiting, of at most 5") as refusal:
            Asked(engine, order(2, rows=3))
        assert refusal.value.headers["Retry-After"] == "7"
        engine.check()
        two = Asked(engine, order(2, rows=2))
        with pytest.raises(QueueFullError):
            engine.check()
        await device.say(answer(number))
        await asked.outcome()
        engine.check()
        assert two.told == []


async def hear_busy(link: Link, device: Script, busy: dict[str, Busy]) -> None:
    """Have a device say how busy it is for each model."""
    link.ping()
    kind = None
    while kind != Kind.PING:
        kind, _ = await device.hear()
    heard = {digest: list(fields) for digest, fields in busy.items()}
    await device.say(told(Kind.PONG, 0, heard))
    await holds(lambda: link._asked is None)


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a device said holds, however slow the test is."""
    monkeypatch.setattr(engine_module, "_FRESH_S", 60.0)


@pytest.mark.usefixtures("remembered")
async def test_long_wait_refuses_here_already() -> None:
    """What the device says of a model is enough to refuse its orders before they are made; others are not touched."""
    async with scripts(1, max_wait_s=5) as (engine, (link,), (device,)):
        busy = Busy(rows=9, backlog_s=100.0, wait_s=8.0, row_s=0.5, pass_s=1.0)
        await hear_busy(link, device, {MODEL.digest: busy, OTHER.digest: busy._replace(wait_s=1.0)})
        with pytest.raises(QueueFullError, match="the wait is about") as refusal:
            engine.check(digest=MODEL.digest)
        assert refusal.value.headers["Retry-After"] in "78"
        with pytest.raises(QueueFullError):
            Asked(engine, order(1))
        engine.check()
        engine.check(digest=f"sha256:{'3' * 64}")
        engine.check(2, 30, OTHER.digest, patience_s=90)
        with pytest.raises(QueueFullError, match="would take about"):
            engine.check(2, 60, OTHER.digest, patience_s=90)
        Asked(engine, order(1, bulk=True))
        # A second later a second of it is done; of what was not said again nothing is known in the end.
        link._heard[MODEL.digest].at -= 4
        engine.check(digest=MODEL.digest)
        await hear_busy(link, device, {})
        engine.check(2, 60, OTHER.digest, patience_s=0)


@pytest.mark.usefixtures("remembered")
async def test_who_hangs_up_keeps_nobody_out() -> None:
    """What a device said of its work counts those who have left since: it is asked, and knows better."""
    async with scripts(1, max_wait_s=5) as (engine, (link,), (device,)):
        waiting = Asked(engine, order(1))
        await hear_busy(link, device, {MODEL.digest: Busy(rows=1, backlog_s=9.0, wait_s=9.0, row_s=9.0, pass_s=9.0)})
        with pytest.raises(QueueFullError):
            engine.check(digest=MODEL.digest)
        waiting.call_off()
        engine.check(digest=MODEL.digest)


async def test_what_was_said_long_ago_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others than oneself may have hung up since."""
    monkeypatch.setattr(engine_module, "_FRESH_S", 0.0)
    async with scripts(1, max_wait_s=5) as (engine, (link,), (device,)):
        await hear_busy(link, device, {MODEL.digest: Busy(rows=1, backlog_s=9.0, wait_s=9.0, row_s=9.0, pass_s=9.0)})
        engine.check(digest=MODEL.digest)


@pytest.mark.usefixtures("remembered")
async def test_what_was_sent_since_counts() -> None:
    """Orders that the device had not seen when it last spoke make the wait longer, at its rate for their model."""
    async with scripts(1, max_wait_s=5) as (engine, (link,), (device,)):
        busy = Busy(rows=1, backlog_s=1.0, wait_s=1.0, row_s=1.0, pass_s=1.0)
        await hear_busy(link, device, {MODEL.digest: busy, OTHER.digest: busy})
        Asked(engine, order(1, rows=6))
        with pytest.raises(QueueFullError):
            engine.check(digest=MODEL.digest)
        engine.check(digest=OTHER.digest)
        _, number = await device.hear()
        assert link._heard[MODEL.digest].row_passes == 6
        calm = frames.answer(Told(number, *busy), 0.0, 0.0, np.zeros((1, 1, 1), np.float32), None)
        await device.say(b"".join(calm))
        await holds(lambda: link._heard[MODEL.digest].rows == 0)
        engine.check(digest=MODEL.digest)


async def test_where_nothing_waits_nothing_is_estimated() -> None:
    """An idle device is tried, however slow it was."""
    async with scripts(1, max_wait_s=5) as (engine, (link,), (device,)):
        await hear_busy(link, device, {MODEL.digest: Busy(0, 0.0, 0.0, 100.0, 100.0)})
        engine.check(1, 10, MODEL.digest, patience_s=0.1)


async def test_flood_keeps_no_other_model_out() -> None:
    """With as many rows of a model on their way as there is room for, another's get in up to an eighth of them."""
    async with scripts(1, queue_rows=16) as (engine, _, (device,)):
        flood = Asked(engine, order(1, rows=16))
        for tag in (50, 60):
            engine.check(digest=OTHER.digest)
            Asked(engine, order(tag, model=OTHER))
        for digest in (MODEL.digest, OTHER.digest, None):
            with pytest.raises(QueueFullError, match="18 rows are waiting, of at most 16"):
                engine.check(digest=digest)
        _, number = await device.hear()
        await device.say(answer(number))
        await flood.outcome()
        engine.check(digest=OTHER.digest)
        assert flood.order.digest not in engine._links[0]._held[False]


async def test_failing_model_is_passed_on() -> None:
    """Whoever set `failing` is told the model and the reason; nobody need have."""
    async with script() as (link, device):
        said: list[tuple[object, ...]] = []
        await device.say(told(Kind.FAILING, 0, [*MODEL, "unheard"]))
        link.failing(MODEL, "nobody listens")
        link.ping()
        await device.hear()
        await device.say(told(Kind.PONG, 0))
        await holds(lambda: link._asked is None)
        link.failing = lambda *failing: said.append(failing)
        await device.say(told(Kind.FAILING, 0, [*OTHER, "bad rows"]))
        await holds(lambda: said == [(OTHER, "bad rows")])


async def test_bulk_orders_have_room_of_their_own() -> None:
    """They fill nobody's queue but their own, and leave it when they are answered or called off."""
    async with scripts(1, queue_rows=5) as (engine, _, (device,)):
        first, second = Asked(engine, order(1, rows=3, bulk=True)), Asked(engine, order(2, rows=2, bulk=True))
        engine.check()
        assert engine.rows == 0
        with pytest.raises(QueueFullError, match="5 rows are waiting, of at most 5"):
            Asked(engine, order(3, bulk=True))
        Asked(engine, order(3, rows=5))
        with pytest.raises(QueueFullError):
            engine.check()
        _, number = await device.hear()
        await device.say(answer(number))
        await first.outcome()
        second.call_off()
        Asked(engine, order(4, rows=5, bulk=True))


async def test_bulk_orders_go_where_fewest_of_them_wait() -> None:
    """And others where fewest others wait, since these go before whatever bulk work there is; alike, to the other."""
    async with scripts(2) as (engine, links, _):
        Asked(engine, order(1, rows=9, bulk=True))
        assert [link.bulk_rows for link in links] == [9, 0]
        Asked(engine, order(2, rows=4))
        assert [link.rows for link in links] == [0, 4]
        Asked(engine, order(3, rows=2, bulk=True))
        assert [link.bulk_rows for link in links] == [9, 2]
        Asked(engine, order(4, rows=1))
        assert [link.rows for link in links] == [1, 4]


async def test_unloaded_model_is_refused() -> None:
    """After it was unloaded a model's orders are told so."""
    async with world(FakeRuntime()) as w:
        w.links[0].unload(MODEL)
        assert isinstance(await w.ask(order(1)).outcome(), NotReadyError)


# Who leaves


async def test_called_off_is_never_told() -> None:
    """The device is told to DROP it, its rows are free at once, and an answer that was on its way reaches nobody."""
    async with scripts(1) as (engine, _, (device,)):
        gone, stays = Asked(engine, order(1, rows=3)), Asked(engine, order(2))
        (_, first), (_, second) = await device.hear(), await device.hear()
        gone.call_off()
        assert engine.rows == 1
        assert await device.hear() == (Kind.DROP, first)
        gone.call_off()  # twice is once
        await device.say(answer(first), told(Kind.REFUSED, first, FailedError("late").packed()), answer(second))
        await stays.outcome()
        assert gone.told == []
        assert engine.rows == 0


async def test_called_off_after_its_answer_is_nothing() -> None:
    """Nothing is sent for an order that is through."""
    async with scripts(1) as (engine, links, (device,)):
        asked = Asked(engine, order(1))
        _, number = await device.hear()
        await device.say(answer(number))
        await asked.outcome()
        asked.call_off()
        links[0].ping()
        assert await device.hear() == (Kind.PING, 0)


async def test_called_off_costs_no_further_pass() -> None:
    """A long order that is called off between its passes leaves the device idle."""
    runtime = FakeRuntime(held=True)
    async with world(runtime) as w:
        long = w.ask(order(1, passes=10_000))
        await asyncio.to_thread(runtime.begun)
        long.call_off()
        w.links[0].ping()
        await settle()  # both are on their way before the pass ends
        runtime.let_go()
        await holds(lambda: w.links[0].stalled_s == 0)
        assert len(runtime.passes) == 1
        assert long.told == []


# When a device ends


async def test_orders_under_way_are_told_at_once() -> None:
    """When the connection ends, all who wait there are told, each once, and only those."""
    async with scripts(2) as (engine, _, devices):
        asked = [Asked(engine, order(tag)) for tag in range(6)]
        await devices[0].hang_up()
        lost = [await one.outcome() for one in asked[::2]]
        assert [type(error) for error in lost] == [EngineDiedError] * 3
        assert [one.told for one in asked[1::2]] == [[], [], []]
        assert engine.rows == 3


async def test_who_is_told_does_not_come_back_to_a_dead_device() -> None:
    """Who tries again in the moment of being told of the end goes to a device that lives, or is refused."""
    async with scripts(2) as (engine, _, devices):
        again: list[Asked] = []
        lost: list[ForetellError] = []

        def retry(outcome: Outcome | ForetellError) -> None:
            assert isinstance(outcome, EngineDiedError)
            try:
                again.append(Asked(engine, order(5)))
            except ForetellError as error:
                lost.append(error)

        engine.submit(order(1), retry)
        await devices[0].hang_up()
        await holds(lambda: bool(again))
        engine.submit(order(2), retry)
        await devices[1].hang_up()
        await holds(lambda: bool(lost))
        assert isinstance(lost[0], EngineDiedError)
        assert isinstance(await again[0].outcome(), EngineDiedError)


async def test_lost_device_does_not_draw_the_traffic() -> None:
    """A device that fails as a whole fails who waits for it once; then the others get the work, and health tells."""
    broken, good = FakeRuntime(), FakeRuntime()
    async with world(broken, good) as w:
        broken.bad, broken.error = {0}, DeviceLostError("an illegal memory access")
        assert isinstance(await w.ask(order(0)).outcome(), EngineDiedError)
        for tag in range(1, 20):
            assert await w.ask(order(tag)).is_right()
        assert len(good.passes) == 19
        assert not w.engine.healthy(60)


RUBBISH = {
    "no length": bytes(64),
    "too long": b"\xff" * 64,
    "a word for the engine": frames.telling(Kind.SUBMIT, Told(1, 0, 0.0)),
    "no spec": frames.telling(Kind.LOADED, Told(1, 0, 0.0), b"{}"),
    "a refusal that is no JSON": frames.telling(Kind.REFUSED, Told(1, 0, 0.0), b"{"),
    "a refusal of no kind": frames.telling(Kind.REFUSED, Told(1, 0, 0.0), b"{}"),
    "cut short": frames._HEAD.pack(16, Kind.PONG, 1),
    "an answer cut short": frames._HEAD.pack(30, Kind.ANSWER, 1) + bytes(14),
}


@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=list(RUBBISH))
async def test_device_out_of_its_mind(rubbish: bytes) -> None:
    """One that cannot be understood is hung up on: who waits there is told, and no answer is made up."""
    loop, seen = asyncio.get_running_loop(), []
    usual = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: seen.append(context["exception"]))
    try:
        async with scripts(1) as (engine, links, (device,)):
            asked = Asked(engine, order(1))
            await device.hear()
            await device.say(rubbish)
            assert isinstance(await asked.outcome(), EngineDiedError)
            await links[0].lost
            assert not engine.serves(60)
    finally:
        loop.set_exception_handler(usual)
    assert len(seen) == 1


async def test_order_in_the_moment_of_the_end() -> None:
    """What is sent in the very turn in which the connection is closed is told so, and nothing goes wrong."""
    async with scripts(1) as (engine, links, _):
        asked = Asked(engine, order(2))
        links[0].close()
        later = Asked(engine, order(3))
        for one in (asked, later):
            assert isinstance(await one.outcome(), EngineDiedError)


# Health


async def test_stuck_pass_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that does not answer is unhealthy for as long as that lasts; another one that does still serves."""
    monkeypatch.setattr(engine_module, "PING_S", 0.001)
    stuck = FakeRuntime(held=True)
    async with world(stuck, FakeRuntime()) as w:
        assert w.engine.healthy(60)
        asked = w.ask(order(1))
        await asyncio.to_thread(stuck.begun)
        await holds(lambda: not w.engine.healthy(0.01))
        await holds(lambda: w.engine.serves(0.01))
        assert not w.engine.healthy(0.01)
        assert w.engine.healthy(3600)
        stuck.let_go()
        assert await asked.is_right()
        await holds(lambda: w.engine.healthy(0.01))


async def test_only_stuck_device_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nobody left who answers, the engine does not serve, until one answers again."""
    monkeypatch.setattr(engine_module, "PING_S", 0.001)
    async with scripts(1) as (engine, _, (device,)):
        assert await device.hear() == (Kind.PING, 0)
        await holds(lambda: not engine.serves(0.01))
        assert engine.serves(3600)
        await device.say(told(Kind.PONG, 0))
        await holds(lambda: engine.serves(0.01))


async def test_stuck_device_is_asked_once() -> None:
    """Questions do not pile up at one that does not answer; how long it has not is counted from the first."""
    async with scripts(1) as (_, (link,), (device,)):
        assert link.stalled_s == 0
        for _ in range(3):
            link.ping()
        assert await device.hear() == (Kind.PING, 0)
        link.unload(OTHER)
        assert (await device.hear())[0] == Kind.UNLOAD
        assert link.stalled_s > 0
        await device.say(told(Kind.PONG, 0))
        assert link.stalled_s == 0


async def test_own_absence_is_not_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was stopped for an hour with a question under way does not take the hour for a stall."""
    now = [100.0]
    monkeypatch.setattr(engine_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    async with scripts(1) as (_, (link,), (device,)):
        link.ping()
        now[0] += 3600
        link.ping()
        assert link.stalled_s == 2 * engine_module.PING_S
        assert await device.hear() == (Kind.PING, 0)
        await device.say(told(Kind.PONG, 0))
        assert link.stalled_s == 0


# Loading


async def test_load_gives_the_spec() -> None:
    """What was loaded says what it is; the archive is the one that was named."""
    runtime = FakeRuntime()
    async with world(runtime) as w:
        found = await w.links[0].load(OTHER, Path("/store/other/1/model.pt"))
        assert found == spec().model_copy(update={"name": "other"})
        assert runtime.loaded[-1] == (OTHER, Path("/store/other/1/model.pt"))
        assert await w.ask(order(1, model=OTHER)).is_right()


async def test_load_that_fails_says_why() -> None:
    """LoadError with the device's reason, which is no sign of a dead device; it loads the next one."""
    runtime = FakeRuntime()
    async with world(runtime) as w:
        runtime.load_error = ArtifactError("the example fails")
        with pytest.raises(LoadError, match="the example fails") as failure:
            await w.links[0].load(OTHER, ARCHIVE)
        assert not isinstance(failure.value, EngineStoppedError)
        runtime.load_error = None
        await w.links[0].load(OTHER, ARCHIVE)


async def test_device_that_ends_while_it_loads() -> None:
    """Everybody who waits for a load is told that the device ended, and so is who comes later."""
    async with scripts(1) as (_, (link,), (device,)):
        loads = [asyncio.create_task(link.load(model, ARCHIVE)) for model in (MODEL, OTHER)]
        await device.hear()
        await device.hang_up()
        with anyio.fail_after(PATIENCE_S):
            found = await asyncio.gather(*loads, return_exceptions=True)
            assert [type(error) for error in found] == [EngineStoppedError] * 2
            with pytest.raises(EngineStoppedError):
                await link.load(MODEL, ARCHIVE)


async def test_load_that_nobody_waits_for() -> None:
    """A load that was given up is no error when its answer comes, or when the device ends."""
    async with scripts(1) as (_, (link,), (device,)):
        loads = [asyncio.create_task(link.load(model, ARCHIVE)) for model in (MODEL, OTHER)]
        numbers = [(await device.hear())[1] for _ in loads]
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        await device.say(told(Kind.NOT_LOADED, numbers[0], "late"))
        assert link.alive
        await device.hang_up()
        await link.lost


async def test_orders_are_answered_while_a_model_loads() -> None:
    """A load that takes long holds up no order."""
    runtime = FakeRuntime()
    async with world(runtime) as w:
        runtime.may_load.clear()
        loading = asyncio.create_task(w.links[0].load(OTHER, ARCHIVE))
        assert await w.ask(order(1)).is_right()
        assert not loading.done()
        runtime.may_load.set()
        await loading


# The end


async def test_closing_finishes_what_was_accepted() -> None:
    """Work under way on all devices is answered, new work is refused from the first moment on."""
    runtimes = FakeRuntime(held=True), FakeRuntime(held=True)
    async with world(*runtimes) as w:
        accepted = [w.ask(order(tag, passes=3)) for tag in range(5)]
        closing = asyncio.create_task(w.engine.close(PATIENCE_S))
        await settle()
        for refuse in (w.engine.check, lambda: w.ask(order(9))):
            with pytest.raises(DrainingError):
                refuse()
        assert not closing.done()
        for runtime in runtimes:
            runtime.let_go()
        await closing
        assert all([await one.is_right() for one in accepted])
        assert not any(link.alive for link in w.links)


async def test_closing_ends_when_the_last_is_called_off() -> None:
    """When nobody waits for anything any more, there is nothing to wait for."""
    async with scripts(1) as (engine, _, _):
        asked = Asked(engine, order(1))
        closing = asyncio.create_task(engine.close(10 * PATIENCE_S))
        await settle()
        asked.call_off()
        with anyio.fail_after(PATIENCE_S):
            await closing
        assert asked.told == []


async def test_closing_ends_when_the_device_does() -> None:
    """A device that dies while it should finish its work is not waited for."""
    async with scripts(1) as (engine, _, (device,)):
        asked = Asked(engine, order(1))
        closing = asyncio.create_task(engine.close(10 * PATIENCE_S))
        await settle()
        await device.hang_up()
        with anyio.fail_after(PATIENCE_S):
            await closing
        assert isinstance(await asked.outcome(), EngineDiedError)


async def test_closing_does_not_wait_for_ever() -> None:
    """What a stuck device does not finish in time is told so."""
    async with scripts(1) as (engine, _, _):
        asked = Asked(engine, order(1))
        await engine.close(0.01)
        assert isinstance(await asked.outcome(), EngineDiedError)


async def test_closing_does_not_wait_until_a_stuck_device_reads() -> None:
    """Also where the device has not even taken in what was sent to it."""
    async with scripts(1, queue_rows=100_000) as (engine, _, _):
        asked = Asked(engine, order(1, rows=90_000))
        with anyio.fail_after(PATIENCE_S):
            await engine.close(0.01)
        assert isinstance(await asked.outcome(), EngineDiedError)


async def test_closing_without_any_device() -> None:
    """An engine that never had a device, or has lost all, closes at once."""
    await Engine(queue_rows=1).close(PATIENCE_S)
    async with scripts(1) as (engine, links, (device,)):
        await device.hang_up()
        await links[0].lost
        await engine.close(PATIENCE_S)


async def test_closing_while_a_model_loads() -> None:
    """A load is no order: it is not waited for, and who waits for it is told."""
    runtime = FakeRuntime()
    async with world(runtime) as w:
        runtime.may_load.clear()
        loading = asyncio.create_task(w.links[0].load(OTHER, ARCHIVE))
        await settle()
        with anyio.fail_after(PATIENCE_S):
            await w.engine.close(PATIENCE_S)
        with pytest.raises(EngineStoppedError):
            await loading


async def test_nothing_is_left_behind() -> None:
    """After its end an engine has no task under way, nor has a device a thread."""
    before = asyncio.all_tasks()
    async with world(FakeRuntime(), FakeRuntime()) as w:
        assert await w.ask(order(1)).is_right()
    await settle()
    assert asyncio.all_tasks() == before
    await holds(lambda: not any(thread.name.startswith(("device", "loader")) for thread in threading.enumerate()))


async def test_every_refusal_can_be_tried_again() -> None:
    """All that the engine itself refuses with says when to come back."""
    assert all(issubclass(kind, UnavailableError) for kind in (QueueFullError, DrainingError, EngineDiedError))
