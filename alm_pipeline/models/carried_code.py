"""A file of code that goes into a model's folder, whose classes extend those of the model's architecture.

The file is written for Llama, and needs only torch and transformers. The folder needs `trust_remote_code=True`.
"""

import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module


def carried_classes(model: PreTrainedModel, file: ModuleType, prefix: str) -> tuple[Any, Any]:
    """Return the classes of the configuration and the model (`<prefix>Config`, …) in a file, for this architecture."""
    assert file.__file__
    source = Path(file.__file__)
    text = source.read_text(encoding="utf-8")
    text = text.replace("LlamaConfig", type(model.config).__name__)
    text = text.replace("LlamaForCausalLM", type(model).__name__)
    with tempfile.TemporaryDirectory() as scratch:
        # transformers caches such files by the folder's name
        folder = Path(scratch) / f"{source.stem.removeprefix('modeling_')}_{type(model).__name__}"
        folder.mkdir()
        (folder / source.name).write_text(text, encoding="utf-8")
        names = (f"{source.stem}.{prefix}Config", f"{source.stem}.{prefix}ForCausalLM")
        classes: list[Any] = [get_class_from_dynamic_module(name, folder) for name in names]
    config_class, model_class = classes
    # so that save_pretrained writes the file into the folder, and its classes into config.json
    config_class.register_for_auto_class()
    model_class.register_for_auto_class("AutoModelForCausalLM")
    return config_class, model_class
