"""A tiny teacher, and a small server of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from alm_pipeline.models.reference import ModelReference
from tests.alm_pipeline.scoring.served.small_server import SmallServer, running


@pytest.fixture
def teacher(llama_folder: str) -> ModelReference:
    return ModelReference(llama_folder)


@pytest.fixture
def small_server(teacher: ModelReference, tmp_path: Path) -> SmallServer:
    return SmallServer(teacher, tmp_path)


@pytest.fixture
def address(small_server: SmallServer) -> Iterator[str]:
    with running(small_server) as url:
        yield url
