"""What is repeated, when, and what an answer that is none becomes: without a network and without sleeping."""

import json
import pickle
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from foretell import (
    AsyncClient,
    BodyTooLargeError,
    Client,
    Coming,
    DataError,
    DeadlineError,
    FailedError,
    ForetellError,
    InvalidError,
    NotNowError,
    Place,
    QuotaError,
    Step,
    TimedOutError,
    UnavailableError,
    UnknownVersionError,
    UnreachableError,
    UnreadableError,
)
from foretell.exchange import pause_before
from foretell.lines import Split
from tests.client.services import (
    ENDED,
    FORECAST,
    HEAD,
    RESULTS,
    STEPS,
    SUMMARY,
    URL,
    WINDOW,
    Answer,
    Told,
    lines,
    problem,
    reply,
)

RIGHT = reply(200, FORECAST)
ALIAS = {"model": "m", "alias": "production", "version": 2, "serves": 2, "split": {}, "shadow": None, "previous": [1]}
Ask = Callable[..., Any]


async def _sync(told: Told, slept: list[float], ask: Ask, **options: Any) -> Any:
    with Client(URL, transport=told, sleep=slept.append, **options) as client:
        return ask(client)


async def _async(told: Told, slept: list[float], ask: Ask, **options: Any) -> Any:
    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async with AsyncClient(URL, transport=told, sleep=sleep, **options) as client:
        return await ask(client)


in_both = pytest.mark.parametrize("asked", [_sync, _async])
Asked = Callable[..., Awaitable[Any]]
pytestmark = pytest.mark.anyio


def forecast(client: Any) -> Any:
    """Ask for one."""
    return client.forecast(WINDOW, 2)


def promote(client: Any) -> Any:
    """What must not be done twice unawares."""
    return client.promote("m", 2)


@in_both
@pytest.mark.parametrize(
    "first",
    [
        problem(503, "queue-full", retry_after="1"),
        problem(429, "over-quota", retry_after="1"),
        reply(502, b"<html>bad gateway"),
        reply(504, b"<html>gateway timeout"),
        reply(503, b"nobody there"),
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.RemoteProtocolError("Server disconnected without sending a response."),
        httpx.ReadError("reset"),
    ],
)
async def test_a_forecast_is_asked_again(asked: Asked, first: Answer) -> None:
    """After whatever may be better the next time, under the same request id, and not before the service said."""
    told, slept = Told(first, RIGHT), list[float]()

    forecast_ = await asked(told, slept, forecast)

    assert list(forecast_.values[:, 0]) == [1.5, 2.5]
    assert len(slept) == 1
    one, other = told.asked
    assert one.headers["x-request-id"] == other.headers["x-request-id"]
    assert one.content == other.content
    if isinstance(first, httpx.Response) and "retry-after" in first.headers:
        assert 1.0 <= slept[0] <= 1.25


@in_both
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (problem(422, "invalid"), InvalidError),
        (problem(404, "unknown-version"), UnknownVersionError),
        (problem(408, "slow-request"), NotNowError),
        (problem(500, "failed"), FailedError),
        (problem(504, "deadline"), DeadlineError),
        (reply(500, b"oops"), FailedError),
        (reply(302, b"", location="http://elsewhere"), UnreadableError),
        (reply(200, b"<html>hello"), UnreadableError),
        (reply(200, b'{"model": "load", "vers'), UnreadableError),
        (reply(200, [1]), UnreadableError),
        (reply(200, {**FORECAST, "forecast": 3}), UnreadableError),
        (reply(200, {**FORECAST, "timestamps": ["x"]}), UnreadableError),
        (reply(422, b"{", content_type="application/problem+json"), UnreadableError),
        (httpx.ReadTimeout("slow"), TimedOutError),
    ],
)
async def test_what_no_repetition_mends_is_told_at_once(asked: Asked, answer: Answer, kind: type[Exception]) -> None:
    """Refusals for good, a deadline that has passed, time that is used up, and what no service of ours says."""
    told, slept = Told(answer), list[float]()

    with pytest.raises(kind) as raised:
        await asked(told, slept, forecast)

    assert type(raised.value) is kind
    assert (len(told.asked), slept) == (1, [])


@in_both
@pytest.mark.parametrize(
    ("first", "times"),
    [
        (httpx.ConnectError("refused"), 2),
        (problem(429, "over-quota", retry_after="0"), 2),
        (httpx.ReadError("reset"), 1),
        (reply(502, b""), 1),
        (problem(503, "unavailable", retry_after="1"), 1),
    ],
)
async def test_a_change_is_repeated_only_if_nothing_was_done(asked: Asked, first: Answer, times: int) -> None:
    """No connection, and a quota that is looked at before anything else."""
    told = Told(first, reply(200, ALIAS))
    if times == 2:
        assert (await asked(told, [], promote)).version == 2
    else:
        with pytest.raises(ForetellError):
            await asked(told, [], promote)

    assert len(told.asked) == times


