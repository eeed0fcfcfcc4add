"""What stands in front of the service adds how much? The same application asked directly, behind nginx and through Ray
Serve, with each of its two proxies.

    python -m benchmarks.serving.cluster --rounds 5

All of them run all the time and take turns in every cell of every round. Needs `wrk`, `nginx` and the extra `ray`.
"""

import argparse
import json
import os
import re
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil

from app.published import read
from app.settings import Settings
from deploy.ray.plan import contents, model_of

_PATIENCE_S = 180.0
_SETTINGS = {
    "FORETELL_DEVICE": "cpu",
    "FORETELL_VERSIONS": "weather:2",
    "FORETELL_CACHE_BYTES": "0",
    "FORETELL_ACCESS_LOG": "false",
    "FORETELL_LOG_LEVEL": "warning",
    "OMP_NUM_THREADS": "1",
}
_NGINX = """worker_processes 1; daemon off; pid {folder}/pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; client_body_buffer_size 1m;
  upstream foretell {{ {servers} keepalive 64; }}
  server {{ listen 127.0.0.1:{port}; location / {{
    proxy_pass http://foretell; proxy_http_version 1.1; proxy_set_header Connection "";
    proxy_next_upstream error timeout http_503 non_idempotent; }} }}
}}
"""
_LUA = """wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local file = assert(io.open("{body}", "rb"))
wrk.body = file:read("*a")
file:close()
"""
_FIGURES = {
    "rate": re.compile(r"Requests/sec:\s+([\d.]+)"),
    "p50": re.compile(r"50%\s+([\d.]+)(us|ms|s)"),
    "p99": re.compile(r"99%\s+([\d.]+)(us|ms|s)"),
}
_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


class Figures(NamedTuple):
    """Of one cell of one round."""

    rate: float
    p50_ms: float
    p99_ms: float


def serve_on_ray(port: int, replicas: int) -> None:
    """Be a Ray cluster of this machine that serves, until standard input ends."""
    import ray
    from ray import serve

    from deploy.ray.serve import ACTOR, Replica

    folder = tempfile.mkdtemp(prefix="r-")
    try:
        ray.init(
            num_cpus=4,
            object_store_memory=100 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=folder,
            # Ray would have its workers give way to all the others here, and be slower for that alone.
            _system_config={"worker_niceness": 0},
        )
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"enable_access_log": False})
        environment = {**ACTOR["runtime_env"]["env_vars"], **_SETTINGS}
        options = {"num_cpus": 1, "runtime_env": {"env_vars": environment}}
        serve.run(
            Replica.options(num_replicas=replicas, autoscaling_config=None, ray_actor_options=options).bind(),
            logging_config={"enable_access_log": False},
        )
        sys.stdin.read()
        serve.shutdown()
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def started(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A server of some processes, ended with all of them."""
    running = subprocess.Popen(
        command, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=sys.stderr
    )
    try:
        yield running
    finally:
        family = psutil.Process(running.pid).children(recursive=True)
        if running.stdin is not None:
            running.stdin.close()
        if command[1:] == ["-m", "app"] or command[0] == "nginx":
            running.terminate()
        try:
            running.wait(60)
        except subprocess.TimeoutExpired:
            running.kill()
        for process in psutil.wait_procs(family, timeout=10)[1]:
            process.kill()


def free_port() -> int:
    """One that was free a moment ago."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def example() -> dict[str, Any]:
    """The model's own: a window, when it was, and what is to come of it."""
    store = read(Settings.read())
    model, _ = model_of(store, "weather", "2")
    with store.opened(model.name, model.version) as archive:
        spec, _ = contents(archive, model)
    return {"window": spec.example.window, "start": spec.example.start and spec.example.start.isoformat()}


def wait_for(url: str, body: bytes, path: str) -> list[list[float]]:
    """Its answer, once it answers."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            answer = httpx.post(f"{url}{path}", content=body, headers={"Content-Type": "application/json"}, timeout=60)
            if answer.status_code == 200:
                told = answer.json()
                return told["forecast"] if "forecast" in told else [told["prediction"]]
        except httpx.TransportError:
            pass
        if time.monotonic() > end:
            raise RuntimeError(f"{url} does not answer")
        time.sleep(0.2)


def load(url: str, path: str, connections: int, seconds: int, script: Path) -> Figures:
    """A closed loop; RuntimeError for any answer but 200."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", "--timeout", "60s", "-s", str(script)]
    said = subprocess.run([*command, url + path], capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(f"{url}:\n{said}")
    rate = _FIGURES["rate"].search(said)
    times = [_FIGURES[name].search(said) for name in ("p50", "p99")]
    if rate is None or None in times:
        raise RuntimeError(said)
    p50, p99 = (float(one[1]) * _MS[one[2]] for one in times if one)
    return Figures(float(rate[1]), p50, p99)


def idle(server: subprocess.Popen[bytes], seconds: float = 5.0) -> float:
    """The share of a core that all its processes take while nobody asks."""

    def spent() -> float:
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in family if process.is_running())

    before = spent()
    time.sleep(seconds)
    return (spent() - before) / seconds


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.cluster", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--path", nargs="+", default=["/predict", "/forecast?steps=24"])
    parser.add_argument("--ray", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--replicas", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ray:
        serve_on_ray(given.ray, given.replicas)
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="c-")))
        body = json.dumps(example()).encode()
        (folder / "body").write_bytes(body)
        script = folder / "post.lua"
        script.write_text(_LUA.format(body=folder / "body"))
        commands = plans(folder)
        servers = {name: stack.enter_context(started(*how)) for name, how in commands.items()}
        urls = {name: f"http://127.0.0.1:{port}" for name, port in _ports(commands).items()}
        for path in given.path:
            answers = {name: wait_for(url, body, path) for name, url in urls.items()}
            first = next(iter(answers.values()))
            for name, answer in answers.items():
                if answer != first:
                    raise RuntimeError(f"{name} answers {path} differently")
        print("idle:", ", ".join(f"{name} {idle(servers[name]):.1%} of a core" for name in urls), flush=True)
        found: dict[tuple[str, int, str], list[Figures]] = {}
        for number in range(-1, given.rounds):
            for path in given.path:
                for connections in given.connections:
                    for name, url in urls.items():
                        figures = load(url, path, connections, given.seconds, script)
                        if number >= 0:  # the first warms
                            found.setdefault((path, connections, name), []).append(figures)
        tell(found)


