"""The model alone: windows per second of processor time, on one thread, in a process of its own. Prints JSON.

python -m benchmarks.serving.bare ARCHIVE --rows 64 --seconds 2
"""

import argparse
import json
import time
from pathlib import Path

import torch

from benchmarks.serving.workload import make_windows


def windows_per_cpu_s(archive: Path, rows: int, seconds: float) -> float:
    """`forward` on batches of that many windows."""
    torch.set_num_threads(1)
    module = torch.jit.load(str(archive))
    module.eval()
    batch = torch.from_numpy(make_windows(rows))
    time_of, future = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, 1, 0)
    with torch.inference_mode():
        for _ in range(20):
            module.forward(batch, time_of, future)
        passes, began, until = 0, time.process_time(), time.perf_counter() + seconds
        while time.perf_counter() < until:
            module.forward(batch, time_of, future)
            passes += 1
        return passes * rows / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    print(json.dumps(windows_per_cpu_s(options.archive, options.rows, options.seconds)))


if __name__ == "__main__":
    main()
