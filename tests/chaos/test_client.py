"""The judge itself: a server that lies, loses, is late or keeps silent is seen through, each time by its own name."""

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from models.store import Store
from tests.app.asking import BOUNDED
from tests.app.serving import wait_until
from tests.builders import publish_tiny
from tests.chaos.client import Event, Load, Report, judge
from tests.chaos.questions import Oracle, Question, Reply, forecasts

PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of one tiny model."""
    root = tmp_path_factory.mktemp("store")
    for seed in range(2):
        publish_tiny(Store(root), **BOUNDED, seed=seed)
    return root


@pytest.fixture(scope="module")
def oracle(store: Path) -> Oracle:
    """Whatever the archives say."""
    return Oracle(store)


@pytest.fixture(scope="module")
def question(oracle: Oracle) -> Question:
    """A prediction for one window."""
    return forecasts(oracle, count=1)[0]


def told(oracle: Oracle, **other: object) -> dict[str, object]:
    """A right answer to it by version 1, but for these fields."""
    numbers = oracle.right("tiny", 1, 0)[0, 0].tolist()
    return {"model": "tiny", "version": 1, "digest": oracle.digest("tiny", 1), "prediction": numbers} | other


def reply(content: object, *, status: int = 200, identity: str = "id", **headers: str) -> Reply:
    """An answer as the service gives it."""
    kind = "application/json" if status == 200 else PROBLEM
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"x-request-id": identity, "content-type": kind} | named, orjson.dumps(content))


def problem(status: int, **other: object) -> dict[str, object]:
    """What a refusal of that status says."""
    return {"type": "urn:foretell:problem:some", "status": status, "request_id": "id"} | other


def test_right_answers_of_either_version(oracle: Oracle, question: Question) -> None:
    """Each version that is published may answer, with its own numbers."""
    second = oracle.right("tiny", 2, 0)[0, 0].tolist()
    answers = [told(oracle), told(oracle, version=2, digest=oracle.digest("tiny", 2), prediction=second)]

    assert [judge(question, "id", reply(answer)) for answer in answers] == [("right", "predict")] * 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda oracle: {"prediction": [12.5]}, "numbers off by"),
        (lambda oracle: {"prediction": oracle.right("tiny", 2, 0)[0, 0].tolist()}, "numbers off by"),
        (lambda oracle: {"prediction": [1.0, 2.0]}, "shape"),
        (lambda oracle: {"prediction": None}, "malformed|shape"),
        (lambda oracle: {"version": 2}, "of tiny version 2"),
        (lambda oracle: {"version": 9}, "of tiny version 9"),
        (lambda oracle: {"digest": oracle.digest("tiny", 2)}, "of tiny version 1"),
        (lambda oracle: {"model": "other"}, "of other version 1"),
    ],
)
def test_wrong_answers(
    oracle: Oracle, question: Question, change: Callable[[Oracle], dict[str, object]], says: str
) -> None:
    """Other numbers, another version's or model's, or none."""
    verdict, what = judge(question, "id", reply(told(oracle, **change(oracle))))

    assert verdict == "wrong"
    assert re.search(says, what)


def test_version_that_may_not_answer(store: Path) -> None:
    """Where one version alone may answer, another one's right numbers are wrong."""
    only_first = Oracle(store, versions=frozenset({1}))
    (asked,) = forecasts(only_first, count=1)
    second = Oracle(store)
    forecasts(second, count=1)
    numbers = second.right("tiny", 2, 0)[0, 0].tolist()
    answer = told(only_first, version=2, digest=second.digest("tiny", 2), prediction=numbers)

    assert judge(asked, "id", reply(answer))[0] == "wrong"


@pytest.mark.parametrize("status", [408, 504])
def test_refusals(question: Question, status: int) -> None:
    """A whole problem that tells to come again is a refusal."""
    assert judge(question, "id", reply(problem(status), status=status)) == ("refused", f"{status} some")


@pytest.mark.parametrize("status", [429, 503])
def test_refusals_say_when_to_come_again(question: Question, status: int) -> None:
    """Of these it is a part to say when."""
    assert judge(question, "id", reply(problem(status), status=status, retry_after="1"))[0] == "refused"
    assert judge(question, "id", reply(problem(status), status=status))[0] == "wrong"
    assert judge(question, "id", reply(problem(status), status=status, retry_after="soon"))[0] == "wrong"


@pytest.mark.parametrize(
    "answer",
    [
        reply(problem(503), status=503, identity="another", retry_after="1"),
        reply(problem(503, request_id="another"), status=503, retry_after="1"),
        reply(problem(500), status=503, retry_after="1"),
        reply(problem(503), status=503, retry_after="1", content_type="text/plain"),
        reply(problem(500), status=500),
        reply(problem(404), status=404),
        reply([], status=503, retry_after="1"),
        Reply(503, {"x-request-id": "id", "content-type": PROBLEM, "retry-after": "1"}, b'{"type":'),
    ],
)
def test_refusals_that_are_none(question: Question, answer: Reply) -> None:
    """Of another request, half, contradicting themselves, or of a status that excuses nothing."""
    assert judge(question, "id", answer)[0] == "wrong"


