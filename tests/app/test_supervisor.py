"""The service in several processes: what happens when one dies, hangs or cannot start, and how all of them end."""

import asyncio
import os
import re
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import orjson
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from torch import Tensor

from app.link.running import running_in
from app.processes.supervisor import heard
from models import archive, artifact
from models.store import ARCHIVE, Store
from tests.app.asking import (
    BOUNDED,
    Load,
    answers_rightly,
    ask,
    check_end,
    is_refused,
    is_right,
    load,
    window_of,
)
from tests.app.serving import Process, kill, process, running_of, wait_until
from tests.builders import network, publish_tiny, spec_for
from tests.chaos.archives import HANGS, publish_armed
from tests.patience import PATIENCE_S

_OFTEN_S = 0.01
"""From one look of `Watch` to the next."""
WITHOUT_END = 10**6
"""Steps that outlast any test."""
SETTINGS = {
    "HTTP_PROCESSES": 2,
    "MAX_STEPS": WITHOUT_END,
    "MAX_ROW_STEPS": 10**9,
    "DEADLINE_MS": 10**8,  # what would take longer is refused: on a busy machine a pass takes a millisecond
    "MAX_ANSWER_NUMBERS": 10**9,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny model with an alias."""
    root = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root), **BOUNDED)
    Store(root).point("tiny", "production", 1)
    return root


@pytest.fixture(scope="module")
def large_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions enough to be seen loading."""
    root = tmp_path_factory.mktemp("large")
    for _ in range(12):
        publish_tiny(Store(root), **BOUNDED)
    return root


@pytest.fixture(scope="module")
def shared(store: Path) -> Iterator[Process]:
    """A service for tests that leave it whole; whatever they do to it, its log is one of JSON lines."""
    with process(store, **SETTINGS) as service:
        yield service
        assert all({"time", "level", "logger", "message"} <= line.keys() for line in service.logs)


@pytest.fixture
def service(shared: Process) -> Process:
    """The same, once it is ready."""
    wait_until(shared.is_ready)
    return shared


def replaced(service: Process, name: str, pid: int) -> bool:
    """Whether another process has taken that one's place."""
    return service.children.get(name, pid) != pid


def counters(exposition: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Whatever must never go backwards; a process's own figures begin anew with each."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition)
        if family.type in ("counter", "histogram") and not family.name.startswith("process_")
        for sample in family.samples
    }


class Watch:
    """Asks for life and metrics again and again."""

    def __init__(self, service: Process) -> None:
        self.lives: Counter[int] = Counter()
        self.backward: list[object] = []
        self._url = service.url
        self._stopped = threading.Event()

    def run(self) -> None:
        """Until told to stop; every time on a connection of its own, which may go to any process."""
        before: Mapping[object, float] = {}
        while not self._stopped.wait(_OFTEN_S):
            try:
                self.lives[httpx.get(f"{self._url}/health/live", timeout=PATIENCE_S).status_code] += 1
                now = counters(httpx.get(f"{self._url}/metrics", timeout=PATIENCE_S).text)
            except httpx.TransportError:
                continue  # its process was killed
            self.backward += [series for series, value in before.items() if now.get(series, -1.0) < value]
            before = now

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()


@contextmanager
def watch(service: Process) -> Iterator[Watch]:
    """Life and metrics are asked for, and have been once more when this ends."""
    watching = Watch(service)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(watching.run)
        try:
            yield watching
            seen = watching.lives.total()
            wait_until(lambda: watching.lives.total() > seen + 1)
        finally:
            watching.stop()
            future.result()


def goes_on(asking: Load) -> None:
    """Wait for right answers from now on."""
    before = asking.done
    wait_until(lambda: asking.done > before + 20)


# What all processes say together


def test_metrics_are_of_all_processes(service: Process) -> None:
    """Whoever is asked gives the sum of all: requests from the HTTP processes, passes from the engine."""

    def requests() -> float:
        return service.metric("foretell_requests_total", route="/forecast", status="200")

    before, passes = requests(), service.metric("foretell_pass_seconds_count", model="tiny")
    rows = service.metric("foretell_pass_rows_sum", model="tiny")
    for seed in range(40):
        assert answers_rightly(service, 1000 + seed, steps=2)

    wait_until(lambda: requests() == before + 40)
    assert [requests() for _ in range(20)] == [before + 40] * 20
    assert service.metric("foretell_pass_seconds_count", model="tiny") == passes + 80
    assert service.metric("foretell_pass_rows_sum", model="tiny") == rows + 80


def test_metrics_are_well_formed(service: Process) -> None:
    """One family a name, one sample a series, and the process's own figures once for each process by name."""
    text = httpx.get(f"{service.url}/metrics").text
    families = list(text_string_to_metric_families(text))
    series = Counter(
        (sample.name, frozenset(sample.labels.items())) for family in families for sample in family.samples
    )

    assert [name for name, times in Counter(family.name for family in families).items() if times > 1] == []
    assert [one for one, times in series.items() if times > 1] == []
    assert len(re.findall(r"^# TYPE foretell_requests_total counter", text, re.MULTILINE)) == 1
    names = {"supervisor", "engine-0", "http-0", "http-1"}
    for metric in ("process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"):
        assert {dict(labels)["process"] for name, labels in series if name == metric} == names
        assert all(service.metric(metric, process=name) > 0 for name in names)


def test_waiting_rows_go_up_and_back(service: Process) -> None:
    """The gauge comes from the engine, and is 0 again once nobody waits."""
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=service.url, timeout=PATIENCE_S) as client:
        body = {"windows": [window_of(seed) for seed in range(7)]}
        with socket.create_connection(service.address) as connection:
            request = client.build_request("POST", f"/forecast?steps={WITHOUT_END}", json=body)
            request.read()
            head = f"POST {request.url.raw_path.decode()} HTTP/1.1\r\nHost: x\r\nContent-Length: "
            connection.sendall(f"{head}{len(request.content)}\r\n\r\n".encode() + request.content)
            wait_until(lambda: service.metric("foretell_waiting_rows") == 7)
        pool.submit(wait_until, lambda: service.metric("foretell_waiting_rows") == 0).result()


