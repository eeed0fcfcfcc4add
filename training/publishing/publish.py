"""From a fitted network to a published version: scores, spec, archive and report, or nothing at all."""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from pathlib import Path

from models import artifact
from models.spec import Data, Example, Metrics, Spec, Training
from models.store import ARCHIVE, REPORT, Store
from training.data.dataset import Dataset
from training.fitting.fit import Fitted
from training.recipe import Recipe
from training.reporting import report
from training.scoring.evaluate import case, evaluate, example, export
from training.scoring.evidence import Evidence

_LIBRARIES = ("torch", "lightning", "numpy", "polars")


@dataclass(frozen=True, slots=True)
class Published:
    """What the store now holds."""

    name: str
    version: int
    metrics: Metrics
    archive: Path


def publish(recipe: Recipe, dataset: Dataset, fitted: Fitted, store: Store) -> Published:
    """Score the network as it will be served and publish it; a failure on the way leaves the store as it was."""
    module = export(recipe, fitted.network, dataset.windows["test"])
    evidence = Evidence([dataset.features[column] for column in recipe.data.target_columns])
    metrics = evaluate(recipe, dataset, module, watch=evidence.add)
    shown = example(recipe, dataset, module)
    others = {name: case(recipe, dataset, module, chosen) for name, chosen in evidence.places().items()}

    def write(version: int, folder: Path) -> str:
        spec = describe(recipe, dataset, fitted, metrics=metrics, shown=shown.example, version=version)
        digest = artifact.save(fitted.network, spec, folder / ARCHIVE)
        report.write(folder / REPORT, spec, {"example": shown, **others}, evidence, fitted.epochs)
        return digest

    version = store.publish(recipe.name, write)
    return Published(recipe.name, version, metrics, store.archive(recipe.name, version))


def describe(
    recipe: Recipe, dataset: Dataset, fitted: Fitted, *, metrics: Metrics, shown: Example, version: int
) -> Spec:
    """All that the artifact says of itself."""
    network = fitted.network
    return Spec(
        name=recipe.name,
        version=version,
        architecture=fitted.architecture,
        config=fitted.config,
        recursion=network.core.recursion,
        features=dataset.features,
        targets=[recipe.data.names[column] for column in recipe.data.target_columns],
        window=recipe.window.length,
        horizon=recipe.window.horizon,
        attention_rows=network.attention_rows,
        embedding=network.core.embedding,
        attention_heads=network.core.attention_heads,
        derived=recipe.data.derived,
        frequency=recipe.data.frequency,
        clock=network.core.clock,
        # Whatever was filled for training: the graph fills nothing, so a request must be complete.
        gaps="refuse",
        training=_provenance(recipe, dataset),
        metrics=metrics,
        example=shown,
    )


def _provenance(recipe: Recipe, dataset: Dataset) -> Training:
    return Training(
        data=[Data(file=one.file, sha256=one.sha256, rows=one.recorded) for one in dataset.series],
        train=dataset.span("train"),
        validation=dataset.span("validation"),
        test=dataset.span("test"),
        recipe=recipe.record(),
        seed=recipe.training.seed,
        libraries={"python": platform.python_version(), **{name: version_of(name) for name in _LIBRARIES}},
        created=datetime.now(UTC),
    )
