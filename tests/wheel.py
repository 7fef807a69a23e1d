"""The project's wheel, installed in an environment of its own, outside of this checkout."""

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, which sees the tests' packages but not this checkout."""

    wheel: Path
    folder: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    @property
    def alm(self) -> str:
        return str(self.folder / "bin" / "alm")

    def run(self, *command: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, cwd=cwd, env=outside(**environment), capture_output=True, text=True, check=False, timeout=500
        )


def outside(**environment: str) -> dict[str, str]:
    """The environment of a process that must not find this checkout."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # for a few texts, compiling the wheel's kernels takes longer than interpreting them
    return {**inherited, "NUMBA_DISABLE_JIT": "1", **environment}


def install(folder: Path) -> Installed:
    """Build the wheel in `folder`, and install it there."""
    # without isolation no build backend is fetched
    isolation = ["--no-build-isolation"] if find_spec("hatchling") else []
    _pip("wheel", "--no-deps", *isolation, "--wheel-dir", str(folder), str(ROOT))
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    # .pth files of a folder that is named in one are not read: an editable installation there stays invisible
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    _pip("--python", str(environment / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel))
    return Installed(wheel, environment)


def _pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
