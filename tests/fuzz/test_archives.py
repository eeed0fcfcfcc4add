"""Specs, indices and archives that are not what they should be: refused with a reason, never anything else."""

import copy
import io
import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given
from pydantic import ValidationError

from models import artifact
from models.archive import RESIDUALS_FILE, SPEC_FILE, ArchiveError, digest_of, record
from models.artifact import ArtifactError, DigestError
from models.spec import Spec, first_error
from models.store import INDEX, Store, StoreError
from tests.app import calibrated
from tests.builders import network, spec_for
from tests.fuzz import tries
from tests.fuzz.rubbish import NO_NUMBERS, NUMBERS, damaged

_BUILT = network(
    "attention_lstm", {"hidden": 4, "layers": 1, "attention_size": 4}, roles=("target", "past", "future"), horizon=2
)
_WHOLE = spec_for(
    _BUILT,
    architecture="attention_lstm",
    config={"hidden": 4, "layers": 1, "attention_size": 4},
    intervals=calibrated.intervals(),
    clock=True,
)
SPECS = [spec.model_dump(mode="json") for spec in (_WHOLE, spec_for(network(), timezone="Europe/Vienna"))]
_DEEP: Any = []
for _ in range(400):
    _DEEP = [_DEEP]
EXTREME: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        1,
        2**31,
        2**63,
        10**30,
        -(10**30),
        1.5,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        [],
        {},
        [[]],
        [None],
    ),
    *(
        "PT0S",
        "-PT1H",
        "P999999999D",
        "PT0.0000001S",
        "P1Y",
        "PT1H",
        3600,
        "America",
        "../UTC",
        "/etc/passwd",
        "UTC\0",
        "x" * 5000,
    ),
    *(
        "\u0000",
        "2026-01-01",
        "9999-12-31T23:59:59Z",
        "0001-01-01T00:00:00+14:00",
        "target_0",
        "static",
        "given",
        _DEEP,
    ),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401  JSON
    """Every place in it."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        yield from places(child, (*path, name))


PLACES = [list(places(whole)) for whole in SPECS]


@st.composite
def changed(draw: st.DrawFn, wholes: list[Any]) -> Any:  # noqa: ANN401  JSON
    """One of these documents with some fields dropped, added, doubled, or of other kinds and sizes."""
    whole = json.loads(json.dumps(draw(st.sampled_from(wholes))))
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(whole))[1:]
        # The outer fields as often as those of long lists within.
        path = draw(st.sampled_from(found) | st.sampled_from([one for one in found if len(one) < 3] or found))
        parent = whole
        for name in path[:-1]:
            parent = parent[name]
        what = draw(st.sampled_from(["drop", "put", "put", "put", "more"]))
        if what == "drop":
            del parent[path[-1]]
        elif what == "put":
            parent[path[-1]] = copy.deepcopy(draw(st.sampled_from(EXTREME)))
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(parent[path[-1]]))
        else:
            parent["more"] = copy.deepcopy(draw(st.sampled_from(EXTREME)))
        if not (isinstance(whole, dict) and whole):
            break
    return whole


spec_texts = changed(SPECS).map(lambda found: json.dumps(found).encode())
WORDS = (
    b"NaN",
    b"1e999",
    b"null",
    b"\xff",
    b'"\\ud800"',
    b"[" * 2000,
    *(text.encode() for text in (*NUMBERS, *NO_NUMBERS)),
)


@tries(500)
@given(spec_texts | damaged(st.sampled_from([json.dumps(whole).encode() for whole in SPECS]), WORDS))
def test_specs(text: bytes) -> None:
    """A spec is refused with a place and a reason, or means what it says."""
    try:
        spec = Spec.model_validate_json(text)
    except ValidationError as error:
        reason = first_error(error)
        assert reason
        reason.encode()
        return
    # As it goes from process to process; a config may hold a NaN, which is null there.
    assert Spec.model_validate_json(spec.model_dump_json()).model_dump_json() == spec.model_dump_json()
    assert spec.frequency.total_seconds() > 0
    assert spec.outputs == len(spec.example.forecast[0])
    window, time, future = artifact.example_inputs(spec, "cpu")
    assert window.shape == (1, spec.window, len(spec.features))
    assert time.shape == (1,)
    assert future.shape[2] == len(spec.known)


@pytest.mark.parametrize("name", ["America", "", "x" * 5000, "/etc/passwd", "..", "UTC\0", ".", "right/../UTC"])
def test_a_timezone_that_is_a_folder(name: str) -> None:
    """What the file system says of a name is no reason to fail in another way."""
    with pytest.raises(ValidationError, match="time zone"):
        Spec.model_validate({**SPECS[1], "timezone": name})


@pytest.mark.parametrize("frequency", ["PT0S", "-PT1H", "P999999999D"])
def test_a_frequency_that_no_times_have(frequency: str) -> None:
    """Rows that do not go on, or go beyond all calendars, would break whoever counts steps between times."""
    with pytest.raises(ValidationError, match=r"frequency|9999"):
        Spec.model_validate({**SPECS[1], "frequency": frequency})


# An index


_INDEX = {
    "models": {
        "tiny": {"versions": {"1": f"sha256:{'0' * 64}", "2": f"sha256:{'1' * 64}"}, "aliases": {"production": 1}}
    }
}
_INDICES = [_INDEX, {"models": {}}, {}]
index_texts = st.one_of(
    changed([_INDEX]).map(lambda found: json.dumps(found).encode()),
    damaged(
        st.sampled_from([json.dumps(whole).encode() for whole in _INDICES]), (*WORDS, b'"latest"', b'"01"', b'"-1"')
    ),
    st.binary(max_size=30),
)


@tries(300)
@given(index_texts)
@example(b'{"models":{"tiny":{"versions":{"' + b"9" * 5000 + b'":"sha256:' + b"0" * 64 + b'"}}}}')
@example(b"[" * 100_000)
def test_indices(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    """An index that is no index is a StoreError; another can be written again."""
    store = Store(tmp_path_factory.getbasetemp())
    (store.root / INDEX).write_bytes(text)
    try:
        index = store.index()
    except StoreError:
        return
    for name, entry in index.models.items():
        assert all(version > 0 for version in entry.versions)
        assert (store.root / name).parent == store.root
    assert type(index).model_validate_json(index.model_dump_json()) == index


# Archives


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The archive of a model with intervals."""
    root = tmp_path_factory.mktemp("store")
    calibrated.publish(root)
    return Store(root).archive("tiny", 1).read_bytes()


