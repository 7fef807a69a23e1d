"""One pipeline for all stages of a run in a process, so that the corpus and the models are opened and hashed once.

Without Prefect, which takes seconds to import: a configuration is checked before that.
"""

from functools import lru_cache

from alm_pipeline.config import AlmConfig
from alm_pipeline.pipeline import Pipeline


@lru_cache(maxsize=1)
def pipeline_of(config_json: str, root: str) -> Pipeline:
    """Return the pipeline of a configuration, written as JSON, under a storage root."""
    return Pipeline(AlmConfig.model_validate_json(config_json), root)