# On the wire


@contextmanager
def server(answer: Callable[[bytes], bytes | None]) -> Iterator[tuple[str, int]]:
    """Answers each request (its id) with these bytes and hangs up; with nothing at all where None."""
    silent = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    content = answer(_identity(connection))
                    if content is None:
                        silent.append(connection)
                        continue
                    connection.sendall(content)
                    connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in silent:
                connection.close()


def _identity(connection: socket.socket) -> bytes:
    """The id of the request that comes, once it is whole."""
    request = connection.makefile("rb")
    head = dict(line.rstrip().split(b": ") for line in iter(request.readline, b"\r\n") if b": " in line)
    request.read(int(head[b"Content-Length"]))
    request.close()
    return head[b"X-Request-ID"]


def asked_once(address: tuple[str, int], question: Question, *, doomed: bool = False, deadline_s: float = 20.0) -> Load:
    """A load that has asked, and has been told whatever it was."""
    asking = Load(address, [question], connections=1, rate=None, deadline_s=deadline_s, patience_s=0.5)
    if doomed:
        # As if told of each port before its connection ends, whichever it will be.
        asking._doomed = _Everything()
    thread = threading.Thread(target=asking.run)
    thread.start()
    wait_until(lambda: bool(asking.events))
    asking.stop()
    thread.join()
    return asking


class _Everything(set[int]):
    def __contains__(self, _: object) -> bool:
        return True


def whole(oracle: Oracle, identity: bytes, **other: object) -> bytes:
    """A right answer, on the wire."""
    body = orjson.dumps(told(oracle, **other))
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: %b\r\ncontent-length: %d\r\n\r\n"
    return head % (identity, len(body)) + body


def test_verdicts_on_the_wire(oracle: Oracle, question: Question) -> None:
    """What comes of an answer, of half of one, of nonsense, of silence, of an end, and of an end that was foretold."""
    answers: dict[str, Callable[[bytes], bytes | None]] = {
        "right": lambda identity: whole(oracle, identity),
        "wrong": lambda identity: whole(oracle, identity, prediction=[0.0]),
        "nonsense": lambda identity: b"this is not HTTP\r\n\r\n",
        "half": lambda identity: whole(oracle, identity)[:-5],
        "lost": lambda identity: b"",
        "hung": lambda identity: None,
    }
    found = {}
    for name, answer in answers.items():
        with server(answer) as address:
            found[name] = asked_once(address, question).events[0].verdict
    with server(answers["lost"]) as address:
        found["doomed"] = asked_once(address, question, doomed=True).events[0].verdict
    with server(answers["right"]) as address:
        found["late"] = asked_once(address, question, deadline_s=0.0).events[0].verdict
    found["nobody"] = asked_once(address, question).events[0].verdict

    assert found == {
        "right": "right",
        "wrong": "wrong",
        "nonsense": "wrong",
        "half": "lost",
        "lost": "lost",
        "hung": "hung",
        "doomed": "unavoidable",
        "late": "late",
        "nobody": "unreachable",
    }


def test_report() -> None:
    """Ten answers a second, a fault at 10 s, refusals up to 11 s, slow ones up to 13 s, then all as before."""
    moments = [n / 10 for n in range(100)] + [11.0] + [11.5, 12, 12.5] + [13 + n / 10 for n in range(50)]
    right = [Event(moment, 0.01, "right", "predict") for moment in moments]
    refused = [Event(10 + n / 10, 0.5, "refused", "503 engine-died") for n in range(10)]
    report = Report(right + refused, 0.0, 18.0)
    recovery = report.recovery(10.0)

    assert report.verdicts == {"right": 154, "refused": 10}
    assert report.refusals == {"503 engine-died": 10}
    assert report.bad == {}
    assert recovery.failures == 10
    assert recovery.first_right_s == pytest.approx(1.0)
    assert recovery.full_rate_s == pytest.approx(3.0, abs=0.25)
    assert recovery.gap_s == pytest.approx(1.0)
    assert report.latency_s(0.5) == 0.01
    assert report.latency_s(0.99, "refused") == 0.5


def test_report_of_a_fault_that_nobody_felt() -> None:
    """Then there was nothing to recover from."""
    report = Report([Event(n / 10, 0.01, "right", "predict") for n in range(200)], 0.0, 20.0)

    assert report.recovery(10.0).failures == 0
    assert report.recovery(10.0).first_right_s == 0.0
    assert report.recovery(10.0).full_rate_s == 0.0
