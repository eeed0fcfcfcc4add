"""The archive of a model: the scripted network with `spec.json` inside it. The one file that uses torch.jit.

Shapes: B rows, L window, F features, H steps a pass, N steps, O outputs (T targets, and T for each quantile), K
features known ahead, R attention rows a pass. docs/decisions/0001 says why TorchScript, although upstream has
deprecated it.
"""

import io
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from models import archive as archives
from models import intervals
from models.archive import RESIDUALS_FILE, SPEC_FILE, ArchiveError, digest_of
from models.forecaster import Forecaster
from models.spec import FORMAT, Spec, first_error

log = logging.getLogger(__name__)

Precision = Literal["float32", "bfloat16"]
"""What windows are read in; everything that goes in or out is float32."""

_CONTRACT = ("encode", "decode", "rollout")
_EXPORT_TOLERANCE = 1e-5
"""Relative, and of the largest value: what eager and scripted may differ by on one machine."""
_LOAD_TOLERANCE = 1e-3
"""Of a target's standard deviation: what another device's arithmetic may differ by."""
_BFLOAT16_ROWS = 8
"""From so many rows on bfloat16 is faster: below, the conversions cost more than the products."""
_BFLOAT16_TOLERANCE = 1e-2
"""The same for bfloat16, which keeps 8 bits of 24: far below the tenths that the forecasts themselves err by."""


class ArtifactError(Exception):
    """An archive that must not be written or served, and why."""


class DigestError(ArtifactError):
    """The bytes are not those that the digest stands for."""


class FormatError(ArtifactError):
    """Not an archive, or one of a format that this release does not read."""


class MismatchError(ArtifactError):
    """The network does not answer as it must: eager and scripted differ, or the example fails."""


