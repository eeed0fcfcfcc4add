"""What is measured. A section starts the servers that it needs, and gives a table and the raw rows behind it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from benchmarks.serving import verify
from benchmarks.serving.bench import EVERY, Bench, Entry, Row, awake, medians, say
from benchmarks.serving.dialects import Task
from benchmarks.serving.load import Arrivals
from benchmarks.serving.report import Table, by_cell, closed_tables, number, open_tables
from benchmarks.serving.servers import ROOT, Server, floor
from benchmarks.serving.workload import CARRIED, FORECAST_STEPS, LONG_STEPS, SLIDING

LONG_SHARE = 0.05
SHARES = (0.25, 0.5, 0.75)
MANY_CONNECTIONS = 128
OPEN_CONNECTIONS = 256
BATCH_CONNECTIONS = (1, 4)
FORECAST_CONNECTIONS_UP_TO = 32
CORES = 2
UNSUPPORTED_MEDIA_TYPE = 415
KEPT_PAGES = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
"""glibc keeps the memory of a pass for the next one: the model alone at its best."""


@dataclass(slots=True)
class Result:
    """A section's outcome."""

    title: str
    tables: list[Table] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def predict(bench: Bench) -> Result:
    """One-step requests, closed loop."""
    with bench.servers(bench.kinds, "predict") as servers:
        entries = _predict_entries(bench, servers)
        bench.verify(entries)
        rows = bench.closed(entries, bench.options.connections)
    return Result("`/predict`, closed loop", closed_tables(rows, "connections"), rows)


def forecast(bench: Bench) -> Result:
    """Forecasts of many steps, closed loop: Foretell's carried state and its sliding window beside the peers' loops."""
    cells = [count for count in bench.options.connections if count <= FORECAST_CONNECTIONS_UP_TO]
    with bench.servers(bench.kinds, "forecast") as servers:
        entries = [entry for server in servers for entry in _forecast_entries(bench, server)]
        bench.verify(entries)
        rows = bench.closed(entries, cells)
    notes = ["*sliding*: the same layers, but every step reads the whole window again, which is what the peers do."]
    return Result(f"`/forecast?steps={FORECAST_STEPS}`, closed loop", closed_tables(rows, "connections"), rows, notes)


def mix(bench: Bench) -> Result:
    """One-step requests at a fixed rate, alone and beside forecasts of 500 steps."""
    rate = bench.options.mix_rate
    long_rate = rate * LONG_SHARE
    with bench.servers(bench.kinds, "predict,forecast") as servers:
        entries = _predict_entries(bench, servers)
        long_tasks = {server.name: bench.tasks.forecast_of(server.kind, LONG_STEPS) for server in servers}
        bench.verify(entries)
        for server in servers:
            with awake(server):
                verify.ask(server.port, long_tasks[server.name], 0)

        def streams(entry: Entry, cell: str) -> list[Arrivals]:
            short = Arrivals("one step", entry.task, rate - long_rate, OPEN_CONNECTIONS)
            long = Arrivals("500 steps", long_tasks[entry.label], long_rate, OPEN_CONNECTIONS, every=1)
            return [short] if cell == "alone" else [short, long]

        rows = bench.opened(entries, ["alone", "beside"], streams)
    note = (
        f"{rate - long_rate:g} one-step requests a second, without and with {long_rate:g} requests for "
        f"{LONG_STEPS} steps a second beside them."
    )
    return Result(f"One step beside {LONG_STEPS} steps, open loop", [_mix_table(rows)], rows, [note])


def open_loop(bench: Bench) -> Result:
    """One-step requests at fixed rates; latency from the time when a request was due."""
    with bench.servers(bench.kinds, "predict") as servers:
        entries = _predict_entries(bench, servers)
        bench.verify(entries)
        highest = {}
        for entry in entries:
            say(f"closed-loop maximum of {entry.label}")
            with awake(entry.server):
                bench.warm_up(entry, MANY_CONNECTIONS)
                highest[entry.label] = bench.closed_once(entry, MANY_CONNECTIONS)["rate"]
        reference = max(highest[entry.label] for entry in entries if entry.ours or not bench.ours)

        def streams(entry: Entry, cell: str) -> list[Arrivals]:
            whose, share = cell.split(" ")
            top = highest[entry.label] if whose == "own" else reference
            rate = float(share.rstrip("%")) / 100 * top
            return [Arrivals("one step", entry.task, rate, OPEN_CONNECTIONS)]

        cells = [f"{whose} {share:.0%}" for whose in ("own", "same") for share in SHARES]
        rows = bench.opened(entries, cells, streams)
    whose = (
        f"*own*: shares of each server's own closed-loop maximum at {MANY_CONNECTIONS} connections; *same*: shares of "
        f"{reference:.0f} requests/s, the best of Foretell, for all."
    )
    overload = (
        "A server that cannot hold a rate answers fewer than are sent, and its latencies grow with the length of the "
        "run; requests without an answer at its end count with the time that they were waited for."
    )
    return Result("`/predict`, open loop", open_tables(rows), rows, [whose, overload])


