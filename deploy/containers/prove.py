"""Goes through the Dockerfile's steps without Docker, and runs what comes of them as the image would be run.

    sudo python -m deploy.containers.prove /var/tmp/proof --build-arg TORCH_VARIANT=cpu

By hand, as root, on Debian with `debootstrap`; it takes some minutes and 4 GB (CPU). In place of python:3.11-slim there
is a debootstrap root with Debian's Python. A folder that has one from before is built upon. The machine's own pip
settings (PIP_...) hold inside. The service then runs as the image's user, on a read-only root with a /tmp, without a
capability.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deploy.containers.dockerfile import DockerfileError, Ignored, Instruction, Stage, sent, stages

ROOT = Path(__file__).parents[2]
_PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PATIENCE_S = 120.0
_CHROOT = shutil.which("chroot", path=_SYSTEM_PATH) or "chroot"


class ProofError(Exception):
    """What did not hold."""


def say(text: str) -> None:
    """A line of progress."""
    sys.stdout.write(f"== {text}\n")
    sys.stdout.flush()


def main() -> None:
    """Exit status 1, with the reason, where something does not hold."""
    parser = argparse.ArgumentParser(description="The Dockerfile's steps, without Docker.")
    parser.add_argument("folder", type=Path, help="for the roots; `base` in it is kept for the next time")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--port", type=int, default=8440)
    parser.add_argument("--only-run", action="store_true", help="what was built the last time")
    parser.add_argument("--apart", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.apart:
        # What it mounts is nobody else's to see, and gone with it, however it ends.
        again = [sys.executable, "-m", "deploy.containers.prove", *sys.argv[1:], "--apart"]
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", *again])
    try:
        found = stages((ROOT / "Dockerfile").read_text())
        if not given.only_run:
            _build(found, given.folder.resolve(), dict(argument.split("=", 1) for argument in given.build_arg))
        final = given.folder.resolve() / found[-1].name
        _measure(final)
        _run(found[-1], final, given.port)
    except (ProofError, DockerfileError, subprocess.CalledProcessError, OSError) as error:
        sys.exit(f"it does not hold: {error}")
    say("all of it holds")


# Building


def _build(found: list[Stage], folder: Path, arguments: Mapping[str, str]) -> None:
    base = folder / "base"
    if not (base / "usr/bin/python3").exists():
        say("debootstrap")
        subprocess.run(["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", base], check=True)
    for stage in found:
        say(f"stage {stage.name} of {stage.base}")
        root = folder / stage.name
        _clear(root)
        subprocess.run(["cp", "-a", "--reflink=auto", base, root], check=True)
        # As the image has it.
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        with _mounted(root):
            _Builder(root, folder, dict(arguments)).build(stage)


def _clear(root: Path) -> None:
    """ProofError where something of the machine is mounted in it: that would be deleted too."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if within := [mount for mount in mounts if mount.startswith(f"{root}/")]:
        raise ProofError(f"{within[0]} is still mounted")
    if root.exists():
        shutil.rmtree(root)


@contextmanager
def _mounted(root: Path) -> Iterator[None]:
    """What a step has of the machine: /proc, /dev, names of hosts, and what pip's settings point at."""
    mounts = [("/proc", "proc"), ("/dev", "dev"), *((path, path.lstrip("/")) for path in _pips_own())]
    with ExitStack() as stack:
        for source, inside in mounts:
            if Path(source).is_dir():
                (root / inside).mkdir(parents=True, exist_ok=True)
            else:
                (root / inside).touch()
            subprocess.run(["mount", "--rbind", source, root / inside], check=True)
            stack.callback(_unmount, root / inside)
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        yield


def _unmount(place: Path) -> None:
    subprocess.run(["umount", "--lazy", place], check=True)


def _pips_own() -> list[str]:
    """The folders and files, such as certificates, that its settings name."""
    words = " ".join(value for name, value in os.environ.items() if name.startswith("PIP_")).split()
    return sorted({word for word in words if word.startswith("/") and Path(word).exists()})


class _Builder:
    """One stage's steps, in order."""

    def __init__(self, root: Path, folder: Path, given: dict[str, str]) -> None:
        self._root, self._folder, self._given = root, folder, given
        self._workdir = "/"
        self._environment = {"PATH": _SYSTEM_PATH}
        self._arguments: dict[str, str] = {}
        self._ignored = Ignored((ROOT / ".dockerignore").read_text())

    def build(self, stage: Stage) -> None:
        """All steps; ProofError naming the line of one that fails."""
        for one in stage.instructions:
            started = time.monotonic()
            step = getattr(self, f"_do_{one.name.lower()}", None)
            if step is not None:
                step(one)
                say(f"line {one.line}: {one.name} {one.rest[:70]} ({time.monotonic() - started:.1f} s)")

    def _do_workdir(self, one: Instruction) -> None:
        self._workdir = one.rest
        (self._root / one.rest.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def _do_env(self, one: Instruction) -> None:
        self._environment |= dict(word.split("=", 1) for word in one.arguments)

    def _do_arg(self, one: Instruction) -> None:
        for word in one.arguments:
            name, _, default = word.partition("=")
            self._arguments[name] = self._given.get(name, default)

    def _do_run(self, one: Instruction) -> None:
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        command = f"cd {self._workdir} && {one.rest}"
        done = subprocess.run(
            [_CHROOT, self._root, "/bin/sh", "-c", command],
            env={**pip, **self._environment, **self._arguments},
            check=False,
        )
        if done.returncode:
            raise ProofError(f"line {one.line}: exit status {done.returncode}")

    def _do_copy(self, one: Instruction) -> None:
        words = one.arguments
        stage = words.pop(0).partition("=")[2] if words[0].startswith("--from=") else None
        *sources, target = words
        into = self._root / (target if target.startswith("/") else f"{self._workdir}/{target}").lstrip("/")
        for source in sources:
            if stage is not None:
                into.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-a", self._folder / stage / source.lstrip("/"), into], check=True)
                continue
            files = sent(ROOT, source, self._ignored)
            if not files:
                raise ProofError(f"line {one.line}: nothing to copy from {source}")
            for file in files:
                within = file.relative_to(ROOT / source) if (ROOT / source).is_dir() else Path(file.name)
                (into / within).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, into / within)


