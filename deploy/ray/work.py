"""What there is to score, in parts, and what has been done: a part is a row group of a Parquet file.

    TO/manifest.json       what was asked of which data, written once
    TO/forecasts/*.parquet one for every part that is done, by rename: no reader sees half of one
    TO/rejected/*.parquet  one for every part with rows that the model does not take

Whoever stops, however hard, loses the parts under way. `TO` is on a file system that all machines share.
"""

import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from models.spec import Frozen, first_error

MANIFEST = "manifest.json"
FORECASTS, REJECTED = "forecasts", "rejected"
_SUFFIX = ".parquet"
_HALF = ".half-"
"""Of files that are being written: readers of data sets pass over names with a dot in front."""
_TAIL = 8
"""Bytes at the end of a Parquet file: the length of what is before them, and a mark."""
_SERIES = "foretell.series"
"""In the metadata of a part: how many of its rows have forecasts;"""
_LEFT_OUT = "foretell.rejected"
"""and how many were rejected."""


class WorkError(Exception):
    """What cannot be scored, or not into that folder, and why."""


class File(Frozen):
    """A file of the data."""

    path: str
    """Within the data."""
    rows: tuple[int, ...]
    """Of each row group."""
    footer: str
    """The digest of what the file says of itself: another one where its content is."""


class Manifest(Frozen):
    """What one folder is for."""

    format: int = 1
    model: str
    version: int
    digest: str
    steps: int
    levels: tuple[str, ...]
    band: str
    precision: str
    id: str
    data: tuple[File, ...]


class Part(NamedTuple):
    """A row group: the unit that is done, or not."""

    path: str
    """Of its file, within the data."""
    group: int
    rows: int

    @property
    def name(self) -> str:
        """What its results are called."""
        return f"{self.path.removesuffix(_SUFFIX).replace('%', '%25').replace('/', '%2F')}-{self.group:05}{_SUFFIX}"


class Count(NamedTuple):
    """Of series."""

    forecast: int
    rejected: int


def files_of(data: Path) -> tuple[File, ...]:
    """A file, or all `*.parquet` in a folder; WorkError where there is none, or one that is no Parquet."""
    places = sorted(data.rglob(f"*{_SUFFIX}")) if data.is_dir() else [data]
    places = [one for one in places if one == data or not one.relative_to(data).name.startswith((".", "_"))]
    if not places:
        raise WorkError(f"{data}: no *{_SUFFIX} in it")
    return tuple(_file(one, data) for one in places)


def _file(place: Path, data: Path) -> File:
    path = place.name if place == data else place.relative_to(data).as_posix()
    try:
        found = pq.read_metadata(place)
        with place.open("rb") as file:
            file.seek(-_TAIL, os.SEEK_END)
            length = int.from_bytes(file.read(4), "little")
            file.seek(-_TAIL - length, os.SEEK_END)
            footer = hashlib.blake2b(file.read(), digest_size=16).hexdigest()
    except (OSError, pa.ArrowException) as error:
        raise WorkError(f"{place}: {str(error).splitlines()[0]}") from error
    return File(path=path, rows=tuple(found.row_group(i).num_rows for i in range(found.num_row_groups)), footer=footer)


def schema_of(data: Path, files: tuple[File, ...]) -> pa.Schema:
    """That of all files; WorkError naming the first that has another."""
    places = [place_of(data, file.path) for file in files]
    first = pq.read_schema(places[0]).remove_metadata()
    for place in places[1:]:
        if not pq.read_schema(place).remove_metadata().equals(first):
            raise WorkError(f"{place}: other columns than in {places[0]}")
    return first


def place_of(data: Path, path: str) -> Path:
    """Where a file of the data lies."""
    return data / path if data.is_dir() else data


