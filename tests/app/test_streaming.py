"""Forecasts whose steps are sent as they are computed: the same numbers as in one piece, and a proper end."""

import asyncio
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from starlette.types import Message

from app.asked.layout import Layout
from app.asked.query import Query
from app.codec.streamed_answers import EVENTS, LINES
from app.errors import DeadlineError, EngineDiedError, FailedError, ForetellError, InvalidError, NotFiniteError, Place
from app.forecasts.cache import Answer
from app.forecasts.job import Computed, Job
from app.forecasts.streaming import Stream
from app.routes.flowing import Flowing
from models.store import Store
from tests.app import calibrated
from tests.app.asking import BOUNDED, right, window_of
from tests.app.fakes import MODEL, settle
from tests.app.serving import process, serving, wait_until
from tests.app.specs import spec_of
from tests.builders import publish_tiny
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.anyio

RICH: dict[str, Any] = {
    "architecture": "attention_lstm",
    "config": {"hidden": 4, "layers": 1, "attention_size": 4},
    "roles": ("target", "past", "future", "target"),
    "horizon": 3,
}
"""Two targets in threes, with an attention row each three steps and a known-future covariate."""


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """A service of a model with attention and one with intervals, which remembers nothing."""
    root = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root), "rich", **RICH)
    publish_tiny(Store(root), "plain", **BOUNDED)
    calibrated.publish(root)
    async with serving(root, cache_bytes=0, max_steps=500) as client:
        yield client


def rich_body(windows: int, steps: int) -> dict[str, Any]:
    """Windows of the model with attention."""
    dice = np.random.default_rng(windows)
    found = dice.normal(10, 1, (windows, 8, 3)).astype(np.float32).tolist()
    found = [[[*row[:2], 20.0, row[2]] for row in window] for window in found]
    future = dice.normal(20, 3, (windows, steps, 1)).astype(np.float32).tolist()
    return {"windows": found, "future": future} if windows > 1 else {"window": found[0], "future": future[0]}


async def streamed(client: httpx.AsyncClient, body: object, accept: str = LINES, **options: object) -> httpx.Response:
    """The answer in lines, or in events."""
    return await client.post("/forecast", json=body, params=options, headers={"Accept": accept})


