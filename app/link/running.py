"""An engine's last words: which model's pass is under way, in a file that outlives the process.

Whoever is killed in the middle of a pass says nothing any more; a page of memory that is shared with a file says it
all the same, and costs no system call.
"""

import mmap
from pathlib import Path

from app.link.frames import raw, readable
from app.ticket import ModelId

_BYTES = 32
"""Those of a digest; zeros stand for none."""
_NONE = bytes(_BYTES)


class Running:
    """The file, from the side of the engine; what an earlier engine left there is gone."""

    def __init__(self, path: Path) -> None:
        try:
            path.write_bytes(_NONE)
            with path.open("r+b") as file:
                self._memory = mmap.mmap(file.fileno(), _BYTES)
        except OSError:
            # The disk is full. Words that nobody will read are better than an engine that does not start.
            path.unlink(missing_ok=True)
            self._memory = mmap.mmap(-1, _BYTES)

    def begin(self, model: ModelId) -> None:
        """A pass of that model is under way."""
        self._memory[:] = raw(model.digest)

    def end(self) -> None:
        """None is."""
        self._memory[:] = _NONE


def running_in(path: Path) -> str | None:
    """The digest of the model whose pass is under way, or was when the engine died; None where there is none."""
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        return None
    return readable(found) if len(found) == _BYTES and found != _NONE else None