class Folder:
    """Where the results go."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def claimed(self, manifest: Manifest) -> Iterator[None]:
        """For as long as this lasts the folder is ours; WorkError where it is for something else, or in use."""
        try:
            for folder in (FORECASTS, REJECTED):
                (self.root / folder).mkdir(parents=True, exist_ok=True)
            with (self.root / ".lock").open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise WorkError(f"{self.root}: somebody else is at it") from None
                self._agree(manifest)
                for half in self.root.glob(f"*/{_HALF}*"):
                    half.unlink()
                yield
        except OSError as error:
            raise WorkError(f"{error.filename or self.root}: {error.strerror or error}") from error

    def _agree(self, manifest: Manifest) -> None:
        place = self.root / MANIFEST
        if not place.exists():
            if any((self.root / FORECASTS).glob(f"*{_SUFFIX}")):
                raise WorkError(f"{self.root}: forecasts without a {MANIFEST}; choose another folder")
            with whole(place) as half:
                half.write_text(manifest.model_dump_json(indent=2) + "\n")
            return
        try:
            there = Manifest.model_validate_json(place.read_bytes())
        except ValidationError as error:
            raise WorkError(f"{place}: {first_error(error)}") from error
        for name in Manifest.model_fields:
            if getattr(there, name) != getattr(manifest, name):
                was, now = ("other data", "this") if name == "data" else (getattr(there, name), getattr(manifest, name))
                raise WorkError(f"{place}: {name} was {was}, now {now}; choose another folder")

    def missing(self, manifest: Manifest) -> list[Part]:
        """The parts that are not done."""
        done = {place.name for place in (self.root / FORECASTS).glob(f"*{_SUFFIX}")}
        return [part for part in parts_of(manifest) if part.name not in done]

    def count(self, manifest: Manifest) -> Count:
        """What all parts that are done came to."""
        forecast = rejected = 0
        there = {part.name for part in parts_of(manifest)}
        for name in there - {part.name for part in self.missing(manifest)}:
            place = self.root / FORECASTS / name
            try:
                told = pq.read_metadata(place).metadata
                forecast += int(told[_SERIES.encode()])
                rejected += int(told[_LEFT_OUT.encode()])
            except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
                raise WorkError(f"{place}: not written by this; remove it, and start again") from error
        return Count(forecast, rejected)


def parts_of(manifest: Manifest) -> list[Part]:
    """Of all the data, in order."""
    return [Part(file.path, group, rows) for file in manifest.data for group, rows in enumerate(file.rows)]


class Results:
    """What a part comes to, as it is written."""

    def __init__(self, half: Path) -> None:
        self.count = Count(0, 0)
        self.rejected: list[pa.Table] = []
        self._half = half
        self._writer: pq.ParquetWriter | None = None

    def add(self, forecasts: pa.Table, rejected: pa.Table, series: int) -> None:
        """The forecasts of so many series, and the rows that have none."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._half, forecasts.schema, compression="zstd")
        if forecasts.num_rows:
            self._writer.write_table(forecasts)
        self.rejected.append(rejected)
        self.count = Count(self.count.forecast + series, self.count.rejected + rejected.num_rows)

    def close(self) -> None:
        """With the counts in it."""
        if self._writer is not None:
            told = {_SERIES: str(self.count.forecast), _LEFT_OUT: str(self.count.rejected)}
            self._writer.add_key_value_metadata(told)
            self._writer.close()


@contextmanager
def written(root: Path, part: Part) -> Iterator[Results]:
    """The results of a part, which is done at the end of this and not before."""
    with whole(root / FORECASTS / part.name) as half:
        results = Results(half)
        try:
            yield results
        finally:
            results.close()
        rejected = pa.concat_tables(results.rejected)
        if rejected.num_rows:
            with whole(root / REJECTED / part.name) as beside:
                pq.write_table(rejected, beside, compression="zstd")


@contextmanager
def whole(place: Path) -> Iterator[Path]:
    """A file beside it that takes its place once it is written."""
    half = place.with_name(f"{_HALF}{uuid.uuid4().hex}")
    try:
        yield half
        with half.open("rb") as file:
            os.fsync(file.fileno())
        half.replace(place)
    finally:
        with suppress(FileNotFoundError):
            half.unlink()