# What came of it


def _measure(root: Path) -> None:
    for path in (".", "opt/foretell", "srv/foretell"):
        size = subprocess.run(["du", "-sm", root / path], capture_output=True, text=True, check=True).stdout.split()[0]
        say(f"/{path.strip('.')}: {size} MB")
    for unwanted in (
        "opt/foretell/bin/pip",
        "root/.cache/pip",
        "usr/bin/gcc",
        "srv/foretell/tests",
        "srv/foretell/training",
    ):
        if (root / unwanted).exists():
            raise ProofError(f"/{unwanted} is in the image")


def _run(stage: Stage, root: Path, port: int) -> None:
    user = stage.all("USER")[-1].rest
    workdir = stage.all("WORKDIR")[-1].rest
    environment = {
        **stage.environment(),
        "FORETELL_PORT": str(port),
        "FORETELL_HOST": "127.0.0.1",
        "FORETELL_GRACE_S": "1",
    }
    health = json.loads(re.split(r"CMD ", stage.all("HEALTHCHECK")[-1].rest)[1])
    inside = _Inside(root, user, workdir, environment)
    if inside.run(health).returncode == 0:
        raise ProofError("the health check says that all is well before anything runs")
    started = time.monotonic()
    service = inside.start(stage.all("CMD")[-1].arguments)
    try:
        _use(inside, service, health, port, started)
    finally:
        service.kill()
    if inside.run(health).returncode == 0:
        raise ProofError("the health check says that all is well after the end")
    leftover = subprocess.run(
        ["find", root / "srv", "-uid", user.split(":")[0]], capture_output=True, text=True, check=True
    )
    if leftover.stdout:
        raise ProofError(f"it wrote into the image: {leftover.stdout.split()[0]}")


def _use(inside: "_Inside", service: "subprocess.Popen[bytes]", health: list[str], port: int, started: float) -> None:
    while inside.run(health).returncode:
        if service.poll() is not None or time.monotonic() - started > _PATIENCE_S:
            raise ProofError("it does not get healthy")
        time.sleep(0.2)
    say(f"healthy after {time.monotonic() - started:.1f} s")
    # `chroot` execs, so it is the service itself below `unshare`.
    pid = int(Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()[0])
    status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    say(f"as uid {status['Uid'].split()[0]}, capabilities {status['CapBnd']}, no new privileges {status['NoNewPrivs']}")
    if status["Uid"].split()[0] == "0" or int(status["CapEff"], 16):
        raise ProofError("it runs with rights that it does not need")
    began = time.monotonic()
    inside.run(health)
    say(f"a health check takes {1000 * (time.monotonic() - began):.0f} ms, with entering the root")
    if inside.run(["sh", "-c", "echo > written"]).returncode == 0:
        raise ProofError("the root can be written to")
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/forecast?model=weather&steps=24&level=90",
        (ROOT / "data/last-week.json").read_bytes(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer = json.load(response)
    if len(answer["forecast"]) != 24 or "90" not in answer["intervals"]:
        raise ProofError(f"this is no forecast: {answer}")
    say(f"a forecast of version {answer['version']}: {answer['forecast'][0]} first")
    os.kill(pid, signal.SIGTERM)
    ended = service.wait(_PATIENCE_S)
    say(f"exit status {ended} after SIGTERM")
    if ended:
        raise ProofError("it does not end as told")


class _Inside:
    """Runs commands as a container would: a mount namespace with the root read-only, a /tmp, no rights."""

    def __init__(self, root: Path, user: str, workdir: str, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        mounts = (
            f"mount --bind {root} {root} && mount -o remount,ro,bind {root} && mount -t tmpfs tmpfs {root}/tmp && "
            f"mount --rbind /proc {root}/proc && mount --rbind /dev {root}/dev"
        )
        rights = "setpriv --no-new-privs --bounding-set -all,+setuid,+setgid,+sys_chroot"
        inside = f'/bin/sh -c \'cd {workdir} && exec "$@"\' sh "$@"'
        enter = f"exec {rights} {_CHROOT} --userspec={user} --groups= {root} {inside}"
        self._prefix = ["/usr/bin/unshare", "--mount", "--fork", "sh", "-c", f"{mounts} && {enter}", "sh"]

    def run(self, command: list[str]) -> "subprocess.CompletedProcess[bytes]":
        """To its end."""
        return subprocess.run(
            [*self._prefix, *command],
            env=self._environment | {"PATH": self._path},
            capture_output=True,
            check=False,
        )

    def start(self, command: list[str]) -> "subprocess.Popen[bytes]":
        """What it writes goes where this script's goes."""
        return subprocess.Popen([*self._prefix, *command], env=self._environment | {"PATH": self._path})

    @property
    def _path(self) -> str:
        # The tools above are the machine's own.
        return f"{self._environment['PATH']}:{_SYSTEM_PATH}"


if __name__ == "__main__":
    main()
