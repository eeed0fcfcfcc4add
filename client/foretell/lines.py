"""Answers that come line by line: what a line says, and the iterators that give it as it comes."""

import json
from abc import abstractmethod
from collections.abc import AsyncGenerator, Generator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar

from foretell import answers
from foretell.answers import Backtest, Ended, Head, Progress, Result, Step, Summary
from foretell.errors import ProblemError, UnreachableError, UnreadableError
from foretell.exchange import Reply, Request, problem_from
from foretell.given import LINES

T = TypeVar("T")
S = TypeVar("S")

_LONGEST = 256 * 2**20
_SHOWN = 120


class Split:
    """Bytes to lines, however they were cut on their way; of what has come no more than a line is kept.

    Lines end with a line feed alone: JSON may have other ends of lines within its strings.
    """

    def __init__(self, longest: int = _LONGEST) -> None:
        self._longest = longest
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> list[bytes]:
        """The lines that are whole now; UnreadableError where one does not end."""
        *whole, rest = part.split(b"\n")
        if whole:
            whole[0] = b"".join([*self._parts, whole[0]])
            self._parts, self._size = [], 0
        if rest:
            self._parts.append(rest)
            self._size += len(rest)
        if self._size > self._longest:
            raise UnreadableError(f"a line of more than {self._longest} bytes")
        return whole

    def rest(self) -> list[bytes]:
        """What came behind the last end of a line: a line whose end is missing, if anything."""
        return [b"".join(self._parts)] if self._parts else []


class Reader(Generic[T, S]):
    """Reads one answer: `begin`, each line, the `last` one if its end is missing, and `end`."""

    what: ClassVar[str]

    def __init__(self) -> None:
        self.head: Head | None = None
        """What the first line says."""
        self.summary: S | None = None
        """What the last one says."""
        self._reply = Reply(0, {}, b"")

    def begin(self, reply: Reply) -> None:
        """The answer has come; UnreadableError where it is not one in lines."""
        self._reply = reply
        kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != LINES:
            raise self._unreadable(f"{kind or 'an answer of no type'}, where {LINES} was asked for")

    def read(self, line: bytes) -> T | None:
        """What a line says; None of the first and the last. Raises what an `error` line tells."""
        try:
            said = json.loads(line)
            if "error" in said and not self._is_item(said):
                raise problem_from(said["error"])
            self._must_be_open()
            return self._said(said)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise self._unreadable(
                f"a line that is none of a {self.what} ({type(error).__name__}: {error}): {line[:_SHOWN]!r}"
            ) from error

    def last(self, line: bytes) -> T | None:
        """The same of one that was not ended; UnreachableError where it is half of one."""
        try:
            json.loads(line)
        except ValueError:
            if line.startswith(b"{"):
                self.end()
        return self.read(line)

    def end(self) -> None:
        """UnreachableError where the last line has not come."""
        if self.summary is None:
            raise UnreachableError(f"the {self.what} was cut off before its end", request_id=self._request_id)

    def _must_be_open(self) -> None:
        if self.summary is not None:
            raise ValueError("nothing comes behind the end")

    @property
    def _request_id(self) -> str:
        return self._reply.headers.get("x-request-id", self._reply.request_id)

    def _unreadable(self, detail: str) -> UnreadableError:
        return UnreadableError(detail, request_id=self._request_id)

    def _is_item(self, _said: Mapping[str, Any]) -> bool:
        """Whether an error is of a part alone."""
        return False

    def _first(self, said: Mapping[str, Any]) -> None:
        self.head = answers.first_of(said, self._reply.headers, self._reply.request_id)

    @abstractmethod
    def _said(self, said: dict[str, Any]) -> T | None: ...


class StepReader(Reader[Step, Ended]):
    """Of a forecast whose steps are sent as they are computed."""

    what = "forecast"

    def __init__(self) -> None:
        super().__init__()
        self._steps = 0

    def _said(self, said: dict[str, Any]) -> Step | None:
        if self.head is None:
            self._first(said)
            return None
        if "done" in said:
            _must_be("steps", self._steps, self.head.steps)
            self.summary = answers.ended_of(said)
            return None
        step = answers.step_of(said)
        self._steps += 1
        _must_be("step", step.step, self._steps)
        return step


class ResultReader(Reader[Result, Summary]):
    """Of a batch."""

    what = "batch"

    def __init__(self) -> None:
        super().__init__()
        self._windows = self._failed = 0

    def _is_item(self, said: Mapping[str, Any]) -> bool:
        return "window" in said

    def _said(self, said: dict[str, Any]) -> Result | None:
        if self.head is None:
            self._first(said)
            return None
        if "done" in said:
            summary = Summary(int(said["done"]), int(said["failed"]))
            _must_be("windows", self._windows, summary.windows)
            _must_be("failed", self._failed, summary.failed)
            self.summary = summary
            return None
        error: ProblemError | None = problem_from(said["error"]) if "error" in said else None
        result = answers.result_of(self.head, said, error)
        _must_be("window", result.window, self._windows)
        self._windows += 1
        self._failed += error is not None
        return result


class BacktestReader(Reader[Progress | Backtest, Backtest]):
    """Of a backtest: its last line is its result."""

    what = "backtest"

    def __init__(self) -> None:
        super().__init__()
        self._start: dict[str, Any] | None = None

    def _said(self, said: dict[str, Any]) -> Progress | Backtest | None:
        if self._start is None:
            self._first(said)
            self._start = said
            return None
        if "result" in said:
            self.summary = answers.backtest_of(self._start, said["result"], self._reply.headers, self._reply.request_id)
            return self.summary
        return answers.progress_of(said)


def _must_be(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(f"{what} is {found}, and not {expected}")


@dataclass(frozen=True, slots=True)
class Lined(Generic[T, S]):
    """What is to be asked, and who reads the answer."""

    request: Request
    reader: Reader[T, S]
    silence_s: float | None
    """How long to wait for a line; None is as long as for any answer."""


class Coming(Generic[T, S]):
    """What comes line by line: an iterator that asks when the first is wanted.

    with client.stream("week.csv", steps=500) as steps:
        for step in steps: ...

    Leaving `with`, or `close`, hangs up, which ends the service's work; so does the end of the last line.
    """

    def __init__(self, reader: Reader[T, S], items: Generator[T, None, None]) -> None:
        self._reader = reader
        self._items = items
        self._first: list[T] = []

    @property
    def head(self) -> Head:
        """Who answers, and how much is to come; asks, where that has not been done."""
        if self._reader.head is None:
            self._first.extend([item] if (item := next(self._items, None)) is not None else [])
        return _told(self._reader.head)

    @property
    def summary(self) -> S | None:
        """What the last line says; None until it has come."""
        return self._reader.summary

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        return self._first.pop() if self._first else next(self._items)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._first.clear()
        self._items.close()


class AsyncComing(Generic[T, S]):
    """The same for asyncio; `head` is there once something has come.

    async with client.stream("week.csv", steps=500) as steps:
        async for step in steps: ...
    """

    def __init__(self, reader: Reader[T, S], items: AsyncGenerator[T, None]) -> None:
        self._reader = reader
        self._items = items

    @property
    def head(self) -> Head:
        """Who answers, and how much is to come; RuntimeError before the first item."""
        return _told(self._reader.head)

    @property
    def summary(self) -> S | None:
        """What the last line says; None until it has come."""
        return self._reader.summary

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        return await anext(self._items)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Hang up."""
        await self._items.aclose()


def _told(head: Head | None) -> Head:
    if head is None:
        raise RuntimeError("nothing has come of it; the head is there with the first item")
    return head
