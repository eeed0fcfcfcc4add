"""Where the threads of a process are, told at a signal: for the log, before a process that hangs is killed."""

import asyncio
import contextlib
import faulthandler
import os
import signal
from pathlib import Path

_ASKED = signal.SIGUSR1
_PATIENCE_S = 0.5
_LOOK_S = 0.05
_MOST_BYTES = 1 << 15


def tell_in(path: Path) -> None:
    """Have this process write there where its threads are, whenever it is asked and whatever it is busy with: the
    handler is C and needs no interpreter.
    """
    with contextlib.suppress(OSError):  # a full disk is no reason not to start
        # Open for as long as the process lives.
        faulthandler.register(_ASKED, path.open("w"), all_threads=True)


async def stacks_of(pid: int, path: Path) -> str:
    """What a process tells there, the latest call of each thread first; nothing where it does not, as one that is
    stopped. Only for one that has called `tell_in`: others end of the signal.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, _ASKED)
    told = b""
    for _ in range(round(_PATIENCE_S / _LOOK_S)):
        await asyncio.sleep(_LOOK_S)
        before, told = told, _read(path)
        if told and told == before:
            break
    return told.decode("utf-8", "replace")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES)
    except OSError:
        return b""
