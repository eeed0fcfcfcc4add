"""Keys for tests.

keys = Keys(tmp_path); key = keys.add("grafana", "read"); serving(root, keys_file=keys.file)
"""

import json
from pathlib import Path

from app.access.keyring import new_key


class Keys:
    """A file of keys that can be changed; by default the way that a program would write it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "keys.json"
        self.entries: list[dict[str, object]] = []
        self.write()

    def add(self, name: str, *scopes: str, quota: str | None = None) -> str:
        """List one more, and give it."""
        key, identity, digest = new_key()
        entry: dict[str, object] = {"name": name, "id": identity, "hash": digest, "scopes": scopes}
        self.entries.append(entry if quota is None else {**entry, "quota": quota})
        self.write()
        return key

    def write(self) -> None:
        """Put the file there as it is to be."""
        beside = self.file.with_suffix(".new")
        beside.write_text(json.dumps({"keys": self.entries}))
        beside.chmod(0o600)
        beside.replace(self.file)


def bearing(key: str) -> dict[str, str]:
    """The header that gives a key."""
    return {"Authorization": f"Bearer {key}"}
