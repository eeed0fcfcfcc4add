"""The two clients. They differ in how they send and wait, and in nothing else: `foretell.calls` has what they ask."""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import replace
from inspect import Parameter, signature
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from foretell import calls
from foretell.errors import DataError, ForetellError, TimedOutError, UnreachableError
from foretell.exchange import Exchange, Failure, Flow, Pause, Policy, Reply, Request, Steps, answered, persistently
from foretell.given import Content, File
from foretell.lines import AsyncComing, Coming, Lined, Split

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")

URL = "http://127.0.0.1:8000"
_CONNECT_S = 5.0
_AGENT = "foretell-client/0.1"


class _Wire:
    """What both share: how requests look, and how patient they are."""

    def __init__(
        self,
        url: str = URL,
        key: str | None = None,
        *,
        timeout: float | None = 30.0,
        retries: int = 3,
        client_id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        try:
            self._url = httpx.URL(url)
        except (httpx.InvalidURL, TypeError):
            raise DataError(f"url: {url!r} is none") from None
        if self._url.scheme not in ("http", "https") or not self._url.host:
            raise DataError(f"url: {url!r} is none; one is {URL}")
        if self._url.userinfo:
            raise DataError("url: no name and password here; give the key as `key`")
        self._policy = Policy(
            float("inf") if timeout is None else timeout,
            retries,
            clock=time.monotonic,
            random=random.random,
            identity=lambda: uuid.uuid4().hex,
        )
        self._headers = {"User-Agent": _AGENT, **(headers or {})}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        if client_id is not None:
            self._headers["X-Client-ID"] = client_id
        for name, value in self._headers.items():
            # Not the value, which may be the key.
            if not (value.isascii() and value.isprintable()):
                raise DataError(f"{name}: letters that a header cannot have")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._url)!r})"

    def _outgoing(self, request: Request) -> dict[str, Any]:
        """The arguments of httpx' build_request."""
        headers = {**self._headers, "X-Request-ID": request.request_id, "Accept": request.accept}
        if request.content_type:
            headers["Content-Type"] = request.content_type
        if isinstance(request.content, File):
            headers["Content-Length"] = str(request.content.size)
        base = str(self._url).rstrip("/")
        return {
            "method": request.method,
            "url": base + request.path,
            "params": dict(request.params) or None,
            "headers": headers,
            "content": self._sent(request.content),
        }

    def _sent(self, content: Content) -> Any:
        """As httpx takes it."""
        return content.parts() if isinstance(content, File) else content

    def _opening(self, lined: Lined[T, S]) -> tuple[Steps[Reply], "_Kept"]:
        """How an answer in lines is asked for: as persistently as any other, until it has begun."""
        silence_s = self._policy.timeout_s if lined.silence_s is None else lined.silence_s
        policy = replace(self._policy, timeout_s=silence_s)
        request = replace(lined.request, request_id=policy.identity())
        return answered(request, policy), _Kept(silence_s)

    def _timeout(self, within_s: float) -> httpx.Timeout:
        limit = None if within_s == float("inf") else within_s
        return httpx.Timeout(limit, connect=min(_CONNECT_S, within_s))

    def _failure(self, error: httpx.HTTPError, within_s: float) -> Failure:
        """What an exception of httpx says."""
        unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        timed_out = isinstance(error, httpx.TimeoutException) and not unsent
        where = f"{self._url.scheme}://{self._url.netloc.decode()}"
        if timed_out:
            return Failure(f"{where}: no answer within {within_s:.3g} s", sent=True, timed_out=True)
        told = str(error) or type(error).__name__
        return Failure(f"{where}: {told}", sent=not unsent)


class _Kept:
    """An answer that is read while it comes, and how long that waits for a line."""

    def __init__(self, silence_s: float) -> None:
        self.silence_s = silence_s
        self.response: httpx.Response | None = None
        self._split = Split()
        self._end = 0.0

    def begun(self) -> httpx.Response:
        """The answer, once it is one."""
        if self.response is None:
            raise RuntimeError("an answer in lines has been read already")
        return self.response

    def listen(self) -> None:
        """From now on a line is waited for; the time in which nobody waited does not count."""
        self._end = time.monotonic() + self.silence_s

    def lines(self, part: bytes) -> list[bytes]:
        """Those that are whole with this part; ReadTimeout where there is none for too long: httpx counts from one part
        to the next alone.
        """
        found = self._split.add(part)
        if not found and time.monotonic() > self._end:
            raise httpx.ReadTimeout("a line came too slowly")
        return found

    def rest(self) -> list[bytes]:
        """One whose end is missing."""
        return self._split.rest()


class _Collected:
    """The body of an answer as it comes, for so long and no longer."""

    def __init__(self, within_s: float) -> None:
        self._end = time.monotonic() + within_s
        self._parts: list[bytes] = []

    def add(self, part: bytes) -> None:
        """One more part; ReadTimeout where it is too late: httpx counts from one part to the next alone."""
        self._parts.append(part)
        if time.monotonic() > self._end:
            raise httpx.ReadTimeout("the answer came too slowly")

    def reply(self, response: httpx.Response, request: Request) -> Reply:
        """All of it."""
        return _reply(response, b"".join(self._parts), request)