class ForecastModule(Protocol):
    """The methods of a scripted network (design §3)."""

    def encode(self, window: Tensor, time: Tensor) -> list[Tensor]:
        """Window [B, L, F], time int64 [B] -> batch-first state."""

    def decode(self, state: list[Tensor], future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """State, future [B, H, K] -> forecast [B, H, O], attention [B, R, L], next state."""

    def rollout(self, window: Tensor, time: Tensor, future: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Window, time, future [B, N, K] -> forecast [B, N, O], attention [B, R * ceil(N / H), L]."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A loaded and verified model on its device."""

    spec: Spec
    digest: str
    module: ForecastModule


def export(network: Forecaster, window: Tensor, time: Tensor, future: Tensor, steps: int) -> ForecastModule:
    """The scripted network, read back from bytes; MismatchError where it differs from the eager one.

    The probe is a window [B, L, F] with its time [B] and future [B, N, K]. Scores taken of the result are scores of
    what will be served.
    """
    scripted = torch.jit.load(io.BytesIO(_pack(_script(network), {})))
    _compare(network.eval(), cast(ForecastModule, scripted), window, time, future, steps)
    return cast(ForecastModule, scripted)


def answer(
    module: ForecastModule, window: Tensor, time: Tensor, future: Tensor, steps: int, horizon: int
) -> tuple[Tensor, Tensor]:
    """What the service computes: encode once, then decode pass by pass; shapes as of `rollout`.

    Where the known future ends within the last pass, it goes on as in its last row.
    """
    missing = steps + -steps % horizon - future.size(1)
    if missing > 0:
        future = torch.cat([future, future[:, -1:].expand(-1, missing, -1)], 1)
    with torch.inference_mode():
        state = module.encode(window, time)
        forecasts, attentions = [], []
        for start in range(0, steps, horizon):
            forecast, attention, state = module.decode(state, future[:, start : start + horizon])
            forecasts.append(forecast)
            attentions.append(attention)
        return torch.cat(forecasts, 1)[:, :steps], torch.cat(attentions, 1)


def save(network: Forecaster, spec: Spec, path: Path, residuals: bytes | None = None) -> str:
    """Write the archive and give its digest; MismatchError where eager, scripted and the example differ.

    `residuals` is the packed table of a model with intervals (models.intervals).
    """
    extras = {SPEC_FILE: spec.model_dump_json().encode()}
    if residuals is not None:
        extras[RESIDUALS_FILE] = residuals
    archive = _pack(_script(network), extras)
    loaded = cast(ForecastModule, torch.jit.load(io.BytesIO(archive)))
    window, time, future = example_inputs(spec, "cpu")
    _compare(network.eval(), loaded, window, time, future, spec.example.steps)
    _check_example(Artifact(spec=spec, digest="", module=loaded), "cpu")
    path.write_bytes(archive)
    return digest_of(archive)


def load(path: Path, *, digest: str, device: str = "cpu", precision: Precision = "float32") -> Artifact:
    """Read and verify an archive.

    DigestError where its bytes are not those of `digest`, FormatError where they are no archive of a known format,
    MismatchError where the example does not come out, OSError where the file cannot be read. A model for which
    bfloat16 would not do is given in float32, and the log says why: a setting for speed keeps no model out.
    """
    # TorchScript then optimises once, before the first run, and for no shape in particular: otherwise it profiles, and
    # compiles again for shapes that it has not seen. Here that gains nothing on the CPU, and stalls passes on a GPU.
    torch.jit.set_fusion_strategy([])
    archive = path.read_bytes()
    actual = digest_of(archive)
    if actual != digest:
        raise DigestError(f"digest is {actual}, expected {digest}")
    spec = _read_spec(archive)
    _check_residuals(archive, spec)
    try:
        module = torch.jit.load(io.BytesIO(archive), map_location=torch.device(device))
    except (RuntimeError, ValueError) as error:
        raise FormatError(f"not a TorchScript archive: {_first_line(error)}") from error
    missing = [name for name in _CONTRACT if not hasattr(module, name)]
    if missing:
        raise FormatError(f"the network lacks {', '.join(missing)}")
    module.eval()
    _flatten(module)
    artifact = Artifact(spec=spec, digest=digest, module=cast(ForecastModule, module))
    _check_example(artifact, device)
    return artifact if precision == "float32" else _in_bfloat16(artifact, device)


def example_inputs(spec: Spec, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """The example's window [1, L, F], time [1] and future [1, N, K], with NaN for missing values."""
    example = spec.example
    window = _columns(spec, {feature.name for feature in spec.features}, spec.columns, example.window, device)
    end = 0
    if spec.clock and example.start is not None:
        end = int((example.start + (spec.window - 1) * spec.frequency).timestamp())
    time = torch.tensor([end], dtype=torch.int64, device=device)
    future = _columns(spec, set(spec.known), spec.future, example.future or [[]] * example.steps, device)
    return window, time, future


def _columns(
    spec: Spec, wanted: set[str], names: Sequence[str], rows: Sequence[Sequence[float | None]], device: str
) -> Tensor:
    """Rows of these columns [n] -> of the wanted features, in order, each static one with its value [1, n, wanted]."""
    static = dict(zip(spec.static, spec.example.static or (), strict=True))
    found = []
    for row in rows:
        values = {**static, **dict(zip(names, row, strict=True))}
        found.append([values[feature.name] for feature in spec.features if feature.name in wanted])
    numbers = [[math.nan if value is None else value for value in row] for row in found]
    return torch.tensor(numbers, dtype=torch.float32, device=device).view(1, len(rows), -1)


class _InBfloat16:
    """A network (ForecastModule) on a CPU that reads the windows of larger batches with products in bfloat16.

    That is where the time goes. The steps of a carried state stay as they are: they would lose by it, and add up
    their errors.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._module = artifact.module
        self._decode_reads = artifact.spec.recursion == "sliding"

    def encode(self, window: Tensor, time: Tensor) -> list[Tensor]:
        with _bfloat16(len(window)):
            return _float32(self._module.encode(window, time))

    def decode(self, state: list[Tensor], future: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        if not self._decode_reads:
            return self._module.decode(state, future)
        with _bfloat16(len(future)):
            forecast, attention, state = self._module.decode(state, future)
        return forecast.float(), attention.float(), _float32(state)

    def rollout(self, window: Tensor, time: Tensor, future: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        return self._module.rollout(window, time, future, steps)


def _bfloat16(rows: int) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=rows >= _BFLOAT16_ROWS)


def _float32(state: list[Tensor]) -> list[Tensor]:
    return [tensor.float() if tensor.dtype == torch.bfloat16 else tensor for tensor in state]


def _in_bfloat16(artifact: Artifact, device: str) -> Artifact:
    """The same in bfloat16, or as it is where that would be slower or too far off."""
    reduced = replace(artifact, module=_InBfloat16(artifact))
    against = _against_bfloat16(device)
    if against is None:
        try:
            _check_example(reduced, device, _BFLOAT16_TOLERANCE, rows=_BFLOAT16_ROWS)
        except MismatchError as error:
            against = str(error)
        else:
            return reduced
    log.warning("%s version %d is served in float32: %s", artifact.spec.name, artifact.spec.version, against)
    return artifact


def _against_bfloat16(device: str) -> str | None:
    if device != "cpu":
        return f"bfloat16 is for CPUs, not for {device}"
    capabilities = torch.cpu.get_capabilities()
    if not (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")):
        return "this CPU has no instructions for bfloat16"
    return None


def _flatten(module: torch.jit.ScriptModule) -> None:
    """Have the weights of recurrent layers in one piece, as cuDNN wants them; else it copies them in every pass.

    A load leaves each in a piece of its own. A scripted layer lacks this method but has all that it reads.
    """
    for part in module.modules():
        if hasattr(part, "_flat_weights"):
            nn.RNNBase.flatten_parameters(cast(Any, part))


def _script(network: Forecaster) -> torch.jit.ScriptModule:
    for name in (*_CONTRACT, "embed", "heads"):
        # The mark of @torch.jit.export, set here so that no network has to know of TorchScript.
        torch.jit.export(getattr(type(network), name))
    return torch.jit.script(network.eval())


def _pack(scripted: torch.jit.ScriptModule, extras: dict[str, bytes]) -> bytes:
    full = io.BytesIO()
    torch.jit.save(scripted, full)
    return archives.packed(full.getvalue(), extras)


def _check_residuals(archive: bytes, spec: Spec) -> None:
    """FormatError where a model with intervals lacks what makes them: that must show before it serves."""
    if spec.intervals is None:
        return
    packed = archives.record(archive, RESIDUALS_FILE)
    if packed is None:
        raise FormatError(f"the archive holds no {RESIDUALS_FILE}, although the model has intervals")
    try:
        table = intervals.Table.unpack(packed)
    except ValueError as error:
        raise FormatError(f"{RESIDUALS_FILE}: {error}") from error
    if (table.steps, table.targets) != (spec.intervals.calibrated_steps, len(spec.targets)):
        raise FormatError(
            f"{RESIDUALS_FILE}: of {table.steps} steps and {table.targets} targets;"
            f" the model has {spec.intervals.calibrated_steps} and {len(spec.targets)}"
        )


def foreign(path: Path) -> nn.Module:
    """A module that somebody else has written as TorchScript, on the CPU; FormatError where it is none."""
    try:
        module = torch.jit.load(path, map_location="cpu")
    except (RuntimeError, ValueError, OSError) as error:
        raise FormatError(f"{path}: not a TorchScript archive: {_first_line(error)}") from error
    return cast(nn.Module, module)


def _read_spec(archive: bytes) -> Spec:
    try:
        text = archives.record(archive, SPEC_FILE)
    except ArchiveError as error:
        raise FormatError(str(error)) from error
    if text is None:
        raise FormatError(f"the archive holds no {SPEC_FILE}")
    try:
        found = json.loads(text)
        # Before the rest: another format may well have other fields.
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            named = found.get("format") if isinstance(found, dict) else None
            raise FormatError(f"format is {named!r}; this release reads {FORMAT!r}")
        return Spec.model_validate_json(text)
    except ValidationError as error:
        raise FormatError(f"{SPEC_FILE}: {first_error(error)}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{SPEC_FILE} is not JSON: {error}") from error


def _compare(
    eager: Forecaster, scripted: ForecastModule, window: Tensor, time: Tensor, future: Tensor, steps: int
) -> None:
    with torch.inference_mode():
        expected = eager.rollout(window, time, future, steps)
        rolled = scripted.rollout(window, time, future, steps)
    stepped = answer(scripted, window, time, future, steps, eager.horizon)
    for found, way in ((rolled, "rolled out"), (stepped, "stepped")):
        for name, one, other in zip(("forecast", "attention"), expected, found, strict=True):
            if one.shape != other.shape:
                raise MismatchError(f"{name}: eager {list(one.shape)}, scripted and {way} {list(other.shape)}")
            if not torch.isfinite(one).all():
                raise MismatchError(f"{name}: not finite")
            worst = float((one - other).abs().max()) if one.numel() else 0.0
            scale = float(one.abs().max()) if one.numel() else 0.0
            # `not <=` instead of `>`: a NaN from the scripted one must not pass.
            if not worst <= _EXPORT_TOLERANCE * max(scale, 1.0):
                raise MismatchError(f"{name}: eager and scripted ({way}) differ by {worst:.3g}")


def _check_example(artifact: Artifact, device: str, tolerance: float = _LOAD_TOLERANCE, rows: int = 1) -> None:
    spec, example = artifact.spec, artifact.spec.example
    try:
        window, time, future = (torch.cat([given] * rows) for given in example_inputs(spec, device))
        forecast, attention = answer(artifact.module, window, time, future, example.steps, spec.horizon)
    except (RuntimeError, ValueError, TypeError) as error:
        raise MismatchError(f"the example fails: {_first_line(error)}") from error
    scales = _target_scales(spec) * (1 + len(spec.quantiles))
    _check_like_example("forecast", forecast, example.forecast, scales, tolerance)
    _check_like_example("attention", attention, example.attention, [1.0] * spec.window, tolerance)


def _check_like_example(
    name: str, found: Tensor, expected: Sequence[Sequence[float]], scales: Sequence[float], tolerance: float
) -> None:
    wanted = torch.tensor([list(row) for row in expected], dtype=torch.float32).reshape(-1, len(scales))
    got = found[0].cpu()
    if got.shape != wanted.shape:
        raise MismatchError(f"example.{name}: shape {list(got.shape)}, expected {list(wanted.shape)}")
    worst = ((got - wanted).abs() / torch.tensor(scales)).flatten().tolist()
    # A comparison that is false for NaN too.
    if not all(error <= tolerance for error in worst):
        raise MismatchError(f"example.{name}: differs by {max(worst):.3g} of the scale, more than {tolerance}")


def _target_scales(spec: Spec) -> list[float]:
    return [feature.statistics.scale for feature in spec.features if feature.role == "target"]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