def lines_of(response: httpx.Response) -> list[dict[str, Any]]:
    """What each line says."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == LINES
    return [orjson.loads(line) for line in response.content.splitlines()]


def events_of(response: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    """Kind and content of each event."""
    assert response.headers["content-type"].startswith(EVENTS)
    found = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        kind, data = block.split("\n")
        found.append((kind.removeprefix("event: "), orjson.loads(data.removeprefix("data: "))))
    return found


# The same numbers


@pytest.mark.parametrize("windows", [1, 3])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 200])
@pytest.mark.parametrize("attention", ["all", "last", "none"])
async def test_lines_add_up_to_the_answer(client: httpx.AsyncClient, windows: int, steps: int, attention: str) -> None:
    """Step by step to the last bit what the answer in one piece has, however the passes fall."""
    body, options = rich_body(windows, steps), {"model": "rich", "steps": steps, "attention": attention}
    whole = (await client.post("/forecast", json=body, params=options)).json()

    start, *told, end = lines_of(await streamed(client, body, **options))

    assert {name: start[name] for name in ("model", "version", "digest", "targets", "steps")} == {
        name: whole[name] for name in ("model", "version", "digest", "targets", "steps")
    }
    assert [line["step"] for line in told] == list(range(1, steps + 1))
    if windows == 1:
        assert [line["forecast"] for line in told] == whole["forecast"]
    else:
        assert [list(step) for step in zip(*whole["forecasts"], strict=True)] == [line["forecasts"] for line in told]
    assert end["done"]
    assert end["steps"] == steps
    found = {line["step"]: line["attention"] for line in told if "attention" in line}
    if attention == "none":
        assert "attention" not in start
        assert not found
        return
    assert start["attention"] == {"steps_per_row": 3}
    weights = whole["attention"]["weights"]
    rows = weights if windows == 1 else [list(row) for row in zip(*weights, strict=True)]
    begins = list(range(1, steps + 1, 3))
    assert found == dict(zip(begins if attention == "all" else begins[-1:], rows, strict=True))


async def test_events_say_what_lines_do(client: httpx.AsyncClient) -> None:
    """Of the same kinds, in the same order."""
    options = {"model": "plain", "steps": 5}
    lines = lines_of(await streamed(client, {"window": window_of(1)}, **options))
    events = events_of(await streamed(client, {"window": window_of(1)}, EVENTS, **options))

    assert [kind for kind, _ in events] == ["start", *["step"] * 5, "end"]
    assert [content for _, content in events[:-1]] == lines[:-1]
    assert lines[0]["attention"] is None


@pytest.mark.parametrize("band", ["step", "path"])
@pytest.mark.parametrize("windows", [1, 2])
async def test_intervals_come_with_their_steps(client: httpx.AsyncClient, band: str, windows: int) -> None:
    """Each step has the bounds that it has in the answer in one piece."""
    asked = calibrated.windows(windows)
    body: dict[str, Any] = {"window": asked[0]} if windows == 1 else {"windows": asked}
    options = {"model": "tiny", "steps": calibrated.STEPS, "level": "80,90", "band": band}
    whole = (await client.post("/forecast", json=body, params=options)).json()

    _, *told, _ = lines_of(await streamed(client, body, **options))

    for level, bounds in whole["intervals"].items():
        for side, values in bounds.items():
            steps = values if windows == 1 else [list(step) for step in zip(*values, strict=True)]
            assert [line["intervals"][level][side] for line in told] == steps


async def test_steps_have_their_times(client: httpx.AsyncClient) -> None:
    """Where the body says when the window was."""
    start = datetime(2013, 6, 1, tzinfo=UTC).isoformat()
    options = {"model": "plain", "steps": 3}
    one = {"window": window_of(1), "start": start}
    two = {"windows": [window_of(1), window_of(2)], "start": [start, start]}
    whole = (await client.post("/forecast", json=one, params=options)).json()["timestamps"]

    assert [line["timestamp"] for line in lines_of(await streamed(client, one, **options))[1:-1]] == whole
    lines = lines_of(await streamed(client, two, **options))[1:-1]
    assert [line["timestamps"] for line in lines] == [[stamp, stamp] for stamp in whole]


def forecast_of(response: httpx.Response) -> list[list[float]]:
    """The numbers, however they were sent."""
    content_type = response.headers["content-type"].partition(";")[0]
    if content_type == LINES:
        return [line["forecast"] for line in lines_of(response)[1:-1]]
    if content_type == EVENTS:
        return [content["forecast"] for kind, content in events_of(response) if kind == "step"]
    return list(response.json()["forecast"])


@pytest.mark.parametrize(("first", "second"), [(LINES, "*/*"), ("*/*", LINES), (LINES, EVENTS)])
async def test_what_the_cache_has_comes_at_once(tmp_path: Path, first: str, second: str) -> None:
    """An answer in one piece is kept for those in lines, and the other way round."""
    publish_tiny(Store(tmp_path), **BOUNDED)
    async with serving(tmp_path) as client:
        missed, hit = [await streamed(client, {"window": window_of(1)}, one, steps=70) for one in (first, second)]
    assert (missed.headers["x-cache"], hit.headers["x-cache"]) == ("miss", "hit")
    assert forecast_of(missed) == forecast_of(hit)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("application/x-ndjson, application/json;q=0.5", LINES),
        ("Text/Event-Stream", EVENTS),
        ("text/event-stream;q=0.3, application/x-ndjson;q=0.4", LINES),
        ("application/json, application/x-ndjson;q=0.5", "application/json"),
        ("text/event-stream;q=0.5, */*", "application/json"),
        ("application/x-ndjson;q=0", "application/json"),
    ],
)
async def test_who_gets_lines(client: httpx.AsyncClient, accept: str, content_type: str) -> None:
    """Only those who would rather have them than JSON."""
    response = await streamed(client, {"window": window_of(1)}, accept, model="plain", steps=2)
    assert response.status_code == 200
    assert response.headers["content-type"].partition(";")[0] == content_type
    assert response.headers["vary"] == "Accept"


# What goes wrong


@pytest.mark.parametrize(
    ("options", "body", "status"),
    [
        ({"model": "nobody", "steps": 2}, {"window": window_of(1)}, 404),
        ({"model": "plain", "steps": 2}, {"window": [[1.0]]}, 422),
        ({"model": "plain", "steps": 501}, {"window": window_of(1)}, 422),
        ({"model": "plain", "steps": 2, "level": "80"}, {"window": window_of(1)}, 422),
    ],
)
async def test_refusals_are_whole_problems(
    client: httpx.AsyncClient, options: dict[str, Any], body: object, status: int
) -> None:
    """With their status, as for any other answer, as long as nothing has been sent."""
    response = await streamed(client, body, **options)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"


async def test_first_step_that_is_not_finite_is_a_problem(tmp_path: Path) -> None:
    """Nothing has been sent by then."""
    publish_tiny(Store(tmp_path), seed=1)
    wild = [[3e38 * (-1) ** row] for row in range(8)]
    async with serving(tmp_path) as client:
        response = await streamed(client, {"window": wild}, steps=4)
    assert response.status_code == 422
    assert response.json()["type"] == "urn:foretell:problem:not-finite"


SPEC = spec_of(horizon=1, attention_rows=1)
STEPS = 5


def stream_of(patience_s: float = PATIENCE_S) -> Stream:
    """One of five steps, with attention, that nothing has been added to."""
    window = np.zeros((1, SPEC.window, 1), np.float32)
    layout = Layout(window, np.zeros(1, np.int64), np.zeros((1, STEPS, 0), np.float32), None)
    job = Job(MODEL, SPEC, Query(window, None, None, single=True), layout, STEPS, True, patience_s, False)
    return Stream(job, None, "all", None, 0.0, 0.0)


def part(value: float, passes: int = 1) -> np.ndarray:
    """What so many passes gave: forecasts of that value, and weights."""
    return np.concatenate([np.full(passes, value), np.full(passes * SPEC.window, 1 / SPEC.window)]).astype(np.float32)


def whole(value: float) -> Computed:
    """All of it, of that value."""
    forecast, attention = np.full((1, STEPS, 1), value, np.float32), np.ones((1, STEPS, SPEC.window), np.float32)
    return Computed(Answer(forecast, attention), 0.0, 0.0)


async def read(stream: Stream, found: list[int]) -> None:
    """Where each piece starts."""
    async with aclosing(stream.pieces()) as pieces:
        async for piece in pieces:
            found.append(piece.start)
            await asyncio.sleep(0)


async def test_deadline_passes_on_the_way() -> None:
    """What was there by then is read, then the reader is told, and the work is called off."""
    stream, called_off = stream_of(patience_s=0.0), []
    stream.call_off = lambda: called_off.append(1)
    stream.add(2, part(1.0, 2))
    found: list[int] = []
    with pytest.raises(DeadlineError):
        await read(stream, found)
    assert (found, called_off) == ([0], [1])


async def test_slow_reader_misses_no_deadline() -> None:
    """What is computed is read, however late."""
    stream = stream_of(patience_s=0.0)
    stream.add(2, part(1.0, 2))
    stream.end(whole(1.0))
    assert [(piece.start, piece.forecast.shape[1]) async for piece in stream.pieces()] == [(0, 2), (2, 3)]


@pytest.mark.parametrize("error", [EngineDiedError("gone"), FailedError("failed")])
async def test_failure_on_the_way_is_told(error: ForetellError) -> None:
    """After the steps that were there; there is nothing left to call off."""
    stream, called_off = stream_of(), []
    stream.call_off = lambda: called_off.append(1)
    stream.add(1, part(1.0))
    stream.end(error)
    found: list[int] = []
    with pytest.raises(type(error)):
        await read(stream, found)
    assert (found, called_off) == ([0], [])


async def test_step_on_the_way_that_is_not_finite() -> None:
    """It is named by its number in the whole forecast, and calls the rest off."""
    stream, called_off = stream_of(), []
    stream.call_off = lambda: called_off.append(1)
    stream.add(2, part(1.0, 2))
    stream.add(1, part(np.inf))
    with pytest.raises(NotFiniteError, match="from step 3 on"):
        await read(stream, [])
    assert called_off == [1]


async def test_reader_that_leaves_calls_it_off() -> None:
    """Between two pieces, or while it waits for one."""
    for adds in (1, 0):
        stream, called_off = stream_of(), []
        stream.call_off = lambda told=called_off: told.append(1)
        for _ in range(adds):
            stream.add(1, part(1.0))
        reading = asyncio.ensure_future(read(stream, []))
        await settle()
        reading.cancel()
        await asyncio.wait([reading])
        assert called_off == [1]


async def test_long_parts_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for the event loop, however much there is to write at once."""
    monkeypatch.setattr("app.forecasts.streaming._MOST_NUMBERS", 2 * (1 + SPEC.window))
    stream = stream_of()
    stream.end(whole(2.0))
    pieces = [piece async for piece in stream.pieces()]
    assert [(piece.start, piece.forecast.shape[1], list(piece.attention)) for piece in pieces] == [
        (0, 2, [0, 1]),
        (2, 2, [2, 3]),
        (4, 1, [4]),
    ]


