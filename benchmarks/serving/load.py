"""The two loads: closed loop by wrk, open loop by `openloop.py`; each a process of its own, each checking answers."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.dialects import Request, Task, WrongAnswerError
from benchmarks.serving.servers import ROOT, Server

HERE = Path(__file__).parent
_PATIENCE_S = 10.0


class LoadError(Exception):
    """The load could not be made as asked."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed loop: every connection sends again as soon as it has its answer.

    wrk's percentiles are corrected by wrk itself: an answer that took more than twice the mean counts for the ones
    that its connection did not send meanwhile. They can be compared with each other, not with those of the open loop.
    """

    requests: int
    rate: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    checked: int
    server_cpu_s: float
    """Of one request, over all processes of the server."""
    client_cpu_s: float
    """Of one request, wrk's own."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """One stream of an open loop."""

    name: str
    task: Task
    rate: float
    connections: int
    every: int = 20


def require_wrk() -> None:
    """LoadError where there is no wrk."""
    if shutil.which("wrk") is None:
        raise LoadError("wrk is needed for the closed loop; Debian and others have it as a package of that name")


def closed(server: Server, task: Task, folder: Path, *, connections: int, seconds: float, every: int) -> Closed:
    """Load a server with wrk; WrongAnswerError for any answer but 200, or a sample that is wrong."""
    plan, summary = _write_plan(task, folder, every)
    url = f"http://127.0.0.1:{server.port}/"
    # wrk counts in whole seconds.
    duration = f"{max(1, round(seconds))}s"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{duration}", "--timeout", "60s", "-s", str(HERE / "post.lua")]
    summary.unlink(missing_ok=True)
    before = server.tree.cpu_s()
    status, output, client_cpu_s = _run([*command, url, "--", str(plan)], seconds + 90)
    used = server.tree.cpu_s() - before
    if status != 0 or not summary.exists():
        raise LoadError(f"wrk on {server.name}: status {status}\n{output}")
    line, _, sample = summary.read_text(errors="replace").partition("\n")
    found = json.loads(line)
    if found["wrong"] or found["refused"] or found["broken"]:
        where = f"{server.name} at {connections} connections"
        raise WrongAnswerError(f"{where}: {line} {sample}\n{server.tree.last_lines()}")
    if found["requests"] == 0:
        raise WrongAnswerError(f"{server.name} at {connections} connections answered nothing in {duration}")
    requests = found["requests"]
    return Closed(
        requests=requests,
        rate=requests / found["duration_s"],
        p50_ms=found["p50_ms"],
        p99_ms=found["p99_ms"],
        max_ms=found["max_ms"],
        checked=found["checked"],
        server_cpu_s=used / requests,
        client_cpu_s=client_cpu_s / requests,
    )


def opened(
    server: Server, streams: Sequence[Arrivals], folder: Path, *, seconds: float, poisson: bool
) -> list[dict[str, Any]]:
    """Load a server with streams at fixed rates; for each what `openloop.outcome` says."""
    plan, result = folder / "open.json", folder / "open-result.json"
    result.unlink(missing_ok=True)
    described = [
        {
            "name": stream.name,
            "port": server.port,
            "rate": stream.rate,
            "connections": stream.connections,
            "every": stream.every,
            "poisson": poisson,
            "task": stream.task.to_json(),
        }
        for stream in streams
    ]
    plan.write_text(json.dumps({"seconds": seconds, "patience_s": _PATIENCE_S, "streams": described}))
    command = [sys.executable, "-m", "benchmarks.serving.openloop", str(plan), str(result)]
    before = server.tree.cpu_s()
    status, output, _ = _run(command, seconds + _PATIENCE_S + 60)
    used = server.tree.cpu_s() - before
    if status != 0:
        raise WrongAnswerError(f"{server.name} in the open loop: {output}\n{server.tree.last_lines()}")
    found = json.loads(result.read_text())
    return [stream | {"server_cpu_s": used, "client_cpu_s": found["cpu_s"]} for stream in found["streams"]]


def _run(command: Sequence[str], patience_s: float) -> tuple[int, str, float]:
    """Exit status, output and processor time of a command that has to end by itself."""
    before = _children_cpu_s()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=patience_s)
    except subprocess.TimeoutExpired as error:
        raise LoadError(f"{' '.join(command)} did not end") from error
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return process.returncode, output, _children_cpu_s() - before


def _children_cpu_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _write_plan(task: Task, folder: Path, every: int) -> tuple[Path, Path]:
    """The plan of `post.lua`, and where it will write."""
    bodies, plan, summary = folder / "bodies", folder / "plan.lua", folder / "summary"
    bodies.write_bytes(b"".join(request.body for request in task.requests))
    start, requests = 0, []
    for request in task.requests:
        requests.append(_lua_request(request, start))
        start += len(request.body)
    plan.write_text(
        "return {\n"
        f"bodies = {_quoted(str(bodies))}, summary = {_quoted(str(summary))}, every = {every},\n"
        f"fields = {_lua([field.pattern for field in task.fields])},\n"
        f"tolerances = {_lua(task.tolerances)},\n"
        f"expected = {_lua(task.expected)},\n"
        f"requests = {{{','.join(requests)}}},\n"
        "}\n"
    )
    return plan, summary


def _lua_request(request: Request, start: int) -> str:
    headers = ",".join(f"[{_quoted(name)}]={_quoted(value)}" for name, value in request.headers.items())
    return f"{{path={_quoted(request.path)},headers={{{headers}}},start={start},length={len(request.body)}}}"


def _lua(value: object) -> str:
    """Lists, texts and numbers as Lua writes them."""
    if isinstance(value, list):
        return f"{{{','.join(_lua(item) for item in value)}}}"
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