@in_both
async def test_retries_end(asked: Asked) -> None:
    """After so many, with the last refusal; the pauses that nobody asks for grow."""
    told, slept = Told(reply(503, b"")), list[float]()

    with pytest.raises(UnavailableError) as raised:
        await asked(told, slept, forecast, retries=2)

    assert (len(told.asked), raised.value.status, raised.value.slug) == (3, 503, "")
    assert 0.1 <= slept[0] <= 0.2 <= slept[1] <= 0.4


@in_both
async def test_a_pause_beyond_the_deadline_is_not_made(asked: Asked) -> None:
    """Nobody waits for an answer that would come too late: the refusal is told at once."""
    told, slept = Told(problem(429, "over-quota", retry_after="31")), list[float]()

    with pytest.raises(QuotaError) as raised:
        await asked(told, slept, forecast, timeout=30)

    assert (raised.value.retry_after_s, slept, len(told.asked)) == (31.0, [], 1)


@pytest.mark.parametrize("anything", ["soon", "-5", "1e9", "", "Wed, 99 Xxx"])
async def test_an_odd_retry_after_is_as_none(anything: str) -> None:
    """What cannot be read is not waited for."""
    slept = list[float]()
    await _sync(Told(problem(503, "queue-full", retry_after=anything), RIGHT), slept, forecast)
    assert 0.1 <= slept[0] <= 0.2


async def test_retry_after_may_be_a_date() -> None:
    """As proxies give it."""
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=9), usegmt=True)
    slept = list[float]()
    await _sync(Told(problem(503, "queue-full", retry_after=when), RIGHT), slept, forecast)
    assert 6 < slept[0] < 12


def test_pauses_are_never_shorter_than_asked() -> None:
    """Whatever chance says, so that those who were refused together come one after the other."""
    error = UnavailableError("why", status=503, retry_after_s=4.0)
    assert [pause_before(0, error, random) for random in (0.0, 0.5, 1.0)] == [4.0, 4.5, 5.0]


def test_a_problem_is_told_in_full() -> None:
    """Status, slug, title, detail, places and id."""
    said = {
        "type": "urn:foretell:problem:invalid",
        "title": "Invalid request",
        "status": 422,
        "detail": "window[1][1]: a number is needed",
        "request_id": "abc",
        "errors": [{"place": "window[1][1]", "message": "a number is needed"}],
    }
    told = Told(reply(422, said, content_type="application/problem+json; charset=utf-8"))
    with Client(URL, transport=told) as client, pytest.raises(InvalidError) as raised:
        forecast(client)

    error = raised.value
    assert (error.status, error.slug, error.title, error.request_id) == (422, "invalid", "Invalid request", "abc")
    assert error.places == (("window[1][1]", "a number is needed"),)
    assert str(error) == "window[1][1]: a number is needed"


@pytest.mark.parametrize(
    "error",
    [
        InvalidError("why", status=422, slug="invalid", places=[Place("a", "b")], request_id="r"),
        TimedOutError("slow", request_id="r"),
        UnreadableError("odd", request_id="r"),
    ],
)
def test_errors_leave_a_process(error: ForetellError) -> None:
    """With all that they say, as pools of processes send them."""
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


@in_both
async def test_what_every_request_carries(asked: Asked) -> None:
    """The key, who asks, an id of its own; and the options that were given, as the service reads them."""
    told = Told(RIGHT)

    def ask(client: Any) -> Any:
        return client.forecast(
            WINDOW, 2, model="a/b", version=3, level=[80, 97.5], attention="none", adaptive=True, deadline_ms=50
        )

    await asked(told, [], ask, key="fk_x", client_id="me")
    await asked(told, [], ask)

    one, other = told.asked
    assert (one.headers["authorization"], one.headers["x-client-id"]) == ("Bearer fk_x", "me")
    assert "authorization" not in other.headers
    assert len({request.headers["x-request-id"] for request in told.asked}) == 2
    assert dict(one.url.params) == {
        "steps": "2",
        "model": "a/b",
        "version": "3",
        "level": "80,97.5",
        "adaptive": "true",
        "attention": "none",
        "deadline_ms": "50",
    }


