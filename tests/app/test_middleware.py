"""What surrounds every request: limits on its body, clients that leave, errors that nobody expected, its log line."""

import asyncio
import gzip
import logging
import socket
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.edge.middleware import Envelope, Intake
from app.errors import SlowRequestError
from app.forecasts.predictor import Predictor
from app.metrics import Metrics
from models.store import Store
from tests.app.fakes import settle
from tests.app.serving import Process, metric, process, serving, wait_until
from tests.builders import publish_tiny
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.anyio

WINDOW = orjson.dumps({"window": [[1.0]] * 8})
MIB = 2**20
LONG = 10**6


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The real process, with bodies of at most a MiB and forecasts that would take minutes."""
    root = tmp_path_factory.mktemp("store")
    # An LSTM's own forecasts stay bounded, however far it goes on from them.
    publish_tiny(Store(root), architecture="lstm", config={"hidden": 4, "layers": 1, "residual": False})
    settings: dict[str, Any] = {"MAX_BODY_BYTES": MIB, "MAX_STEPS": LONG, "MAX_ROW_STEPS": LONG, "DEADLINE_MS": 10**8}
    with process(root, **settings) as service:
        yield service


# The limit of bodies


async def two_parts(first: bytes, second: bytes) -> AsyncIterator[bytes]:
    """A body without a length: httpx sends it in chunks."""
    yield first
    yield second


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("extra", "status"), [(0, 200), (1, 413), (10_000, 413)])
async def test_body_limit(tmp_path: Path, extra: int, status: int, chunked: bool) -> None:
    """A body of exactly the limit is read and one byte more is refused, whether its length is announced or not."""
    publish_tiny(Store(tmp_path))
    body = WINDOW + b" " * (1000 - len(WINDOW) + extra)

    async with serving(tmp_path, max_body_bytes=1000) as client:
        response = await client.post("/predict", content=two_parts(body[:300], body[300:]) if chunked else body)
        figures = (await client.get("/metrics")).text

    assert response.status_code == status
    if status == 413:
        assert response.json()["type"] == "urn:foretell:problem:body-too-large"
        assert response.json()["detail"] == "the body may have at most 1000 bytes"
        assert metric(figures, "foretell_rejected_total", reason="body-too-large") == 1


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("mebibytes", [2, 100])
def test_client_that_sends_everything_first_sees_the_refusal(service: Process, mebibytes: int, chunked: bool) -> None:
    """One that reads only once its whole body is out gets a clean 413, and may go on with the same connection."""
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % (mebibytes * MIB)
    block = b"%x\r\n%b\r\n" % (MIB, b" " * MIB) if chunked else b" " * MIB

    with socket.create_connection(service.address) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: foretell\r\n" + length + b"\r\n\r\n")
        for _ in range(mebibytes):
            connection.sendall(block)
        connection.sendall(b"0\r\n\r\n" if chunked else b"")
        refused = read_answer(connection)
        connection.sendall(request(WINDOW))
        answered = read_answer(connection)

    assert refused.startswith(b"HTTP/1.1 413")
    assert b"urn:foretell:problem:body-too-large" in refused
    assert answered.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate, gzip"])
async def test_unknown_packing_is_not_read(tmp_path: Path, encoding: str) -> None:
    """Whatever is in it, on every path: the refusal says how it is packed and what is read."""
    publish_tiny(Store(tmp_path))
    headers = {"content-encoding": encoding}

    async with serving(tmp_path) as client:
        forecast = await client.post("/predict", content=WINDOW, headers=headers)
        backtest = await client.post("/backtest?steps=1", content=b"x", headers=headers)

    assert (forecast.status_code, forecast.headers["accept-encoding"]) == (415, "gzip, deflate")
    assert forecast.json()["detail"] == backtest.json()["detail"]
    assert f"Content-Encoding {encoding!r} is not read here" in forecast.json()["detail"]


HALVES = (WINDOW[:10], WINDOW[10:])
PACKED = {
    "gzip": ("gzip", gzip.compress(WINDOW, mtime=0)),
    "GZip": (" GZip ", gzip.compress(WINDOW, mtime=0)),
    "x-gzip": ("x-gzip", gzip.compress(WINDOW, mtime=0)),
    "in two parts": ("gzip", b"".join(map(gzip.compress, HALVES))),
    "deflate": ("deflate", zlib.compress(WINDOW)),
    "not at all": ("Identity", WINDOW),
}


@pytest.mark.parametrize("name", PACKED)
async def test_packed_body_is_unpacked(tmp_path: Path, name: str) -> None:
    """It is the request that it was before, for the cache too."""
    publish_tiny(Store(tmp_path))
    encoding, body = PACKED[name]

    async with serving(tmp_path) as client:
        plain = await client.post("/predict", content=WINDOW)
        packed = await client.post("/predict", content=body, headers={"content-encoding": encoding})

    assert (packed.status_code, packed.headers["x-cache"]) == (200, "hit")
    assert packed.content == plain.content


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", WINDOW),
        ("gzip", zlib.compress(WINDOW)),
        ("gzip", gzip.compress(WINDOW, mtime=0)[:-1]),
        ("gzip", gzip.compress(WINDOW, mtime=0) + b"x"),
        ("gzip", gzip.compress(WINDOW, mtime=0)[:-8] + bytes(8)),
        ("deflate", gzip.compress(WINDOW, mtime=0)),
        ("deflate", zlib.compress(WINDOW)[:20]),
    ],
)
async def test_body_that_is_not_what_it_says_is_malformed(tmp_path: Path, encoding: str, body: bytes) -> None:
    """Cut off, with something behind, with a wrong sum, or packed in the other way."""
    publish_tiny(Store(tmp_path))

    async with serving(tmp_path) as client:
        response = await client.post("/predict", content=body, headers={"content-encoding": encoding})

    assert response.status_code == 400
    assert "Content-Encoding" in response.json()["detail"]


@pytest.mark.parametrize("large", [1000, 5 * MIB])
@pytest.mark.parametrize(("extra", "status"), [(0, 200), (1, 413)])
async def test_limit_is_of_the_unpacked_body(tmp_path: Path, large: int, extra: int, status: int) -> None:
    """To the byte, wherever it is unpacked, and also where its last part alone goes beyond."""
    publish_tiny(Store(tmp_path))
    body = WINDOW + b" " * (large - len(WINDOW) + extra)
    packed = gzip.compress(body[:large], mtime=0) + gzip.compress(body[large:])

    async with serving(tmp_path, max_body_bytes=large) as client:
        response = await client.post("/predict", content=packed, headers={"content-encoding": "gzip"})

    assert response.status_code == status
    assert status == 200 or f"at most {large} bytes, unpacked" in response.json()["detail"]


def test_client_that_asks_first_is_refused_at_once(service: Process) -> None:
    """With `Expect: 100-continue` a body that is too long is refused before any of it is sent."""
    with socket.create_connection(service.address) as connection:
        connection.sendall(request(b"", b"Expect: 100-continue", length=2 * MIB))
        refused = read_answer(connection)

    assert refused.startswith(b"HTTP/1.1 413")


def test_client_that_asks_first_gets_leave(service: Process) -> None:
    """With `Expect: 100-continue` a body within the limit is called for, then answered."""
    with socket.create_connection(service.address) as connection:
        connection.sendall(request(b"", b"Expect: 100-continue", length=len(WINDOW)))
        leave = connection.recv(1000)
        connection.sendall(WINDOW)
        answered = read_answer(connection)

    assert leave == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answered.startswith(b"HTTP/1.1 200")


def request(body: bytes, *headers: bytes, target: bytes = b"/predict", length: int | None = None) -> bytes:
    """A POST, byte for byte."""
    announced = b"Content-Length: %d" % (len(body) if length is None else length)
    head = (b"POST %b HTTP/1.1" % target, b"Host: foretell", announced, *headers)
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def read_answer(connection: socket.socket) -> bytes:
    """One whole answer, by its Content-Length."""
    connection.settimeout(PATIENCE_S)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65536) or pytest.fail(f"the connection broke after {answer!r}")
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536) or pytest.fail(f"the connection broke after {answer!r}")
    return head + b"\r\n\r\n" + body


# Clients that leave


def test_hang_up_frees_the_scheduler(service: Process) -> None:
    """A client that leaves in the middle of a long forecast costs no further pass."""
    left = service.metric("foretell_requests_total", route="/forecast", status="499")

    with socket.create_connection(service.address) as connection:
        connection.sendall(request(WINDOW, target=b"/forecast?steps=%d" % LONG))
        wait_until(lambda: service.metric("foretell_pass_rows_count") > 10)
        assert service.metric("foretell_waiting_rows") == 1
    wait_until(lambda: service.metric("foretell_waiting_rows") == 0)
    # A pass that ran when its row left may still end; the answer to another request comes after it.
    httpx.post(f"{service.url}/forecast?steps=2", content=orjson.dumps({"window": [[2.0]] * 8}))
    passes = service.metric("foretell_pass_rows_count")
    httpx.post(f"{service.url}/forecast?steps=2", content=orjson.dumps({"window": [[3.0]] * 8}))

    assert service.metric("foretell_pass_rows_count") == passes + 2
    assert service.metric("foretell_requests_total", route="/forecast", status="499") == left + 1


def test_hang_up_leaves_those_who_asked_the_same(service: Process) -> None:
    """Where two ask the same and one leaves, the work goes on for the other."""
    body = orjson.dumps({"window": [[4.0]] * 8})
    same = request(body, target=b"/forecast?steps=3000")
    asked = service.metric("foretell_cache_total", result="miss")

    with socket.create_connection(service.address) as stays:
        with socket.create_connection(service.address) as leaves:
            leaves.sendall(same)
            stays.sendall(same)
            wait_until(lambda: service.metric("foretell_cache_total", result="miss") == asked + 2)
        answered = read_answer(stays)

    alone = httpx.post(f"{service.url}/forecast?steps=3000", content=body)
    assert alone.headers["x-cache"] == "hit"
    assert answered.endswith(alone.content)


def test_hang_up_in_the_middle_of_a_body(service: Process) -> None:
    """A client that leaves before its body is complete is counted and nothing more."""
    before = service.metric("foretell_requests_total", route="none", status="499")

    with socket.create_connection(service.address) as connection:
        connection.sendall(request(WINDOW, length=len(WINDOW) + 1))
        # The loop has begun with it, since it answers one that came later.
        service.metric("foretell_waiting_rows")

    wait_until(lambda: service.metric("foretell_requests_total", route="none", status="499") == before + 1)


def test_many_hang_ups_leave_nothing_behind(service: Process) -> None:
    """After fifty clients that left there are no rows, no open files more than before, and answers as ever."""

    def hang_up(index: int) -> None:
        with socket.create_connection(service.address) as connection:
            body = orjson.dumps({"window": [[float(index)]] * 8})
            connection.sendall(request(body, target=b"/forecast?steps=%d" % LONG))

    # What is opened once, whatever comes first: the files of the figures.
    assert httpx.post(f"{service.url}/predict", content=WINDOW).status_code == 200
    hang_up(50)
    wait_until(lambda: service.metric("foretell_waiting_rows") == 0)
    files = service.metric("process_open_fds")

    for index in range(50):
        hang_up(index)
    wait_until(lambda: service.metric("foretell_waiting_rows") == 0)
    wait_until(lambda: service.metric("process_open_fds") <= files + 2)

    assert httpx.post(f"{service.url}/predict", content=WINDOW).status_code == 200
    assert not [line for line in service.logs if line["level"] == "ERROR"]


# Errors that nobody expected


async def test_unexpected_error_is_opaque(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in the program is a 500 that tells the request's id; what it was is in the log alone."""
    publish_tiny(Store(tmp_path))

    async def fail(*_: object) -> None:
        raise RuntimeError("the secret of /etc/passwd")

    monkeypatch.setattr(Predictor, "forecast", fail)

    async with serving(tmp_path) as client:
        with caplog.at_level(logging.ERROR):
            response = await client.post("/predict", content=WINDOW, headers={"X-Request-ID": "mine"})
        figures = (await client.get("/metrics")).text

    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json() == {
        "type": "urn:foretell:problem:internal",
        "title": "Internal error",
        "status": 500,
        "detail": "an unexpected error; the log has it",
        "request_id": "mine",
    }
    assert "the secret of /etc/passwd" in caplog.text
    assert metric(figures, "foretell_requests_total", route="/predict", status="500") == 1


