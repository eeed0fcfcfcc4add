"""What keys have used of their quotas: in a file that all HTTP processes of this machine share.

The clock is the machine's monotonic one, which is the same for all its processes and which nobody sets.
"""

import fcntl
import logging
import mmap
import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from app.access.keyring import MOST_KEYS
from app.access.rates import Rate, Verdict, counted

log = logging.getLogger(__name__)

_SLOT = struct.Struct("<12s4xd")
"""A key's id, and its number (app/access/rates.py). Keys are told apart by their ids alone, so that processes that have
read the file of keys at different times agree."""
_SLOTS = 2 * MOST_KEYS
"""Of a key that has rested a slot says nothing, and serves another."""
_PATIENCE_S = 0.1
"""For the lock, which is held for microseconds: who waits longer waits for a process that was stopped with it."""
_PAUSE_S = 1.0
"""After such a wait, nobody waits for so long."""


class Quotas(Protocol):
    """Counts what keys ask."""

    async def take(self, identity: str, rate: Rate) -> Verdict:
        """Count one more request of the key, unless it is too many."""

    async def close(self) -> None:
        """Let go of what it holds."""


class SharedQuotas:
    """Those of this machine. Exact, but for a process that is stopped with the lock in its hand: the others go on
    without, and may miss a request of each other.
    """

    def __init__(self, folder: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._impatient_until = 0.0
        self._places: dict[bytes, int] = {}
        """Where a key was last; its id stands there as long as nobody else has taken the slot."""
        folder.mkdir(exist_ok=True)
        self._file = os.open(folder / "quotas", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # A page that a full disk cannot provide when it is written to ends the process: all are there from the start.
        os.posix_fallocate(self._file, 0, _SLOT.size * _SLOTS)
        self._table = mmap.mmap(self._file, _SLOT.size * _SLOTS)

    async def take(self, identity: str, rate: Rate) -> Verdict:
        return self.count(identity, rate)

    async def close(self) -> None:
        self._table.close()
        os.close(self._file)

    def count(self, identity: str, rate: Rate) -> Verdict:
        """The same as `take`, at once: some microseconds."""
        key = identity.encode()
        locked = self._lock()
        try:
            now_s = self._now()
            place = self._place(key)
            name, even_s = _SLOT.unpack_from(self._table, place)
            even_s, verdict = counted(rate, even_s if name == key else now_s, now_s)
            _SLOT.pack_into(self._table, place, key, even_s)
        finally:
            if locked:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        return verdict

    def _place(self, key: bytes) -> int:
        place = self._places.get(key, -1)
        if place >= 0 and self._table[place : place + len(key)] == key:
            return place
        # Ids are hexadecimal digits between bytes of zero, so none is found across two slots.
        place = self._table.find(key)
        if place < 0:
            place = self._vacant()
        if len(self._places) > _SLOTS:
            self._places.clear()
        self._places[key] = place
        return place

    def _vacant(self) -> int:
        """The slot that has been of no use for the longest; of more keys than there may be, the first to be so."""
        slots = list(_SLOT.iter_unpack(self._table))
        return _SLOT.size * min(range(_SLOTS), key=lambda index: slots[index][1])

    def _lock(self) -> bool:
        until = time.monotonic() + _PATIENCE_S
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            now = time.monotonic()
            if now < self._impatient_until:
                return False
            if now > until:
                self._impatient_until = now + _PAUSE_S
                log.warning("a process was stopped while it counted; counting goes on without it")
                return False
            # Not a sleep, during which those who are quicker would take the lock again and again.
            os.sched_yield()
