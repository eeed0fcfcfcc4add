"""What a process does before it serves."""

import subprocess
import sys

from tests.app.serving import ROOT

CHECK = """
import gc, sys
from app.lifecycle import steady

steady()
print(gc.get_freeze_count(), sys.getswitchinterval())
"""


def test_steady() -> None:
    """What is imported is not looked through again, and no thread keeps the interpreter from an event loop for long."""
    done = subprocess.run([sys.executable, "-c", CHECK], cwd=ROOT, capture_output=True, text=True, check=True)
    frozen, interval_s = done.stdout.split()
    assert int(frozen) > 1000
    assert float(interval_s) <= 0.001
