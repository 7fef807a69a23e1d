"""Two roots for storage: a disk and an object store (fsspec's, in memory)."""

from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem


@pytest.fixture(params=["disk", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path, memory: MemoryFileSystem) -> str:
    return str(tmp_path / "root") if request.param == "disk" else "memory://bucket/root"
