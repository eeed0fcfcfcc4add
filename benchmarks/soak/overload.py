"""What is left of the service under more than it can do: python -m benchmarks.soak overload --minutes 5 --factor 5

Capacity is what a closed loop gets out of it; then so many times that is offered in an open loop, and whoever is
refused goes away, as clients with a budget do. The generator is one process with an event loop and takes its part of
the same cores: what a request costs it is printed. So the requests are small and dear: a few hundred bytes that take
the engine some milliseconds, and the answers leave the attention out. With --apart the engine has a core to itself.
"""

import argparse
import os
import resource
import time
from pathlib import Path

import numpy as np
import orjson

from benchmarks.soak.table import markdown
from benchmarks.soak.watch import sample_of
from models.store import Store
from tests.app.asking import BOUNDED
from tests.app.serving import Process, process
from tests.builders import publish_tiny
from tests.chaos.client import Report, load
from tests.chaos.questions import Oracle, Question, _JsonFault

_SECONDS = 10.0
_JSON = {"Content-Type": "application/json"}


def overload(options: argparse.Namespace, folder: Path) -> int:
    """Print the tables; 1 where anything was wrong, lost or hung."""
    publish_tiny(Store(folder), **BOUNDED)
    asked = _dear(Oracle(folder), options.steps)
    settings = {"HTTP_PROCESSES": options.http_processes, "CACHE_BYTES": 0, "ACCESS_LOG": "false"}
    with process(folder, DEADLINE_MS=options.deadline_ms, **settings) as service:
        if options.apart:
            _set_apart(service)
        closed = _closed(service, asked, options.connections)
        before = _alone(service, asked)
        memory = _memory(service)
        capacity = closed.rate(closed.began + 1, closed.ended)
        used = _processor_s()
        with load(
            service.address,
            asked,
            connections=options.open_connections,
            rate=options.factor * capacity,
            impatient=True,
            deadline_s=options.deadline_ms / 1000 + 1,
        ) as asking:
            time.sleep(60 * options.minutes)
            asking.stop()
            report, spent = asking.report(), _processor_s() - used
        after = _alone(service, asked)
        again = _closed(service, asked, options.connections)
        grown = _memory(service)
    _tell(options, capacity, report, spent)
    print(
        markdown(
            ["", "before", "right after"],
            [
                ["one client alone, p50 ms", *(f"{1e3 * one.latency_s(0.5):.2f}" for one in (before, after))],
                ["p99 ms", *(f"{1e3 * one.latency_s(0.99):.2f}" for one in (before, after))],
                ["closed loop, answers/s", *(f"{one.rate(one.began + 1, one.ended):.0f}" for one in (closed, again))],
                ["PSS of all processes, MiB", f"{memory:.0f}", f"{grown:.0f}"],
            ],
        )
    )
    print(*report.faults, sep="\n")
    return 1 if report.bad or closed.bad or again.bad else 0


def _dear(oracle: Oracle, steps: int) -> list[Question]:
    """Single windows, small on the wire, that take a pass for each of many steps."""
    dice = np.random.default_rng(7)
    found = []
    for _ in range(64):
        window = dice.normal(10, 1, (1, 8, 1)).astype(np.float32).round(2)
        number = oracle.register(window, steps)
        oracle.digest("tiny", 1)
        oracle.right("tiny", 1, number)
        target = f"/forecast?model=tiny&steps={steps}&attention=none"
        body = orjson.dumps({"window": window[0].tolist()})
        found.append(Question("dear", target, body, _JSON, _JsonFault(oracle, "tiny", number, "forecast")))
    return found


def _set_apart(service: Process) -> None:
    """As where the engine has a device of its own: whoever refuses, or asks, takes nothing away from it."""
    engine, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, others)
    for name, child in service.children.items():
        for thread in Path(f"/proc/{child}/task").iterdir():
            os.sched_setaffinity(int(thread.name), [engine] if name.startswith("engine") else others)


def _closed(service: Process, asked: list[Question], connections: int) -> Report:
    with load(service.address, asked, connections=connections) as asking:
        time.sleep(_SECONDS)
    return asking.report()


def _alone(service: Process, asked: list[Question]) -> Report:
    with load(service.address, asked, connections=1, rate=None) as asking:
        time.sleep(_SECONDS / 2)
    return asking.report()


def _memory(service: Process) -> float:
    return sum(sample.pss_kib for sample in sample_of(service, 0.0)) / 1024


def _processor_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _tell(options: argparse.Namespace, capacity: float, report: Report, spent: float) -> None:
    seconds = report.ended - report.began
    asked = report.verdicts.total()
    goodput = report.rate(report.began + 1, report.ended)
    rows = [
        ["capacity, closed loop, answers/s", f"{capacity:.0f}"],
        ["offered, requests/s", f"{options.factor * capacity:.0f}"],
        ["sent, requests/s", f"{asked / seconds:.0f}"],
        ["not sent, since all connections were taken, requests/s", f"{report.unsent / seconds:.0f}"],
        ["goodput, right answers/s", f"{goodput:.0f}"],
        ["goodput : capacity", f"{goodput / capacity:.2f}"],
        ["accepted: p50 ms", f"{1e3 * report.latency_s(0.5):.0f}"],
        ["accepted: p99 ms", f"{1e3 * report.latency_s(0.99):.0f}"],
        ["refused: p50 ms", f"{1e3 * report.latency_s(0.5, 'refused'):.0f}"],
        ["refused: p99 ms", f"{1e3 * report.latency_s(0.99, 'refused'):.0f}"],
        ["the generator's processor time, µs a request", f"{1e6 * spent / max(asked, 1):.0f}"],
        ["the generator's share of a core, %", f"{100 * spent / seconds:.0f}"],
        *([what, number] for what, number in report.refusals.most_common()),
        *([what, number] for what, number in sorted(report.verdicts.items())),
    ]
    print(markdown([f"{options.factor:g} times for {options.minutes:g} minutes", ""], rows), end="\n\n")