def batch(bench: Bench) -> Result:
    """Many windows in one request."""
    with bench.servers(bench.kinds, "predict") as servers:
        entries = [
            Entry(server.name, server, bench.tasks.predict_many(server.kind.dialect), every=5) for server in servers
        ]
        bench.verify(entries)
        rows = bench.closed(entries, BATCH_CONNECTIONS)
    return Result("64 windows in a request, closed loop", closed_tables(rows, "connections"), rows)


def binary(bench: Bench) -> Result:
    """Windows as raw float32 instead of JSON; whoever does not read that yet is left out."""
    title = "Binary bodies, closed loop"
    with bench.servers(
        [kind for kind in bench.kinds if bench.tasks.predict_binary(kind.dialect)], "predict"
    ) as servers:
        entries, notes = [], []
        for server in servers:
            task = bench.tasks.predict_binary(server.kind.dialect)
            if task is not None and _reads(server, task):
                entries.append(Entry(server.name, server, task))
            else:
                notes.append(f"{server.name} does not read binary bodies.")
        if not entries:
            return Result(title, notes=[*notes, "Left out: no server that was chosen reads binary bodies."])
        bench.verify(entries)
        rows = bench.closed(entries, bench.options.connections)
    return Result(title, closed_tables(rows, "connections"), rows, notes)


def resources(bench: Bench) -> Result:
    """Start-up time, and memory once a load has been there; one server at a time."""
    rows: list[Row] = []
    for turn in range(bench.options.rounds):
        for kind in bench.kinds:
            say(f"round {turn + 1}/{bench.options.rounds}, start-up and memory of {kind.name}")
            with bench.server(kind, "predict") as (server, took):
                fresh = server.tree.memory()
                entry = Entry(server.name, server, bench.tasks.predict(kind.dialect))
                bench.closed_once(entry, MANY_CONNECTIONS)
                loaded = server.tree.memory()
            rows.append(
                {"label": kind.name, "ours": kind.ours, "cell": "", "round": turn, "start_s": took}
                | {"fresh_pss_mib": fresh.pss_mib}
                | asdict(loaded)
            )
    table = Table(
        "",
        [
            "server",
            "start to first answer, s",
            "PSS fresh, MiB",
            "PSS after load, MiB",
            "RSS after load, MiB",
            "processes",
        ],
        [
            [
                row["label"],
                number(row["start_s"]),
                number(row["fresh_pss_mib"]),
                number(row["pss_mib"]),
                number(row["rss_mib"]),
                f"{row['processes']:.0f}",
            ]
            for row in map(medians, by_cell(rows)[""].values())
        ],
    )
    notes = [f"After a closed loop at {MANY_CONNECTIONS} connections; sums over all processes of a server."]
    return Result("Start-up and memory", [table], rows, notes)


def limits(bench: Bench) -> Result:
    """How far Foretell is from what HTTP, JSON and the model cost alone."""
    answer_bytes = _answer_bytes(bench)
    bare = _bare_rows(bench)
    with bench.servers([*bench.ours, floor(answer_bytes)], "predict") as servers:
        entries = _predict_entries(bench, servers)
        bench.verify(entries)
        closed = bench.closed(entries, [MANY_CONNECTIONS])
    notes = [f"The floor answers with {answer_bytes} bytes, as many as Foretell. Model alone: `forward` on one thread."]
    return Result("Limits", _limit_tables(bare, closed), [*bare, *closed], notes)


def split(bench: Bench) -> Result:
    """Foretell in one process and in several, at one connection."""
    title = "Foretell in one process and in several, 1 connection"
    if len(bench.ours) < 2:
        note = (
            "Left out: give at least two variants, such as --foretell one --foretell split:FORETELL_HTTP_PROCESSES=1."
        )
        return Result(title, notes=[note])
    with bench.servers(bench.ours, "predict") as servers:
        entries = _predict_entries(bench, servers)
        bench.verify(entries)
        rows = bench.closed(entries, [1])
    return Result(title, closed_tables(rows, "connections"), rows)


def _predict_entries(bench: Bench, servers: Sequence[Server]) -> list[Entry]:
    return [
        Entry(
            server.name,
            server,
            bench.tasks.predict(server.kind.dialect),
            every=EVERY if server.kind.computes else 0,
        )
        for server in servers
    ]


