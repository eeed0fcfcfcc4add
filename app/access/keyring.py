"""API keys: what they look like, what the file of them says, and whose a given one is.

A key is `fk_<id>_<secret>`: a public id of 12 hexadecimal digits, and 256 random bits.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import stat
import tomllib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from app.access.rates import Rate
from app.settings import Settings, SettingsError

log = logging.getLogger(__name__)

Scope = Literal["predict", "read", "admin"]

MOST_KEYS = 4096
"""In a file; what they have used is kept in a table of its own size."""
ADMIN = "admin"
"""The name of whoever has FORETELL_ADMIN_KEY."""
_EVERYTHING: frozenset[Scope] = frozenset(("predict", "read", "admin"))
_OPEN: frozenset[Scope] = frozenset(("predict", "read"))
_LOOK_S = 1.0
_KEY = re.compile(rb"fk_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")


class Principal(NamedTuple):
    """Who asks."""

    name: str
    scopes: frozenset[Scope]
    id: str = ""
    """Of the key; none of those that no file lists."""
    quota: Rate | None = None


class KeysError(Exception):
    """A file of keys that cannot be read; never with anything of what it holds."""


class Entry(BaseModel):
    """A key as the file lists it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    quota: str | None = None

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if name in (ADMIN, ANONYMOUS.name):
            raise ValueError("this name is taken")
        return name

    @field_validator("quota")
    @classmethod
    def _is_rate(cls, text: str | None) -> str | None:
        if text is not None:
            Rate.parse(text)
        return text


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: Annotated[list[Entry], Field(max_length=MOST_KEYS)] = []

    @model_validator(mode="after")
    def _are_different(self) -> "_File":
        for of in ("name", "id"):
            if len({getattr(entry, of) for entry in self.keys}) < len(self.keys):
                raise ValueError(f"two keys have the same {of}")
        return self


class _Known(NamedTuple):
    hash: bytes
    principal: Principal


ANONYMOUS = Principal("anonymous", frozenset())
_NOBODY = _Known(secrets.token_bytes(32), ANONYMOUS)


def new_key() -> tuple[str, str, str]:
    """A fresh key, its id, and what a file says of its secret."""
    identity = secrets.token_hex(6)
    key = f"fk_{identity}_{secrets.token_urlsafe(32)}"
    return key, identity, f"sha256:{_digest(key.encode()).hex()}"


def read_keys(file: Path) -> list[Entry]:
    """What a file of keys lists; KeysError saying what is wrong and where."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise KeysError((error.strerror or str(error)).lower()) from None
    return parse_keys(content, kind=file.suffix)


def parse_keys(content: bytes, *, kind: str) -> list[Entry]:
    """The same of its content: JSON where the kind is `.json`, else TOML."""
    try:
        text = content.decode()
        return _File.model_validate(json.loads(text) if kind == ".json" else tomllib.loads(text)).keys
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise KeysError(f"{place}: {message}" if place else message) from None
    except (ValueError, RecursionError) as error:
        # Undecodable text is told by where it is, since the message itself may show it.
        told = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise KeysError(told) from None


class Keyring:
    """All keys that are known now. The file is followed: what is wrong with a new one leaves those of before.

    Where the first that is read is wrong, nobody but the holder of the admin key is known until it is mended, so that
    a process that is started again meanwhile neither opens the service nor ends it.
    """

    def __init__(self, settings: Settings) -> None:
        self._file = settings.keys_file
        admin = settings.admin_key
        self._admin = secrets.token_bytes(32) if admin is None else _digest(admin.get_secret_value().encode())
        self.administered = admin is not None or self._file is not None
        """Whether any key can be for administration."""
        self.guarded = self._file is not None
        """Whether one is needed for anything else."""
        self.anonymous = ANONYMOUS if self.guarded else ANONYMOUS._replace(scopes=_OPEN)
        self._known: Mapping[str, _Known] = {}
        self._seen: object = None
        if self._file is not None:
            self._look(self._file)

    def find(self, key: bytes) -> Principal | None:
        """Whose key it is, with the same work for one that nobody has."""
        # SHA-256 is enough: slow hashes are for passwords, which can be guessed; 256 random bits cannot, however fast.
        digest = _digest(key)
        match = _KEY.fullmatch(key)
        known = self._known.get(match[1].decode(), _NOBODY) if match else _NOBODY
        is_admin = hmac.compare_digest(digest, self._admin)
        if hmac.compare_digest(digest, known.hash):
            return known.principal
        return Principal(ADMIN, _EVERYTHING) if is_admin else None

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Within it, a changed file is read again."""
        following = None if self._file is None else asyncio.create_task(self._follow(self._file), name="keys")
        try:
            yield
        finally:
            if following is not None:
                following.cancel()
                with suppress(asyncio.CancelledError):
                    await following

    async def _follow(self, file: Path) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            # The disk of a network may take its time.
            await asyncio.to_thread(self._look, file)

    def _look(self, file: Path) -> None:
        """Read it if it is another than before."""
        try:
            status = file.stat()
            seen: object = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        except OSError as error:
            status, seen = None, error.errno
        if seen == self._seen:
            return
        self._seen = seen
        try:
            entries = read_keys(file)
        except KeysError as error:
            log.error("FORETELL_KEYS_FILE=%s: %s; the keys of before stand", file, error)  # noqa: TRY400
            return
        if status is not None and _is_open(status):
            log.warning("FORETELL_KEYS_FILE=%s is open to other users of this machine; chmod 600 keeps them out", file)
        # In one step, since requests are looked up in it meanwhile.
        self._known = {entry.id: _known(entry) for entry in entries}
        log.info("%d keys are known", len(entries))


def _is_open(status: os.stat_result) -> bool:
    """Whether more may read a file than have to. Where somebody else owns it, as in Kubernetes, this process reads it
    as one of its group.
    """
    needless = stat.S_IRWXO | (stat.S_IRWXG if status.st_uid == os.geteuid() else 0)
    return bool(status.st_mode & needless)


def check_keys(settings: Settings) -> None:
    """SettingsError where the file of keys cannot be read."""
    if settings.keys_file is not None:
        try:
            read_keys(settings.keys_file)
        except KeysError as error:
            raise SettingsError(f"FORETELL_KEYS_FILE={settings.keys_file}: {error}") from None


def _known(entry: Entry) -> _Known:
    rate = None if entry.quota is None else Rate.parse(entry.quota)
    principal = Principal(entry.name, entry.scopes, entry.id, rate)
    return _Known(bytes.fromhex(entry.hash.removeprefix("sha256:")), principal)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
