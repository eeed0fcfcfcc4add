"""What the supervisor tells the HTTP processes: all of it each time, so that nobody can miss a part.

They tell it nothing but that their event loop still turns, and that the model store has changed.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Mapping

import orjson
from pydantic import BaseModel, PrivateAttr

from app.forecasts.catalogue import Model
from models.spec import Spec

_LENGTH = struct.Struct("<I")
_BEAT_S = 1.0
_BEAT = b"."
CHANGED = b"!"
"""Somebody has changed the model store: look at once."""


class Door(BaseModel):
    """Where a device takes connections. A new generation is a new process, which knows nothing of the old one's."""

    path: str
    generation: int


class Snapshot(BaseModel):
    """The state of the service."""

    devices: dict[int, Door] = {}
    """Those with everything loaded, by number."""
    models: dict[str, Model] = {}
    trouble: str | None = None
    settled: bool = False
    processes: dict[str, int] = {}
    """All processes' ids, by name."""
    draining: bool = False
    stopping: bool = False
    """Finish what was accepted, and end."""

    _texts: dict[str, bytes] = PrivateAttr(default={})
    """Specs as they go over the wire, by digest."""

    def pack(self) -> bytes:
        """As it goes over the wire: the specs come last, so that whoever has them already need not read them again."""
        ready = {v.id.digest: v.spec for model in self.models.values() for v in model.versions.values() if v.spec}
        self._texts = {
            digest: self._texts.get(digest) or spec.model_dump_json().encode() for digest, spec in ready.items()
        }
        said = self.model_dump(exclude={"models": {"__all__": {"versions": {"__all__": {"spec"}}}}})
        sizes = {digest: len(text) for digest, text in self._texts.items()}
        head = orjson.dumps({"snapshot": said, "specs": sizes}, option=orjson.OPT_NON_STR_KEYS)
        return b"".join((_LENGTH.pack(len(head)), head, *self._texts.values()))


class _Head(BaseModel):
    snapshot: Snapshot
    specs: dict[str, int]


class Control:
    """An HTTP process's end of the socket to its supervisor."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._writer: asyncio.StreamWriter | None = None
        self._specs: dict[str, Spec] = {}
        """By digest; reading one takes milliseconds, in which no request is answered."""

    def changed(self) -> None:
        """Say that the model store has changed."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(CHANGED)

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """Each as it comes, until the supervisor is gone; meanwhile it is given signs of life."""
        reader, writer = await asyncio.open_unix_connection(sock=self._control)
        self._writer = writer
        beating = asyncio.create_task(_beat(writer), name="beat")
        try:
            while True:
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                head = _Head.model_validate_json(await reader.readexactly(length))
                texts = {digest: await reader.readexactly(size) for digest, size in head.specs.items()}
                yield self._whole(head.snapshot, texts)
        except (asyncio.IncompleteReadError, OSError):
            return
        finally:
            beating.cancel()
            writer.close()

    def _whole(self, snapshot: Snapshot, texts: Mapping[str, bytes]) -> Snapshot:
        known = self._specs
        self._specs = {digest: known.get(digest) or Spec.model_validate_json(text) for digest, text in texts.items()}
        for model in snapshot.models.values():
            for version in model.versions.values():
                version.spec = self._specs.get(version.id.digest)
        return snapshot


async def _beat(writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        writer.write(_BEAT)
        await asyncio.sleep(_BEAT_S)
