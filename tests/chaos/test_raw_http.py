"""What comes over a socket is not always HTTP, and seldom in the order of the textbook.

After each test the service answers as ever, has logged no error, and holds no descriptor more than before.
"""

import errno
import resource
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from models.store import Store
from tests.app.asking import BOUNDED, is_right, window_of
from tests.app.serving import Process, process, wait_until
from tests.builders import publish_tiny
from tests.chaos.raw import Raw, connected, files_of, little_memory, pid_of
from tests.patience import PATIENCE_S

MIB = 2**20
LONG = 10**6
MOST = 30
SETTINGS: dict[str, Any] = {
    "HEAD_S": 0.5,
    "BODY_S": 0.5,
    "MAX_CONNECTIONS": MOST,
    "MAX_BODY_BYTES": MIB,
    "MAX_STEPS": LONG,
    "MAX_ROW_STEPS": 64 * LONG,
    "DEADLINE_MS": 60_000_000,
    "MAX_WAIT_MS": 60_000_000,
}
WINDOW = orjson.dumps({"window": [[1.0]] * 8})
LIVE = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"
BUNDLE = b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: a\r\n\r\n"
"""More than a MiB in answer."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The real process, short of patience and of connections."""
    root = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root), **BOUNDED)
    with process(root, **SETTINGS) as service:
        # The files that figures are kept in stay open from the first of them on.
        check(service)
        wait_until(lambda: service.metric("foretell_model_windows_total") >= 1)
        yield service


@pytest.fixture
def service(running: Process) -> Iterator[Process]:
    """It, which must be as well after the test as it was before."""
    check(running)
    files = files_of(running)
    yield running
    check(running)
    wait_until(lambda: files_of(running) <= files)
    assert [line for line in running.logs if line["level"] not in ("INFO", "DEBUG")] == []


def check(service: Process) -> None:
    """It answers, and rightly."""
    with httpx.Client(base_url=service.url, timeout=PATIENCE_S) as client:
        wait_until(lambda: client.get("/health/live").status_code == 200)
        window = window_of(1)
        assert is_right(client.post("/forecast?steps=1", json={"window": window}), window, 1)


def post(body: bytes, *headers: bytes, target: bytes = b"/predict", version: bytes = b"1.1") -> bytes:
    """A request with these headers, which say how long it is, or do not."""
    return b"\r\n".join((b"POST %b HTTP/%b" % (target, version), b"Host: a", *headers)) + b"\r\n\r\n" + body


def sized(body: bytes, *headers: bytes, target: bytes = b"/predict", version: bytes = b"1.1") -> bytes:
    """The same with its length."""
    return post(body, b"Content-Length: %d" % len(body), *headers, target=target, version=version)


def chunked(chunks: bytes) -> bytes:
    """One whose body is these bytes."""
    return post(chunks, b"Transfer-Encoding: chunked")


def get(target: bytes, *headers: bytes, version: bytes = b"1.1") -> bytes:
    """A GET."""
    return b"\r\n".join((b"GET %b HTTP/%b" % (target, version), b"Host: a", *headers)) + b"\r\n\r\n"


CHUNK = b"%x\r\n%b\r\n" % (len(WINDOW), WINDOW)

