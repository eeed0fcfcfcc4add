"""python -m app.keys new: make an API key."""

import argparse
import fcntl
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from app.access.keyring import Entry, KeysError, new_key, parse_keys


def main() -> None:
    """Exit status 2 for a name, scope or quota that is none, or a file that cannot be read or written."""
    parser = argparse.ArgumentParser(prog="python -m app.keys", description="Keys of the service.")
    commands = parser.add_subparsers(dest="command", required=True)
    new = commands.add_parser("new", help="make a key and show it, once")
    new.add_argument("--name", required=True, help="whose it is; metrics and refusals name it so")
    new.add_argument("--scopes", required=True, help="predict, read and admin, with commas between")
    new.add_argument("--quota", help='such as "600/minute", or "600/minute burst 50"; none by default')
    new.add_argument("--file", type=Path, help="add it to this file (FORETELL_KEYS_FILE), made where it is not there")
    given = parser.parse_args()
    key, identity, digest = new_key()
    fields = {
        "name": given.name,
        "id": identity,
        "hash": digest,
        "scopes": [scope.strip() for scope in given.scopes.split(",")],
    }
    if given.quota is not None:
        fields["quota"] = given.quota
    try:
        Entry.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        parser.exit(2, f"foretell: --{first['loc'][0]}: {first['msg'].removeprefix('Value error, ')}\n")
    entry = _toml(fields)
    if given.file is not None:
        try:
            _add(given.file.resolve(), fields)
        except (KeysError, OSError, ValueError) as error:
            parser.exit(2, f"foretell: {given.file}: {error}\n")
    else:
        sys.stderr.write(f"\nAdd to the file that FORETELL_KEYS_FILE names:\n\n{entry}\n")
    sys.stderr.write("The key, which is shown this once:\n\n")
    sys.stderr.flush()
    # Alone on standard output, so that it can be sent on to where secrets are kept.
    sys.stdout.write(f"{key}\n")


def _toml(fields: dict[str, object]) -> str:
    # Strings and lists of strings are written alike in JSON and TOML.
    return "\n".join(["[[keys]]", *(f"{name} = {json.dumps(value)}" for name, value in fields.items()), ""])


def _add(file: Path, fields: dict[str, object]) -> None:
    """Put a file with one more entry in the place of what there is: whoever reads it meanwhile reads a whole one."""
    with _alone(file.parent):
        before = file.read_bytes() if file.exists() else b""
        if file.suffix == ".json":
            listed = json.loads(before or b"{}")
            listed.setdefault("keys", []).append(fields)
            after = json.dumps(listed, indent=2).encode() + b"\n"
        else:
            after = before + (b"\n" if before else b"") + _toml(fields).encode()
        # A name that is taken, or a file in which keys are written another way.
        parse_keys(after, kind=file.suffix)
        # Made for its owner alone (0600).
        handle, beside = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(handle, "wb") as output:
                output.write(after)
                output.flush()
                os.fsync(handle)
            if file.exists():
                with suppress(PermissionError):
                    os.chown(beside, file.stat().st_uid, file.stat().st_gid)
            Path(beside).replace(file)
        except BaseException:
            Path(beside).unlink()
            raise


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within it, no other run of this command changes a file there."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


if __name__ == "__main__":
    main()