async def collect(app: ASGIApp, *received: Message) -> list[Message]:
    """What an application sends for a POST with these messages; after them the client just waits."""
    sent: list[Message] = []
    waiting = list(received)

    async def receive() -> Message:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send)
    return sent


START: Message = {"type": "http.response.start", "status": 200, "headers": []}


async def test_error_in_the_middle_of_an_answer_breaks_it_off() -> None:
    """Once an answer has begun, an error ends the connection instead of passing half an answer for a whole one."""

    async def fails_late(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send(START)
        raise RuntimeError("late")

    with pytest.raises(RuntimeError, match="late"):
        await collect(Envelope(fails_late, metrics=Metrics(), access_log=False))


async def test_client_that_left_is_sent_nothing() -> None:
    """Work that waits is called off when the client leaves, and nobody is answered."""
    called_off = []

    async def waits(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            called_off.append(True)
            raise

    app = Envelope(Intake(waits, max_body_bytes=10), metrics=Metrics(), access_log=False)

    sent = await collect(app, {"type": "http.request", "body": b"1"}, {"type": "http.disconnect"})

    assert called_off == [True]
    assert sent == []


async def test_request_that_the_server_calls_off_is_told() -> None:
    """What the server cancels, at the end of its drain, is answered with a 503 and is no hang-up."""

    async def waits(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        await asyncio.Event().wait()

    app = Envelope(Intake(waits, max_body_bytes=10), metrics=Metrics(), access_log=False)
    task = asyncio.create_task(collect(app, {"type": "http.request", "body": b"1"}))
    await settle()

    task.cancel()

    start, body = await task
    assert start["status"] == 503
    assert orjson.loads(body["body"])["type"] == "urn:foretell:problem:draining"


async def test_body_arrives_whole_and_once() -> None:
    """However many parts a body comes in, the application gets it in one; asked again it waits for the client."""
    got = []

    async def reads(_scope: Scope, receive: Receive, send: Send) -> None:
        got.append(await receive())
        await send(START)
        await send({"type": "http.response.body", "body": b"done"})

    parts = [{"type": "http.request", "body": body, "more_body": more} for body, more in ((b"1", True), (b"2", False))]

    sent = await collect(Intake(reads, max_body_bytes=10), *parts)

    assert got == [{"type": "http.request", "body": b"12", "more_body": False}]
    assert sent[-1]["body"] == b"done"


async def test_body_that_is_late_is_told() -> None:
    """The connection says so by a piece with nothing in it; one that just has nothing in it says nothing."""

    async def never_asked(*_: object) -> None:
        pytest.fail("there is no body")

    nothing: Message = {"type": "http.request", "body": b"", "more_body": True}
    waiting = [{**nothing, "body": b"1"}, nothing, nothing]
    scope: Scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "state": {}}

    async def receive() -> Message:
        scope["state"]["late"] = len(waiting) == 1
        return waiting.pop(0)

    with pytest.raises(SlowRequestError) as refusal:
        await Intake(never_asked, max_body_bytes=10)(scope, receive, never_asked)
    assert refusal.value.headers == {"Connection": "close"}
    assert waiting == []


async def test_head_is_answered_as_get(tmp_path: Path) -> None:
    """Where there is a GET, and counted under its own name."""
    publish_tiny(Store(tmp_path))

    async with serving(tmp_path) as client:
        statuses = [(await client.head(path)).status_code for path in ("/models", "/health/live", "/predict", "/x")]
        figures = (await client.get("/metrics")).text

    assert statuses == [200, 200, 405, 404]
    assert metric(figures, "foretell_requests_total", method="HEAD", route="/models", status="200") == 1


# The log line


def test_access_log_line_has_the_request_id(service: Process) -> None:
    """Every request is one JSON line with its id, method, path, status and time, refusals too."""
    fine = httpx.post(f"{service.url}/predict", content=WINDOW, headers={"X-Request-ID": "fine-1"})
    wrong = httpx.post(f"{service.url}/predict", content=b"{}", headers={"X-Request-ID": "wrong-1"})
    made = httpx.get(f"{service.url}/models").headers["x-request-id"]

    # A line is written once the answer is out.
    wait_until(lambda: {"fine-1", "wrong-1", made} <= request_lines(service).keys())
    lines = request_lines(service)

    assert (fine.status_code, wrong.status_code) == (200, 422)
    assert {name: lines["fine-1"][name] for name in ("method", "path", "status")} == {
        "method": "POST",
        "path": "/predict",
        "status": 200,
    }
    assert lines["fine-1"]["ms"] > 0
    assert lines["wrong-1"]["status"] == 422
    assert lines[made]["path"] == "/models"


def request_lines(service: Process) -> dict[str, dict[str, Any]]:
    """Its access log by request id."""
    return {line["request_id"]: line for line in service.logs if line["message"] == "request"}


def test_path_cannot_forge_a_log_line(service: Process) -> None:
    """Line breaks in a path stay inside the JSON string of their line."""
    forging = httpx.get(f'{service.url}/x%0A{{"level":"INFO","message":"forged"}}%0D%0A')

    wait_until(lambda: forging.headers["x-request-id"] in request_lines(service))
    assert not [line for line in service.logs if line["message"] == "forged"]