def test_every_process_says_the_same(service: Process) -> None:
    """Models, states and aliases are the same whoever is asked, and a request has the id that its client gave it."""
    answers = [httpx.get(f"{service.url}/models", headers={"X-Request-ID": f"id-{n}"}) for n in range(20)]

    assert len({answer.text for answer in answers}) == 1
    assert answers[0].json()["models"][0]["aliases"] == {"production": 1}
    assert answers[0].json()["models"][0]["versions"][0]["state"] == "ready"
    assert [answer.headers["X-Request-ID"] for answer in answers] == [f"id-{n}" for n in range(20)]
    assert {
        httpx.post(f"{service.url}/forecast?steps=1&version=production", json={"window": window_of(0)}).status_code
        for _ in range(20)
    } == {200}


def test_each_http_process_has_its_cache(service: Process) -> None:
    """Each computes an answer once; from then on everybody gets it from a cache."""
    before = service.metric("foretell_pass_seconds_count")
    answers = [ask(service, 77, steps=1) for _ in range(30)]

    assert all(is_right(answer, window_of(77), 1) for answer in answers)
    assert service.metric("foretell_pass_seconds_count") == before + 2
    assert service.metric("foretell_cache_total", result="hit") >= 28


# A process that dies


def test_engine_dies_under_load(service: Process) -> None:
    """What is under way is refused at once and nothing is answered wrongly; another engine takes over, twice."""
    body = {"windows": [window_of(seed) for seed in range(30)]}
    url = f"{service.url}/forecast?steps={WITHOUT_END}"

    with load(service) as asking, watch(service) as watching, ThreadPoolExecutor(1) as pool:
        for _ in range(2):
            engine = service.children["engine-0"]
            under_way = pool.submit(httpx.post, url, json=body, timeout=PATIENCE_S)
            wait_until(lambda: service.metric("foretell_waiting_rows") >= 30)
            kill([engine])
            assert is_refused(under_way.result())
            wait_until(service.is_unready)
            wait_until(service.is_ready)
            assert replaced(service, "engine-0", engine)
            goes_on(asking)

    assert asking.refused
    assert asking.broken == asking.wrong == []
    assert set(watching.lives) == {200}
    assert watching.backward == []
    # What the dead ones had waiting has gone with them.
    wait_until(lambda: service.metric("foretell_waiting_rows") == 0)


