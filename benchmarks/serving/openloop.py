"""An open-loop load generator: requests leave when they are due, whether or not earlier ones were answered.

    python -m benchmarks.serving.openloop PLAN.json RESULT.json

The time of an answer is taken from when its request was due, so that a server that stalls pays for all the requests
that should have left meanwhile (coordinated omission). Raw sockets and epoll: about a tenth of a millisecond of
processor time a request, which the servers here need many times over. Answers are read whole; every `every`th is
checked against the very window that it was asked for.
"""

import argparse
import collections
import gc
import heapq
import json
import random
import resource
import select
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.serving.dialects import Request, Task, WrongAnswerError

_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length:"
_READ = 1 << 18
PERCENTILES = {"50": 0.5, "90": 0.9, "99": 0.99, "999": 0.999}


@dataclass(slots=True)
class Stream:
    """Requests of one kind at one rate, over connections of their own."""

    name: str
    port: int
    rate: float
    connections: int
    every: int
    poisson: bool
    task: Task
    wire: list[bytes] = field(default_factory=list)
    due: "collections.deque[tuple[float, int]]" = field(default_factory=collections.deque)
    idle: "list[Connection]" = field(default_factory=list)
    open: int = 0
    next_at: float = 0.0
    sent: int = 0
    answered: int = 0
    in_time: int = 0
    """Answered before sending ended."""
    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    checked: int = 0
    dice: random.Random = field(default_factory=lambda: random.Random(7))

    def gap(self) -> float:
        """Seconds to the next request."""
        return self.dice.expovariate(self.rate) if self.poisson else 1 / self.rate


@dataclass(slots=True)
class Connection:
    """One connection with at most one request under way."""

    stream: Stream
    socket: socket.socket
    due_at: float = 0.0
    index: int = 0
    busy: bool = False
    left: bytes | memoryview = b""
    got: bytearray = field(default_factory=bytearray)


class Generator:
    """Runs the streams of a plan and keeps what came of them."""

    def __init__(self, streams: list[Stream], seconds: float, patience_s: float) -> None:
        self._streams = streams
        self._seconds = seconds
        self._patience_s = patience_s
        self._poll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._end = 0.0

    def run(self) -> None:
        """Send for `seconds`, then wait for what is under way."""
        began = time.perf_counter()
        schedule: list[tuple[float, int]] = []
        for place, stream in enumerate(self._streams):
            stream.wire = [wire(request, stream.port) for request in stream.task.requests]
            # Streams begin apart, or their requests would come in pairs.
            heapq.heappush(schedule, (began + 0.02 + 0.37 * stream.gap() * place, place))
        end = self._end = began + 0.02 + self._seconds
        while True:
            now = time.perf_counter()
            while schedule and schedule[0][0] <= now:
                self._fall_due(schedule)
            while schedule and schedule[0][0] >= end:
                heapq.heappop(schedule)
            for stream in self._streams:
                self._dispatch(stream)
            if not schedule and (self._all_answered() or now > end + self._patience_s):
                return
            self._wait((schedule[0][0] if schedule else now + 0.05) - time.perf_counter())

    def waiting(self, stream: Stream) -> list[float]:
        """How long ago the requests were due that are still without an answer."""
        now = time.perf_counter()
        busy = [each.due_at for each in self._connections.values() if each.stream is stream and each.busy]
        return [now - due_at for due_at in (*busy, *(due_at for due_at, _ in stream.due))]

    def _fall_due(self, schedule: list[tuple[float, int]]) -> None:
        due_at, place = schedule[0]
        stream = self._streams[place]
        stream.due.append((due_at, stream.sent % len(stream.wire)))
        stream.sent += 1
        heapq.heapreplace(schedule, (due_at + stream.gap(), place))

    def _all_answered(self) -> bool:
        return all(stream.answered == stream.sent for stream in self._streams)

    def _dispatch(self, stream: Stream) -> None:
        while stream.due:
            if stream.idle:
                connection = stream.idle.pop()
            elif stream.open < stream.connections:
                connection = self._connect(stream)
            else:
                return
            due_at, index = stream.due.popleft()
            connection.due_at, connection.index, connection.busy = due_at, index, True
            stream.late.append(time.perf_counter() - due_at)
            self._send(connection, stream.wire[index])

    def _connect(self, stream: Stream) -> Connection:
        opened = socket.create_connection(("127.0.0.1", stream.port))
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.settimeout(0)
        connection = Connection(stream, opened)
        self._connections[opened.fileno()] = connection
        self._poll.register(opened.fileno(), select.EPOLLIN)
        stream.open += 1
        return connection

    def _close(self, connection: Connection) -> None:
        number = connection.socket.fileno()
        self._poll.unregister(number)
        del self._connections[number]
        connection.socket.close()
        connection.stream.open -= 1
        if not connection.busy:
            connection.stream.idle.remove(connection)

    def _send(self, connection: Connection, data: bytes | memoryview) -> None:
        try:
            count = connection.socket.send(data)
        except BlockingIOError:
            count = 0
        except OSError:
            # The server closed an idle connection just now: the request goes out on another.
            connection.stream.due.appendleft((connection.due_at, connection.index))
            self._close(connection)
            return
        watch = select.EPOLLIN
        connection.left = b""
        if count < len(data):
            connection.left = memoryview(data)[count:]
            watch |= select.EPOLLOUT
        if count < len(data) or isinstance(data, memoryview):
            self._poll.modify(connection.socket.fileno(), watch)

    def _wait(self, seconds: float) -> None:
        # epoll counts in milliseconds; select, on the epoll itself, in microseconds.
        select.select([self._poll.fileno()], [], [], max(0.0, seconds))
        for number, events in self._poll.poll(0):
            connection = self._connections.get(number)
            if connection is None:
                continue
            if events & select.EPOLLOUT and connection.left:
                self._send(connection, connection.left)
            elif events & ~select.EPOLLOUT:
                self._read(connection)

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            if connection.busy and connection.got:
                raise WrongAnswerError(f"{connection.stream.name}: the server hung up in the middle of an answer")
            if connection.busy:
                connection.stream.due.appendleft((connection.due_at, connection.index))
            self._close(connection)
            return
        connection.got += data
        body = complete(connection.got)
        if body is not None:
            self._answered(connection, body)

    def _answered(self, connection: Connection, body: bytes) -> None:
        stream = connection.stream
        now = time.perf_counter()
        stream.latencies.append(now - connection.due_at)
        if not connection.got.startswith(b"HTTP/1.1 200"):
            raise WrongAnswerError(f"{stream.name}: {bytes(connection.got[:400])!r}")
        stream.answered += 1
        stream.in_time += now <= self._end
        if stream.answered <= 2 or stream.answered % stream.every == 0:
            stream.task.check(connection.index, body)
            stream.checked += 1
        connection.busy = False
        connection.got = bytearray()
        stream.idle.append(connection)


def complete(got: bytearray) -> bytes | None:
    """The body of an answer once all of it has come."""
    head = got.find(_HEAD_END)
    if head < 0:
        return None
    names = got[:head].lower()
    at = names.find(_LENGTH)
    if at < 0:
        raise WrongAnswerError(f"an answer without a length: {bytes(names)!r}")
    length = int(names[at + len(_LENGTH) :].split(b"\r\n", 1)[0])
    start = head + len(_HEAD_END)
    return bytes(got[start : start + length]) if len(got) >= start + length else None


def wire(request: Request, port: int) -> bytes:
    """A request as it goes over the connection."""
    headers = request.headers | {"Host": f"127.0.0.1:{port}", "Content-Length": str(len(request.body))}
    lines = [f"POST {request.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + _HEAD_END + request.body


def percentile(ordered: list[float], share: float) -> float:
    """Of sorted values, by nearest rank."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def outcome(stream: Stream, waiting: list[float], seconds: float) -> dict[str, Any]:
    """What came of a stream. Requests that never came back count with the time that they were waited for."""
    latencies = sorted(stream.latencies + waiting)
    return {
        "name": stream.name,
        "rate": stream.rate,
        "achieved": stream.in_time / seconds,
        "requests": stream.sent,
        "unanswered": len(waiting),
        "checked": stream.checked,
        "connections": stream.open,
        "max_ms": latencies[-1] * 1e3,
        "late_p99_ms": percentile(sorted(stream.late), 0.99) * 1e3,
    } | {f"p{name}_ms": percentile(latencies, share) * 1e3 for name, share in PERCENTILES.items()}


def stream_of(given: dict[str, Any]) -> Stream:
    """From a plan."""
    return Stream(**(given | {"task": Task.from_json(given["task"])}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("result", type=Path)
    options = parser.parse_args()
    plan = json.loads(options.plan.read_text())
    streams = [stream_of(given) for given in plan["streams"]]
    # A collection in the middle would look like a slow server.
    gc.collect()
    gc.disable()
    generator = Generator(streams, plan["seconds"], plan["patience_s"])
    before = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    try:
        generator.run()
    except (WrongAnswerError, OSError) as error:
        parser.exit(1, f"{error}\n")
    cpu_s = sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - before
    found = [outcome(stream, generator.waiting(stream), plan["seconds"]) for stream in streams]
    options.result.write_text(json.dumps({"cpu_s": cpu_s, "streams": found}))


if __name__ == "__main__":
    main()
