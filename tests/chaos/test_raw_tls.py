"""What comes over a socket where HTTPS is spoken: the same HTTP, and what goes before it."""

import re
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import orjson
import pytest

from models.store import Store
from tests.app.asking import BOUNDED
from tests.app.serving import Process, process, wait_until
from tests.app.test_tls import Certificates
from tests.builders import publish_tiny
from tests.chaos.raw import Raw, files_of
from tests.chaos.test_raw_http import LIVE, WINDOW, sized
from tests.patience import PATIENCE_S

LONG = 10**6


class Secured:
    """The service with HTTPS and little patience."""

    def __init__(self, service: Process, certificates: Certificates) -> None:
        self.service = service
        self._certificates = certificates

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, once it does."""
        found = re.search(r"running on https://([^: ]+):(\d+)", self.service.output)
        assert self.service.running.poll() is None, self.service.output
        return (found[1], int(found[2])) if found else ("", 0)

    @contextmanager
    def plain(self) -> Iterator[socket.socket]:
        """A connection without TLS."""
        with socket.create_connection(self.address, timeout=PATIENCE_S) as connection:
            yield connection

    @contextmanager
    def connected(self) -> Iterator[Raw]:
        """A connection, the handshake done."""
        context = self._certificates.trusting
        with self.plain() as plain, context.wrap_socket(plain, server_hostname=self.address[0]) as connection:
            yield Raw(connection)

    def status(self, path: bytes) -> int:
        """Of an answer on a connection of its own."""
        with self.connected() as client:
            client.send(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path)
            answer = client.answer()
        assert answer is not None
        return answer.status


@contextmanager
def serving(folder: Path, **settings: object) -> Iterator[Secured]:
    """It, ready."""
    publish_tiny(Store(folder / "store"), **BOUNDED)
    certificates = Certificates(folder)
    given = {"HEAD_S": 0.5, "BODY_S": 0.5, "MAX_STEPS": LONG, "DEADLINE_MS": 60_000_000, "MAX_WAIT_MS": 60_000_000}
    with process(folder / "store", ready=False, **given, **certificates.settings, **settings) as service:
        secured = Secured(service, certificates)
        wait_until(lambda: secured.address[1] > 0)
        wait_until(lambda: secured.status(b"/health/ready") == 200)
        yield secured


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """One for all tests."""
    with serving(tmp_path_factory.mktemp("tls")) as secured:
        yield secured


def hello(secured: Secured) -> bytes:
    """The first message of a handshake."""
    outgoing = ssl.MemoryBIO()
    talking = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=secured.address[0])
    with pytest.raises(ssl.SSLWantReadError):
        talking.do_handshake()
    return outgoing.read()


def test_slow_handshakes_are_ended(secured: Secured) -> None:
    """Whoever says nothing, or begins and stops, has as long as for a head; others are served meanwhile."""
    assert secured.status(b"/metrics") == 200  # whose files stay open
    before = files_of(secured.service)
    whole = hello(secured)
    with ExitStack() as stack:
        for part in (b"", whole[:1], whole[:-1], whole) * 5:
            stack.enter_context(secured.plain()).sendall(part)
        assert secured.status(b"/health/live") == 200
        # All of them are still held here.
        wait_until(lambda: files_of(secured.service) <= before)
    assert "Traceback" not in secured.service.output


def test_slow_head_over_tls(secured: Secured) -> None:
    """A head that does not end is answered as it is without TLS."""
    with secured.connected() as client:
        client.send(LIVE[:-2])
        answer = client.answer()
        assert (answer and answer.status) == 408
        assert client.is_ended()


def test_pipelined_over_tls(secured: Secured) -> None:
    """As many answers as requests, and in their order."""
    bodies = [orjson.dumps({"window": [[float(number)]] * 8}) for number in range(20)]
    with secured.connected() as client:
        client.send(b"".join(sized(body, b"X-Request-ID: %d" % number) for number, body in enumerate(bodies)))
        for number in range(20):
            answer = client.answer()
            assert answer is not None
            assert (answer.status, answer.headers["x-request-id"]) == (200, str(number))


def test_client_that_sends_no_more_over_tls(secured: Secured) -> None:
    """TLS here has no half-closed connections: its work is called off, and the connection ended."""
    assert secured.status(b"/metrics") == 200
    before = files_of(secured.service)
    with secured.connected() as client:
        client.send(sized(WINDOW, target=b"/forecast?steps=%d" % LONG))
        assert isinstance(client.socket, ssl.SSLSocket)
        client.socket.shutdown(socket.SHUT_WR)
        wait_until(lambda: files_of(secured.service) <= before)
    assert secured.status(b"/health/live") == 200
    assert "Traceback" not in secured.service.output


def test_end_over_tls(tmp_path: Path) -> None:
    """While it drains, an answer is the last on its connection; then the connection and the process end."""
    with serving(tmp_path, GRACE_S=2) as secured, secured.connected() as client, secured.connected() as idle:
        client.send(LIVE)
        first = client.answer()
        secured.service.signal(signal.SIGTERM)
        wait_until(lambda: secured.status(b"/health/ready") == 503)
        client.send(LIVE)
        second = client.answer()
        assert client.is_ended()
        assert idle.is_ended()
        status = secured.service.wait()

    assert first is not None
    assert "connection" not in first.headers
    assert second is not None
    assert (second.status, second.headers["connection"]) == (200, "close")
    assert status == 0
    assert "Traceback" not in secured.service.output