def test_http_process_dies_under_load(service: Process) -> None:
    """Its connections break, and nothing else: the others serve on, its place is taken, what it counted stays."""
    with load(service, threads=6) as asking, watch(service) as watching:
        victim = service.children["http-0"]
        kill([victim])
        goes_on(asking)
        wait_until(lambda: replaced(service, "http-0", victim))
        wait_until(service.is_ready)
        assert all(answers_rightly(service, 2000 + seed) for seed in range(20))
        goes_on(asking)

    assert asking.refused == asking.wrong == []
    assert watching.backward == []
    assert service.metric("foretell_requests_total", route="/forecast", status="200") >= asking.done


def test_nothing_is_left_open(service: Process) -> None:
    """After many clients and another engine no process has more descriptors open than before."""

    def descriptors() -> dict[str, int]:
        pids = {"supervisor": service.running.pid, **service.children}
        return {name: len(os.listdir(f"/proc/{pid}/fd")) for name, pid in pids.items()}  # noqa: PTH208

    assert all(answers_rightly(service, 3000 + seed) for seed in range(20))
    before = descriptors()
    for seed in range(200):
        with socket.create_connection(service.address) as connection:
            if seed % 2:
                connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    engine = service.children["engine-0"]
    kill([engine])
    wait_until(lambda: replaced(service, "engine-0", engine))
    wait_until(service.is_ready)
    assert all(answers_rightly(service, 4000 + seed) for seed in range(20))

    wait_until(lambda: all(number <= before[name] for name, number in descriptors().items()))


def test_engine_hangs(store: Path) -> None:
    """One that does not answer makes the service unready, is killed and replaced; what waited for it is refused."""
    with process(store, **SETTINGS, STALL_S=3) as service, ThreadPoolExecutor(1) as pool:
        engine = service.children["engine-0"]
        os.kill(engine, signal.SIGSTOP)
        waiting = pool.submit(ask, service, 1)
        wait_until(service.is_unready)
        live = service.statuses("/health/live")
        wait_until(lambda: replaced(service, "engine-0", engine))
        wait_until(service.is_ready)
        refused = waiting.result()
        assert all(answers_rightly(service, seed) for seed in range(10))

    assert is_refused(refused)
    assert set(live) == {200}
    killed = "engine-0 has not answered for 3 s and is killed: somebody has stopped it"
    assert any(line["message"] == killed for line in service.logs)


def test_supervisor_dies(store: Path) -> None:
    """Whatever happens to it, nobody stays behind: the others end by themselves and the port is free."""
    with process(store, **SETTINGS) as service, load(service) as asking:
        children = service.children
        service.signal(signal.SIGKILL)
        service.wait()
        wait_until(lambda: not running_of(children.values()))
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(service.address)
            free.listen()

    assert len(children) == 3
    assert asking.wrong == []
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in service.logs)


@pytest.mark.parametrize("youngest", ["engine-0", "http-1"])
def test_supervisor_dies_at_the_start(store: Path, youngest: str) -> None:
    """Those that have just been started end as well, and find nothing wrong with that."""
    with process(store, ready=False, **SETTINGS) as service:
        wait_until(lambda: youngest in service.children)
        children = service.children
        service.signal(signal.SIGKILL)
        service.wait()
        wait_until(lambda: not running_of(children.values()))

    assert not [line for line in service.logs if line["level"] in ("ERROR", "CRITICAL")]


def test_supervisor_dies_while_a_pass_never_ends(tmp_path: Path) -> None:
    """Not even then does its engine stay behind, though its loop turns no more."""
    publish_armed(Store(tmp_path))
    settings = {**SETTINGS, "DRAIN_S": 0.5, "STALL_S": 1}
    with process(tmp_path, **settings) as service, socket.create_connection(service.address) as connection:
        children = service.children
        body = orjson.dumps({"window": [[HANGS], *window_of(0)[1:]]})
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        wait_until(lambda: running_in(engine_says(service)) is not None)
        service.signal(signal.SIGKILL)
        service.wait()
        wait_until(lambda: not running_of(children.values()))


