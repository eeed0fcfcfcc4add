"""What a process that hangs tells of itself."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.processes.stacks import stacks_of
from tests.app.serving import ROOT, wait_until

pytestmark = pytest.mark.anyio

_WITH_THE_INTERPRETER = "import re\ndef stuck(): re.match('(a|a)+$', 'a' * 60 + 'b')\n"
"""Backtracking for longer than anybody waits, without letting any other thread have a turn."""


@contextmanager
def hanging(folder: Path, program: str) -> Iterator[tuple[int, Path]]:
    """A process that tells where it is, and then calls the program's `stuck`; its id and the file."""
    path = folder / "stacks"
    begin = f"from pathlib import Path\nfrom app.processes.stacks import tell_in\ntell_in(Path({str(path)!r}))\n"
    code = f"{begin}{program}print(flush=True)\nstuck()"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        try:
            yield running.pid, path
        finally:
            running.kill()


def cpu_s(pid: int) -> float:
    """Processor time that it has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_where_it_hangs(tmp_path: Path) -> None:
    """Also where the interpreter itself is stuck."""
    with hanging(tmp_path, _WITH_THE_INTERPRETER) as (pid, path):
        before = cpu_s(pid)
        wait_until(lambda: cpu_s(pid) > before + 0.1)
        told = await stacks_of(pid, path)

    assert "in stuck" in told
    assert "most recent call first" in told


def _stop(pid: int, _path: Path) -> None:
    os.kill(pid, signal.SIGSTOP)


def _end(pid: int, _path: Path) -> None:
    os.kill(pid, signal.SIGKILL)


def _lose(_pid: int, path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [_stop, _end, _lose])
async def test_one_that_cannot_tell(tmp_path: Path, harm: Callable[[int, Path], None]) -> None:
    """Is not waited for without end."""
    with hanging(tmp_path, "import time\ndef stuck(): time.sleep(10**6)\n") as (pid, path):
        harm(pid, path)
        assert await stacks_of(pid, path) == ""
