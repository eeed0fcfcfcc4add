"""What requests cost a real service: python -m benchmarks.capacity measure --json costs.json

The service is Foretell as benchmarks/serving starts it, on the model that every server there serves, and the load is
wrk's closed loop, which checks answers. Processor time is the kernel's clock of each process. Cells of different
connections have different numbers of wake-ups and of rows in a pass, which tell their costs apart.
"""

import argparse
import http.client
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.capacity.costs import Costs, Engine, Kind, fitted
from benchmarks.serving import load, servers, workload
from benchmarks.serving.__main__ import processor
from benchmarks.serving.bench import say
from benchmarks.serving.dialects import Foretell, Task
from benchmarks.serving.servers import Server
from benchmarks.serving.tasks import Tasks
from benchmarks.serving.workload import CARRIED, FORECAST_STEPS
from tests.app.serving import redis_server

PREDICT, FORECAST, BINARY = "predict", "forecast", "npy"
_CONNECTIONS = (1, 4, 16, 64)
_WARM_UP_S = 1.0
_QUIET = 0.15
"""Cores that others may have during a cell; it is measured again otherwise, and the least disturbed counts."""
_TRIES = 3
_REFUSED = 2000
_SCRAPES = 20
_BATCH = 512


@dataclass(frozen=True, slots=True)
class Used:
    """What a service has used and done since it started."""

    http_s: float
    http_wakes: float
    engine_s: float
    engine_wakes: float
    passes: float
    rows: float
    windows: float
    parse_s: float
    write_s: float

    def __sub__(self, other: "Used") -> "Used":
        return Used(*(getattr(self, name) - getattr(other, name) for name in Used.__slots__))


@dataclass(frozen=True, slots=True)
class Cell:
    """A closed loop."""

    kind: str
    connections: int
    requests: int
    rate: float
    client_s: float
    """The generator's, of one request."""
    used: Used
    others: float
    """Cores that others had meanwhile."""


def measure(options: argparse.Namespace) -> None:
    """Write the costs, and print where they do not fit what was measured."""
    with published() as (tasks, folder, store):
        tasks_of = tasks_by_kind(tasks)
        with service(store, folder / "plain", tasks_of[PREDICT]) as (server, ready_s):
            memory = _memory(server)
            cells = _cells(server, tasks_of, folder, options.rounds, options.seconds)
            batch_s = _batch(server)
            series, scrape_s = _scrape(server)
            memory |= {f"{name}_loaded": value for name, value in _memory(server).items()}
        with service(store, folder / "narrow", tasks_of[PREDICT], MAX_QUEUE_ROWS=64) as (server, _):
            refusal_s = _refusals(server)
        with service(store, folder / "cache", tasks_of[PREDICT], CACHE_BYTES=2**26) as (server, _):
            hits = [_cell(server, PREDICT, tasks_of[PREDICT], folder, 16, options.seconds)]
        redis = _redis(store, folder, tasks_of[PREDICT], options.seconds)
    costs = costs_of(cells, hits[0], refusal_s)
    others = {"ready_s": ready_s, "series": series, "scrape_s": scrape_s, **memory, **batch_s, **redis}
    disturbed = statistics.median(cell.others for cell in cells)
    about = f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, {options.rounds} rounds of {options.seconds:g} s"
    about += f", others had {disturbed:.2f} of the cores meanwhile"
    Costs(costs.kinds, costs.engine, costs.http_wake_s, refusal_s, costs.hit_s, others, about).save(options.json)
    print(Path(options.json).read_text())


@contextmanager
def published() -> Iterator[tuple[Tasks, Path, workload.Published]]:
    """The model, what is asked of it, and a folder."""
    load.require_wrk()
    with tempfile.TemporaryDirectory(prefix="cap-") as name:
        folder = Path(name)
        store = workload.publish(folder / "store")
        (folder / "run").mkdir()
        yield Tasks(store), folder / "run", store


def tasks_by_kind(tasks: Tasks) -> dict[str, Task]:
    """A window as JSON for one step and for FORECAST_STEPS, and as an array for one."""
    dialect = Foretell(CARRIED)
    binary = tasks.predict_binary(dialect)
    assert binary is not None
    return {
        PREDICT: tasks.predict(dialect),
        FORECAST: tasks.forecast(dialect, FORECAST_STEPS, CARRIED),
        BINARY: binary,
    }


@contextmanager
def service(store: workload.Published, folder: Path, first: Task, **settings: object) -> Iterator[tuple[Server, float]]:
    """The service as a replica with two cores has it, and the seconds from its start to its first answer."""
    variables = {f"FORETELL_{name}": str(value) for name, value in {"HTTP_PROCESSES": 1, **settings}.items()}
    kind = servers.foretell("foretell", variables, servers.ROOT)
    with servers.running(kind, store, folder, "predict", first) as found:
        yield found


def processes(server: Server) -> dict[str, int]:
    """Ids by name: `engine-0`, `http-1`, `supervisor`."""
    found = {}
    for pid in server.tree.pids():
        command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        found["-".join(command[3:6:2]) if command[2:3] == ["app.worker"] else "supervisor"] = pid
    return found


