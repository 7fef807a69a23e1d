"""Two roots for storage: a disk and an object store (fsspec's, in memory)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """An empty memory:// (it is one for the whole process)."""
    fs = MemoryFileSystem()
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.fixture(params=["disk", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path, memory: MemoryFileSystem) -> str:
    return str(tmp_path / "root") if request.param == "disk" else "memory://bucket/root"
