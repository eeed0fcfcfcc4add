"""The allocator: what a training step has freed is there for the next one."""

import ctypes
import resource
import subprocess
import sys

import pytest

_BLOCK = 2**26
"""Bytes: more than glibc would ever keep of its own accord."""
_SCRIPT = f"""
import resource, torch
from training.fitting.allocator import keep_pages

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty({_BLOCK}, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_pages()
# The first blocks find their places among what else the process has.
print(sum([faults() for _ in range(20)][-5:]))
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc has the settings"
)
def test_freed_memory_is_used_again() -> None:
    """After a few times, a large block that is freed and asked for again costs hardly a page fault.

    In a process of its own: in one that has run for long the heap may have no room to grow, and each block is mapped.
    """
    done = subprocess.run([sys.executable, "-c", _SCRIPT], check=True, capture_output=True, text=True)
    assert int(done.stdout) < _BLOCK / resource.getpagesize()
