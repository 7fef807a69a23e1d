"""The environment with vLLM's build for processors, which `make served` makes."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".vllm-env"
_PYTHON, _VLLM = FOLDER / "bin" / "python", FOLDER / "bin" / "vllm"
CLOSE = 1e-4
"""nats: the largest difference between engines in float32"""

needs_vllm = [
    pytest.mark.served,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not _VLLM.exists(), reason="vLLM is not installed in .vllm-env: `make served` installs it"),
]


def command() -> tuple[str, ...]:
    """The command of a server, as `score.served.command`."""
    return (str(_VLLM), "serve")


ARGUMENTS = ("--enforce-eager",)
"""without compilation, which takes a minute"""


def set_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what vLLM on two busy processors needs."""
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


VARIABLES = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1"}


def run_python(arguments: Sequence[str], variables: Mapping[str, str] | None = None) -> str:
    """Run vLLM's Python with this checkout on its path; returns what it prints."""
    environment = {**os.environ, **VARIABLES, "PYTHONPATH": str(ROOT), **(variables or {})}
    done = subprocess.run(
        [str(_PYTHON), *arguments], env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout
