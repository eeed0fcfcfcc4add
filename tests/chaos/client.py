"""A load on the real service that judges every answer.

    with load(service.address, questions) as asking:
        ...                                            # the fault
        asking.wait_for_right()
    report = asking.report()

It runs in a thread with an event loop of its own, so that a test may block. Verdicts:

right        the expected status and the right content, under the request's own id
refused      a well-formed problem that tells a client to come again: 408, 429, 503 (these two with Retry-After), 504
late         either of them, but after the deadline that the request gave and some slack
wrong        anything else that came: other numbers, another id or version, another status, half a head
lost         the connection ended without an answer although the whole request was sent
unavoidable  the same on a connection that belonged to a process that was killed, see `doom`
unreachable  no connection came about, or it ended before the request was sent
hung         no answer within `patience_s`
"""

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, cast

import httptools
import orjson
import uvloop

from tests.chaos.questions import Question, Reply
from tests.patience import PATIENCE_S

Verdict = Literal["right", "refused", "late", "wrong", "lost", "unavoidable", "unreachable", "hung"]

BAD: tuple[Verdict, ...] = ("late", "wrong", "lost", "unreachable", "hung")
"""What no fault excuses."""

REFUSALS = {408, 429, 503, 504}
_WITH_RETRY_AFTER = {429, 503}
_STALE_S = 2.0
"""A connection that nobody used for so long is not used again: the server may be about to close it, as any server may,
and a request that crosses that close is nobody's fault."""
_PAUSE_S = 0.02
"""After anything but a right answer: far shorter than a client is told to wait, and no busy loop."""
_SHOWN = 20
_BUCKET_S = 0.25


class Event(NamedTuple):
    """What became of a request."""

    done_at: float
    """Of time.monotonic()."""
    seconds: float
    verdict: Verdict
    what: str
    """Of a refusal its status and slug, of a right answer the question's label, of anything else what was wrong."""


@dataclass(frozen=True)
class Recovery:
    """How long a fault was felt."""

    failures: int
    """Requests after the fault that were not answered rightly."""
    first_right_s: float
    """From the fault to the first right answer after the last failure; 0 where nothing failed."""
    full_rate_s: float | None
    """From the fault until, for a second, right answers come as often as before less 10 %; None where they have not."""
    gap_s: float
    """The longest time without any right answer."""


@dataclass
class Report:
    """What came of a load."""

    events: list[Event]
    began: float
    ended: float
    faults: list[str] = field(default_factory=list)
    """The first things that were wrong, in words."""
    fault_at: float | None = None
    """When the fault was injected."""
    unsent: int = 0
    """Requests of an impatient load that found all connections taken."""

    @property
    def verdicts(self) -> Counter[Verdict]:
        """How often each."""
        return Counter(event.verdict for event in self.events)

    @property
    def refusals(self) -> Counter[str]:
        """By status and slug."""
        return Counter(event.what for event in self.events if event.verdict == "refused")

    @property
    def bad(self) -> dict[str, int]:
        """What no fault excuses; empty where all is well."""
        return {verdict: number for verdict, number in self.verdicts.items() if verdict in BAD}

    def latency_s(self, share: float, verdict: Verdict = "right") -> float:
        """A percentile of the latencies; nan where there was none."""
        found = sorted(event.seconds for event in self.events if event.verdict == verdict)
        return found[min(len(found) - 1, int(share * len(found)))] if found else float("nan")

    def rate(self, since: float, until: float) -> float:
        """Right answers a second between two moments of time.monotonic()."""
        number = sum(event.verdict == "right" and since <= event.done_at < until for event in self.events)
        return number / max(until - since, 1e-9)

    def recovery(self, fault_at: float) -> Recovery:
        """From a fault on."""
        after = sorted(event for event in self.events if event.done_at >= fault_at)
        right = [event.done_at for event in after if event.verdict == "right"]
        failed = [event.done_at for event in after if event.verdict != "right"]
        ends = [fault_at, *right, self.ended]
        gap = max(later - earlier for earlier, later in itertools.pairwise(ends))
        back = next((moment for moment in right if not failed or moment > failed[-1]), self.ended)
        first_right = back - fault_at if failed else 0.0
        settled_at = failed[-1] if failed else fault_at
        return Recovery(len(failed), first_right, self._full_rate(fault_at, settled_at), gap)

    def _full_rate(self, fault_at: float, settled_at: float) -> float | None:
        before = self.rate(max(self.began, fault_at - 2.0), fault_at)
        start = settled_at
        while start + 1.0 <= self.ended:
            if self.rate(start, start + 1.0) >= 0.9 * before:
                return start - fault_at
            start += _BUCKET_S
        return None


class Load:
    """Connections that ask, one question after the other (closed loop), or at a rate (open loop)."""

    def __init__(
        self,
        address: tuple[str, int],
        questions: Sequence[Question],
        *,
        connections: int,
        rate: float | None,
        impatient: bool = False,
        deadline_s: float,
        patience_s: float,
    ) -> None:
        self.counts: Counter[Verdict] = Counter()
        self.events: list[Event] = []
        self.faults: list[str] = []
        self.fault_at: float | None = None
        """When the fault was injected, see `injected`."""
        self.unsent = 0
        """Requests of an impatient load that found all connections taken."""
        self._address = address
        self._questions = questions
        self._connections = connections
        self._rate = rate
        self._impatient = impatient
        self._deadline_s = deadline_s
        self._patience_s = patience_s
        self._numbers = itertools.count()
        self._doomed: set[int] = set()
        self._stopped = threading.Event()
        self._idle: list[_Connection] = []
        self._free: asyncio.Semaphore | None = None
        self._began = time.monotonic()
        self._ended = 0.0

    # For the thread that injects faults

    def injected(self) -> None:
        """The fault is there from now on."""
        self.fault_at = time.monotonic()

    def doom(self, ports: Iterable[int]) -> None:
        """The process that these connections of ours belong to, by their local ports, is about to be killed.

        What it has not answered no server could. To be told while it is stopped, so that no other can come to it.
        """
        self._doomed.update(ports)

    def wait_for_right(self, number: int = 20) -> None:
        """Wait for so many more right answers."""
        wanted = self.counts["right"] + number
        end = time.monotonic() + PATIENCE_S
        while self.counts["right"] < wanted:
            assert time.monotonic() < end, f"no more right answers: {dict(self.counts)} {self.faults}"
            time.sleep(0.01)

    def wait_for_any(self, number: int) -> None:
        """Wait for so many more answers of whatever kind."""
        wanted = len(self.events) + number
        end = time.monotonic() + PATIENCE_S
        while len(self.events) < wanted:
            assert time.monotonic() < end, f"no more answers: {dict(self.counts)} {self.faults}"
            time.sleep(0.01)

    def report(self) -> Report:
        """What has come of it so far."""
        return Report(
            list(self.events),
            self._began,
            self._ended or time.monotonic(),
            list(self.faults),
            self.fault_at,
            self.unsent,
        )

    def stop(self) -> None:
        """Ask no more; what is under way is waited for."""
        self._stopped.set()

    # In its own thread

    def run(self) -> None:
        """Until told to stop."""
        self._began = time.monotonic()
        uvloop.run(self._closed() if self._rate is None else self._open(self._rate))
        self._ended = time.monotonic()

    async def _closed(self) -> None:
        await asyncio.gather(*(self._one_after_the_other() for _ in range(self._connections)))

    async def _one_after_the_other(self) -> None:
        connection: _Connection | None = None
        while not self._stopped.is_set():
            connection = await self._ask(connection, time.monotonic())
            if self.events[-1].verdict != "right":
                await asyncio.sleep(_PAUSE_S)
        if connection is not None:
            connection.close()

    async def _open(self, rate: float) -> None:
        """A request that is due while all connections are taken waits, and its wait counts; or it is not sent."""
        self._free = asyncio.Semaphore(self._connections)
        began = time.monotonic()
        under_way: set[asyncio.Task[None]] = set()
        for number in itertools.count():
            due = began + number / rate
            if (ahead := due - time.monotonic()) > 0:
                await asyncio.sleep(ahead)
            if self._stopped.is_set():
                break
            if self._impatient and self._free.locked():
                self.unsent += 1
                continue
            task = asyncio.create_task(self._ask_due(due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)
        for connection in self._idle:
            connection.close()

    async def _ask_due(self, due: float) -> None:
        assert self._free is not None
        async with self._free:
            connection = await self._ask(self._idle.pop() if self._idle else None, due)
            if connection is not None:
                self._idle.append(connection)

    async def _ask(self, connection: "_Connection | None", began: float) -> "_Connection | None":
        """Ask the next question; the connection where it may be used again."""
        number = next(self._numbers)
        question = self._questions[number % len(self._questions)]
        identity = f"chaos-{number}"
        if connection is not None and (connection.ended or time.monotonic() - connection.used_at > _STALE_S):
            connection.close()
            connection = None
        if connection is None:
            try:
                connection = await _connect(self._address, self._patience_s)
            except (OSError, TimeoutError) as error:
                self._note(began, "unreachable", repr(error))
                return None
            # The port may have been another's, which was killed.
            self._doomed.discard(connection.port)
        try:
            async with asyncio.timeout(self._patience_s):
                reply = await connection.ask(question.wire(identity))
        except TimeoutError:
            self._note(began, "hung", f"{question.label}: no answer within {self._patience_s:g} s")
            connection.close()
            return None
        except httptools.HttpParserError as error:
            self._note(began, "wrong", f"{question.label}: not HTTP: {error}")
            connection.close()
            return None
        except ConnectionError as error:
            self._note(began, self._verdict_of_end(connection), f"{question.label}: {error!r}")
            return None
        verdict, what = judge(question, identity, reply)
        if verdict in ("right", "refused") and time.monotonic() - began > self._deadline_s:
            verdict, what = "late", f"{question.label}: {verdict} after {time.monotonic() - began:.1f} s"
        self._note(began, verdict, what)
        if reply.headers.get("connection") == "close":
            connection.close()
            return None
        return connection

    def _verdict_of_end(self, connection: "_Connection") -> Verdict:
        if connection.port in self._doomed:
            self._doomed.discard(connection.port)
            return "unavoidable"
        return "lost" if connection.whole else "unreachable"

    def _note(self, began: float, verdict: Verdict, what: str) -> None:
        now = time.monotonic()
        self.events.append(Event(now, now - began, verdict, what))
        self.counts[verdict] += 1
        if verdict in BAD and len(self.faults) < _SHOWN:
            self.faults.append(f"{verdict}: {what}")


@contextmanager
def load(
    address: tuple[str, int],
    questions: Sequence[Question],
    *,
    connections: int = 6,
    rate: float | None = None,
    impatient: bool = False,
    deadline_s: float = 20.0,
    patience_s: float = 30.0,
) -> Iterator[Load]:
    """A load that is under way and has had right answers; at its end everything that was asked has been judged."""
    asking = Load(
        address,
        questions,
        connections=connections,
        rate=rate,
        impatient=impatient,
        deadline_s=deadline_s,
        patience_s=patience_s,
    )
    thread = threading.Thread(target=asking.run, name="load")
    thread.start()
    try:
        asking.wait_for_right()
        yield asking
    finally:
        asking.stop()
        thread.join()


def judge(question: Question, identity: str, reply: Reply) -> tuple[Verdict, str]:
    """Right, refused or wrong, and what is to be said of it."""
    if reply.headers.get("x-request-id") != identity:
        return "wrong", f"{question.label}: id {reply.headers.get('x-request-id')!r} instead of {identity!r}"
    if reply.status == 200 == question.expects:
        fault = question.fault(reply)
        return ("wrong", f"{question.label}: {fault}") if fault else ("right", question.label)
    fault, slug = _fault_of_problem(reply, identity)
    if fault:
        return "wrong", f"{question.label}: {reply.status}: {fault}"
    if reply.status in REFUSALS:
        return "refused", f"{reply.status} {slug}"
    if reply.status == question.expects:
        return "right", question.label
    return "wrong", f"{question.label}: {reply.status} {slug}: {reply.body[:200]!r}"


def _fault_of_problem(reply: Reply, identity: str) -> tuple[str, str]:
    """What is wrong with a problem, and its slug."""
    if reply.headers.get("content-type") != "application/problem+json":
        return f"content type {reply.headers.get('content-type')!r}, {reply.body[:200]!r}", ""
    try:
        said = orjson.loads(reply.body)
        slug = said["type"].removeprefix("urn:foretell:problem:")
        told = (said["status"], said["request_id"])
    except (ValueError, KeyError, TypeError) as error:
        return f"malformed problem: {error!r}", ""
    if told != (reply.status, identity):
        return f"a problem of status and request {told}", slug
    if reply.status in _WITH_RETRY_AFTER and not reply.headers.get("retry-after", "").isdecimal():
        return f"Retry-After {reply.headers.get('retry-after')!r}", slug
    return "", slug


async def _connect(address: tuple[str, int], patience_s: float) -> "_Connection":
    async with asyncio.timeout(patience_s):
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, *address)
    return connection


