"""What the supervisor tells the HTTP processes: all of it each time, so that nobody can miss a part.

They tell it nothing but that their event loop still turns.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator

from pydantic import BaseModel, ConfigDict

from app.forecasts.catalogue import Model

_LENGTH = struct.Struct("<I")
_BEAT_S = 1.0


class Door(BaseModel):
    """Where a device takes connections. A new generation is a new process, which knows nothing of the old one's."""

    path: str
    generation: int


class Snapshot(BaseModel):
    """The state of the service."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    devices: dict[int, Door] = {}
    """Those with everything loaded, by number."""
    models: dict[str, Model] = {}
    trouble: str | None = None
    processes: dict[str, int] = {}
    """All processes' ids, by name."""
    draining: bool = False
    stopping: bool = False
    """Finish what was accepted, and end."""

    def pack(self) -> bytes:
        """As it goes over the wire."""
        content = self.model_dump_json().encode()
        return _LENGTH.pack(len(content)) + content


async def read_snapshots(control: socket.socket) -> AsyncIterator[Snapshot]:
    """Each as it comes, until the supervisor is gone; meanwhile it is given signs of life."""
    reader, writer = await asyncio.open_unix_connection(sock=control)
    beating = asyncio.create_task(_beat(writer), name="beat")
    try:
        while True:
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            yield Snapshot.model_validate_json(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, OSError):
        return
    finally:
        beating.cancel()
        writer.close()


async def _beat(writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        writer.write(b".")
        await asyncio.sleep(_BEAT_S)
