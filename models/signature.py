"""Ed25519 signatures (RFC 8032) by which whoever publishes vouches for a version: its name, its number, its digest.

Needs the package `cryptography` (the extra `signing`), and only where something is signed or a signature is asked for.
"""

import base64
import binascii
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


class SignatureError(Exception):
    """A key that is none, or a version that its owner does not vouch for."""


class Signer:
    """Whoever holds the private key."""

    def __init__(self, key: "Ed25519PrivateKey") -> None:
        self._key = key

    @classmethod
    def read(cls, path: Path) -> "Signer":
        """From a PEM file (PKCS 8, without a password); SignatureError."""
        _need_cryptography()
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise SignatureError(f"{path}: {error.strerror}") from error
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise SignatureError(f"{path}: not a private key in PEM without a password") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise SignatureError(f"{path}: not an Ed25519 key")
        return cls(key)

    @classmethod
    def make(cls, path: Path) -> "Signer":
        """A fresh key, into a file that nobody else may read; SignatureError where there is one."""
        _need_cryptography()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        key = Ed25519PrivateKey.generate()
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise SignatureError(f"{path}: {error.strerror}") from error
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return cls(key)

    @property
    def public(self) -> str:
        """What others trust this one by (base64)."""
        return base64.b64encode(self._key.public_key().public_bytes_raw()).decode()

    def sign(self, name: str, version: int, digest: str) -> str:
        """The signature of a version (base64)."""
        return base64.b64encode(self._key.sign(_message(name, version, digest))).decode()


class Trust:
    """What versions have to be signed by."""

    def __init__(self, key: "Ed25519PublicKey") -> None:
        self._key = key

    @classmethod
    def parse(cls, text: str) -> "Trust":
        """A public key in base64; SignatureError."""
        _need_cryptography()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            return cls(Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True)))
        except (ValueError, binascii.Error) as error:
            raise SignatureError("not an Ed25519 public key: 32 bytes in base64") from error

    def check(self, name: str, version: int, digest: str, signature: str | None) -> None:
        """SignatureError where the key's owner does not vouch for that version."""
        from cryptography.exceptions import InvalidSignature

        if signature is None:
            raise SignatureError("not signed, and FORETELL_TRUSTED_KEY asks for a signature")
        try:
            self._key.verify(base64.b64decode(signature, validate=True), _message(name, version, digest))
        except (InvalidSignature, ValueError, binascii.Error) as error:
            raise SignatureError("its signature is not of FORETELL_TRUSTED_KEY") from error


def _need_cryptography() -> None:
    if find_spec("cryptography") is None:
        raise SignatureError("signatures need the package cryptography: install foretell[signing]")


def _message(name: str, version: int, digest: str) -> bytes:
    # The first line keeps a signature of something else from ever being one of a version.
    return f"foretell version 1\n{name}\n{version}\n{digest}\n".encode()
