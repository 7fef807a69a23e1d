"""The tiny configuration with files of its own, which tests may change, and a finished run of it."""

import shutil
from pathlib import Path

import pytest

from alm_pipeline.config import AlmConfig, FilesSource
from alm_pipeline.pipeline import Pipeline


@pytest.fixture(scope="package")
def config(config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> AlmConfig:
    """A test that changes a file of the models or the corpus puts it back."""
    folder = tmp_path_factory.mktemp("own")
    source = config.corpus.source
    assert isinstance(source, FilesSource)
    (folder / "corpus").mkdir()
    shutil.copy(source.urls[0], folder / "corpus" / "a.jsonl")
    teacher, student = (
        str(shutil.copytree(name, folder / Path(name).name)) for name in (config.teacher, config.student.model)
    )
    corpus = config.corpus.model_copy(update={"source": FilesSource(urls=(f"{folder}/corpus/*.jsonl",))})
    student_config = config.student.model_copy(update={"model": student})
    return config.model_copy(update={"teacher": teacher, "student": student_config, "corpus": corpus})


@pytest.fixture(scope="package")
def finished_store(config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests only read it."""
    root = tmp_path_factory.mktemp("finished")
    Pipeline(config, str(root)).run()
    return root


@pytest.fixture
def store(finished_store: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, which a test may change."""
    return Path(shutil.copytree(finished_store, tmp_path / "store"))
