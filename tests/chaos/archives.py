"""Archives that are broken in one way each, and one that is whole until somebody asks the wrong thing.

damaged = publish_damaged(store)      # name of the model -> what the service is to say of its second version
"""

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import orjson
import torch
from torch import Tensor

from models import archive as archives
from models import artifact
from models.forecaster import Forecaster
from models.store import ARCHIVE, INDEX, Store
from tests.app.asking import BOUNDED
from tests.builders import network, publish_tiny, spec_for

RAISES, GIVES_NAN, TAKES_MEMORY, SLEEPS, HANGS, CRASHES = (2e6, 3e6, 4e6, 5e6, 6e6, 7e6)
"""The first value of a window that makes an armed network do it."""


class Armed(torch.nn.Module):
    """A network as any other, but for windows whose first value names a misdeed."""

    def __init__(self, whole: Forecaster) -> None:
        super().__init__()
        self.whole = whole
        self.horizon = whole.horizon

    def encode(self, window: Tensor, time: Tensor) -> list[Tensor]:
        deed = float(window[:, 0, 0].max())
        if deed == 2e6:
            raise RuntimeError("as it was told")
        if deed == 4e6:
            return [torch.zeros([int(deed) << 20, 1 << 20])]
        if deed == 7e6:
            # Of the window, since what is constant would be computed, and crash, when the network is optimised.
            far = (window[:1, 0, 0] * 1e6).to(torch.int64)
            return [torch.ops.aten.segment_reduce(torch.ones([3]), "sum", lengths=far, unsafe=True)]
        idle = torch.ones([256, 256])
        if deed == 5e6:
            for _ in range(400):
                idle = (idle @ idle).clamp(0, 1)
        while deed == 6e6:
            idle = (idle @ idle).clamp(0, 1)
        # What is used must be computed, and what is computed must do no harm.
        return self.whole.encode(torch.where(window == 3e6, torch.full_like(window, float("nan")), window), time)

    def decode(self, state: list[Tensor], future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        return self.whole.decode(state, future)

    def rollout(self, window: Tensor, time: Tensor, future: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        return self.whole.rollout(window, time, future, steps)

    def embed(self, window: Tensor, time: Tensor) -> Tensor:
        return self.whole.embed(window, time)

    def heads(self, window: Tensor, time: Tensor) -> Tensor:
        return self.whole.heads(window, time)

    def forward(self, window: Tensor, time: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
        return self.whole.rollout(window, time, future, 1)


def publish_armed(store: Store, name: str = "tiny") -> int:
    """A version that behaves until it is told not to; it answers as any other of BOUNDED with seed 0."""
    whole = network(**BOUNDED)

    def write(version: int, folder: Path) -> str:
        spec = spec_for(whole, name=name, version=version, **BOUNDED)
        return artifact.save(Armed(whole), spec, folder / ARCHIVE)  # type: ignore[arg-type]  # as good as a Forecaster

    return store.publish(name, write)


def publish_damaged(store: Store) -> dict[str, str]:
    """Models whose first version is whole and whose second is not, and a part of what is to be said of each."""
    for name in _DAMAGES:
        publish_tiny(store, name, **BOUNDED)
        publish_tiny(store, name, **BOUNDED, seed=1)
    return {name: damage(store, name) for name, damage in _DAMAGES.items()}


def _truncated(store: Store, name: str) -> str:
    path = store.archive(name, 2)
    path.write_bytes(path.read_bytes()[:-100])
    return "digest is"


def _swapped(store: Store, name: str) -> str:
    store.archive(name, 2).write_bytes(store.archive(name, 1).read_bytes())
    return "digest is"


def _wrong_digest(store: Store, name: str) -> str:
    relist(store, name, 2, "sha256:" + "0" * 64)
    return "digest is"


def _another_models(store: Store, name: str) -> str:
    publish_tiny(store, "another", **BOUNDED, seed=2)
    _replace(store, name, store.archive("another", 1).read_bytes())
    return "the archive is of another version 1"


def _unknown_format(store: Store, name: str) -> str:
    _replace(store, name, _with_spec(store, name, lambda spec: orjson.dumps({**orjson.loads(spec), "format": "x/9"})))
    return "format"


def _no_json(store: Store, name: str) -> str:
    _replace(store, name, _with_spec(store, name, lambda spec: b"{" + spec))
    return "spec.json"


def _bomb(store: Store, name: str) -> str:
    # Small where it lies, and large once it is unpacked.
    changed = io.BytesIO()
    with (
        zipfile.ZipFile(store.archive(name, 2)) as source,
        zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for record in source.namelist():
            target.writestr(record, source.read(record) + (b" " * (64 << 20) if record.endswith("/spec.json") else b""))
    _replace(store, name, changed.getvalue())
    return "larger than its archive"


def _no_archive(store: Store, name: str) -> str:
    _replace(store, name, b"this is not an archive")
    return "not an archive"


def _no_network(store: Store, name: str) -> str:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("model/extra/spec.json", archives.record(store.archive(name, 2).read_bytes(), "spec.json") or b"")
    _replace(store, name, packed.getvalue())
    return "not a TorchScript archive"


def _other_weights(store: Store, name: str) -> str:
    # As published, but the example is of other weights.
    first = archives.record(store.archive(name, 1).read_bytes(), "spec.json") or b""
    example = orjson.loads(first)["example"]
    changed = _with_spec(store, name, lambda spec: orjson.dumps({**orjson.loads(spec), "example": example}))
    _replace(store, name, changed)
    return "example"


def _missing(store: Store, name: str) -> str:
    store.archive(name, 2).unlink()
    return "No such file"


def _folder(store: Store, name: str) -> str:
    path = store.archive(name, 2)
    path.unlink()
    path.mkdir()
    return "directory"


_DAMAGES: Mapping[str, Callable[[Store, str], str]] = {
    "truncated": _truncated,
    "swapped": _swapped,
    "wrong-digest": _wrong_digest,
    "of-another": _another_models,
    "unknown-format": _unknown_format,
    "no-json": _no_json,
    "bomb": _bomb,
    "no-archive": _no_archive,
    "no-network": _no_network,
    "other-weights": _other_weights,
    "missing": _missing,
    "folder": _folder,
}


def relist(store: Store, name: str, version: int, digest: str) -> None:
    """Have the index vouch for another digest: whoever did it has the right to write the store."""
    path = store.root / INDEX
    index = orjson.loads(path.read_bytes())
    index["models"][name]["versions"][str(version)] = digest
    path.write_bytes(orjson.dumps(index))


def _replace(store: Store, name: str, content: bytes) -> None:
    store.archive(name, 2).write_bytes(content)
    relist(store, name, 2, archives.digest_of(content))


def _with_spec(store: Store, name: str, change: Callable[[bytes], bytes]) -> bytes:
    """The second version's archive with another spec."""
    changed = io.BytesIO()
    with (
        zipfile.ZipFile(store.archive(name, 2)) as source,
        zipfile.ZipFile(changed, "w", zipfile.ZIP_STORED) as target,
    ):
        for record in source.namelist():
            content = source.read(record)
            target.writestr(zipfile.ZipInfo(record), change(content) if record.endswith("/spec.json") else content)
    return changed.getvalue()
