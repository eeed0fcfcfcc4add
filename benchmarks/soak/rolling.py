"""Two replicas behind nginx, restarted in turn under load: python -m benchmarks.soak rolling"""

import argparse
from contextlib import closing
from pathlib import Path

from benchmarks.soak.table import markdown
from models.store import Store
from tests.app.asking import BOUNDED
from tests.builders import publish_tiny
from tests.chaos.client import load
from tests.chaos.questions import Oracle, forecasts
from tests.chaos.replicas import Replicas, nginx


def rolling(options: argparse.Namespace, folder: Path) -> int:
    """Print the table; 1 where a request was not answered rightly."""
    store = folder / "store"
    publish_tiny(Store(store), **BOUNDED)
    asked = forecasts(Oracle(store))
    with closing(Replicas(store, 2, HTTP_PROCESSES=1, GRACE_S=options.grace_s, CACHE_BYTES=0)) as replicas:
        with (
            nginx(folder, replicas.ports) as address,
            load(address, asked, connections=32, rate=options.rate) as asking,
        ):
            statuses = [replicas.restart(number) for _ in range(options.rounds) for number in (0, 1)]
            asking.wait_for_right(100)
        report = asking.report()
    rows = [
        ["restarts", len(statuses)],
        ["exit statuses", ", ".join(sorted({str(status) for status in statuses}))],
        *sorted(report.verdicts.items()),
        *report.refusals.most_common(),
        ["p50 ms", f"{1e3 * report.latency_s(0.5):.1f}"],
        ["p99 ms", f"{1e3 * report.latency_s(0.99):.1f}"],
        ["slowest ms", f"{1e3 * report.latency_s(1.0):.0f}"],
    ]
    print(markdown([f"rolling restart at {options.rate:g} requests/s", ""], rows))
    print(*report.faults, sep="\n")
    return 0 if set(report.verdicts) == {"right"} and set(statuses) == {0} else 1
