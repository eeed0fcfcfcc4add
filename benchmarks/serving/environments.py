"""The peers' environments: one virtual environment each, none of them the project's, all on one shared torch."""

import hashlib
import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks.serving.servers import PEERS

SHARED = "shared"
DEFAULT = Path.home() / ".cache" / "foretell-benchmarks"
_STAMP = ".installed"


class InstallError(Exception):
    """A peer that cannot be installed."""


def prepare(name: str, root: Path, peers: Path = PEERS) -> Path:
    """Install a peer where it is not there yet, or where its requirements have changed; gives its interpreter.

    What it requires is in a folder of its name in `peers`.
    """
    torch = _install(PEERS / SHARED, root, after=None)
    _install(peers / name, root, after=torch)
    return root / name / "bin" / "python"


def versions(name: str, root: Path) -> str:
    """What the first line of a peer's requirements names, with the versions that were installed."""
    lines = (PEERS / name / "requirements.txt").read_text().splitlines()
    own = {"fastapi": "fastapi", "pytriton": "nvidia-pytriton"}.get(name, name)
    return next((line for line in lines if line.startswith(f"{own}==")), own) if (root / name).exists() else own


def _install(peer: Path, root: Path, *, after: Path | None) -> Path:
    """An environment with what the peer's requirements say; gives its site-packages."""
    folder, requirements = root / peer.name, peer / "requirements.txt"
    packages = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    stamp = folder / _STAMP
    if stamp.exists() and stamp.read_text() == wanted:
        return packages
    print(f"installing {peer.name} into {folder} ...", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    if after is not None:
        # Later on the path than the environment's own packages: a peer that pins another numpy gets its own.
        (packages / "zz-shared.pth").write_text(f"{after}\n")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "--requirement", str(requirements)])
    stamp.write_text(wanted)
    return packages


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InstallError(f"{' '.join(command)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