def used(server: Server) -> Used:
    """Up to now."""
    seconds, wakes = {"http": 0.0, "engine": 0.0}, {"http": 0.0, "engine": 0.0}
    for name, pid in processes(server).items():
        part = name.partition("-")[0]
        if part in seconds:
            # The clock of another process's processor time, as clock_getcpuclockid(3) makes its number.
            seconds[part] += time.clock_gettime((~pid << 3) | 2)
            status = Path(f"/proc/{pid}/status").read_text()
            wakes[part] += float(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    told = _told(server)
    stages = {stage: told.get(f"foretell_model_stage_seconds_total {stage}", 0.0) for stage in ("parse", "write")}
    return Used(
        seconds["http"],
        wakes["http"],
        seconds["engine"],
        wakes["engine"],
        told.get("foretell_pass_rows_count", 0.0),
        told.get("foretell_pass_rows_sum", 0.0),
        told.get("foretell_model_windows_total", 0.0),
        stages["parse"],
        stages["write"],
    )


def busy_s() -> float:
    """Of all cores, since the machine started."""
    ticks = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    # user, nice, system, idle, iowait, irq, softirq, steal
    return sum(int(ticks[place]) for place in (0, 1, 2, 5, 6, 7)) / os.sysconf("SC_CLK_TCK")


def _told(server: Server) -> dict[str, float]:
    """Sums of metrics by name, and by stage."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(_metrics(server)):
        for sample in family.samples:
            name = " ".join([sample.name, *filter(None, [sample.labels.get("stage")])])
            sums[name] = sums.get(name, 0.0) + sample.value
    return sums


def _metrics(server: Server) -> str:
    with urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=30) as answer:  # our own service
        text: str = answer.read().decode()
    return text


def _cells(server: Server, tasks: dict[str, Task], folder: Path, rounds: int, seconds: float) -> list[Cell]:
    cells = []
    for turn in range(rounds):
        for connections in _CONNECTIONS:
            for kind, task in tasks.items():
                say(f"round {turn + 1}/{rounds}, {kind}, {connections} connections")
                load.closed(server, task, folder, connections=connections, seconds=_WARM_UP_S, every=200)
                found = [_cell(server, kind, task, folder, connections, seconds)]
                while found[-1].others > _QUIET and len(found) < _TRIES:
                    found.append(_cell(server, kind, task, folder, connections, seconds))
                cells.append(min(found, key=lambda cell: cell.others))
    return cells


def _cell(server: Server, kind: str, task: Task, folder: Path, connections: int, seconds: float) -> Cell:
    server.tree.settle()
    before = used(server)
    # What reading /metrics took is not the load's.
    base, busy, began = used(server), busy_s(), time.monotonic()
    tree_s = server.tree.cpu_s()
    closed = load.closed(server, task, folder, connections=connections, seconds=seconds, every=200)
    others_s = busy_s() - busy - (server.tree.cpu_s() - tree_s) - closed.client_cpu_s * closed.requests
    others = max(0.0, others_s / (time.monotonic() - began))
    server.tree.settle()
    after = used(server)
    spent = after - base
    read = base - before
    spent = Used(*(getattr(spent, name) - getattr(read, name) * (name.startswith("http")) for name in Used.__slots__))
    return Cell(kind, connections, closed.requests, closed.rate, closed.client_cpu_s, spent, others)


def costs_of(cells: Sequence[Cell], hits: Cell, refusal_s: float) -> Costs:
    """Fitted to all cells; prints how far each is off."""
    names = list(dict.fromkeys(cell.kind for cell in cells))
    http, http_off = fitted(
        [cell.used.http_s for cell in cells],
        [[cell.used.http_wakes, *(cell.requests * (cell.kind == name) for name in names)] for cell in cells],
    )
    engine, engine_off = fitted(
        [cell.used.engine_s for cell in cells],
        [[cell.used.engine_wakes, cell.used.passes, cell.used.windows, cell.used.rows] for cell in cells],
    )
    for cell, one, other in zip(cells, http_off, engine_off, strict=True):
        rows = cell.used.rows / max(1.0, cell.used.passes)
        print(
            f"{cell.kind:9} {cell.connections:3} connections {cell.rate:6.0f}/s: HTTP process "
            f"{1e6 * cell.used.http_s / cell.requests:4.0f} µs (fit {one:+.0%}), engine "
            f"{1e6 * cell.used.engine_s / cell.requests:5.0f} µs (fit {other:+.0%}), {rows:.1f} rows a pass, "
            f"{cell.used.http_wakes / cell.requests:.2f} and {cell.used.engine_wakes / cell.requests:.2f} wake-ups, "
            f"others {cell.others:.2f} cores"
        )
    kinds = {}
    for name, seconds in zip(names, http[1:], strict=True):
        of = [cell for cell in cells if cell.kind == name]
        parse = statistics.median(cell.used.parse_s / cell.requests for cell in of)
        write = statistics.median(cell.used.write_s / cell.requests for cell in of)
        # What neither of them has, the heads and the sockets, is as much before as after.
        rest = max(0.0, seconds - parse - write)
        read_s = min(seconds, parse + rest / 2)
        kinds[name] = Kind(
            name,
            read_s=float(read_s),
            write_s=float(seconds - read_s),
            passes=FORECAST_STEPS if name == FORECAST else 1,
        )
    wake_s = float(http[0])
    hit_s = (hits.used.http_s - hits.used.http_wakes * wake_s) / hits.requests
    model = Engine(*(float(engine[place]) for place in (1, 2, 3, 0)))
    return Costs(kinds, model, wake_s, refusal_s, hit_s)


def _memory(server: Server) -> dict[str, float]:
    """PSS of each kind of process in MiB."""
    found = {}
    for name, pid in processes(server).items():
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        found[f"mib_{name.partition('-')[0]}"] = sizes["Pss"] / 1024
    return found


def _post(server: Server, path: str, body: bytes, kind: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    try:
        connection.request("POST", path, body, {"Content-Type": kind})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _batch(server: Server) -> dict[str, float]:
    """A window of /batch."""
    windows = np.resize(workload.make_windows(), (_BATCH, workload.WINDOW, workload.FEATURES))
    lines = "\n".join(f'{{"window":{workload.to_json(window)}}}' for window in windows).encode()
    found = []
    for _ in range(4):
        before = used(server)
        status, answer = _post(server, f"/batch?model={CARRIED}&steps={FORECAST_STEPS}", lines, "application/x-ndjson")
        done = json.loads(answer.splitlines()[-1])
        if status != 200 or done != {"done": _BATCH, "failed": 0}:
            raise load.LoadError(f"/batch answered {status} {answer[-300:]!r}")
        found.append(used(server) - before)
    return {
        "batch_http_s": statistics.median(each.http_s for each in found[1:]) / _BATCH,
        "batch_engine_s": statistics.median(each.engine_s for each in found[1:]) / _BATCH,
    }


def _scrape(server: Server) -> tuple[float, float]:
    """Series of a replica, and seconds that telling them takes the HTTP process."""
    lines = [line for line in _metrics(server).splitlines() if line and not line.startswith("#")]
    (pid,) = (pid for name, pid in processes(server).items() if name.startswith("http"))
    before = time.clock_gettime((~pid << 3) | 2)
    for _ in range(_SCRAPES):
        _metrics(server)
    return float(len(lines)), (time.clock_gettime((~pid << 3) | 2) - before) / _SCRAPES


def _refusals(server: Server) -> float:
    """Of the HTTP process: requests one after the other while its queue of 64 rows is full."""
    windows = workload.make_windows()
    body = f'{{"windows":[{",".join(workload.to_json(window) for window in windows)}]}}'.encode()
    ended = threading.Event()

    def fill() -> None:
        while not ended.is_set():
            _post(server, f"/forecast?model={CARRIED}&steps=200&attention=none", body, "application/json")

    full = threading.Thread(target=fill, name="full")
    full.start()
    try:
        one = f'{{"window":{workload.to_json(windows[0])}}}'.encode()
        return _ask_to_be_refused(server, one)
    finally:
        ended.set()
        full.join()


def _ask_to_be_refused(server: Server, body: bytes) -> float:
    (pid,) = (pid for name, pid in processes(server).items() if name.startswith("http"))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    refused, costs = 0, []
    while refused < _REFUSED:
        before = time.clock_gettime((~pid << 3) | 2)
        connection.request("POST", f"/predict?model={CARRIED}", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        if answer.status == 503:
            refused += 1
            costs.append(time.clock_gettime((~pid << 3) | 2) - before)
    connection.close()
    return statistics.median(costs)


def _redis(store: workload.Published, folder: Path, task: Task, seconds: float) -> dict[str, float]:
    """Operations of a request that finds nothing there, its connections, and what an operation takes Redis."""
    place = folder / "redis"
    place.mkdir()
    with (
        redis_server(place) as redis,
        # Kept for a millisecond: every request asks in vain, and writes.
        service(store, folder / "with", task, REDIS_URL=redis.url, CACHE_TTL_S=0.001) as (server, _),
    ):
        load.closed(server, task, folder, connections=64, seconds=_WARM_UP_S, every=200)
        before = redis.client.info()
        closed = load.closed(server, task, folder, connections=64, seconds=seconds, every=200)
        after = redis.client.info()
        clients = float(after["connected_clients"]) - 1
    operations = after["total_commands_processed"] - before["total_commands_processed"]
    spent = sum(after[name] - before[name] for name in ("used_cpu_sys", "used_cpu_user"))
    return {
        "redis_ops_a_request": operations / closed.requests,
        "redis_s_an_op": spent / operations,
        "redis_connections": clients,
        "redis_rate": closed.rate,
    }


def with_client(costs: Costs, client_s: dict[str, float]) -> Costs:
    """The same, with what the generator takes of the cores for each kind."""
    kinds = {
        name: Kind(name, kind.read_s, kind.write_s, kind.rows, kind.passes, client_s.get(name, 0.0))
        for name, kind in costs.kinds.items()
    }
    return Costs(kinds, costs.engine, costs.http_wake_s, costs.refusal_s, costs.hit_s, costs.others, costs.about)
