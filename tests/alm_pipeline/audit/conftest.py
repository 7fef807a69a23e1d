"""A store with a finished student: a tiny Gemma has taught a tiny Llama."""

from pathlib import Path

import pytest

from alm_pipeline.config import AlmConfig
from alm_pipeline.pipeline import Pipeline


@pytest.fixture(scope="package")
def finished(config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Tests only read it."""
    train = config.train.model_copy(update={"steps": 1})
    pipeline = Pipeline(config.model_copy(update={"train": train}), str(tmp_path_factory.mktemp("audited")))
    pipeline.run()
    return pipeline


@pytest.fixture(scope="package")
def root(finished: Pipeline) -> Path:
    return Path(finished.root)
