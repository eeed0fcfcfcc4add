"""Clients that behave badly beside the others: they hang up, send half, or take their time."""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.chaos.questions import Question

_PAUSE_S = 0.05


@contextmanager
def rude(address: tuple[str, int], asked: Sequence[Question], dice: random.Random) -> Iterator[None]:
    """One of them after the other, some twenty a second."""
    stopped = threading.Event()

    def behave() -> None:
        while not stopped.wait(_PAUSE_S):
            with contextlib.suppress(OSError), socket.create_connection(address, timeout=5) as connection:
                request = dice.choice(asked).wire("rude")
                dice.choice((_hang_up, _send_half, _dawdle, _talk_nonsense))(connection, request)

    thread = threading.Thread(target=behave, name="rude")
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _hang_up(connection: socket.socket, request: bytes) -> None:
    connection.sendall(request)


def _send_half(connection: socket.socket, request: bytes) -> None:
    connection.sendall(request[: len(request) // 2])


def _dawdle(connection: socket.socket, request: bytes) -> None:
    for start in range(0, len(request), max(1, len(request) // 10)):
        connection.sendall(request[start : start + max(1, len(request) // 10)])
        time.sleep(0.02)
    connection.recv(1 << 16)


def _talk_nonsense(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"\x16\x03\x01" + request[:50] + b"\r\n\r\n")
    connection.recv(1 << 16)