class _Connection(asyncio.Protocol):
    """HTTP/1.1, one request at a time."""

    def __init__(self) -> None:
        self.port = 0
        """Our own."""
        self.ended = False
        self.used_at = time.monotonic()
        self._transport: asyncio.Transport | None = None
        self._reply: asyncio.Future[Reply] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self.whole = False
        """Whether all of the request has been handed to the system."""

    async def ask(self, request: bytes) -> Reply:
        """Send a request and wait for its answer; ConnectionError where there is none, HttpParserError for nonsense."""
        assert self._transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._body, self.whole = {}, [], False
        self._reply = asyncio.get_running_loop().create_future()
        if self.ended:
            raise ConnectionResetError("ended before the request")
        self._transport.write(request)
        self.whole = not self._transport.get_write_buffer_size()
        reply = await self._reply
        self.used_at = time.monotonic()
        return reply

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.port = transport.get_extra_info("sockname")[1]
        # So that `resume_writing` tells when the last byte has left.
        self._transport.set_write_buffer_limits(0)

    def pause_writing(self) -> None:
        self.whole = False

    def resume_writing(self) -> None:
        self.whole = True

    def data_received(self, data: bytes) -> None:
        if self._reply is None or self._reply.done():
            self.close()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self._reply.done():
                self._reply.set_exception(error)

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(ConnectionResetError(str(error or "closed")))

    # What httptools calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._reply is not None and not self._reply.done():
            reply = Reply(self._parser.get_status_code(), self._headers, b"".join(self._body))
            self._reply.set_result(reply)
