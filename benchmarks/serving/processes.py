"""A server as a tree of processes: started in a group of its own, frozen, measured from /proc, and always ended."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PATIENCE_S = 10.0
_SETTLE_S = 20.0
_LOOK_S = 0.2
_QUIET = 0.3
"""Of a core: less than any server that still works, more than one that polls for work."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Of a whole tree, in MiB. PSS counts a shared page once; RSS counts it in every process that has it."""

    pss_mib: float
    rss_mib: float
    processes: int


class Tree:
    """A command and everything that it starts."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._known = {self._process.pid}

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def pids(self) -> list[int]:
        """The living processes: descendants, and whoever is in the session that the first one leads."""
        stats = _stats()
        found = {pid for pid, stat in stats.items() if stat.session == self._process.pid}
        found |= self._known & set(stats)
        grows = True
        while grows:
            more = {pid for pid, stat in stats.items() if stat.parent in found} - found
            found |= more
            grows = bool(more)
        self._known |= found
        return sorted(pid for pid in found if stats[pid].state != "Z")

    def settle(self) -> None:
        """Wait until the work is done that a load has left behind: nobody else should be measured beside it."""
        until = time.monotonic() + _SETTLE_S
        used, before = _LOOK_S, self.cpu_s()
        while used > _QUIET * _LOOK_S and time.monotonic() < until:
            time.sleep(_LOOK_S)
            now = self.cpu_s()
            used, before = now - before, now

    def freeze(self) -> None:
        """Take all processes off the cores while others are measured: some poll even when they have nothing to do."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def cpu_s(self) -> float:
        """Processor time of all living processes and of those that they have waited for."""
        stats = _stats()
        return sum(stats[pid].cpu_s for pid in self.pids() if pid in stats)

    def memory(self) -> Memory:
        """What the kernel says now."""
        pss, rss, count = 0.0, 0.0, 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                rollup = (_PROC / str(pid) / "smaps_rollup").read_text()
                sizes = {line.split(":")[0]: line.split()[1] for line in rollup.splitlines()[1:]}
                pss += int(sizes["Pss"]) / 1024
                rss += int(sizes["Rss"]) / 1024
                count += 1
        return Memory(pss, rss, count)

    def stop(self) -> None:
        """End the tree: asked first, then made to."""
        self.thaw()
        self.pids()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        self._wait(_PATIENCE_S)
        self._signal(signal.SIGKILL)
        self._process.wait(_PATIENCE_S)
        self._wait(_PATIENCE_S)

    def last_lines(self, count: int = 15) -> str:
        """The end of what the server printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self.pids() and time.monotonic() < until:
            self._process.poll()
            time.sleep(0.05)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    parent: int
    session: int
    cpu_s: float


def _stats() -> dict[int, _Stat]:
    """Every process of the machine."""
    found = {}
    for folder in _PROC.iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                # A name may hold blanks and brackets; what follows it does not.
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                ticks = sum(int(field) for field in fields[11:15])
                found[int(folder.name)] = _Stat(fields[0], int(fields[1]), int(fields[3]), ticks * _TICK_S)
    return found
