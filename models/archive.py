"""What lies beside the network in an archive, for those who read it without torch.

TorchScript calls these records extra files; the archive is a zip file, and they are in its folder `extra`.
"""

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping

SPEC_FILE = "spec.json"
RESIDUALS_FILE = "residuals"
"""Order statistics of the calibration errors, where the model has intervals (models.intervals)."""


class ArchiveError(ValueError):
    """Not an archive: damaged or cut short."""


def digest_of(archive: bytes) -> str:
    """The identity of a model: the SHA-256 of its archive."""
    return f"sha256:{hashlib.sha256(archive).hexdigest()}"


def record(archive: bytes, name: str) -> bytes | None:
    """A record by its name, None where there is none; ArchiveError."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as records:
            place = next((found for found in records.infolist() if found.filename.endswith(f"/extra/{name}")), None)
            # Torch compresses nothing: what says that it is larger than the archive would only fill the memory.
            if place is None or (place.compress_type == zipfile.ZIP_STORED and place.file_size <= len(archive)):
                return None if place is None else records.read(place)
    except Exception as error:  # of a damaged zip file, Python's reader raises a dozen kinds
        raise ArchiveError("not an archive: damaged or cut short") from error
    raise ArchiveError(f"{name} is compressed, or larger than its archive")


def packed(archive: bytes, extras: Mapping[str, bytes]) -> bytes:
    """What torch wrote, with these records and without debug records.

    Those hold paths of the machine that trained, and nothing reads them.
    """
    slim = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(slim, "w", zipfile.ZIP_STORED) as target:
        for name, content in _records(source, extras):
            target.writestr(zipfile.ZipInfo(name), content)
    return slim.getvalue()


def _records(source: zipfile.ZipFile, extras: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    names = source.namelist()
    root = names[0].partition("/")[0]
    yield from ((name, source.read(name)) for name in names if not name.endswith(".debug_pkl"))
    yield from ((f"{root}/extra/{name}", content) for name, content in extras.items())
