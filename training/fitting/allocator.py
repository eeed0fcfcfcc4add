"""The C library's memory allocator, set for a loop that asks for the same blocks again and again."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Of `mallopt` in glibc's malloc.h."""
_NEVER = 2**31 - 1


def keep_pages() -> None:
    """Have this process keep the memory of each training step for the next one; does nothing but on glibc.

    By default, glibc gives the larger blocks back to the system as they are freed, and every step pays anew for pages
    that the system has to clear: half the time of an LSTM's step and more.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _NEVER)
