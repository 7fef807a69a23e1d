"""Three roots for storage: a disk, fsspec's object store in memory, and a real S3 server."""

from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem


@pytest.fixture(params=["disk", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, memory: MemoryFileSystem) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3_root"))
    return str(tmp_path / "root") if request.param == "disk" else "memory://bucket/root"


@pytest.fixture(params=["memory", "s3"])
def remote(request: pytest.FixtureRequest, memory: MemoryFileSystem) -> str:
    """The roots that are no disk."""
    return str(request.getfixturevalue("s3_root")) if request.param == "s3" else "memory://bucket/root"
