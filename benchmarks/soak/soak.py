"""An hour, or as long as wanted, of mixed load with faults at random: python -m benchmarks.soak --minutes 60"""

import argparse
import contextlib
import json
import random
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.soak import mix
from benchmarks.soak.crowd import rude
from benchmarks.soak.stage import ADMIN_KEY, Stage, stage
from benchmarks.soak.table import markdown, median_and_most
from benchmarks.soak.watch import Sample, drift, watched
from models.store import Store
from tests.app.asking import BOUNDED
from tests.app.serving import wait_until
from tests.builders import publish_tiny
from tests.chaos import faults
from tests.chaos.client import BAD, Load, Recovery, Report, load
from tests.chaos.faults import Fault, MissingError
from tests.chaos.questions import Oracle

FAULTS: tuple[Fault, ...] = (
    *faults.OF_PROCESSES,
    *faults.OF_REDIS,
    faults.many_connections,
    faults.disk_full,
    *faults.OF_THE_INDEX,
    faults.clock_leaps,
)
_AFTER_S = 10.0
_WARM_S = 20.0
_SETTLED_S = 300.0
"""Or a tenth of the whole: memory is looked at from then on. Before, everything happens for the first time."""


@dataclass
class Story:
    """What was done to the service."""

    injected: list[tuple[str, float, float]] = field(default_factory=list)
    """Fault, when, and when the next one came at the earliest (time.monotonic())."""
    left_out: Counter[str] = field(default_factory=Counter)
    published: int = 0
    administered: Counter[str] = field(default_factory=Counter)
    """Status of each request of administration."""
    broken_off: str = ""
    """Why the service was not waited for any longer, after the last of these faults."""


def soak(options: argparse.Namespace, folder: Path) -> int:
    """Run it, print the tables; 1 where anything was wrong, lost or hung."""
    dice = random.Random(options.seed)
    story = Story()
    with ExitStack() as stack:
        there = stack.enter_context(stage(folder, CACHE_TTL_S=1))
        oracle = Oracle(there.store)
        asked = mix.mixed(oracle)
        samples = stack.enter_context(watched(there.service, options.csv))
        stack.enter_context(rude(there.service.address, asked, dice))
        asking = stack.enter_context(
            load(there.service.address, asked, connections=options.connections, rate=options.rate)
        )
        end = time.monotonic() + 60 * options.minutes
        time.sleep(min(_WARM_S, 10 * options.minutes))
        try:
            while time.monotonic() < end:
                _one_fault(there, asking, dice, story)
                if options.versions:
                    _change_versions(there, oracle, dice, story)
                time.sleep(dice.uniform(*options.between))
        except AssertionError as error:
            # What came until then is what tells why.
            story.broken_off = str(error)
        asking.stop()
        log = [str(line["message"]) for line in there.service.logs if line["level"] in ("ERROR", "CRITICAL")]
    report = asking.report()
    _tell(report, story, samples, log, min(_SETTLED_S, 6 * options.minutes))
    if options.json:
        options.json.write_text(json.dumps({"verdicts": report.verdicts, "faults": report.faults, "log": log}))
    return 1 if report.bad or story.broken_off else 0


def _one_fault(there: Stage, asking: Load, dice: random.Random, story: Story) -> None:
    fault = dice.choice(FAULTS)
    wait_until(there.service.is_ready)
    began = time.monotonic()
    try:
        with fault(there.scene(asking)):
            time.sleep(dice.uniform(0.5, 5))
        wait_until(there.service.is_ready)
        asking.wait_for_right()
        time.sleep(_AFTER_S)
    except MissingError:
        story.left_out[fault.__name__] += 1
        return
    except AssertionError:
        story.injected.append((fault.__name__, began, time.monotonic()))
        raise
    story.injected.append((fault.__name__, began, time.monotonic()))


