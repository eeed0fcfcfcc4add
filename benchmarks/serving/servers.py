"""The servers: Foretell and its variants, the peers, the floor. How each is started, and which dialect it speaks."""

import contextlib
import os
import shutil
import socket
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.serving import verify
from benchmarks.serving.dialects import V2, Dialect, Foretell, Plain, Task, WrongAnswerError
from benchmarks.serving.processes import Tree
from benchmarks.serving.workload import CARRIED, FEATURES, SLIDING, WINDOW, Published

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PEERS = HERE / "peers"
FORETELL = "foretell"
UNSTOPPABLE = "pytriton"
_START_S = 120.0


class ServerError(Exception):
    """A server that cannot be started."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one instance of a server runs: its ports and an empty folder."""

    ports: list[int]
    folder: Path
    published: Published
    endpoints: str
    python: Path


Launch = tuple[list[str], dict[str, str]]
"""A command, and what it needs in its environment."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A server that can be measured."""

    name: str
    launch: Callable[[Place], Launch]
    dialect: Dialect
    sliding: Dialect | None = None
    """Foretell: the same for the model that slides."""
    python: Path = Path(sys.executable)
    folder: Path = ROOT
    variables: dict[str, str] = field(default_factory=dict)
    computes: bool = True
    """Whether its answers are the model's."""
    freezes: bool = True
    """Whether it survives SIGSTOP. Triton's backend does not: its locks between processes have time-outs."""

    @property
    def ours(self) -> bool:
        return self.sliding is not None


class Server:
    """A running server."""

    def __init__(self, kind: Kind, tree: Tree, port: int) -> None:
        self.kind = kind
        self.tree = tree
        self.port = port

    @property
    def name(self) -> str:
        return self.kind.name

    def rest(self) -> None:
        """Off the cores until `wake`, once what was asked is done."""
        self.tree.settle()
        if self.kind.freezes:
            self.tree.freeze()

    def wake(self) -> None:
        self.tree.thaw()


@contextlib.contextmanager
def running(
    kind: Kind, published: Published, folder: Path, endpoints: str, task: Task
) -> Iterator[tuple[Server, float]]:
    """A server that has given a right answer, and how long that took from its start; ended on the way out."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ports = free_ports(3)
    command, variables = kind.launch(Place(ports, folder, published, endpoints, kind.python))
    log = folder.with_suffix(".log")
    began = time.monotonic()
    tree = Tree(command, environment=_environment(variables | kind.variables), folder=kind.folder, log=log)
    try:
        server = Server(kind, tree, ports[0])
        _await(server, task)
        yield server, time.monotonic() - began
    finally:
        tree.stop()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def foretell(name: str, variables: Mapping[str, str], checkout: Path) -> Kind:
    """Foretell with settings of its own."""
    return Kind(
        name, _launch_foretell, Foretell(CARRIED), Foretell(SLIDING), folder=checkout, variables=dict(variables)
    )


def peers(environments: Path) -> dict[str, Kind]:
    """The peers by name."""
    v2 = {"window": WINDOW, "features": FEATURES}
    found: list[tuple[str, Callable[[Place], Launch], Dialect]] = [
        ("fastapi", _launch_plain, Plain()),
        ("litserve", _launch_plain, Plain()),
        ("mosec", _launch_mosec, Plain()),
        ("mlserver", _launch_mlserver, V2(binary=False, **v2)),
        ("pytriton", _launch_pytriton, V2(binary=True, **v2)),
    ]
    return {
        name: Kind(
            name,
            launch,
            dialect,
            python=environments / name / "bin" / "python",
            folder=PEERS / name,
            freezes=name != UNSTOPPABLE,
        )
        for name, launch, dialect in found
    }


def floor(answer_bytes: int) -> Kind:
    """The bare ASGI application, which answers every body with that many bytes."""

    def launch(place: Place) -> Launch:
        command = [str(place.python), "-m", "benchmarks.serving.floor"]
        return [*command, "--port", str(place.ports[0]), "--answer-bytes", str(answer_bytes)], {}

    return Kind("floor", launch, Plain(), computes=False)


def _launch_foretell(place: Place) -> Launch:
    return [str(place.python), "-m", "app"], {
        "FORETELL_HOST": "127.0.0.1",
        "FORETELL_PORT": str(place.ports[0]),
        "FORETELL_ARTIFACTS": str(place.published.root),
        "FORETELL_DEVICE": "cpu",
        # Every answer is computed, and nobody writes a line for it: so do the peers.
        "FORETELL_CACHE_BYTES": "0",
        "FORETELL_ACCESS_LOG": "false",
        "FORETELL_LOG_LEVEL": "warning",
        "FORETELL_GRACE_S": "0",
    }


def _launch_plain(place: Place) -> Launch:
    return [
        *_script(place),
        *("--archive", str(_archive(place))),
        *("--port", str(place.ports[0])),
        *("--endpoints", place.endpoints),
    ], _paths(place)


def _launch_mosec(place: Place) -> Launch:
    arguments = ["--address", "127.0.0.1", "--port", str(place.ports[0]), "--timeout", "60000"]
    # Its sockets go to a path that has to be short.
    arguments += ["--log-level", "warning", "--path", str(place.folder / "ipc")]
    variables = {"BENCHMARK_ARCHIVE": str(_archive(place)), "BENCHMARK_ENDPOINTS": place.endpoints}
    return [*_script(place), *arguments], _paths(place) | variables


def _launch_mlserver(place: Place) -> Launch:
    ports = [str(port) for port in place.ports]
    command = [*_script(place), "--folder", str(place.folder), "--ports", *ports, "--endpoints", place.endpoints]
    return command, _paths(place) | {"BENCHMARK_ARCHIVE": str(_archive(place))}


def _launch_pytriton(place: Place) -> Launch:
    ports = [str(port) for port in place.ports]
    command = [*_script(place), "--archive", str(_archive(place)), "--ports", *ports]
    command += ["--workspace", str(place.folder / "triton"), "--endpoints", place.endpoints]
    # Triton's Python backend takes whichever libpython the loader finds; it has to be this interpreter's.
    libraries = [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
    return command, _paths(place) | {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries))}


def _script(place: Place) -> list[str]:
    # The folder of the server is the working directory.
    return [str(place.python), "server.py"]


def _archive(place: Place) -> Path:
    """Both archives compute the same forward; this is the one whose recursion is the peers'."""
    return place.published.archives[SLIDING]


def _paths(place: Place) -> dict[str, str]:
    name = place.python.parent.parent.name
    binaries = f"{place.python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {"PYTHONPATH": f"{PEERS / 'shared'}{os.pathsep}{PEERS / name}", "PATH": binaries}


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without settings that would reach a server by accident."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("FORETELL_", "MLSERVER_"))}
    return ours | {"PYTHONDONTWRITEBYTECODE": "1"} | dict(variables)


def _await(server: Server, task: Task) -> None:
    """Ask until the first window is answered, and rightly."""
    patience = time.monotonic() + _START_S
    while True:
        try:
            verify.ask(server.port, task, 0, check=server.kind.computes)
        except WrongAnswerError:
            raise
        except OSError as error:
            if server.tree.ended or time.monotonic() > patience:
                raise ServerError(f"{server.name} does not answer ({error}):\n{server.tree.last_lines()}") from error
            time.sleep(0.02)
        else:
            return
