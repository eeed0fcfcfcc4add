"""Where the process is in its life, told from the outside (a signal, the supervisor) to the inside (readiness)."""

import gc
import logging
import os
import sys
from dataclasses import dataclass
from typing import NoReturn


@dataclass(slots=True)
class Lifecycle:
    """`draining`: about to end; serving on, but no longer ready for more."""

    draining: bool = False


def freeze() -> None:
    """The libraries' 200 000 objects live as long as the process. Left to the collector, they stop everything for up
    to 100 ms each time it looks through them, which with bodies of many lists is several times a second.
    """
    gc.collect()
    gc.freeze()


def leave(status: int) -> NoReturn:
    """End this process, though a thread of it may be deep in torch, loading or in a pass that nobody waits for: the
    interpreter's own way to end would crash there.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
