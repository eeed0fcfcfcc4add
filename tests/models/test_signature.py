"""Signatures: who vouches for a version, and what is no such thing."""

import base64
import importlib.util
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from models import signature
from models.signature import SignatureError, Signer, Trust

DIGEST = "sha256:" + "0" * 64
OTHER = "sha256:" + "1" * 64


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    """Somebody with a key."""
    return Signer.make(tmp_path / "key.pem")


def test_a_signature_is_of_one_version_alone(signer: Signer) -> None:
    """Of its name, its number and its digest: no other version can be put in its place, nor an older one."""
    trust = Trust.parse(signer.public)
    signed = signer.sign("load", 12, DIGEST)

    trust.check("load", 12, DIGEST, signed)
    for name, version, digest in (("sales", 12, DIGEST), ("load", 1, DIGEST), ("load", 12, OTHER), ("load\n1", 2, "")):
        with pytest.raises(SignatureError, match="not of FORETELL_TRUSTED_KEY"):
            trust.check(name, version, digest, signed)


def test_a_signature_of_somebody_else_is_none(signer: Signer, tmp_path: Path) -> None:
    """Whoever they are, they are not trusted."""
    other = Signer.make(tmp_path / "other.pem")

    with pytest.raises(SignatureError, match="not of FORETELL_TRUSTED_KEY"):
        Trust.parse(signer.public).check("load", 1, DIGEST, other.sign("load", 1, DIGEST))


@pytest.mark.parametrize("text", ["", "rubbish", "AAAA", "ä", "=" * 88, base64.b64encode(bytes(64)).decode()])
def test_what_is_no_signature_is_refused(signer: Signer, text: str) -> None:
    """However it looks, and an absent one with another reason."""
    trust = Trust.parse(signer.public)

    with pytest.raises(SignatureError, match="not of FORETELL_TRUSTED_KEY"):
        trust.check("load", 1, DIGEST, text)
    with pytest.raises(SignatureError, match="not signed, and FORETELL_TRUSTED_KEY asks for a signature"):
        trust.check("load", 1, DIGEST, None)


@pytest.mark.parametrize("text", ["", "rubbish", "AAAA", "ä" * 44, base64.b64encode(bytes(33)).decode()])
def test_what_is_no_public_key_is_refused(text: str) -> None:
    """Before anything is held against it."""
    with pytest.raises(SignatureError, match="not an Ed25519 public key: 32 bytes in base64"):
        Trust.parse(text)


def test_a_key_is_kept_in_a_file_for_its_owner_alone(signer: Signer, tmp_path: Path) -> None:
    """Nobody else may read it, none is written over another, and read again it is the same."""
    path = tmp_path / "key.pem"
    content = path.read_bytes()

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert content.startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert Signer.read(path).public == signer.public
    with pytest.raises(SignatureError, match=r"key\.pem: File exists"):
        Signer.make(path)
    assert path.read_bytes() == content
    with pytest.raises(SignatureError, match="No such file"):
        Signer.make(tmp_path / "nowhere" / "key.pem")


def _pem(key: object, encryption: object = None) -> bytes:
    return key.private_bytes(  # type: ignore[attr-defined]  # any kind of key
        Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()
    )


def _encrypted() -> bytes:
    return _pem(Ed25519PrivateKey.generate(), BestAvailableEncryption(b"secret"))


def _public() -> bytes:
    return Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


NO_KEY = "not a private key in PEM without a password"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda: b"", NO_KEY),
        (lambda: b"\xff\x00rubbish", NO_KEY),
        (_public, NO_KEY),
        (_encrypted, NO_KEY),
        (lambda: _pem(rsa.generate_private_key(65537, 2048)), "not an Ed25519 key"),
        (lambda: _pem(ec.generate_private_key(ec.SECP256R1())), "not an Ed25519 key"),
        (lambda: _pem(ed448.Ed448PrivateKey.generate()), "not an Ed25519 key"),
    ],
)
def test_what_is_no_key_of_ours_is_refused(tmp_path: Path, content: Callable[[], bytes], reason: str) -> None:
    """With its file's name; none of it is shown."""
    path = tmp_path / "key.pem"
    path.write_bytes(content())

    with pytest.raises(SignatureError) as refusal:
        Signer.read(path)
    assert str(refusal.value) == f"{path}: {reason}"
    with pytest.raises(SignatureError, match=r"absent\.pem: No such file"):
        Signer.read(tmp_path / "absent.pem")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only where a signature is asked for or made; the serving installation has none of it."""

    def find_spec(name: str) -> object:
        return None if name == "cryptography" else importlib.util.find_spec(name)

    monkeypatch.setattr(signature, "find_spec", find_spec)
    for ask in (lambda: Trust.parse("AAAA"), lambda: Signer.make(tmp_path / "k"), lambda: Signer.read(tmp_path / "k")):
        with pytest.raises(SignatureError, match=r"install foretell\[signing\]"):
            ask()
    assert list(tmp_path.iterdir()) == []