def zipped(files: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """As a zip file, in which a name may come twice."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as file:
        for name, text in files:
            file.writestr(zipfile.ZipInfo(name), text, method)
    return content.getvalue()


names = st.sampled_from(
    [
        "model/extra/spec.json",
        "/extra/spec.json",
        "../../extra/spec.json",
        "extra/spec.json",
        "a/b",
        "C:\\x",
        "model/extra/spec.json/",
    ]
)
methods = st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
zips = st.builds(
    zipped, st.lists(st.tuples(names, st.binary(max_size=20)), max_size=3, unique_by=lambda pair: pair[0]), methods
)
ZIP_WORDS = (
    b"PK\x01\x02",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"\xff" * 4,
    b"\0" * 4,
    b"\x63\0",
    b"\x01\0",
    b"\x08\0",
    b"\x0e\0",
)


def check_record(archive: bytes) -> None:
    """It is there, or it is not, or the archive is none."""
    for name in (SPEC_FILE, RESIDUALS_FILE):
        try:
            found = record(archive, name)
        except ArchiveError:
            continue
        assert found is None or isinstance(found, bytes)


@tries(500)
@given(damaged(zips, ZIP_WORDS) | st.binary(max_size=60))
def test_records(archive: bytes) -> None:
    """Of no zip file, however damaged, anything else comes than the record, nothing, or an ArchiveError."""
    check_record(archive)


@tries(200)
@given(data=st.data())
def test_records_of_a_damaged_archive(whole: bytes, data: st.DataObject) -> None:
    """Likewise of a whole one of ours with a few bytes changed, mostly where the zip file says what is in it."""
    archive = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(archive) - 1) | st.integers(len(archive) - 900, len(archive) - 1))
        archive[place] = data.draw(st.integers(0, 255))
    check_record(bytes(archive[: data.draw(st.just(len(archive)) | st.integers(0, len(archive)))]))


def test_a_record_is_as_large_as_it_is(whole: bytes) -> None:
    """One that would unpack to far more than the archive has bytes is refused before any of it is unpacked."""
    bomb = zipped([("model/extra/spec.json", bytes(50 * 2**20))], zipfile.ZIP_DEFLATED)
    with pytest.raises(ArchiveError):
        record(bomb, SPEC_FILE)
    stored = zipped([("model/extra/spec.json", b"{}")])
    lying = stored.replace(struct.pack("<II", 2, 2), struct.pack("<II", 2**32 - 2, 2**32 - 2))
    with pytest.raises(ArchiveError):
        record(lying, SPEC_FILE)


@tries(60)
@given(data=st.data())
def test_loading_a_damaged_archive(whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """The digest is looked at first, whatever else is wrong."""
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    place = data.draw(st.integers(0, len(whole) - 1))
    damage = whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
    path.write_bytes(data.draw(st.sampled_from([damage, whole[:place], whole + b"x"])))
    with pytest.raises(DigestError):
        artifact.load(path, digest=digest_of(whole))


def with_records(whole: bytes, changes: dict[str, bytes | None]) -> bytes:
    """The archive with other contents of some records; None takes one out."""
    with zipfile.ZipFile(io.BytesIO(whole)) as file:
        files = [(name, file.read(name)) for name in file.namelist()]
    changed = [(name, changes.get(name.rpartition("/")[2], text)) for name, text in files]
    return zipped([(name, text) for name, text in changed if text is not None])


@tries(60)
@given(data=st.data())
def test_loading_another_spec(whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A spec that does not fit its network, or is none, is an ArtifactError, though the digest is right."""
    spec = json.loads(record(whole, SPEC_FILE) or b"")
    text = data.draw(
        changed([spec]).map(lambda found: json.dumps(found).encode())
        | damaged(st.just(json.dumps(spec).encode()), WORDS)
    )
    archive = with_records(whole, {SPEC_FILE: text})
    path = tmp_path_factory.getbasetemp() / "other.pt"
    path.write_bytes(archive)
    try:
        loaded = artifact.load(path, digest=digest_of(archive))
    except ArtifactError:
        pass
    else:
        assert loaded.spec.model_dump_json() == Spec.model_validate_json(text).model_dump_json()


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"format":' + b"[" * 100_000, b"\xff\xfe", b"", b"1" * 5000])
def test_loading_a_spec_that_is_no_json(whole: bytes, tmp_path: Path, text: bytes) -> None:
    """However deep it is."""
    archive = with_records(whole, {SPEC_FILE: text})
    path = tmp_path / "other.pt"
    path.write_bytes(archive)
    with pytest.raises(ArtifactError):
        artifact.load(path, digest=digest_of(archive))