REFUSED = {
    "binary": b"\x00\x01\x02\xff\xfe\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + b"x" * 200,
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no target": b"GET\r\n\r\n",
    "method in lower case": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "unknown method": b"FORECAST / HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/0.9": b"GET /health/live\r\n\r\n",
    "version 1.2": get(b"/", version=b"1.2"),
    "version 2.0": get(b"/", version=b"2.0"),
    "version x": get(b"/", version=b"x"),
    "CONNECT": b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "target without slash": get(b"health"),
    "target of a file": get(b"file:///etc/passwd"),
    "target without path": get(b"http://a"),
    "target beyond ASCII": get("/ä".encode()),
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": get(b"/", b"Host: b"),
    "folded header": get(b"/", b"X-A: b\r\n c"),
    "NUL in header": get(b"/", b"X-A: b\x00c"),
    "CR in header": get(b"/", b"X-A: b\rc"),
    "LF in header": get(b"/", b"X-A: b\nX-B: c"),
    "lines of LF alone": b"GET / HTTP/1.1\nHost: a\n\n",
    "header without colon": get(b"/", b"abc"),
    "header without name": get(b"/", b": b"),
    "blank in a name": get(b"/", b"X A: b"),
    "blank before the colon": post(b"0\r\n\r\n", b"Transfer-Encoding : chunked"),
    "two lengths": post(WINDOW, b"Content-Length: 3", b"Content-Length: %d" % len(WINDOW)),
    "the same length twice": sized(WINDOW, b"Content-Length: %d" % len(WINDOW)),
    "list of lengths": post(WINDOW, b"Content-Length: 5, 5"),
    "negative length": post(WINDOW, b"Content-Length: -5"),
    "length with a plus": post(WINDOW, b"Content-Length: +5"),
    "huge length": post(WINDOW, b"Content-Length: 99999999999999999999999"),
    "length in hexadecimals": post(WINDOW, b"Content-Length: 0x10"),
    "length of letters": post(WINDOW, b"Content-Length: abc"),
    "empty length": post(WINDOW, b"Content-Length: "),
    "length, then chunks": sized(b"0\r\n\r\n", b"Transfer-Encoding: chunked"),
    "chunks, then length": post(b"0\r\n\r\n", b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "gzip as transfer": post(b"", b"Transfer-Encoding: gzip"),
    "gzip and chunks": post(b"0\r\n\r\n", b"Transfer-Encoding: gzip, chunked"),
    "chunks twice": post(b"0\r\n\r\n", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "chunks, then identity": post(b"0\r\n\r\n", b"Transfer-Encoding: chunked, identity"),
    "almost chunked": post(b"0\r\n\r\n", b"Transfer-Encoding: xchunked"),
    "tab before chunked": post(b"0\r\n\r\n", b"Transfer-Encoding: \x0bchunked"),
    "chunks in HTTP/1.0": post(b"0\r\n\r\n", b"Transfer-Encoding: chunked", version=b"1.0"),
    "size of letters": chunked(b"zz\r\nx\r\n0\r\n\r\n"),
    "negative size": chunked(b"-1\r\nx\r\n0\r\n\r\n"),
    "size with 0x": chunked(b"0x3\r\nabc\r\n0\r\n\r\n"),
    "size beyond 64 bits": chunked(b"f" * 17 + b"\r\n"),
    "chunk longer than its size": chunked(b"3\r\nabcdef\r\n0\r\n\r\n"),
    "NUL in a chunk's extension": chunked(b"1;\x00=b\r\nx\r\n0\r\n\r\n"),
    "chunks with LF alone": chunked(CHUNK.replace(b"\r", b"") + b"0\n\n"),
    "NUL in a trailer": chunked(CHUNK + b"0\r\nX: \x00\r\n\r\n"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_http_is_refused(service: Process, name: str) -> None:
    """A 400 problem that says what it was, and the end of the connection: nothing behind it is taken for a request."""
    with connected(service) as client:
        client.send(REFUSED[name] + LIVE)
        answer = client.answer()

        assert answer is not None
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert answer.headers["content-type"] == "application/problem+json"
        assert orjson.loads(answer.body)["request_id"] == answer.headers["x-request-id"]
        assert client.is_ended()


FINE = {
    "extension of a chunk": chunked(CHUNK.replace(b"\r\n", b';a=b;c="d"\r\n', 1) + b"0\r\n\r\n"),
    "zeros before a size": chunked(b"0" * 100 + CHUNK + b"0\r\n\r\n"),
    "trailers": chunked(CHUNK + b"0\r\nContent-Encoding: gzip\r\nContent-Type: text/csv\r\n\r\n"),
    "blank lines first": b"\r\n\r\n" + sized(WINDOW),
    "bytes beyond ASCII in a header": sized(WINDOW, b"X-A: \xff\xfe"),
    "absolute target": sized(WINDOW, target=b"http://other/predict"),
    "percent in the path": sized(WINDOW, target=b"/%70redict"),
    "many headers": sized(WINDOW, *(b"X-%d: a" % number for number in range(900))),
    "unknown expectation": sized(WINDOW, b"Expect: a lot"),
}


@pytest.mark.parametrize("name", FINE)
def test_what_is_unusual_but_http_is_answered(service: Process, name: str) -> None:
    """And the connection goes on."""
    with connected(service) as client:
        client.send(FINE[name])
        answer = client.answer()
        assert (answer and answer.status) == 200
        client.send(LIVE)
        answer = client.answer()
        assert (answer and answer.body) == b'{"live":true}'


@pytest.mark.parametrize(
    "target",
    [
        b"/../../../../etc/passwd",
        b"/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        b"/static-offline-docs/..%2f..%2f..%2f..%2f..%2fetc/passwd",
        b"/static-offline-docs/../../../../../../etc/passwd",
        b"/static-offline-docs/%2fetc/passwd",
        b"/static-offline-docs/swagger-ui-bundle.js%00.css",
        b"/models/..%2f..%2fetc/versions/1",
        b"/%00",
        b"/%zz%ff",
        b"//etc/passwd",
        b"http://a//etc/passwd",
    ],
)
def test_path_leads_to_no_file(service: Process, target: bytes) -> None:
    """Whatever way it is written, there is nothing at it."""
    with connected(service) as client:
        client.send(get(target))
        answer = client.answer()
    assert answer is not None
    assert answer.status == 404
    assert b"root:" not in answer.body


# Other protocols, other methods


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c", b"TLS/1.2"])
def test_other_protocol_is_declined(service: Process, protocol: bytes) -> None:
    """A request that asks for one is answered in this one, and so is what follows it."""
    with connected(service) as client:
        client.send(get(b"/health/live", b"Connection: Upgrade", b"Upgrade: " + protocol) * 2)
        for _ in range(2):
            answer = client.answer()
            assert answer is not None
            assert (answer.status, answer.body) == (200, b'{"live":true}')


def test_body_of_a_request_for_another_protocol_is_no_request(service: Process) -> None:
    """The parser drops it; what it holds, or what comes later of it, must not be taken for a request."""
    with connected(service) as client:
        client.send(post(b"", b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: %d" % len(LIVE)))
        client.send(LIVE)
        answer = client.answer()
        assert (answer and answer.status) == 400
        assert client.is_ended()


def test_head_is_get_without_a_body(service: Process) -> None:
    """With the same headers, on every route that has a GET."""
    with connected(service) as client:
        for target in (b"/health/live", b"/models", b"/openapi.json", b"/docs"):
            client.send(get(target))
            whole = client.answer()
            client.send(get(target).replace(b"GET", b"HEAD"))
            head = client.answer(to_head=True)
            assert whole is not None
            assert head is not None
            assert head.status == 200
            assert head.headers["content-length"] == str(len(whole.body))
        client.send(get(b"/predict").replace(b"GET", b"HEAD"))
        refused = client.answer(to_head=True)
        assert (refused and refused.status) == 405


def test_http_1_0_is_answered_in_its_way(service: Process) -> None:
    """Without leave to go on and without chunks, of which it knows nothing; then the connection ends."""
    series = b"time,target_0\n" + b"".join(b"2026-01-01T%02d:00:00Z,%d\n" % (hour, 9 + hour % 3) for hour in range(24))
    requests = [
        get(b"/health/live", version=b"1.0").replace(b"Host: a\r\n", b""),
        sized(WINDOW, b"Expect: 100-continue", version=b"1.0"),
        sized(series, b"Content-Type: text/csv", target=b"/backtest?steps=1", version=b"1.0"),
    ]
    for request in requests:
        with connected(service) as client:
            client.send(request)
            answer = client.answer()
            assert answer is not None
            assert answer.status == 200
            assert len(answer.body) == int(answer.headers["content-length"]) > 0
            assert "transfer-encoding" not in answer.headers
            assert client.is_ended()


def test_connection_close_closes(service: Process) -> None:
    """After the answer; a request behind it is not answered."""
    with connected(service) as client:
        client.send(get(b"/health/live", b"Connection: close") + LIVE)
        answer = client.answer()
        assert (answer and answer.status) == 200
        assert client.is_ended()


# Several requests at a time


def test_pipelined_requests_are_answered_in_order(service: Process) -> None:
    """Each with its own answer, and what is wrong only once those before it are answered."""
    windows = [orjson.dumps({"window": [[float(number)]] * 8}) for number in range(50)]
    alone = [httpx.post(f"{service.url}/predict", content=window).json() for window in windows]
    with connected(service) as client:
        client.send(b"".join(sized(window, b"X-Request-ID: %d" % number) for number, window in enumerate(windows)))
        client.send(b"NO HTTP\r\n\r\n")
        for number in range(50):
            answer = client.answer()
            assert answer is not None
            assert answer.headers["x-request-id"] == str(number)
            assert orjson.loads(answer.body) == alone[number]
        last = client.answer()
        assert (last and last.status) == 400
        assert client.is_ended()


def test_pipelined_requests_wait_outside(service: Process) -> None:
    """A client that sends on and on while its first request takes its time fills no memory."""
    with connected(service) as client, little_memory(service, 24):
        client.send(sized(WINDOW, target=b"/forecast?steps=%d&deadline_ms=1500" % LONG))
        client.socket.settimeout(1)
        with pytest.raises(TimeoutError):
            client.send_until_cut(LIVE * 1000, 2000)


def test_many_small_requests_at_once(service: Process) -> None:
    """Thousands in one go are answered, each of them, without a heap of them in memory."""
    with connected(service) as client, little_memory(service, 24):
        client.send(LIVE * 3000)
        for _ in range(3000):
            answer = client.answer()
            assert (answer and answer.status) == 200


# Ends of connections


def test_client_that_sends_no_more_gets_its_answer(service: Process) -> None:
    """One that has shut its own end after its request still reads, also after more than a moment."""
    for target in (b"/predict", b"/forecast?steps=3000"):
        with connected(service) as client:
            client.send(sized(WINDOW, target=target))
            client.socket.shutdown(socket.SHUT_WR)
            answer = client.final()
            assert (answer and answer.status) == 200
            assert client.is_ended()


def test_client_that_sends_no_more_gets_all_answers(service: Process) -> None:
    """Those of pipelined requests too."""
    with connected(service) as client:
        client.send(sized(WINDOW, target=b"/forecast?steps=3001") + sized(WINDOW) * 5)
        client.socket.shutdown(socket.SHUT_WR)
        for _ in range(6):
            answer = client.final()
            assert (answer and answer.status) == 200
        assert client.is_ended()


def test_work_ends_for_a_client_that_has_gone(service: Process) -> None:
    """Whether it closes its connection or resets it, and whether its request is the first on its way or not."""
    for resets in (False, True):
        for before in (b"", sized(WINDOW)):
            with connected(service) as client:
                if resets:
                    reset(client)
                client.send(before + sized(WINDOW, target=b"/forecast?steps=%d" % LONG))
                wait_until(lambda: service.metric("foretell_waiting_rows") == 1)
            wait_until(lambda: service.metric("foretell_waiting_rows") == 0)


def reset(client: Raw) -> None:
    """Its end is to be a reset."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("part", [b"POST /pre", sized(WINDOW)[:-10], BUNDLE, CHUNK, chunked(CHUNK), LIVE[:-2]])
def test_reset_in_the_middle(service: Process, part: bytes) -> None:
    """Of a head, of a body, of an answer."""
    for _ in range(5):
        with connected(service) as client:
            client.send(part)
            if part == BUNDLE:
                client.socket.recv(1000)
            reset(client)


# Clients that are slow


def test_slow_head_is_ended(service: Process) -> None:
    """A byte now and then of a head without end; blank lines do not count either."""
    for beginning, status in ((b"GET / HTTP/1.1\r\nX-A: ", 408), (b"\r\n", None), (b"", None)):
        with connected(service) as client:
            client.send(beginning)
            drip(client, beginning[-1:])
            answer = client.answer()
            assert (answer and answer.status) == status
            assert answer is None or b"urn:foretell:problem:slow-request" in answer.body


def drip(client: Raw, data: bytes) -> None:
    """A byte now and then, until something comes or the connection ends."""
    client.socket.settimeout(0.05)
    try:
        for _ in range(400):
            try:
                assert client.socket.recv(1, socket.MSG_PEEK) is not None
            except TimeoutError:
                client.send(data)
            else:
                break
    except (BrokenPipeError, ConnectionResetError):
        pass
    client.socket.settimeout(PATIENCE_S)


@pytest.mark.parametrize("target", [b"/predict", b"/backtest?steps=1", b"/models"])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_slow_body_is_ended(service: Process, target: bytes, is_chunked: bool) -> None:
    """On every path, also where a byte now and then comes; who has its answer already is just let go."""
    with connected(service) as client:
        length = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: 100000"
        client.send(post(b"", length, target=target))
        drip(client, b"1\r\nx\r\n" if is_chunked else b"x")
        answer = client.answer()
        assert answer is not None
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert b"urn:foretell:problem:slow-request" in answer.body
        assert client.is_ended()


def test_slow_body_of_a_request_that_needs_none(service: Process) -> None:
    """It is answered at once, and keeps the connection no longer than any other."""
    with connected(service) as client:
        client.send(get(b"/health/live", b"Content-Length: 100000"))
        answer = client.answer()
        assert (answer and answer.status) == 200
        drip(client, b"x")
        assert client.is_ended()


def test_slow_reader_is_ended(service: Process) -> None:
    """One that asks and asks and never reads, in the middle of an answer and after its end."""
    count = service.metric("foretell_connections_cut_total", reason="slow-reader")
    large = orjson.dumps({"windows": [[[float(number)]] * 8 for number in range(64)]})
    with ExitStack() as clients:
        for request in (BUNDLE * 30, sized(large, target=b"/forecast?steps=8000")):
            clients.enter_context(connected(service, buffer=4096)).send(request)
        wait_until(lambda: service.metric("foretell_connections_cut_total", reason="slow-reader") == count + 2)


def test_body_in_a_million_chunks(service: Process) -> None:
    """Of a byte each: they cost no more memory than their bytes."""
    body = WINDOW + b" " * (MIB - len(WINDOW))
    data = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with connected(service) as client, little_memory(service, 24):
        client.send(chunked(data))
        answer = client.answer()
        assert (answer and answer.status) == 200


@pytest.mark.parametrize(
    "beginning",
    [
        b"GET /",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-A: ",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-A",
        chunked(b"1;"),
        chunked(CHUNK + b"0\r\nX-A: "),
        chunked(CHUNK + b"0\r\nX-A"),
    ],
)
def test_head_without_end_is_refused(service: Process, beginning: bytes) -> None:
    """Whatever grows, a target, a header, an extension or a trailer, is cut off before it fills the memory."""
    with connected(service) as client, little_memory(service, 16):
        client.send(beginning)
        client.send_until_cut(b"a" * MIB, 10)
        answer = client.answer()
        assert answer is None or answer.status == 400
        assert client.is_ended()


def test_many_headers_without_end_are_refused(service: Process) -> None:
    """Small ones too."""
    with connected(service) as client, little_memory(service, 16):
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
        client.send_until_cut(b"X-A: b\r\n" * 10_000, 100)
        answer = client.answer()
        assert answer is None or answer.status == 400


# Bodies that are worse than they look


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_bomb_is_defused(service: Process, encoding: str) -> None:
    """64 MiB of nothing, packed: refused at the limit, without room taken for it."""
    packer = zlib.compressobj(1, wbits=31 if encoding == "gzip" else 15)
    bomb = b"".join(packer.compress(bytes(MIB)) for _ in range(64)) + packer.flush()
    with connected(service) as client, little_memory(service, 24):
        client.send(sized(bomb, b"Content-Encoding: " + encoding.encode()))
        answer = client.answer()
        assert answer is not None
        assert (answer.status, orjson.loads(answer.body)["type"]) == (413, "urn:foretell:problem:body-too-large")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"window":' + b"[" * 100_000,
        b'{"window":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"windows":' + b"[" * 100_000 + b"NaN" + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"window":[[1]],"static":' + b"[" * 1000 + b"]" * 1000 + b"}",
    ],
)
def test_deep_json_is_refused(service: Process, body: bytes) -> None:
    """However deep; nothing here goes down with it."""
    for target in (b"/predict", b"/anomalies"):
        with connected(service) as client:
            client.send(sized(body, b"Content-Type: application/json", target=target))
            answer = client.answer()
            assert answer is not None
            assert answer.status in (400, 422)


# Too many connections


def test_flood_of_idle_connections(service: Process) -> None:
    """Connections that say nothing make room for those that do, the oldest first."""
    with ExitStack() as clients:
        idle = [clients.enter_context(connected(service)) for _ in range(4 * MOST)]
        with connected(service) as client:
            client.send(sized(WINDOW))
            answer = client.answer()
            assert (answer and answer.status) == 200
        assert idle[0].is_ended()
        assert files_of(service) < 2 * MOST + 60


def test_connections_all_of_which_work(service: Process) -> None:
    """None of them is ended for another one, which is told to come again; who asks how the service is, is answered."""
    with ExitStack() as clients:
        for number in range(MOST):
            working = clients.enter_context(connected(service))
            body = orjson.dumps({"window": [[float(number)]] * 8})
            working.send(sized(body, target=b"/forecast?steps=%d" % LONG))
        wait_until(lambda: service.metric("foretell_waiting_rows") == MOST)
        for _ in range(2 * MOST):
            with connected(service) as client:
                client.send(sized(WINDOW))
                refused = client.answer()
                assert refused is not None
                assert (refused.status, refused.headers["connection"]) == (503, "close")
                assert int(refused.headers["retry-after"]) > 0
                assert b"as many connections" in refused.body
                assert client.is_ended()
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert httpx.get(f"{service.url}{path}").status_code == 200
        assert service.metric("foretell_waiting_rows") == MOST
    wait_until(lambda: service.metric("foretell_waiting_rows") == 0)


def test_no_descriptors_left(tmp_path: Path) -> None:
    """Whoever comes then waits, nobody spins, the log says so once, and who waits is served when there are some."""
    publish_tiny(Store(tmp_path), **BOUNDED)
    with process(tmp_path, **SETTINGS) as service:
        pid = pid_of(service)
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        for times, spare in enumerate((3, -10), 1):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (files_of(service) + spare, limits[1]))
            try:
                wait_until(lambda: len(errors_of(service)) == times)  # noqa: B023  within this turn
                with ExitStack() as stack:
                    clients = [stack.enter_context(connecting(service)) for _ in range(20)]
                    began = cpu_ticks(pid)
                    time.sleep(0.3)  # what is measured is that nothing happens
                    assert cpu_ticks(pid) - began < 15
                    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
                    for client in clients:
                        client.settimeout(PATIENCE_S)
                        # Not before it is connected.
                        client.sendall(LIVE)
                        assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
            finally:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
            check(service)
        assert len(errors_of(service)) == 2


def errors_of(service: Process) -> list[str]:
    """What its log says of files."""
    return [line["message"] for line in service.logs if line["message"].startswith("no file is left")]


def connecting(service: Process) -> socket.socket:
    """A client whose handshake is under way."""
    client = socket.socket()
    client.setblocking(False)
    assert client.connect_ex(service.address) == errno.EINPROGRESS
    return client


def cpu_ticks(pid: int) -> int:
    """Hundredths of a second that it has computed for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_few_descriptors(tmp_path: Path) -> None:
    """A process with fewer than there may be connections takes fewer, says so, and keeps some for all else."""
    publish_tiny(Store(tmp_path), **BOUNDED)
    with process(tmp_path, open_files=200) as service, ExitStack() as clients:
        for _ in range(400):
            clients.enter_context(connected(service))
        check(service)
        assert service.metric("foretell_connections_cut_total", reason="idle") > 0
        warnings = [line["message"] for line in service.logs if line["level"] == "WARNING"]
        assert warnings == ["at most 68 connections, not 2048: this process may have 200 files open"]
