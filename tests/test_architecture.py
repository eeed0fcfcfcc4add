"""Who may import whom, and where each third party lives: the map of the design, held by reading the source.

training ──> models <── app        client/foretell sees none of them, and none of them sees it
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("app", "models", "training", "foretell", "deploy")
FOLDERS = ("app", "models", "training", "client/foretell", "deploy/ray")

_LAYERS = ("recipe", "data", "fitting", "scoring", "reporting", "publishing", "judging")
_UP_TO = {
    layer: ("models", "training.errors", *(f"training.{below}" for below in _LAYERS[: index + 1]))
    for index, layer in enumerate(_LAYERS)
}

_BASE = (
    "app.errors",
    "app.ticket",
    "app.settings",
    "app.spans",
    "models.spec",
    "models.archive",
    "models.intervals",
    "models.signature",
    "models.store",
)
_FLOORS = ("link", "asked", "forecasts", "hindsight", "codec")
_ABOVE = {floor: (*_BASE, *(f"app.{below}" for below in _FLOORS[: index + 1])) for index, floor in enumerate(_FLOORS)}

_CLIENT = ("errors", "arrays", "answers", "exchange", "given", "many", "followed", "lines", "calls", "clients")

# What a file sees of our own packages; every pattern that fits it counts. `**` is any file below.
SEES = {
    "app/**": (
        "app",
        "models.spec",
        "models.archive",
        "models.artifact",
        "models.intervals",
        "models.mirror",
        "models.signature",
        "models.store",
    ),
    # Where connections end, and what surrounds every request, whatever is asked.
    "app/edge/**": (
        "app.edge",
        "app.access",
        "app.errors",
        "app.handlers",
        "app.lifecycle",
        "app.logs",
        "app.metrics",
        "app.settings",
        "app.spans",
    ),
    # What an HTTP process does with a request, from the way to the devices up to the bodies of answers.
    "app/link/**": _ABOVE["link"],
    "app/asked/**": (*_BASE, "app.asked"),
    "app/forecasts/**": _ABOVE["forecasts"],
    "app/hindsight/**": _ABOVE["hindsight"],
    "app/codec/**": _ABOVE["codec"],
    # What changes what is served.
    "app/administration/**": (*_ABOVE["forecasts"], "app.administration", "app.apart"),
    # What an engine process does.
    "app/device/**": (*_BASE, "app.device", "app.link.frames", "app.link.running", "models.artifact"),
    "models/**": ("models",),
    "models/spec.py": (),
    "models/archive.py": (),
    "models/intervals.py": ("models.spec",),
    "models/signature.py": (),
    "models/store.py": ("models.spec", "models.signature", "models.place", "models.bucket"),
    "models/place.py": (),
    "models/bucket.py": ("models.place",),
    "models/mirror.py": ("models.place", "models.store"),
    "training/**": ("training", "models"),
    # From the recipe upwards, each package sees those above it in this list.
    "training/recipe/**": _UP_TO["recipe"],
    "training/data/**": _UP_TO["data"],
    "training/fitting/**": _UP_TO["fitting"],
    "training/scoring/**": _UP_TO["scoring"],
    "training/searching/**": (*_UP_TO["scoring"], "training.searching"),
    "training/reporting/**": _UP_TO["reporting"],
    "training/publishing/**": _UP_TO["publishing"],
    "training/judging/**": _UP_TO["judging"],
    # The service on somebody else's cluster: above it, and nobody sees it.
    "deploy/ray/**": (
        "app",
        "deploy.ray",
        "models.archive",
        "models.intervals",
        "models.signature",
        "models.spec",
        "models.store",
    ),
    # A distribution of its own, which knows the service by its interface alone; the command line is an extra.
    "client/**": ("foretell",),
    **{f"client/foretell/{part}.py": tuple(f"foretell.{other}" for other in _CLIENT) for part in _CLIENT},
}

_HTTP = (
    "app/main.py",
    "app/routes/**",
    "app/deps.py",
    "app/handlers.py",
    "app/edge/**",
)
_ACCESS = ("app/access/gate.py", "app/access/needs.py", "app/access/browsers.py")
_DEVICES = ("app/device/runtime.py", "app/device/cuda.py")
_SETTINGS = ("app/settings.py",)
_OFFLINE = ("training/**",)

# The only files that may import, or reach into, each of these. `!` takes a file out again.
HOMES = {
    "fastapi": _HTTP,
    "starlette": (*_HTTP, *_ACCESS, "deploy/ray/serve.py"),
    "fastapi_offline": ("app/main.py",),
    "uvicorn": ("app/edge/server.py", "app/edge/connections.py", "app/edge/transport.py"),
    "torch": (
        *_DEVICES,
        "models/**",
        "training/**",
        "!models/spec.py",
        "!models/store.py",
        "!models/place.py",
        "!models/bucket.py",
        "!models/mirror.py",
        "!models/archive.py",
        "!models/intervals.py",
        "!models/signature.py",
    ),
    "mlflow": ("training/publishing/mlflow_models.py",),
    "google.protobuf": ("training/publishing/triton.py",),
    "tritonclient": ("training/publishing/triton.py",),
    "pyarrow": ("app/codec/arrow.py", "deploy/ray/table.py", "deploy/ray/work.py", "deploy/ray/scoring.py"),
    "ray": ("deploy/ray/serve.py", "deploy/ray/figures.py", "deploy/ray/score.py"),
    "cryptography": ("models/signature.py",),
    "fsspec": ("models/bucket.py",),
    "holidays": ("training/recipe/holidays.py",),
    "torch.jit": ("models/artifact.py",),
    "redis": (
        "app/forecasts/cache_redis.py",
        "app/forecasts/adaptive_redis.py",
        "app/access/quotas_redis.py",
        "app/administration/news_redis.py",
    ),
    "prometheus_client": ("app/metrics.py", "app/counts.py", "deploy/ray/figures.py"),
    "opentelemetry": ("app/tracing.py",),
    "pydantic_settings": _SETTINGS,
    "os.environ": (*_SETTINGS, "client/foretell/cli/options.py"),
    "os.getenv": _SETTINGS,
    "polars": ("training/data/files.py",),
    "lightning": ("training/fitting/**",),
    "matplotlib": ("training/reporting/pictures.py",),
    "optuna": ("training/searching/**", "training/recipe/space.py", "training/commands/tune.py"),
    "httpx": ("client/foretell/clients.py", "client/foretell/cli/bench.py"),
    "click": ("client/foretell/cli/**",),
    "plotext": ("client/foretell/cli/picture.py",),
    "rich": _OFFLINE,
    "tomlkit": _OFFLINE,
}


def test_every_import_keeps_to_the_map() -> None:
    """Every arrow between files is one that the map allows."""
    assert complaints(ROOT) == []


def test_homes_exist() -> None:
    """The table names no file that is not there, so that it cannot outlive what it speaks of."""
    files = sorted(_sources(ROOT))
    patterns = {*SEES, *(pattern.removeprefix("!") for homes in HOMES.values() for pattern in homes)}

    assert sorted(pattern for pattern in patterns if not any(fnmatchcase(file, pattern) for file in files)) == []


@pytest.mark.parametrize(
    ("modules", "strangers"),
    [
        ("app.__main__", ("torch", "fastapi", "starlette", "uvicorn", "redis", "opentelemetry", "fsspec")),
        ("app.processes.supervisor", ("torch", "fastapi", "starlette", "uvicorn", "redis", "opentelemetry", "fsspec")),
        ("app.worker", ("torch", "fastapi", "starlette", "uvicorn", "redis", "opentelemetry", "fsspec")),
        # What an HTTP process imports.
        (
            "app.worker, app.processes.backend, app.main, app.edge.server",
            ("torch", "models.artifact", "app.device.scheduler", "pyarrow", "app.tracing", "fsspec", "redis"),
        ),
        # What somebody's order for bulk scoring is read with, before any process computes.
        ("deploy.ray.plan", ("torch", "ray", "fastapi", "uvicorn")),
        # What an engine process imports, and torch, and what that needs.
        (
            "app.worker, app.device.loop, app.metrics, app.device.runtime",
            ("fastapi", "starlette", "uvicorn", "redis", "opentelemetry"),
        ),
    ],
)
def test_every_process_imports_only_what_it_is_for(modules: str, strangers: tuple[str, ...]) -> None:
    """Neither the supervisor nor an HTTP process has torch in memory, nor the supervisor or an engine FastAPI."""
    check = f"import {modules}, sys; print(*sorted({{*{strangers!r}}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_network_has_a_config_that_builds_it() -> None:
    """Each file in models/networks is an architecture: a class `Config` with a method `build`."""
    assert _without_config(ROOT) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("app/x.py", "import models.networks", "app/x.py:1 imports models.networks; app/** sees only app, models.spec"),
        ("app/x.py", "from models import core", "app/x.py:1 imports models.core; app/** sees only"),
        ("app/x.py", "from models.layers.head import Head", "app/x.py:1 imports models.layers.head.Head; app/** sees"),
        ("app/x.py", "from models.forecaster import *", "app/x.py:1 imports models.forecaster.*; app/** sees"),
        ("app/x.py", "import models", "app/x.py:1 imports models; app/** sees only"),
        (
            "app/x.py",
            "def f():\n    import training.fit",
            "app/x.py:2 imports training.fit; app/** sees only",
        ),
        ("app/routes/x.py", "from ... import training", "app/routes/x.py:1 imports training; app/** sees only"),
        (
            "training/data/x.py",
            "import training.fitting.fit",
            "training/data/x.py:1 imports training.fitting",
        ),
        (
            "training/searching/x.py",
            "from training import reporting",
            "training/searching/x.py:1 imports training",
        ),
        ("training/x.py", "from app.codec import read", "training/x.py:1 imports app.codec.read; training/** sees"),
        ("models/x.py", "import app", "models/x.py:1 imports app; models/** sees only models"),
        ("models/layers/x.py", "import training", "models/layers/x.py:1 imports training; models/** sees only models"),
        ("app/x.py", "import foretell", "app/x.py:1 imports foretell; app/** sees only app"),
        ("app/x.py", "from deploy.ray import plan", "app/x.py:1 imports deploy.ray.plan; app/** sees only app"),
        ("app/x.py", "import ray", "app/x.py:1 imports ray; ray lives in deploy/ray/serve.py"),
        ("deploy/ray/x.py", "import training", "deploy/ray/x.py:1 imports training; deploy/ray/** sees only app"),
        ("client/foretell/x.py", "import app", "client/foretell/x.py:1 imports app; client/** sees only foretell"),
        (
            "client/foretell/calls.py",
            "from foretell.cli import main",
            "client/foretell/calls.py:1 imports foretell.cli.main; client/foretell/calls.py sees only foretell.errors",
        ),
        ("app/x.py", "import httpx", "app/x.py:1 imports httpx; httpx lives in client/foretell/clients.py"),
        ("client/foretell/calls.py", "import click", "client/foretell/calls.py:1 imports click; click lives in"),
        (
            "models/spec.py",
            "import torch",
            "models/spec.py:1 imports torch; torch lives in app/device/runtime.py, app/device/cuda.py, models/**",
        ),
        ("models/store.py", "from torch import nn", "models/store.py:1 imports torch.nn; torch lives in"),
        ("models/spec.py", "from .core import Core", "models/spec.py:1 imports models.core.Core; models/spec.py sees"),
        ("models/store.py", "from models import artifact", "models/store.py:1 imports models.artifact; models/store"),
        ("app/x.py", "import fastapi", "app/x.py:1 imports fastapi; fastapi lives in app/main.py, app/routes/**"),
        ("app/x.py", "from starlette.types import Send", "app/x.py:1 imports starlette.types.Send; starlette lives in"),
        ("app/deps.py", "import fastapi_offline", "app/deps.py:1 imports fastapi_offline; fastapi_offline lives in"),
        ("app/main.py", "import uvicorn", "app/main.py:1 imports uvicorn; uvicorn lives in app/edge/server.py"),
        ("app/x.py", "import json\nimport torch", "app/x.py:2 imports torch; torch lives in app/device/runtime.py"),
        ("app/device/runtime.py", "import torch.jit", "app/device/runtime.py:1 imports torch.jit; torch.jit lives in"),
        ("training/x.py", "from torch import jit", "training/x.py:1 imports torch.jit; torch.jit lives in"),
        ("models/x.py", "import torch\n\ntorch.jit.script(1)", "models/x.py:3 uses torch.jit; torch.jit lives in"),
        ("models/x.py", "import torch as t\nt.jit.save", "models/x.py:2 uses torch.jit; torch.jit lives in"),
        (
            "app/forecasts/cache.py",
            "import redis.asyncio",
            "app/forecasts/cache.py:1 imports redis.asyncio; redis lives in",
        ),
        ("app/x.py", "import prometheus_client", "app/x.py:1 imports prometheus_client; prometheus_client lives in"),
        ("app/x.py", "from pydantic_settings import X", "app/x.py:1 imports pydantic_settings.X; pydantic_settings"),
        ("app/x.py", "import os\nos.environ['A']", "app/x.py:2 uses os.environ; os.environ lives in app/settings.py"),
        ("training/x.py", "import os\nos.getenv('A')", "training/x.py:2 uses os.getenv; os.getenv lives in"),
        ("app/x.py", "from os import environ as e", "app/x.py:1 imports os.environ; os.environ lives in"),
        ("app/x.py", "import polars", "app/x.py:1 imports polars; polars lives in training/data/files.py"),
        ("models/x.py", "import lightning", "models/x.py:1 imports lightning; lightning lives in training/fitting/**"),
        ("app/x.py", "import matplotlib.pyplot", "app/x.py:1 imports matplotlib.pyplot; matplotlib lives in"),
        ("app/x.py", "import rich", "app/x.py:1 imports rich; rich lives in training/**"),
        ("app/x.py", "import importlib\nimportlib.import_module('models.networks')", "app/x.py:2 imports models.net"),
    ],
)
def test_an_arrow_that_is_not_on_the_map_is_reported(tmp_path: Path, path: str, source: str, complaint: str) -> None:
    """Each rule, broken once in a tree made for it, is reported with file, line and the home."""
    _write(tmp_path, path, source)

    (found,) = complaints(tmp_path)

    assert found.startswith(complaint)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("app/x.py", "from models import artifact, spec, store\nfrom models.spec import Spec"),
        ("app/routes/x.py", "from fastapi import APIRouter\nfrom ..deps import model\nfrom app import errors"),
        ("app/device/runtime.py", "import torch\ntorch.jitter"),
        ("app/settings.py", "import os\nos.environ['A']"),
        ("app/x.py", "import os\nos.environment\nrichness = rich = 1\nrich.real"),
        ("models/artifact.py", "import torch\ntorch.jit.script(1)"),
        (
            "training/data/files.py",
            "import polars\nfrom models import networks\nfrom training.recipe import Recipe",
        ),
    ],
)
def test_an_arrow_of_the_map_is_not_reported(tmp_path: Path, path: str, source: str) -> None:
    """What the map allows, and what only looks like a home's guest, passes."""
    _write(tmp_path, path, source)

    assert complaints(tmp_path) == []