# On the wire


def told(problem: dict[str, Any]) -> bytes:
    return orjson.dumps({"error": problem})


class Sent:
    """What an application sends; the client can be gone."""

    def __init__(self, *, gone: bool = False) -> None:
        self.bodies: list[bytes] = []
        self._gone = gone

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            if self._gone and message["body"]:
                raise OSError("the connection is gone")
            self.bodies.append(message["body"])


async def flow(pieces: AsyncGenerator[bytes, None], sent: Sent) -> None:
    await Flowing(b"", pieces, LINES, what="forecast", told=told)({}, None, sent)  # type: ignore[arg-type]


async def test_pieces_are_closed_with_the_answer() -> None:
    """A client that takes no more ends the work, although there could be more."""
    ended: list[str] = []

    async def pieces() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"piece"
        finally:
            ended.append("pieces")

    with pytest.raises(OSError, match="gone"):
        await flow(pieces(), Sent(gone=True))
    assert ended == ["pieces"]


@pytest.mark.parametrize(
    ("error", "slug"),
    [
        (InvalidError(Place("window", "wrong")), "invalid"),
        (ValueError("/secret/place"), "internal"),
        (asyncio.CancelledError(), "draining"),
    ],
)
async def test_last_piece_says_what_went_wrong(error: BaseException, slug: str) -> None:
    """As a problem, without anything that is nobody's business; the answer ends in good order."""

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"piece"
        raise error

    sent = Sent()
    await flow(pieces(), sent)
    first, last, end = sent.bodies
    assert (first, end) == (b"piece", b"")
    assert orjson.loads(last)["error"]["type"] == f"urn:foretell:problem:{slug}"
    assert b"secret" not in last


