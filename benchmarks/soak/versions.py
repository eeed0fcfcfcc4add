"""Versions that change under full load: python -m benchmarks.soak versions

A closed loop of wrk asks the shipped `weather` model by its alias, in turns while nothing changes and while its second
version is published or loaded, promoted, rolled back and unloaded over HTTP. Needs wrk.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import httpx

from benchmarks.soak.stage import ADMIN_KEY
from benchmarks.soak.table import markdown
from models.archive import digest_of
from models.store import ARCHIVE, Store
from tests.app.serving import ROOT, Process, process

NAME = "weather"
ALIAS = f"/models/{NAME}/aliases/production"
_SCRIPT = """
local file = assert(io.open("{body}", "rb"))
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = "application/json"
refused = 0
function response(status) if status ~= 200 then refused = refused + 1 end end
local threads = {{}}
function setup(thread) table.insert(threads, thread) end
function done(summary, latency)
  local errors, refusals = summary.errors, 0
  for _, thread in ipairs(threads) do refusals = refusals + thread:get("refused") end
  io.write(string.format("\\nFOUND %d %d %d %.4f %.4f %.4f\\n", summary.requests, refusals,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
"""


class Found(NamedTuple):
    """What wrk saw."""

    requests: int
    refused: int
    broken: int
    p50_ms: float
    p99_ms: float
    most_ms: float


def versions(options: argparse.Namespace, folder: Path) -> int:
    """Print the table; 1 where a request was not answered with 200."""
    require_wrk()
    store = Store(folder / "store")
    _publish(store, 1)
    script = folder / "post.lua"
    script.write_text(_SCRIPT.format(body=ROOT / "data" / "last-week.json"))
    settings = {"VERSIONS": "latest:1", "CACHE_BYTES": 0, "ACCESS_LOG": "false", "ADMIN_KEY": ADMIN_KEY, "POLL_S": 0.5}
    quiet, changing, changes = [], [], 0
    with process(store.root, HTTP_PROCESSES=options.http_processes, **settings) as service:
        administer = _administration(service)
        administer("PUT", ALIAS, {"version": 1})
        for round_ in range(options.rounds):
            quiet.append(_asked(service, script, options))
            over = threading.Event()
            counted = [0]
            how = {"publishes": round_ == 0, "pause_s": options.pause_s}
            worker = threading.Thread(target=_change, args=(administer, store, over, counted), kwargs=how)
            worker.start()
            changing.append(_asked(service, script, options))
            over.set()
            worker.join()
            changes += counted[0]
    rows = [
        [name, *(f"{statistics.median(getattr(found, field) for found in several):.1f}" for field in _FIELDS)]
        for name, several in (("nothing changes", quiet), ("versions change", changing))
    ]
    print(markdown(["median of rounds", "p50 ms", "p99 ms", "longest ms"], rows))
    ratios = sorted(busy.p99_ms / calm.p99_ms for calm, busy in zip(quiet, changing, strict=True))
    requests = sum(found.requests for found in (*quiet, *changing))
    faults = sum(found.refused + found.broken for found in (*quiet, *changing))
    print(f"\np99 ratio: median {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}")
    print(f"{requests} requests, {faults} not answered with 200; {changes} changes of versions and aliases")
    return 1 if faults else 0


_FIELDS = ("p50_ms", "p99_ms", "most_ms")


def _publish(store: Store, number: int) -> None:
    """A shipped version, as its publisher did."""
    content = (ROOT / "artifacts" / NAME / str(number) / ARCHIVE).read_bytes()

    def write(version: int, folder: Path) -> str:
        assert version == number
        (folder / ARCHIVE).write_bytes(content)
        return digest_of(content)

    store.publish(NAME, write)


def _administration(service: Process) -> Callable[..., None]:
    client = httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {ADMIN_KEY}"}, timeout=120)

    def administer(method: str, path: str, body: object = None) -> None:
        client.request(method, path, json=body).raise_for_status()

    return administer


def _change(
    administer: Callable[..., None],
    store: Store,
    over: threading.Event,
    counted: list[int],
    *,
    publishes: bool,
    pause_s: float,
) -> None:
    """Again and again: load the second version beside the first, promote it, roll back, unload it."""
    second = f"/models/{NAME}/versions/2"
    if publishes:
        _publish(store, 2)
    while not over.is_set():
        administer("POST", f"{second}/load", None)
        administer("PUT", ALIAS, {"version": 2})
        administer("POST", f"{ALIAS}/rollback", None)
        administer("POST", f"{second}/unload", None)
        counted[0] += 4
        over.wait(pause_s)


def _asked(service: Process, script: Path, options: argparse.Namespace) -> Found:
    url = f"{service.url}/predict?model={NAME}&version=production&attention=none"
    command = ["wrk", "-t1", f"-c{options.connections}", f"-d{options.seconds}s", "--latency", "-s", str(script), url]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"^FOUND (.*)$", output, re.MULTILINE)
    assert found is not None, output
    counts, times = found[1].split()[:3], found[1].split()[3:]
    return Found(*map(int, counts), *map(float, times))


def require_wrk() -> None:
    """Ends the command where there is none."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is needed; Debian and others have it as a package of that name")
