"""A client that writes bytes as it likes, and what the operating system knows of the process that it writes to."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.app.serving import Process
from tests.patience import PATIENCE_S


class Answer(NamedTuple):
    """One, taken apart."""

    status: int
    headers: dict[str, str]
    body: bytes


class Raw:
    """A connection of bytes."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S)
        self.socket = connection
        self._read = b""

    def send(self, data: bytes) -> None:
        """All of it."""
        self.socket.sendall(data)

    def send_until_cut(self, data: bytes, times: int) -> bool:
        """So many times, unless the service ends the connection before: whether it did."""
        try:
            for _ in range(times):
                self.send(data)
        except (BrokenPipeError, ConnectionResetError):
            return True
        return False

    def answer(self, *, to_head: bool = False) -> Answer | None:
        """The next one; None where the connection ends instead."""
        if not self._more_until(b"\r\n\r\n"):
            return None
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        length = 0 if to_head else int(headers.get("content-length", "0"))
        while len(self._read) < length:
            assert self._more(), "the connection ended in the middle of an answer"
        body, self._read = self._read[:length], self._read[length:]
        return Answer(int(line.split()[1]), headers, body)

    def final(self) -> Answer | None:
        """The next answer that is not just leave to go on."""
        answer = self.answer()
        while answer is not None and answer.status < 200:
            answer = self.answer()
        return answer

    def is_ended(self) -> bool:
        """Whether nothing comes any more, once the service has ended the connection."""
        while self._more():
            pass
        return not self._read

    def _more_until(self, end: bytes) -> bool:
        while end not in self._read:
            if not self._more():
                return False
        return True

    def _more(self) -> bool:
        try:
            data = self.socket.recv(2**20)
        except ConnectionResetError:
            data = b""
        self._read += data
        return bool(data)


@contextmanager
def connected(service: Process, *, buffer: int | None = None) -> Iterator[Raw]:
    """A connection, whose end takes in no more than `buffer` bytes until they are read."""
    with socket.socket() as connection:
        if buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.connect(service.address)
        yield Raw(connection)


def pid_of(service: Process) -> int:
    """The process that answers requests."""
    return service.children.get("http-0", service.running.pid)


def files_of(service: Process) -> int:
    """The descriptors that it has open."""
    return len(list(Path(f"/proc/{pid_of(service)}/fd").iterdir()))


@contextmanager
def little_memory(service: Process, mebibytes: int) -> Iterator[None]:
    """It never takes so much more than it has now."""
    # Linux forgets the peak when a 5 is written there.
    Path(f"/proc/{pid_of(service)}/clear_refs").write_text("5")
    before = _peak_kib(service)
    yield
    assert _peak_kib(service) - before < mebibytes * 1024


def _peak_kib(service: Process) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid_of(service)}/status").read_text())
    assert found is not None
    return int(found[1])