def _reply(response: httpx.Response, content: bytes, request: Request) -> Reply:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Reply(response.status_code, headers, content, request.request_id)


def _described(ask: Any, make: Callable[..., Any], owner: str) -> None:
    """Let `help` and editors show a method as what it is made of."""
    said = signature(make)
    me = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
    answer = said.return_annotation
    if answer.startswith("Flow["):
        answer = answer.removeprefix("Flow[").removesuffix("]")
    answer = answer.replace("Lined", "AsyncComing" if owner.startswith("Async") else "Coming")
    ask.__signature__ = said.replace(parameters=[me, *said.parameters.values()], return_annotation=answer)
    ask.__name__, ask.__qualname__, ask.__doc__ = make.__name__, f"{owner}.{make.__name__}", make.__doc__


def _now(make: Callable[P, Flow[T]]) -> Callable[Concatenate["Client", P], T]:
    """A call as a method of Client."""

    def ask(self: "Client", /, *args: P.args, **options: P.kwargs) -> T:
        return self._run(persistently(make(*args, **options), self._policy))

    _described(ask, make, "Client")
    return ask


def _later(make: Callable[P, Flow[T]]) -> Callable[Concatenate["AsyncClient", P], Awaitable[T]]:
    """The same as one of AsyncClient."""

    async def ask(self: "AsyncClient", /, *args: P.args, **options: P.kwargs) -> T:
        return await self._run(persistently(make(*args, **options), self._policy))

    _described(ask, make, "AsyncClient")
    return ask


def _line_by_line(make: Callable[P, Lined[T, S]]) -> Callable[Concatenate["Client", P], Coming[T, S]]:
    """What is answered in lines, as a method of Client."""

    def ask(self: "Client", /, *args: P.args, **options: P.kwargs) -> Coming[T, S]:
        lined = make(*args, **options)
        return Coming(lined.reader, self._lines(lined))

    _described(ask, make, "Client")
    return ask


def _line_by_line_later(
    make: Callable[P, Lined[T, S]],
) -> Callable[Concatenate["AsyncClient", P], AsyncComing[T, S]]:
    """The same as one of AsyncClient."""

    def ask(self: "AsyncClient", /, *args: P.args, **options: P.kwargs) -> AsyncComing[T, S]:
        lined = make(*args, **options)
        return AsyncComing(lined.reader, self._lines(lined))

    _described(ask, make, "AsyncClient")
    return ask


