"""From a fitted network to a published version: scores, spec, archive and report, or nothing at all."""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from pathlib import Path

from models import artifact
from models.signature import Signer
from models.spec import Calendar, Example, Intervals, Metrics, Spec, Training
from models.store import ARCHIVE, REPORT, Store
from training.data.dataset import Dataset
from training.fitting.fit import Fitted
from training.recipe import Recipe
from training.reporting import report
from training.scoring.calibrate import calibrate
from training.scoring.evaluate import case, evaluate, example, export
from training.scoring.evidence import Evidence
from training.scoring.series import BySeries, SeriesScores

_LIBRARIES = ("torch", "lightning", "numpy", "polars")


@dataclass(frozen=True, slots=True)
class Published:
    """What the store now holds."""

    name: str
    version: int
    metrics: Metrics
    series: list[SeriesScores]
    store: Store

    @property
    def archive(self) -> Path:
        """Where its archive lies, in a store that is a folder."""
        return self.store.archive(self.name, self.version)

    @property
    def where(self) -> str:
        """The same for a person to read, in any store."""
        return self.store.where(self.name, self.version)


def publish(recipe: Recipe, dataset: Dataset, fitted: Fitted, store: Store, signer: Signer | None = None) -> Published:
    """Score the network as it will be served and publish it; a failure on the way leaves the store as it was."""
    module = export(recipe, fitted.network, dataset.windows["test"])
    evidence = Evidence([dataset.features[column] for column in recipe.data.target_columns])
    by_series = BySeries(recipe, dataset)
    metrics = evaluate(recipe, dataset, module, watches=(evidence.add, by_series.add))
    series = by_series.scores()
    calibrated = calibrate(recipe, dataset, module)
    shown = example(recipe, dataset, module)
    if calibrated:
        shown = calibrated.around(recipe, shown)
        series = calibrated.told(series)
    others = {name: case(recipe, dataset, module, chosen) for name, chosen in evidence.places().items()}

    def write(version: int, folder: Path) -> str:
        spec = describe(
            recipe,
            dataset,
            fitted,
            metrics=metrics,
            intervals=calibrated.intervals if calibrated else None,
            shown=shown.example,
            version=version,
        )
        residuals = calibrated.table.pack() if calibrated else None
        digest = artifact.save(fitted.network, spec, folder / ARCHIVE, residuals)
        report.write(folder / REPORT, spec, {"example": shown, **others}, evidence, fitted.epochs, series)
        return digest

    version = store.publish(recipe.name, write, signer=signer)
    return Published(recipe.name, version, metrics, series, store)


def describe(
    recipe: Recipe,
    dataset: Dataset,
    fitted: Fitted,
    *,
    metrics: Metrics,
    intervals: Intervals | None,
    shown: Example,
    version: int,
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
        time=recipe.data.time,
        series=recipe.data.series,
        timezone=recipe.data.timezone,
        clock=network.core.clock,
        calendar=recipe.data.calendar and Calendar(**recipe.data.calendar.model_dump()),
        gaps=recipe.data.gaps.in_graph or "refuse",
        shortest=recipe.window.shortest,
        quantiles=recipe.quantiles,
        intervals=intervals,
        training=_provenance(recipe, dataset),
        metrics=metrics,
        example=shown,
    )


def _provenance(recipe: Recipe, dataset: Dataset) -> Training:
    return Training(
        data=dataset.sources(),
        train=dataset.span("train"),
        validation=dataset.span("validation"),
        calibration=dataset.span("calibration") if recipe.split.calibration else None,
        test=dataset.span("test"),
        recipe=recipe.record(),
        seed=recipe.training.seed,
        libraries={"python": platform.python_version(), **{name: version_of(name) for name in _LIBRARIES}},
        created=datetime.now(UTC),
    )
