"""Every window is asked for before anything is timed: one after the other, then many at once."""

import http.client
from concurrent.futures import ThreadPoolExecutor

from benchmarks.serving.dialects import Request, Task, WrongAnswerError

_AT_ONCE = 32
_TIMEOUT_S = 60


class NotServedError(OSError):
    """A status other than 200; while a server starts, that is no reason to give up."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status {status}: {body[:300].decode(errors='replace')}")
        self.status = status


def ask(port: int, task: Task, index: int, *, check: bool = True) -> bytes:
    """Post one request and check its answer; OSError where there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        answer = _post(connection, task.requests[index])
    except http.client.HTTPException as error:
        raise OSError(f"no answer: {error!r}") from error
    finally:
        connection.close()
    if check:
        task.check(index, answer)
    return answer


def all_windows(name: str, port: int, task: Task) -> int:
    """WrongAnswerError where any answer is wrong, alone or in a batch with others; the size of one answer."""
    try:
        sizes = [len(ask(port, task, index)) for index in range(len(task.requests))]
        with ThreadPoolExecutor(min(_AT_ONCE, len(task.requests))) as clients:
            list(clients.map(lambda index: ask(port, task, index), list(range(len(task.requests))) * 2))
    except (WrongAnswerError, OSError) as error:
        raise WrongAnswerError(f"{name}: {error}") from error
    return sizes[0]


def _post(connection: http.client.HTTPConnection, request: Request) -> bytes:
    connection.request("POST", request.path, request.body, request.headers)
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise NotServedError(response.status, answer)
    return answer