@pytest.mark.parametrize("source", ["", "class Config: ...", "class Network:\n    def build(self): ...", "build = 1"])
def test_a_network_without_a_config_is_reported(tmp_path: Path, source: str) -> None:
    """A file among the networks that is none is named."""
    _write(tmp_path, "models/networks/__init__.py", "")
    _write(tmp_path, "models/networks/fine.py", "class Config:\n    def build(self): ...")
    _write(tmp_path, "models/networks/wrong.py", source)

    assert _without_config(tmp_path) == ["models/networks/wrong.py"]


def complaints(root: Path) -> list[str]:
    """One line for every file and rule that it breaks, at the first place where it does."""
    found: dict[tuple[str, str], str] = {}
    for file in _sources(root):
        for line, verb, name in sorted(_uses(root, file)):
            for rule, reason in _broken(file, name):
                found.setdefault((file, rule), f"{file}:{line} {verb} {name}; {reason}")
    return list(found.values())


def _broken(file: str, name: str) -> Iterator[tuple[str, str]]:
    if _is_within(name, PACKAGES):
        for pattern, seen in SEES.items():
            if fnmatchcase(file, pattern) and not _is_within(name, seen):
                yield pattern, f"{pattern} sees only {', '.join(seen) or 'itself'}"
                return
    for guest, homes in HOMES.items():
        if _is_within(name, [guest]) and not _is_home(file, homes):
            yield guest, f"{guest} lives in {', '.join(home for home in homes if not home.startswith('!'))}"
            return


