"""Where the process is in its life, told from the outside (a signal, the supervisor) to the inside (readiness)."""

import gc
import logging
import os
import sys
from dataclasses import dataclass
from typing import NoReturn

_SWITCH_S = 0.001
"""For Python's own 5 ms a thread that reads a large body would hold up everybody else's small ones, again and again."""


@dataclass(slots=True)
class Lifecycle:
    """`draining`: about to end; serving on, but no longer ready for more."""

    draining: bool = False


def steady() -> None:
    """Keep the pauses of a process that serves short; once everything is imported.

    The libraries' 200 000 objects live as long as the process. Left to the collector, they stop everything for up to
    100 ms each time it looks through them, which with bodies of many lists is several times a second. And a thread
    that wants the interpreter gets it after so long, when another is busy: an event loop in each of its turns.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH_S)


def leave(status: int) -> NoReturn:
    """End this process, though a thread of it may be deep in torch, loading or in a pass that nobody waits for: the
    interpreter's own way to end would crash there.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
