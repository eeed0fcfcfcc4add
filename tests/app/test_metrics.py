"""Metrics: what is counted, and what several processes have counted together."""

import asyncio
import fcntl
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

from prometheus_client.parser import text_string_to_metric_families

from app.counts import Ended
from app.metrics import Metrics
from app.settings import child_environment
from app.ticket import ModelId
from tests.app.serving import ROOT, metric
from tests.patience import PATIENCE_S

MODEL = ModelId("load", 2, "sha256:" + "0" * 64)

CHILD = """
import os, sys
from pathlib import Path
from app.metrics import Metrics
from app.ticket import ModelId

metrics = Metrics(Path(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    metrics.answered("POST", "/predict", 200, 0.003)
    metrics.passed(ModelId("load", 2, "sha256:0"), 8, 0.003)
metrics.waiting("cpu", int(sys.argv[2]))
print(os.getpid())
sys.stdin.read()
"""

SHOW = """
import asyncio, sys
from pathlib import Path
from app.metrics import Metrics

print(asyncio.run(Metrics(Path(sys.argv[1])).exposition()).decode())
"""


def started(code: str, folder: Path, *arguments: object) -> "subprocess.Popen[str]":
    """A process that counts."""
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), *map(str, arguments)],
        cwd=ROOT,
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def count_and_end(folder: Path, rows: int) -> int:
    """What a process had as its id that counted so much and was killed."""
    process = started(CHILD, folder, rows)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    return process.pid


def shown(folder: Path) -> str:
    """What a process that counted nothing itself shows."""
    text, _ = started(SHOW, folder).communicate(timeout=PATIENCE_S)
    return text


def test_counts() -> None:
    """Everything counted is in the exposition, under its labels."""
    metrics = Metrics()
    metrics.answered("POST", "/predict", 200, 0.003)
    metrics.answered("POST", "/predict", 503, 0.001)
    metrics.rejected("queue-full")
    metrics.waited(MODEL, 0.01)
    metrics.passed(MODEL, 8, 0.02)
    metrics.cached("hit")
    metrics.waiting("cpu", 3)
    text = asyncio.run(metrics.exposition()).decode()

    assert metric(text, "foretell_requests_total", method="POST", route="/predict", status="200") == 1
    assert metric(text, "foretell_request_seconds_count", route="/predict") == 2
    assert metric(text, "foretell_request_seconds_bucket", route="/predict", le="0.001") == 1
    assert metric(text, "foretell_rejected_total", reason="queue-full") == 1
    assert metric(text, "foretell_queue_seconds_sum", model="load", version="2") == 0.01
    assert metric(text, "foretell_pass_rows_sum", model="load", version="2") == 8
    assert metric(text, "foretell_cache_total", result="hit") == 1
    assert metric(text, "foretell_waiting_rows", device="cpu") == 3


def test_two_applications_count_apart() -> None:
    """Nothing is global."""
    one, other = Metrics(), Metrics()
    one.cached("hit")
    assert metric(asyncio.run(other.exposition()).decode(), "foretell_cache_total", result="hit") == 0


def test_states_and_processes_are_read_when_asked() -> None:
    """Versions in their state of the moment, and each process's own figures by its name; who has ended has none."""
    metrics = Metrics()
    version = SimpleNamespace(id=MODEL, state="loading")
    processes = {"service": os.getpid()}
    metrics.watch(
        lambda: [version], lambda: [("load", "production", 3, 2)], lambda: processes, lambda: True, lambda: False
    )
    version.state = "ready"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    processes["engine-0"] = ended.pid
    text = asyncio.run(metrics.exposition()).decode()

    assert metric(text, "foretell_model_state", model="load", version="2", state="ready") == 1
    assert metric(text, "foretell_model_state", state="loading") == 0
    assert metric(text, "foretell_ready") == 1
    assert "foretell_store_followed 0.0" in text
    assert metric(text, "foretell_alias_version", model="load", alias="production") == 3
    assert metric(text, "foretell_alias_serving_version", model="load", alias="production") == 2
    assert metric(text, "process_resident_memory_bytes", process="service") > 0
    assert metric(text, "process_resident_memory_bytes", process="engine-0") == 0


def test_processes_count_together(tmp_path: Path) -> None:
    """Counts are the sum of all processes' and outlive them; what one has at the moment goes with it."""
    first, second = started(CHILD, tmp_path, 3), started(CHILD, tmp_path, 4)
    assert first.stdout is not None
    assert second.stdout is not None
    first.stdout.readline()
    second.stdout.readline()
    together = shown(tmp_path)
    first.kill()
    first.communicate(timeout=PATIENCE_S)
    Ended(tmp_path).take(first.pid)
    assert not list(tmp_path.glob(f"*_{first.pid}.db"))
    after = shown(tmp_path)
    second.communicate(timeout=PATIENCE_S)

    for text in (together, after):
        assert metric(text, "foretell_requests_total", route="/predict", status="200") == 7
        assert metric(text, "foretell_pass_rows_sum", model="load", version="2") == 56
        assert metric(text, "foretell_pass_seconds_bucket", le="0.005") == 7
        families = Counter(family.name for family in text_string_to_metric_families(text))
        assert set(families.values()) == {1}
    assert metric(together, "foretell_waiting_rows", device="cpu") == 7
    assert metric(after, "foretell_waiting_rows", device="cpu") == 4


def test_many_that_ended_are_one(tmp_path: Path) -> None:
    """However many processes have ended, what they counted is in one file of each kind, and adds up."""
    ended = Ended(tmp_path)
    for rows in (1, 2, 3):
        ended.take(count_and_end(tmp_path, rows))
    assert sorted(path.name for path in tmp_path.glob("*.db")) == ["counter_ended.db", "histogram_ended.db"]
    assert metric(shown(tmp_path), "foretell_requests_total", route="/predict", status="200") == 6


def test_process_that_ends_while_somebody_reads(tmp_path: Path) -> None:
    """Its file stays for now: nobody waits for a reader that may have been stopped. It is added the next time."""
    ended = Ended(tmp_path)
    pid = count_and_end(tmp_path, 3)
    with (tmp_path / ".ended").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        ended.take(pid)
    assert (tmp_path / f"counter_{pid}.db").exists()
    assert metric(shown(tmp_path), "foretell_requests_total", route="/predict", status="200") == 3

    ended.take(count_and_end(tmp_path, 4))
    assert not list(tmp_path.glob(f"*_{pid}.db"))
    assert metric(shown(tmp_path), "foretell_requests_total", route="/predict", status="200") == 7


def test_room_to_count_in_is_there_from_the_start(tmp_path: Path) -> None:
    """A disk that is full later takes nothing away: the pages have their place."""
    process = started(CHILD, tmp_path, 3)
    assert process.stdout is not None
    process.stdout.readline()
    for path in tmp_path.glob("*.db"):
        assert path.stat().st_blocks * 512 >= 2**20
    process.kill()
    process.communicate(timeout=PATIENCE_S)
