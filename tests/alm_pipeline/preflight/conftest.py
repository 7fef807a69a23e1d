"""A configuration without findings."""

import pytest

from alm_pipeline.config import AlmConfig


@pytest.fixture(scope="session")
def config(config: AlmConfig) -> AlmConfig:
    """The tests' configuration, with as many held-out examples as a measurement takes."""
    return config.model_copy(update={"corpus": config.corpus.model_copy(update={"held_out": 0.5})})