def engine_says(service: Process) -> Path:
    """Where its engine says what it computes."""
    return next(service.temporary.glob("foretell-*")) / "running-0"


# A process that cannot start


def test_engine_that_cannot_start(store: Path) -> None:
    """After several tries the service gives up, says so, and leaves nothing behind."""
    with process(store, ready=False, **SETTINGS) as service:
        seen: dict[str, int] = {}

        def ends() -> bool:
            children = service.children
            seen.update({f"{name} {pid}": pid for name, pid in children.items()})
            kill(pid for name, pid in children.items() if name.startswith("engine"))
            return service.running.poll() is not None

        wait_until(ends)
        left = list(service.temporary.iterdir())

    assert service.wait() == 1
    assert any(
        line["level"] == "ERROR" and line["message"].endswith("in a row soon after its start: giving up")
        for line in service.logs
    )
    assert len([name for name in seen if name.startswith("engine")]) == 5
    assert not running_of(seen.values())
    assert left == []


class Fatal(torch.nn.Module):
    """Reads where it must not, which no process survives."""

    def encode(self, window: Tensor, time: Tensor) -> list[Tensor]:
        far = torch.full([1], 10**12, dtype=torch.int64)
        return [torch.ops.aten.segment_reduce(torch.ones([3]), "sum", lengths=far, unsafe=True)]

    def decode(self, state: list[Tensor], future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        return future, future, state

    def rollout(self, window: Tensor, time: Tensor, future: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        return self.encode(window, time)[0], future

    def embed(self, window: Tensor, time: Tensor) -> Tensor:
        return self.encode(window, time)[0]

    def heads(self, window: Tensor, time: Tensor) -> Tensor:
        return self.encode(window, time)[0]

    def forward(self, window: Tensor, time: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
        return self.rollout(window, time, future, 1)


def publish_fatal(store: Store) -> None:
    """A version of the tiny model that kills whoever runs it."""

    def write(version: int, folder: Path) -> str:
        spec = spec_for(network(**BOUNDED), version=version, **BOUNDED)
        packed = artifact._pack(artifact._script(Fatal()), {archive.SPEC_FILE: spec.model_dump_json().encode()})  # type: ignore[arg-type]
        (folder / ARCHIVE).write_bytes(packed)
        return archive.digest_of(packed)

    store.publish("tiny", write)


def test_version_that_kills_its_engine_is_left_out(tmp_path: Path) -> None:
    """After three engines that died of it the service goes on without it, and says why it is out."""
    publish_tiny(Store(tmp_path), **BOUNDED)
    publish_fatal(Store(tmp_path))
    publish_tiny(Store(tmp_path), **BOUNDED)

    with process(tmp_path, VERSIONS="all", **SETTINGS) as service:
        assert all(answers_rightly(service, seed) for seed in range(10))
        (model,) = httpx.get(f"{service.url}/models").json()["models"]
        out = httpx.get(f"{service.url}/models/tiny/versions/2").json()

    assert [version["state"] for version in model["versions"]] == ["ready", "failed", "ready"]
    assert out["reason"] == "the engine died whenever it was loaded"
    assert service.output.count("engine-0 ended with status -11") == 3


def test_http_process_hangs(store: Path) -> None:
    """One whose event loop does not turn is killed and replaced."""
    with process(store, **SETTINGS, STALL_S=3) as service:
        hanging = service.children["http-1"]
        os.kill(hanging, signal.SIGSTOP)
        wait_until(lambda: replaced(service, "http-1", hanging))
        wait_until(service.is_ready)
        assert all(answers_rightly(service, seed) for seed in range(20))

    assert any("http-1 has not answered for" in line["message"] for line in service.logs)


def test_another_instance_has_the_port(service: Process, store: Path) -> None:
    """One instance never shares a port with another, though its own processes share theirs."""
    with process(store, ready=False, **SETTINGS, PORT=service.address[1]) as second:
        status = second.wait()

    assert status == 1
    (line,) = [line for line in second.logs if line["level"] == "ERROR"]
    assert line["message"] == f"cannot listen on 127.0.0.1:{service.address[1]}: address already in use"


def test_two_instances_that_start_together(store: Path) -> None:
    """One gets the port, and the other one ends."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]

    with (
        process(store, ready=False, **SETTINGS, PORT=port) as first,
        process(store, ready=False, **SETTINGS, PORT=port) as second,
    ):
        wait_until(lambda: first.running.poll() is not None or second.running.poll() is not None)
        loser, winner = (first, second) if first.running.poll() is not None else (second, first)
        wait_until(winner.is_ready)

    assert loser.wait() == 1
    assert "address already in use" in loser.output


def test_long_name_of_the_temporary_folder(store: Path, tmp_path: Path) -> None:
    """Where no Unix socket fits in TMPDIR, one line says so, and the status is 1."""
    with process(store, ready=False, temporary=tmp_path / ("long" * 30), **SETTINGS) as service:
        status = service.wait()
        left = list(service.temporary.iterdir())

    assert status == 1
    (line,) = service.logs
    assert line["level"] == "ERROR"
    assert "TMPDIR" in line["message"]
    assert "too long" in line["message"]
    assert left == []


# The end


def to_all(service: Process) -> None:
    """As systemd does: every process there is gets it."""
    for pid in (*service.children.values(), service.running.pid):
        os.kill(pid, signal.SIGTERM)


def to_supervisor(service: Process) -> None:
    """As Kubernetes does."""
    service.signal(signal.SIGTERM)


def test_sigterm_to_everybody_under_load(store: Path) -> None:
    """The grace is kept and what was accepted is answered, though every process was told to end."""
    with process(store, **SETTINGS, GRACE_S=2) as service, load(service) as asking, ThreadPoolExecutor(1) as pool:
        children = service.children
        under_way = pool.submit(ask, service, 5, 10_000)
        wait_until(lambda: service.metric("foretell_pass_rows_sum") > 0)
        to_all(service)
        wait_until(service.is_unready)
        goes_on(asking)
        asking.stop()
        answer = under_way.result()
        check_end(service, children)

    assert is_right(answer, window_of(5), 10_000)
    assert asking.faults == []
    assert len(children) == 3


def test_process_that_leaves_its_last_message_unread_has_hung_up() -> None:
    """The system calls that a reset; for whoever listened it is the end of a process like any other."""

    async def listen() -> bytes:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        writer.write(b"the state of the service")
        theirs.recv(1, socket.MSG_PEEK)
        theirs.close()
        try:
            return await heard(reader.read(1))
        finally:
            writer.close()

    assert asyncio.run(listen()) == b""


@pytest.mark.parametrize("tell", [to_supervisor, to_all])
@pytest.mark.parametrize(
    "when", ["engine starts", "HTTP processes start", "models load"], ids=lambda when: when.replace(" ", "-")
)
def test_sigterm_at_the_start(large_store: Path, when: str, tell: Callable[[Process], None]) -> None:
    """However far the start has come, it ends in good order."""
    with process(large_store, ready=False, **SETTINGS, VERSIONS="all", GRACE_S=0) as service:

        def is_time() -> bool:
            if when == "engine starts":
                return "engine-0" in service.children
            if when == "HTTP processes start":
                return "http-1" in service.children
            return bool(service.url) and 1 <= service.output.count("is ready after") < 12

        wait_until(is_time)
        children = service.children
        tell(service)
        check_end(service, children)


def test_engine_dies_during_the_drain(store: Path) -> None:
    """An engine that dies once the end has begun holds nothing up, and what waited for it is refused."""
    with process(store, **SETTINGS, GRACE_S=0) as service, ThreadPoolExecutor(1) as pool:
        children = service.children
        under_way = pool.submit(ask, service, 5, WITHOUT_END)
        wait_until(lambda: service.metric("foretell_waiting_rows") == 1)
        service.signal(signal.SIGTERM)
        wait_until(lambda: "Waiting for connections to close" in service.output)
        kill([children["engine-0"]])
        answer = under_way.result()
        status = service.wait()

    assert is_refused(answer)
    assert status == 0
    assert not running_of(children.values())
