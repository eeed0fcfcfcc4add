"""The allocator: what a training step has freed is there for the next one."""

import ctypes
import resource
import sys

import pytest
import torch

from training.fitting.allocator import keep_pages

_BLOCK = 2**26
"""Bytes: more than glibc would ever keep of its own accord."""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc has the settings"
)
def test_freed_memory_is_used_again() -> None:
    """After a few times, a large block that is freed and asked for again costs hardly a page fault."""
    keep_pages()
    # The first blocks find their places among what else the process has.
    faults = [_faults_of_a_block() for _ in range(20)]

    assert sum(faults[-5:]) < _BLOCK / resource.getpagesize()


def _faults_of_a_block() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(_BLOCK, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
