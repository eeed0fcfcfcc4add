"""Published versions as commands name them: NAME, NAME:VERSION or NAME:ALIAS."""

from models import artifact
from models.artifact import Artifact
from models.store import Store, StoreError


def load(store: Store, reference: str) -> Artifact:
    """The version, verified; the newest where neither number nor alias is given.

    StoreError, saying what there is, or ArtifactError where it cannot be loaded.
    """
    name, _, wanted = reference.partition(":")
    models = store.index().models
    if name not in models:
        raise StoreError(f"{store.root} has no model {name!r} (there are: {', '.join(sorted(models)) or 'none'})")
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
    path = store.archive(name, version)
    try:
        return artifact.load(path, digest=entry.versions[version])
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
