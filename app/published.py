"""Which store is changed, and which is read: the same folder, or an object store and its mirror here."""

from app.settings import Settings, mirrors
from models.mirror import Mirror
from models.store import Store


def prepare(settings: Settings) -> None:
    """What changes take that are made over HTTP, before the first request: nobody's answer is to wait for it."""
    if settings.admin_key is not None or settings.keys_file is not None:
        changed(settings).prepare()


def changed(settings: Settings) -> Store:
    """Where changes are made."""
    return Store(settings.artifacts)


def read(settings: Settings) -> Store:
    """The folder that everything is read from."""
    mirror = mirror_of(settings)
    return changed(settings) if mirror is None else mirror.store


def mirror_of(settings: Settings) -> Mirror | None:
    """What keeps that folder up to date; None where that is the store itself."""
    return Mirror(changed(settings), mirrors(settings)) if isinstance(settings.artifacts, str) else None