def _change_versions(there: Stage, oracle: Oracle, dice: random.Random, story: Story) -> None:
    """A new version now and then; an older one unloaded and loaded again, and the alias moved, as an operator would."""
    store = Store(there.store)
    versions = oracle.versions(mix.PLAIN)
    if dice.random() < 0.3:
        version = publish_tiny(store, mix.PLAIN, **BOUNDED, seed=dice.randrange(1000))
        # Before anybody answers with it, so that the generator need not stop to read it.
        oracle.spec(mix.PLAIN, version) if oracle.digest(mix.PLAIN, version) else None
        story.published += 1
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    path = f"{there.service.url}/models/{mix.PLAIN}"
    with contextlib.suppress(httpx.TransportError):
        answers = [
            httpx.put(f"{path}/aliases/production", json={"version": versions[-1]}, headers=headers, timeout=60),
            httpx.post(f"{path}/versions/{versions[0]}/unload", headers=headers, timeout=60),
            httpx.post(f"{path}/versions/{versions[0]}/load", headers=headers, timeout=60),
        ]
        story.administered.update(f"{answer.request.method} {answer.status_code}" for answer in answers)


def _tell(report: Report, story: Story, samples: list[Sample], log: list[str], settled_s: float) -> None:
    total = report.verdicts.total()
    if story.broken_off:
        print(f"broken off after {story.injected[-1][0] if story.injected else 'no fault'}: {story.broken_off}\n")
    print(f"{total} requests in {(report.ended - report.began) / 60:.1f} minutes, {len(story.injected)} faults\n")
    verdicts = [[name, number, f"{100 * number / total:.3f}"] for name, number in report.verdicts.most_common()]
    print(markdown(["verdict", "requests", "%"], verdicts), end="\n\n")
    print(markdown(["refusal", "requests"], report.refusals.most_common()), end="\n\n")
    print(f"right answers: p50 {_ms(report, 0.5)}, p99 {_ms(report, 0.99)}, p99.9 {_ms(report, 0.999)}\n")
    recoveries: dict[str, list[Recovery]] = {}
    for name, began, ended in story.injected:
        events = [event for event in report.events if began <= event.done_at <= ended]
        recoveries.setdefault(name, []).append(Report(events, began, ended).recovery(began))
    rows = [
        [
            name.replace("_", " "),
            len(of),
            sum(one.failures for one in of),
            median_and_most([one.first_right_s for one in of]),
            median_and_most([one.gap_s for one in of]),
        ]
        for name, of in sorted(recoveries.items())
    ]
    columns = ["fault", "times", "not answered rightly", "first right answer s", "longest gap s"]
    print(markdown(columns, rows), end="\n\n")
    if story.left_out:
        print(f"left out for want of something: {dict(story.left_out)}\n")
    if story.published or story.administered:
        print(f"published: {story.published}; administration: {dict(story.administered)}\n")
    rows = []
    for name in ("anonymous_kib", "pss_kib", "rss_kib", "files", "threads"):
        if (moved := drift(samples, name, from_s=settled_s)) is not None:
            scale = 1024 if name.endswith("kib") else 1
            rows.append(
                [
                    name.replace("_kib", " MiB"),
                    f"{moved.first / scale:.1f}",
                    f"{moved.last / scale:.1f}",
                    f"{moved.tenths:+.1f}",
                    f"{moved.slope:+.1f}",
                ]
            )
    print(
        markdown(
            [f"all processes, from {settled_s:.0f} s on", "first tenth", "last tenth", "change %", "linear fit %"], rows
        ),
        end="\n\n",
    )
    bad = Counter((event.verdict, *_after(story, event.done_at)) for event in report.events if event.verdict in BAD)
    if bad:
        rows = [[verdict, number, fault, seconds] for (verdict, fault, seconds), number in bad.most_common(40)]
        print(markdown(["what no fault excuses", "requests", "last fault before", "s after it"], rows), end="\n\n")
    said = Counter(line[:100] for line in log)
    print(markdown(["error in the log", "times"], said.most_common(20)), end="\n\n")
    print(*report.faults, sep="\n")


def _after(story: Story, moment: float) -> tuple[str, int]:
    """The last fault that began before, and how many seconds before."""
    before = [(name.replace("_", " "), began) for name, began, _ in story.injected if began <= moment]
    return (before[-1][0], round(moment - before[-1][1])) if before else ("none", 0)


def _ms(report: Report, share: float) -> str:
    return f"{1e3 * report.latency_s(share):.1f} ms"