def test_steps_arrive_while_the_rest_is_computed(tmp_path: Path) -> None:
    """From the real process: the first lines come long before the last, are right, and a reader that leaves ends the
    work; at a SIGTERM the rest is still sent.
    """
    publish_tiny(Store(tmp_path), **BOUNDED)
    steps = 100_000
    settings = {"MAX_STEPS": steps, "MAX_ROW_STEPS": steps, "CACHE_BYTES": 0, "GRACE_S": 0}
    with process(tmp_path, HTTP_PROCESSES=1, **settings) as service:
        window = window_of(3)
        asked: dict[str, Any] = {"json": {"window": window}, "headers": {"Accept": LINES}, "timeout": PATIENCE_S}
        with httpx.stream("POST", f"{service.url}/forecast?steps={steps}", **asked) as response:
            found = response.iter_lines()
            assert orjson.loads(next(found))["steps"] == steps
            first = [orjson.loads(next(found))["forecast"] for _ in range(20)]
            assert service.metric("foretell_waiting_rows") == 1
        np.testing.assert_allclose(first, right(window, 20), rtol=1e-4, atol=1e-4)
        wait_until(lambda: service.metric("foretell_waiting_rows") == 0)
        with httpx.stream("POST", f"{service.url}/forecast?steps=5000", **asked) as response:
            found = response.iter_lines()
            next(found)
            service.signal(signal.SIGTERM)
            *middle, last = (orjson.loads(line) for line in found)
        assert last["done"]
        assert [line["step"] for line in middle] == list(range(1, 5001))
