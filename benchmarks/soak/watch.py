"""Memory, open files and threads of every process of a service, sampled into a CSV file."""

import csv
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.app.serving import Process

_EVERY_S = 5.0
_KINDS = ("Pss:", "Rss:", "Anonymous:")


class Sample(NamedTuple):
    """Of one process, at a moment."""

    at_s: float
    process: str
    pid: int
    pss_kib: int
    rss_kib: int
    anonymous_kib: int
    """What is its own, whoever else maps the same libraries."""
    files: int
    threads: int


class Drift(NamedTuple):
    """How a sum over all processes has moved, in percent of where it began."""

    first: float
    """Mean of the first tenth of the samples."""
    last: float
    """Of the last tenth."""
    tenths: float
    """The last over the first."""
    slope: float
    """A straight line through all of them, at its end over at its beginning."""


@contextmanager
def watched(service: Process, path: Path, *, every_s: float = _EVERY_S) -> Iterator[list[Sample]]:
    """Samples as they come; the file has them, too."""
    samples: list[Sample] = []
    stopped = threading.Event()
    began = time.monotonic()

    def watch() -> None:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(Sample._fields)
            while not stopped.wait(every_s):
                for sample in sample_of(service, time.monotonic() - began):
                    samples.append(sample)
                    writer.writerow(sample)
                file.flush()

    thread = threading.Thread(target=watch, name="watch")
    thread.start()
    try:
        yield samples
    finally:
        stopped.set()
        thread.join()


def sample_of(service: Process, at_s: float) -> list[Sample]:
    """What each process has now; one that ends meanwhile is left out."""
    found = []
    for name, pid in {"supervisor": service.running.pid, **service.children}.items():
        with suppress(OSError, KeyError):
            folder = Path(f"/proc/{pid}")
            memory = dict(line.split()[:2] for line in (folder / "smaps_rollup").read_text().splitlines()[1:])
            counts = [len(os.listdir(folder / kind)) for kind in ("fd", "task")]  # noqa: PTH208  names alone
            found.append(Sample(at_s, name, pid, *(int(memory[kind]) for kind in _KINDS), *counts))
    return found


def drift(samples: list[Sample], field: str, *, from_s: float) -> Drift | None:
    """Of the sum over all processes from then on, at the moments when all of them were there; None of too few."""
    moments: dict[float, list[Sample]] = {}
    for sample in samples:
        if sample.at_s >= from_s:
            moments.setdefault(sample.at_s, []).append(sample)
    most = max((len(one) for one in moments.values()), default=0)
    whole = [(at, sum(getattr(sample, field) for sample in one)) for at, one in moments.items() if len(one) == most]
    if len(whole) < 10:
        return None
    at, values = (np.array(column, float) for column in zip(*sorted(whole), strict=True))
    tenth = max(1, len(values) // 10)
    first, last = float(values[:tenth].mean()), float(values[-tenth:].mean())
    slope, start = np.polyfit(at - at[0], values, 1)
    return Drift(first, last, 100 * (last / first - 1), 100 * slope * (at[-1] - at[0]) / start)