def _is_within(name: str, modules: tuple[str, ...] | list[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _is_home(file: str, homes: tuple[str, ...]) -> bool:
    return f"!{file}" not in homes and any(fnmatchcase(file, home) for home in homes)


def _sources(root: Path) -> Iterator[str]:
    for folder in FOLDERS:
        yield from (path.relative_to(root).as_posix() for path in sorted((root / folder).rglob("*.py")))


def _uses(root: Path, file: str) -> Iterator[tuple[int, str, str]]:
    """Line, "imports" or "uses", and the full dotted name of all that a file takes from other modules."""
    nodes = list(ast.walk(ast.parse((root / file).read_text())))
    bound: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, "imports", alias.name
                first = alias.name.partition(".")[0]
                bound[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            base = _base(file, node)
            for alias in node.names:
                name = f"{base}.{alias.name}".lstrip(".")
                yield node.lineno, "imports", name
                bound[alias.asname or alias.name] = name
        elif isinstance(node, ast.Call) and _dotted(node.func).endswith(("import_module", "__import__")):
            names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            yield from ((node.lineno, "imports", str(name)) for name in names)
    for node in nodes:
        if isinstance(node, ast.Attribute):
            first, _, rest = _dotted(node).partition(".")
            if first in bound:
                yield node.lineno, "uses", f"{bound[first]}.{rest}"


def _base(file: str, node: ast.ImportFrom) -> str:
    """The module that a `from` names; its dots are counted from the file's own package."""
    if not node.level:
        return node.module or ""
    parents = file.split("/")[: -node.level]
    return ".".join([*parents, node.module] if node.module else parents)


def _dotted(node: ast.expr) -> str:
    """`a.b.c` of a chain of attributes; "" of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def _without_config(root: Path) -> list[str]:
    def builds(node: ast.stmt) -> bool:
        return (
            isinstance(node, ast.ClassDef)
            and node.name == "Config"
            and any(isinstance(member, ast.FunctionDef) and member.name == "build" for member in node.body)
        )

    files = [path for path in sorted((root / "models" / "networks").glob("*.py")) if path.name != "__init__.py"]
    wrong = [path for path in files if not any(builds(node) for node in ast.parse(path.read_text()).body)]
    return [path.relative_to(root).as_posix() for path in wrong]


def _write(root: Path, path: str, source: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(source)