def _forecast_entries(bench: Bench, server: Server) -> list[Entry]:
    """Foretell with both models, a peer with the one that it has."""
    own = Entry(server.name, server, bench.tasks.forecast_of(server.kind), every=10)
    if server.kind.sliding is None:
        return [own]
    task = bench.tasks.forecast(server.kind.sliding, FORECAST_STEPS, SLIDING)
    return [own, Entry(f"{server.name}, sliding", server, task, every=10)]


def _reads(server: Server, task: Task) -> bool:
    with awake(server):
        try:
            verify.ask(server.port, task, 0)
        except verify.NotServedError as error:
            if error.status == UNSUPPORTED_MEDIA_TYPE:
                return False
            raise
    return True


def _mix_table(rows: Sequence[Row]) -> Table:
    cells = by_cell([row for row in rows if row["name"] == "one step"])
    found = []
    for label, alone in ((label, medians(of)) for label, of in cells["alone"].items()):
        beside = medians(cells["beside"][label])
        long = medians([row for row in rows if row["label"] == label and row["name"] != "one step"])
        found.append(
            [
                label,
                number(alone["p50_ms"]),
                number(alone["p99_ms"]),
                number(beside["p50_ms"]),
                number(beside["p99_ms"]),
                number(beside["p99_ms"] / alone["p99_ms"]),
                number(long["p50_ms"]),
                number(long["unanswered"] + beside["unanswered"]),
            ]
        )
    columns = ["server", "p50 alone, ms", "p99 alone, ms", "p50 beside, ms", "p99 beside, ms", "p99 ratio"]
    return Table("", [*columns, f"p50 of {LONG_STEPS} steps, ms", "unanswered"], found)


def _answer_bytes(bench: Bench) -> int:
    """The size of a one-step answer, of Foretell where it is measured."""
    kind = (bench.ours or bench.kinds)[0]
    with bench.server(kind, "predict") as (server, _):
        return len(verify.ask(server.port, bench.tasks.predict(kind.dialect), 0))


def _bare_rows(bench: Bench) -> list[Row]:
    """The model alone, in a process of its own, with glibc as it is and with the pages of a pass kept."""
    found = []
    for turn in range(bench.options.rounds):
        for rows in (64, 1):
            for memory, variables in (("as it is", {}), ("pages kept", KEPT_PAGES)):
                say(f"round {turn + 1}/{bench.options.rounds}, model alone, {rows} windows, {memory}")
                rate = _bare(bench, rows, variables)
                label = f"model alone, {rows} a batch, memory {memory}"
                found.append({"label": label, "ours": False, "cell": rows, "round": turn, "windows_per_cpu_s": rate})
    return found


def _bare(bench: Bench, rows: int, variables: dict[str, str]) -> float:
    archive = bench.published.archives[CARRIED]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.serving.bare", str(archive), "--rows", str(rows)]
    done = subprocess.run(
        [*command, "--seconds", str(bench.options.seconds)],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    rate: float = json.loads(done.stdout)
    return rate


def _limit_tables(bare: Sequence[Row], closed: Sequence[Row]) -> list[Table]:
    """Processor time of the parts, and the rate that two cores could reach if there were nothing else."""
    alone = {row["label"]: row for of in by_cell(bare).values() for row in map(medians, of.values())}
    served = {label: medians(of) for label, of in by_cell(closed)[MANY_CONNECTIONS].items()}
    lone = served.pop("floor")
    window_s = 1 / max(row["windows_per_cpu_s"] for row in alone.values() if row["cell"] == 64)
    limit = CORES / (lone["server_cpu_s"] + window_s + lone["client_cpu_s"])
    parts = [
        ["floor: HTTP, JSON to float32", number(lone["server_cpu_s"] * 1e6), number(1 / lone["server_cpu_s"])],
        ["wrk", number(lone["client_cpu_s"] * 1e6), number(1 / lone["client_cpu_s"])],
    ]
    for label, row in alone.items():
        parts.append([label, number(1e6 / row["windows_per_cpu_s"]), number(row["windows_per_cpu_s"])])
    for label, row in served.items():
        parts.append([f"{label}, all of it", number(row["server_cpu_s"] * 1e6), number(1 / row["server_cpu_s"])])
    shares = [
        [label, number(row["rate"]), number(limit), f"{row['rate'] / limit:.0%}"] for label, row in served.items()
    ]
    return [
        Table("", ["part", "CPU µs each", "each CPU s"], parts),
        Table("", ["server", f"requests/s at {MANY_CONNECTIONS}", "two-core limit", "share"], shares),
    ]


SECTIONS: dict[str, Callable[[Bench], Result]] = {
    "predict": predict,
    "forecast": forecast,
    "mix": mix,
    "open": open_loop,
    "batch": batch,
    "binary": binary,
    "resources": resources,
    "limits": limits,
    "split": split,
}
