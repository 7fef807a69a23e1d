"""A model in outline: all of its modules and parameters by name, with their shapes and without values."""

import copy
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from alm_pipeline.models.configuration import empty_model
from alm_pipeline.models.files import tokenizer_files
from alm_pipeline.models.health.library_log import quiet_transformers
from alm_pipeline.models.loaded_files import GENERATION_CONFIG
from alm_pipeline.models.reference import ModelReference
from storage.errors import user_error


def outline(config: Any, model: ModelReference) -> PreTrainedModel | None:
    """Return the model of a loaded configuration on the device `meta`, with the generation settings of its folder.

    None for a class that comes with its own code, or that can't be made without values. Raises UserError if the
    generation settings can't be read.
    """
    if not type(config).__module__.startswith("transformers."):
        return None
    generation = _generation_config(model)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), quiet_transformers():
            made = empty_model(copy.deepcopy(config), model.name)
    except Exception:  # some classes compute with their first values
        return None
    if generation is not None:
        made.generation_config = generation
    return made


def _generation_config(model: ModelReference) -> GenerationConfig | None:
    folder = tokenizer_files(model.name, model.revision)
    if not (folder / GENERATION_CONFIG).is_file():
        return None
    with user_error(f"{folder / GENERATION_CONFIG}: can't be used", "fix or remove it"), quiet_transformers():
        return GenerationConfig.from_pretrained(folder)


def copied(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of an outline, for a check that changes it."""
    return copy.deepcopy(model)
