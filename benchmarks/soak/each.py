"""Every fault several times, one after the other, under a steady load: the table of docs/reliability.md."""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.soak.stage import Stage, stage
from benchmarks.soak.table import markdown, median_and_most
from tests.app.asking import window_of
from tests.app.serving import wait_until
from tests.chaos import archives, faults
from tests.chaos.client import Report, load
from tests.chaos.faults import Fault, MissingError, Scene
from tests.chaos.questions import Oracle, Question, forecasts

_BEFORE_S = 2.5
_DURING_S = 3.0
_AFTER_S = 2.5


@contextmanager
def window_crashes(scene: Scene) -> Iterator[None]:
    """A window that makes the network read where it must not: its engine dies."""
    _misdeed(scene, archives.CRASHES)
    yield
    wait_until(scene.service.is_ready)


@contextmanager
def window_hangs(scene: Scene) -> Iterator[None]:
    """A window on which the network never ends."""
    _misdeed(scene, archives.HANGS)
    yield
    wait_until(scene.service.is_ready)


def _misdeed(scene: Scene, deed: float) -> None:
    window = window_of(0)
    window[0][0] = deed
    engine = scene.service.children["engine-0"]
    scene.asking.injected()
    answer = httpx.post(f"{scene.service.url}/predict", json={"window": window}, timeout=60)
    assert answer.status_code == 503, answer.text
    wait_until(lambda: scene.service.children.get("engine-0", engine) != engine)


GROUPS: Mapping[str, Sequence[Fault]] = {
    "surroundings": (
        *faults.OF_PROCESSES,
        faults.many_connections,
        faults.disk_full,
        *faults.OF_THE_INDEX,
        faults.clock_leaps,
    ),
    "Redis": faults.OF_REDIS,
    "networks": (window_crashes, window_hangs),
}
"""Each with a service of its own."""
NAMES = [fault.__name__ for group in GROUPS.values() for fault in group]


def measure(options: argparse.Namespace, folder: Path) -> int:
    """Print the table; 1 where anything was wrong, lost or hung."""
    found: dict[str, list[Report]] = {}
    for name, group in GROUPS.items():
        chosen = [fault for fault in group if not options.only or fault.__name__ in options.only]
        if not chosen:
            continue
        # Who has killed three engines is taken out, so that each time begins anew there.
        stages, times = (options.repeat, 1) if name == "networks" else (1, options.repeat)
        for number in range(stages):
            place = folder / f"{name}-{number}"
            place.mkdir()
            with stage(place, armed=name == "networks", cached=name == "Redis") as there:
                for fault, report in _each(there, chosen, times, options.rate):
                    found.setdefault(fault.__name__, []).append(report)
    print(_table(found))
    if options.json:
        options.json.write_text(json.dumps({name: [_raw(one) for one in reports] for name, reports in found.items()}))
    bad = {name: Counter[str]() for name in found}
    for name, reports in found.items():
        for report in reports:
            bad[name].update(report.bad)
            print(*(f"{name}: {fault}" for fault in report.faults[:3]), sep="\n", file=sys.stderr, end="")
    return 1 if any(bad.values()) else 0


def _each(there: Stage, chosen: Sequence[Fault], times: int, rate: float) -> Iterator[tuple[Fault, Report]]:
    asked = forecasts(Oracle(there.store), count=64)
    for _ in range(times):
        for fault in chosen:
            wait_until(there.service.is_ready)
            try:
                yield fault, _once(there, fault, asked, rate)
            except MissingError as missing:
                print(f"{fault.__name__}: this machine has no {missing}", file=sys.stderr)


def _once(there: Stage, fault: Fault, asked: Sequence[Question], rate: float) -> Report:
    with load(there.service.address, asked, connections=48, rate=rate) as asking:
        time.sleep(_BEFORE_S)
        with fault(there.scene(asking)):
            assert asking.fault_at is not None
            time.sleep(max(0.0, asking.fault_at + _DURING_S - time.monotonic()))
        time.sleep(_AFTER_S)
    return asking.report()


def _table(found: dict[str, list[Report]]) -> str:
    columns = [
        "fault", "times", "asked", "refused", "with", "lost with their process", "late, wrong, lost, hung",
        "first right answer s", "rate back s", "longest gap s",
    ]  # fmt: skip
    rows = []
    for name, reports in found.items():
        verdicts, refusals = Counter[str](), Counter[str]()
        for report in reports:
            verdicts.update(report.verdicts)
            refusals.update(report.refusals)
        recoveries = [report.recovery(report.fault_at or 0.0) for report in reports]
        rates = [one.full_rate_s for one in recoveries if one.full_rate_s is not None]
        bad = sum(sum(report.bad.values()) for report in reports)
        rows.append(
            [
                name.replace("_", " "),
                len(reports),
                verdicts.total(),
                verdicts["refused"],
                ", ".join(sorted(refusals)) or "-",
                verdicts["unavoidable"],
                bad,
                median_and_most([one.first_right_s for one in recoveries]),
                median_and_most(rates) + ("" if len(rates) == len(reports) else f" ({len(reports) - len(rates)} not)"),
                median_and_most([one.gap_s for one in recoveries]),
            ]
        )
    return markdown(columns, rows)


def _raw(report: Report) -> dict[str, Any]:
    recovery = report.recovery(report.fault_at or 0.0)
    return {"verdicts": report.verdicts, "refusals": report.refusals, "recovery": recovery.__dict__}