def test_names_stay_within_their_part_of_the_path() -> None:
    """A name with a slash in it asks for no other resource; a base path is kept."""
    told = Told(reply(200, ALIAS))
    with Client(f"{URL}/base/", transport=told) as client:
        client.alias("a/../b", "c?d")
        with pytest.raises(ForetellError):
            client.alias("..", "x")
    assert [request.url.raw_path for request in told.asked] == [b"/base/models/a%2F..%2Fb/aliases/c%3Fd"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"url": "127.0.0.1:8000"}, "url"),
        ({"url": "ftp://x"}, "url"),
        ({"url": "http://a:b@x"}, "key"),
        ({"key": "a\nb: c"}, "Authorization"),
        ({"client_id": "é"}, "X-Client-ID"),
    ],
)
def test_what_cannot_be_sent_is_said_first(given: dict[str, str], says: str) -> None:
    """An address or a header that is none; a key is never shown."""
    with pytest.raises(ForetellError, match=says) as raised:
        Client(**given)  # type: ignore[arg-type]
    assert "a\nb" not in str(raised.value)


def test_a_key_is_not_shown() -> None:
    """Neither by repr nor by an error."""
    client = Client("http://127.0.0.1:1", "fk_secret", retries=0)
    with client, pytest.raises(UnreachableError) as raised:
        client.models()
    assert "secret" not in repr(client) + repr(raised.value) + str(raised.value)


# Line by line


def stream(client: Any) -> Any:
    """All steps."""
    return _all(client.stream(WINDOW, 2))


def batch(client: Any) -> Any:
    """All results."""
    return _all(client.batch([WINDOW, WINDOW], 2))


def _all(coming: Any) -> Any:
    async def later() -> list[Any]:
        return [one async for one in coming]

    return list(coming) if isinstance(coming, Coming) else later()


WHOLE = lines(HEAD, *STEPS, ENDED)
MANY = lines({**HEAD, "windows": 2}, *RESULTS, SUMMARY)
ERROR = {"error": problem(503, "draining").json()}


@in_both
@pytest.mark.parametrize(("ask", "right"), [(stream, WHOLE), (batch, MANY)])
@pytest.mark.parametrize("first", [problem(503, "queue-full", retry_after="1"), httpx.ReadError("reset")])
async def test_lines_are_asked_for_again_before_the_first(
    asked: Asked, ask: Ask, right: httpx.Response, first: Answer
) -> None:
    """As anything else, and not after it: what has been read would come twice."""
    told, slept = Told(first, right), list[float]()
    assert len(await asked(told, slept, ask)) == 2
    assert len(slept) == 1
    one, other = told.asked
    assert one.headers["x-request-id"] == other.headers["x-request-id"]
    assert one.headers["accept"] == "application/x-ndjson"
    assert one.content == other.content

    told = Told(lines(right.content.splitlines(keepends=True)[0]), right)
    with pytest.raises(UnreachableError, match="cut off"):
        await asked(told, slept, ask)
    assert (len(told.asked), len(slept)) == (1, 1)


@in_both
@pytest.mark.parametrize(
    ("ask", "answer", "kind"),
    [
        (stream, lines(), UnreachableError),
        (stream, lines(HEAD, STEPS[0]), UnreachableError),
        (stream, lines(HEAD, STEPS[0], b'{"step": 2, "fore'), UnreachableError),
        (stream, lines(HEAD, STEPS[0], ERROR), UnavailableError),
        (stream, lines(HEAD, STEPS[0], json.dumps(ERROR).encode()), UnavailableError),
        (stream, lines(HEAD, STEPS[0], ENDED), UnreadableError),
        (stream, lines(HEAD, STEPS[1], ENDED), UnreadableError),
        (stream, lines(HEAD, *STEPS, ENDED, STEPS[0]), UnreadableError),
        (stream, lines(HEAD, *STEPS, ENDED, ENDED), UnreadableError),
        (stream, lines(HEAD, STEPS[1], STEPS[0], ENDED), UnreadableError),
        (stream, lines(HEAD, b"oops\n"), UnreadableError),
        (stream, lines(HEAD, b"oops"), UnreadableError),
        (stream, lines(HEAD, b"[1]\n"), UnreadableError),
        (stream, lines(HEAD, b"\n"), UnreadableError),
        (stream, lines({"error": 3}), UnreadableError),
        (stream, RIGHT, UnreadableError),
        (stream, reply(200, b"<html>hello"), UnreadableError),
        (stream, problem(422, "invalid"), InvalidError),
        (batch, lines({**HEAD, "windows": 2}, *RESULTS), UnreachableError),
        (batch, lines({**HEAD, "windows": 2}, RESULTS[0], ERROR), UnavailableError),
        (batch, lines({**HEAD, "windows": 2}, RESULTS[0], SUMMARY), UnreadableError),
        (batch, lines({**HEAD, "windows": 2}, *RESULTS, {"done": 2, "failed": 1}), UnreadableError),
        (batch, lines({**HEAD, "windows": 2}, RESULTS[1], SUMMARY), UnreadableError),
        (batch, lines({**HEAD, "windows": 2}, {"window": 0}), UnreadableError),
        (batch, problem(413, "body-too-large"), BodyTooLargeError),
    ],
)
async def test_lines_that_do_not_end_well(
    asked: Asked, ask: Ask, answer: httpx.Response, kind: type[ForetellError]
) -> None:
    """Cut off between lines or in one, an error as the last line, rubbish, something missing, or no lines at all."""
    told = Told(answer)
    with pytest.raises(kind) as raised:
        await asked(told, [], ask)
    assert type(raised.value) is kind
    assert len(told.asked) == 1


