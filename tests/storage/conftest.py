"""Roots for the tests of storage: a disk, fsspec's object store in memory, a real S3 server, and any of your own.

`ALM_TEST_STORES="az://container gs://bucket" pytest tests/storage` runs the tests of storage there too.
"""

import os
import secrets
from pathlib import Path

import pytest

_REMOTE = ["memory", "s3", *os.environ.get("ALM_TEST_STORES", "").split()]


@pytest.fixture(params=["disk", *_REMOTE])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "root") if request.param == "disk" else _remote_root(request)


@pytest.fixture(params=_REMOTE)
def remote(request: pytest.FixtureRequest) -> str:
    """The roots that are not on a disk."""
    return _remote_root(request)


def _remote_root(request: pytest.FixtureRequest) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3_root"))
    if request.param == "memory":
        request.getfixturevalue("memory")
        return "memory://bucket/root"
    return f"{request.param}/{secrets.token_hex(4)}"