class Client(_Wire):
    """Asks a service.

    with Client("http://127.0.0.1:8000") as client:
        forecast = client.forecast("week.csv", steps=24, level=90)

    `timeout` is of a call, all its repetitions included; None is for ever. `key` goes with every request, so use https
    beyond this machine. `client_id` says whose side of a split this is. One client may be shared by threads.
    """

    def __init__(
        self,
        url: str = URL,
        key: str | None = None,
        *,
        timeout: float | None = 30.0,
        retries: int = 3,
        client_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        verify: Any = True,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(url, key, timeout=timeout, retries=retries, client_id=client_id, headers=headers)
        self._http = httpx.Client(verify=verify, transport=transport)
        self._sleep = sleep

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    forecast = _now(calls.forecast)
    predict = _now(calls.predict)
    anomalies = _now(calls.anomalies)
    actuals = _now(calls.actuals)
    models = _now(calls.models)
    model = _now(calls.model)
    alias = _now(calls.alias)
    promote = _now(calls.promote)
    rollback = _now(calls.rollback)
    drop_alias = _now(calls.drop_alias)
    load = _now(calls.load)
    unload = _now(calls.unload)
    audit = _now(calls.audit)
    ready = _now(calls.ready)
    stream = _line_by_line(calls.stream)
    batch = _line_by_line(calls.batch)
    backtest = _line_by_line(calls.backtest)

    def _lines(self, lined: Lined[T, S]) -> Generator[T, None, None]:
        reader = lined.reader
        with self._opened(lined) as (reply, response, kept):
            reader.begin(reply)
            try:
                kept.listen()
                for part in response.iter_bytes():
                    for line in kept.lines(part):
                        if (said := reader.read(line)) is not None:
                            yield said
                        kept.listen()
            except httpx.HTTPError as error:
                raise _cut_off(self._failure(error, kept.silence_s), reply) from error
            for line in kept.rest():
                if (said := reader.last(line)) is not None:
                    yield said
            reader.end()

    @contextmanager
    def _opened(self, lined: Lined[T, S]) -> Iterator[tuple[Reply, httpx.Response, _Kept]]:
        steps, kept = self._opening(lined)
        try:
            reply = self._run(steps, kept)
            yield reply, kept.begun(), kept
        finally:
            if kept.response is not None:
                kept.response.close()

    def _run(self, steps: Steps[T], kept: _Kept | None = None) -> T:
        came: Reply | Failure | None = None
        while True:
            try:
                step = steps.send(came)
            except StopIteration as stop:
                value: T = stop.value
                return value
            if isinstance(step, Pause):
                self._sleep(step.seconds)
                came = None
            else:
                came = self._exchanged(step, kept)

    def _exchanged(self, step: Exchange, kept: _Kept | None) -> Reply | Failure:
        # A line may take as long whatever went before, so what is left of the time is not what counts.
        within_s = step.within_s if kept is None else kept.silence_s
        try:
            made = self._http.build_request(**self._outgoing(step.request), timeout=self._timeout(within_s))
            response = self._http.send(made, stream=True)
            if kept is not None and response.is_success:
                kept.response = response
                return _reply(response, b"", step.request)
            try:
                collected = _Collected(step.within_s)
                for part in response.iter_bytes():
                    collected.add(part)
            finally:
                response.close()
            return collected.reply(response, step.request)
        except httpx.HTTPError as error:
            return self._failure(error, within_s)


class AsyncClient(_Wire):
    """The same for asyncio: every method is awaited, but for `stream`, `batch` and `backtest`, which are asynchronous
    iterators.

    async with AsyncClient("http://127.0.0.1:8000") as client:
        forecast = await client.forecast("week.csv", steps=24, level=90)
    """

    def __init__(
        self,
        url: str = URL,
        key: str | None = None,
        *,
        timeout: float | None = 30.0,
        retries: int = 3,
        client_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        verify: Any = True,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(url, key, timeout=timeout, retries=retries, client_id=client_id, headers=headers)
        self._http = httpx.AsyncClient(verify=verify, transport=transport)
        self._sleep = sleep

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    forecast = _later(calls.forecast)
    predict = _later(calls.predict)
    anomalies = _later(calls.anomalies)
    actuals = _later(calls.actuals)
    models = _later(calls.models)
    model = _later(calls.model)
    alias = _later(calls.alias)
    promote = _later(calls.promote)
    rollback = _later(calls.rollback)
    drop_alias = _later(calls.drop_alias)
    load = _later(calls.load)
    unload = _later(calls.unload)
    audit = _later(calls.audit)
    ready = _later(calls.ready)
    stream = _line_by_line_later(calls.stream)
    batch = _line_by_line_later(calls.batch)
    backtest = _line_by_line_later(calls.backtest)

    def _sent(self, content: Content) -> Any:
        return _beside(content) if isinstance(content, File) else content

    async def _lines(self, lined: Lined[T, S]) -> AsyncGenerator[T, None]:
        reader = lined.reader
        async with self._opened(lined) as (reply, response, kept):
            reader.begin(reply)
            try:
                kept.listen()
                async with aclosing(response.aiter_bytes()) as parts:  # type: ignore[type-var]
                    async for part in parts:
                        for line in kept.lines(part):
                            if (said := reader.read(line)) is not None:
                                yield said
                            kept.listen()
            except httpx.HTTPError as error:
                raise _cut_off(self._failure(error, kept.silence_s), reply) from error
            for line in kept.rest():
                if (said := reader.last(line)) is not None:
                    yield said
            reader.end()

    @asynccontextmanager
    async def _opened(self, lined: Lined[T, S]) -> AsyncIterator[tuple[Reply, httpx.Response, _Kept]]:
        steps, kept = self._opening(lined)
        try:
            reply = await self._run(steps, kept)
            yield reply, kept.begun(), kept
        finally:
            if kept.response is not None:
                await kept.response.aclose()

    async def _run(self, steps: Steps[T], kept: _Kept | None = None) -> T:
        came: Reply | Failure | None = None
        while True:
            try:
                step = steps.send(came)
            except StopIteration as stop:
                value: T = stop.value
                return value
            if isinstance(step, Pause):
                await self._sleep(step.seconds)
                came = None
            else:
                came = await self._exchanged(step, kept)

    async def _exchanged(self, step: Exchange, kept: _Kept | None) -> Reply | Failure:
        # A line may take as long whatever went before, so what is left of the time is not what counts.
        within_s = step.within_s if kept is None else kept.silence_s
        try:
            made = self._http.build_request(**self._outgoing(step.request), timeout=self._timeout(within_s))
            response = await self._http.send(made, stream=True)
            if kept is not None and response.is_success:
                kept.response = response
                return _reply(response, b"", step.request)
            try:
                collected = _Collected(step.within_s)
                async for part in response.aiter_bytes():
                    collected.add(part)
            finally:
                await response.aclose()
            return collected.reply(response, step.request)
        except httpx.HTTPError as error:
            return self._failure(error, within_s)


async def _beside(file: File) -> AsyncIterator[bytes]:
    """The parts of a file, read beside the event loop."""
    parts = file.parts()
    while part := await asyncio.to_thread(next, parts, b""):
        yield part


def _cut_off(failure: Failure, reply: Reply) -> ForetellError:
    kind = TimedOutError if failure.timed_out else UnreachableError
    return kind(failure.detail, request_id=reply.request_id)
