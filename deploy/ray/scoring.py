"""Scores a part with the service's own runtime, in one process; knows neither Ray nor HTTP.

Shapes: n rows, B rows of a pass, L window, F features, N steps, T targets, Q quantiles, O = T + Q * T.
"""

import logging
import math
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from app.asked.layout import Layout
from app.device.runtime import Runtime
from app.errors import DeviceLostError
from app.forecasts.bands import Banding
from app.ticket import Floats, NoRoomError, Ticket, Times
from deploy.ray import work
from deploy.ray.plan import Plan, contents
from deploy.ray.table import Table, stamps
from deploy.ray.work import Count, Part, written
from models.spec import Spec
from models.store import Store

log = logging.getLogger("app")

_ROWS = 4096
"""Read, and held with their forecasts, at a time; fewer where"""
_NUMBERS = 8_000_000
"""of these are more than so many."""


class Scorer:
    """A model on a device, and what it says of one part after the other."""

    def __init__(self, plan: Plan, device: str) -> None:
        """models.artifact.ArtifactError where the model does not load."""
        self._plan = plan
        self._runtime = Runtime(device, threads=plan.threads, batch_rows=plan.batch_rows, precision=plan.precision)
        with Store(plan.store).opened(plan.model.name, plan.model.version) as archive:
            loaded = self._runtime.load(plan.model, archive)
            _, table = contents(archive, plan.model)
        self._runtime.install(plan.model, loaded)
        self._spec: Spec = loaded.spec
        self._banding: Banding | None = None
        if plan.wanted is not None and table is not None:
            self._banding = Banding(self._spec, table, plan.wanted, None)
        numbers = plan.steps * (self._spec.outputs + len(self._ends) * len(self._spec.targets))
        self._rows = max(plan.batch_rows, min(_ROWS, _NUMBERS // numbers))

    def score(self, part: Part) -> Count:
        """Write the forecasts of a part, and what it has of rows that the model does not take."""
        columns = self._plan.columns
        with pq.ParquetFile(work.place_of(self._plan.data, part.path)) as file, written(self._plan.root, part) as to:
            before = sum(file.metadata.row_group(group).num_rows for group in range(part.group))
            # First of no rows, so that there is a file for them too.
            batch = pa.RecordBatch.from_pylist([], file.schema_arrow).select(columns.names)
            following = file.iter_batches(self._rows, row_groups=[part.group], columns=columns.names)
            while batch is not None:
                forecasts, reasons = self._answered(batch)
                ids = batch.column(columns.id)
                to.add(forecasts, _rejected(columns.id, ids, reasons, before), batch.num_rows - len(reasons))
                before += batch.num_rows
                batch = next(following, None)
        return to.count

    def _answered(self, batch: pa.RecordBatch) -> tuple[pa.Table, dict[int, str]]:
        """A row for every step of every series that the model takes; why it does not take the others."""
        plan, spec = self._plan, self._spec
        table = Table(batch, plan.columns, spec, plan.steps)
        outputs = np.full((batch.num_rows, plan.steps, spec.outputs), np.nan, np.float32)
        bounds = np.full((batch.num_rows, plan.steps, len(self._ends) * len(spec.targets)), np.nan, np.float32)
        last = np.zeros(batch.num_rows, np.int64)
        failed: list[int] = []
        for rows, layout in table.ready():
            for start in range(0, len(rows), plan.batch_rows):
                some = rows[start : start + plan.batch_rows]
                part = slice(start, start + len(some))
                outputs[some], wrong = self._passes(layout, part)
                failed += some[wrong].tolist()
                if layout.last is not None:
                    last[some] = layout.last[part]
                if self._banding is not None:
                    around = self._banding.around(layout.windows[part], outputs[some])
                    ends = [end for ends in around.bounds.values() for end in ends]
                    bounds[some] = np.concatenate(ends, 2)
        reasons = {**dict.fromkeys(failed, "the model fails on it"), **table.reasons}
        for row in np.flatnonzero(~np.isfinite(outputs).all((1, 2))).tolist():
            if row not in reasons:
                step, output = np.argwhere(~np.isfinite(outputs[row]))[0].tolist()
                name = spec.targets[output % len(spec.targets)]
                reasons[row] = f"the model's forecast of {name} is not finite from step {step + 1} on"
        good = np.array([row for row in range(batch.num_rows) if row not in reasons], np.int64)
        told = np.concatenate([outputs[good, :, : len(spec.targets)], bounds[good]], 2)
        ids = batch.column(plan.columns.id).take(pa.array(np.repeat(good, plan.steps)))
        return self._long(ids, last[good], told), reasons

    @property
    def _ends(self) -> list[str]:
        """Of intervals, as the service's tables call them."""
        levels = self._plan.wanted.levels if self._plan.wanted else ()
        return [f"{side}_{level}" for level in levels for side in ("lower", "upper")]

    def _long(self, ids: pa.Array, last: Times, told: Floats) -> pa.Table:
        """With the columns that the service's tables have."""
        plan, spec = self._plan, self._spec
        columns = {plan.columns.id: ids}
        if plan.columns.time is not None:
            columns[spec.time] = stamps(last, spec, plan.steps)
        columns["step"] = pa.array(np.tile(np.arange(1, plan.steps + 1, dtype=np.int32), len(last)))
        names = [*spec.targets, *(f"{name}_{end}" for end in self._ends for name in spec.targets)]
        for index, name in enumerate(names):
            columns[name] = pa.array(np.ascontiguousarray(told[:, :, index]).ravel())
        return pa.table(columns)

    def _passes(self, layout: Layout, rows: slice) -> tuple[Floats, list[int]]:
        """[B, N, O] of these rows, and which of them the model fails on: those are NaN."""
        ticket = Ticket(
            self._plan.model,
            layout.windows[rows],
            layout.time[rows],
            layout.known[rows],
            passes=math.ceil(self._plan.steps / self._spec.horizon),
            attention=False,
            bulk=True,
        )
        failed: list[int] = []
        found = self._run(ticket, 0, failed)
        return found[:, : self._plan.steps], failed

    def _run(self, ticket: Ticket, first: int, failed: list[int]) -> Floats:
        try:
            while not ticket.finished:
                (part,) = self._runtime.run([ticket], lambda: True)
                ticket.take(part)
            return ticket.forecast()
        except DeviceLostError:
            raise
        except (NoRoomError, RuntimeError) as error:
            if ticket.rows == 1:
                if isinstance(error, NoRoomError):
                    raise
                log.exception("the model fails on a window")
                failed.append(first)
                return np.full((1, ticket.known.shape[1], self._spec.outputs), np.nan, np.float32)
        # Too many for the memory, or one of them is to blame, and the others are not to pay for it.
        one, other = ticket.halves()
        return np.concatenate([self._run(one, first, failed), self._run(other, first + one.rows, failed)])


def _rejected(name: str, ids: pa.Array, reasons: Mapping[int, str], before: int) -> pa.Table:
    """The rows that are left out, numbered within their file, and why."""
    rows = sorted(reasons)
    return pa.table(
        {
            name: ids.take(pa.array(rows, pa.int64())),
            "row": pa.array([before + row for row in rows], pa.int64()),
            "reason": pa.array([reasons[row] for row in rows], pa.string()),
        }
    )
