"""Published versions as commands name them: NAME, NAME:VERSION or NAME:ALIAS."""

from typing import TYPE_CHECKING

from models.store import Store, StoreError

if TYPE_CHECKING:
    from models.artifact import Artifact


def find(store: Store, reference: str) -> tuple[str, int]:
    """Which model and version; the newest where neither number nor alias is given. StoreError, saying what there is."""
    name, _, wanted = reference.partition(":")
    models = store.index().models
    if name not in models:
        raise StoreError(f"{store.name} has no model {name!r} (there are: {', '.join(sorted(models)) or 'none'})")
    entry = models[name]
    if wanted in ("", "latest"):
        version = max(entry.versions)
    elif wanted in entry.aliases:
        version = entry.aliases[wanted]
    elif wanted.isdecimal() and int(wanted) in entry.versions:
        version = int(wanted)
    else:
        known = [*map(str, sorted(entry.versions)), *sorted(entry.aliases), "latest"]
        raise StoreError(f"{name} has no version {wanted!r} (there are: {', '.join(known)})")
    return name, version


def load(store: Store, reference: str) -> "Artifact":
    """The version, verified; StoreError as of `find`, or ArtifactError where it cannot be loaded."""
    # It brings torch along, which who only looks for a version does without.
    from models import artifact

    name, version = find(store, reference)
    digest = store.index().models[name].versions[version]
    try:
        with store.opened(name, version) as path:
            return artifact.load(path, digest=digest)
    except OSError as error:
        raise StoreError(f"{store.where(name, version)}: {error.strerror}") from error