@in_both
async def test_what_came_before_the_end_is_had(asked: Asked) -> None:
    """Whatever the end is; and a last line need not be ended."""
    found: list[int] = []

    def kept(step: Step) -> bool:
        found.append(step.step)
        return True

    def ask(client: Any) -> Any:
        async def later() -> None:
            async for step in client.stream(WINDOW, 2):
                kept(step)

        return all(map(kept, client.stream(WINDOW, 2))) if isinstance(client, Client) else later()

    with pytest.raises(UnavailableError):
        await asked(Told(lines(HEAD, STEPS[0], ERROR)), [], ask)
    assert found == [1]
    await asked(Told(lines(HEAD, *STEPS, json.dumps(ENDED).encode())), [], ask)
    assert found == [1, 1, 2]


@in_both
async def test_a_file_is_sent_anew(asked: Asked, tmp_path: Path) -> None:
    """From its beginning whenever it is sent, and with its length."""
    (tmp_path / "many").write_bytes(b'{"window": [[1]]}\n' * 40_000)

    def ask(client: Any) -> Any:
        return _all(client.batch(tmp_path / "many", 2))

    told = Told(reply(503, b""), MANY)
    assert [one.window for one in await asked(told, [], ask)] == [0, 1]
    assert [request.content for request in told.asked] == [(tmp_path / "many").read_bytes()] * 2
    assert {request.headers["content-length"] for request in told.asked} == {str(40_000 * 18)}
    assert {request.headers["content-type"] for request in told.asked} == {"application/x-ndjson"}
    assert all("transfer-encoding" not in request.headers for request in told.asked)


@in_both
async def test_a_file_that_becomes_shorter(asked: Asked, tmp_path: Path) -> None:
    """Half of it is never taken for all of it; nor is it asked again."""
    file = tmp_path / "many"
    file.write_bytes(b'{"window": [[1]]}\n' * 2)

    def ask(client: Any) -> Any:
        coming = client.batch(file, 2)
        file.write_bytes(b"x")
        return _all(coming)

    told = Told(MANY)
    with pytest.raises(DataError, match="many: it became shorter while it was sent"):
        await asked(told, [], ask)
    assert told.asked == []


def test_lines_however_they_are_cut() -> None:
    """Also within a letter; what ends a line elsewhere does not end one here."""
    text = '{"a": "\u2028\x85\u00fc"}\n\n{"b": 2}\n{"c"'.encode()
    for size in range(1, len(text) + 1):
        split, found = Split(), list[bytes]()
        for at in range(0, len(text), size):
            found += split.add(text[at : at + size])
        assert [*found, *split.rest()] == text.split(b"\n")
    assert Split().rest() == []


def test_a_line_without_an_end() -> None:
    """It is not kept for ever."""
    split = Split(longest=100)
    assert split.add(b"x" * 60 + b"\n" + b"x" * 60) == [b"x" * 60]
    with pytest.raises(UnreadableError, match="more than 100 bytes"):
        split.add(b"x" * 60)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"model":"m","version":1,"digest":"d","targets":["a"],"steps":1,"stride":1,"skipped":0}', UnreachableError),
        (b"", UnreachableError),
        (b"hello\n", UnreadableError),
        (json.dumps({"error": problem(503, "draining").json()}).encode(), UnavailableError),
    ],
)
def test_a_backtest_that_does_not_end_well(content: bytes, kind: type[Exception]) -> None:
    """Cut off, rubbish, or an error as its last line."""
    with Client(URL, transport=Told(lines(content))) as client, pytest.raises(kind) as raised:
        list(client.backtest(b"a\n1\n", 1))
    assert type(raised.value) is kind
