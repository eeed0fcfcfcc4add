"""A device that loads, uses and unloads a model again and again, in a process of its own: python -m tests.app.cycles.

Prints the memory in use, in MiB, after some of the cycles. `--leaky` has each unload keep what it should forget.
"""

import argparse
import json
import resource
import threading
from pathlib import Path

import numpy as np
import torch

from app.device.loop import Device
from app.device.runtime import Runtime
from app.link import frames
from app.link.frames import Kind, Order
from app.ticket import ModelId
from models.artifact import Artifact
from models.spec import Spec
from models.store import Store
from tests.app.devices import Peer, pair
from tests.app.fakes import FakeWatcher
from tests.patience import PATIENCE_S

EVERY = 10


class Leaky(Runtime):
    """What the judge must catch."""

    kept: list[Artifact] = []  # noqa: RUF012  it is to be kept

    def unload(self, model: ModelId) -> None:
        self.kept += [self._models[model]]
        super().unload(model)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--leaky", action="store_true")
    given = parser.parse_args()
    store = Store(given.store)
    model = ModelId("tiny", 1, store.index().models["tiny"].versions[1])
    runtime = (Leaky if given.leaky else Runtime)(given.device, threads=1, batch_rows=2)
    device = Device(runtime, FakeWatcher(), queue_rows=100, batch_rows=2, bulk_batch_rows=2)
    ours, theirs = pair()
    device.connect(theirs)
    peer = Peer(ours)
    serving = threading.Thread(target=device.serve)
    serving.start()
    used = []
    for cycle in range(1, given.cycles + 1):
        _cycle(peer, model, str(store.archive("tiny", 1)))
        if cycle % EVERY == 0:
            _await_cleaners()
            used.append(_used_mib(given.device))
    device.close()
    serving.join()
    print(json.dumps(used))  # noqa: T201  whoever started it reads it


def _cycle(peer: Peer, model: ModelId, archive: str) -> None:
    heard = peer.load(model, archive)
    assert heard.kind == Kind.LOADED, heard.content
    spec = Spec.model_validate(heard.content)
    shape = 1, spec.window, len(spec.features)
    peer.ask(1, Order(model.digest, np.zeros(shape, np.float32), np.zeros(1, np.int64), _known(spec), 1, True))
    peer.answers(1)
    peer.send(frames.short(Kind.UNLOAD, 0, list(model)))
    peer.ping()


def _known(spec: Spec) -> np.ndarray:
    return np.zeros((1, spec.horizon, len(spec.known)), np.float32)


def _await_cleaners() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("cleaner"):
            thread.join(PATIENCE_S)


def _used_mib(device: str) -> float:
    if device != "cpu":
        return torch.cuda.memory_reserved(device) / 2**20
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