def plans(folder: Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    """How each is started: the command, and what it finds in its environment."""
    # One process for everything, as a replica on Ray is.
    alone = {**_SETTINGS, "FORETELL_HTTP_PROCESSES": "0", "FORETELL_GRACE_S": "0"}
    service = [sys.executable, "-m", "app"]
    behind = [free_port(), free_port()]
    nginx = free_port()
    upstream = " ".join(f"server 127.0.0.1:{port} max_fails=0;" for port in behind)
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, port=nginx, servers=upstream))
    ray = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    proxies = {"Ray Serve": {}, "Ray Serve, HAProxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1"}}
    return {
        "app": (service, {**alone, "FORETELL_PORT": str(free_port())}),
        **{f"behind {port}": (service, {**alone, "FORETELL_PORT": str(port)}) for port in behind},
        "nginx, 2 replicas": (["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)], {"PORT": str(nginx)}),
        **{
            name: (
                [sys.executable, "-m", "benchmarks.serving.cluster", "--ray", str(free_port())],
                {**ray, **more, "RAY_AUTH_TOKEN": secrets.token_hex(32)},
            )
            for name, more in proxies.items()
        },
    }


def _ports(commands: Mapping[str, tuple[list[str], dict[str, str]]]) -> dict[str, int]:
    """Of those that are measured."""
    found = {}
    for name, (command, environment) in commands.items():
        if not name.startswith("behind"):
            port = environment.get("PORT") or environment.get("FORETELL_PORT") or command[-1]
            found[name] = int(port)
    return found


def tell(found: Mapping[tuple[str, int, str], Sequence[Figures]]) -> None:
    """Medians, and what they are of those of the service itself."""
    for (path, connections, name), rounds in found.items():
        rate, p50, p99 = (statistics.median(one) for one in zip(*rounds, strict=True))
        ratios = [one.p50_ms / base.p50_ms for one, base in zip(rounds, found[path, connections, "app"], strict=True)]
        rates = [one.rate / base.rate for one, base in zip(rounds, found[path, connections, "app"], strict=True)]
        print(
            f"{path} c={connections} {name}: {rate:.0f}/s (x{statistics.median(rates):.2f}), p50 {p50:.2f} ms "
            f"(x{statistics.median(ratios):.2f}), p99 {p99:.2f} ms"
        )
    print("load average:", " ".join(f"{one:.1f}" for one in os.getloadavg()))


if __name__ == "__main__":
    main()
