"""Where the process is in its life, told from the outside (a signal) to the inside (readiness)."""

from dataclasses import dataclass


@dataclass(slots=True)
class Lifecycle:
    """`draining`: about to end; serving on, but no longer ready for more."""

    draining: bool = False
