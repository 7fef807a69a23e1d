"""Writes edits that can't be folded as a file of code into the model's folder.

The model's object gets the class of that file, which extends the architecture's: weights keep their names, and the
head, the cache and everything else that transformers does for the architecture keep working.
"""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from alm_pipeline.editing.directions import modeling_edited as file
from alm_pipeline.editing.directions.modeling_edited import Edit
from alm_pipeline.editing.edits import PlacedEdit
from alm_pipeline.models.carried_code import carried_classes
from storage.errors import UserError


def attach(model: PreTrainedModel, edits: Sequence[PlacedEdit]) -> None:
    """Give the model the class of the file of code, with these edits, in place.

    Raises UserError if its own class is not one of transformers: its code could not be extended.
    """
    classes = [type(model), type(model.config)]
    if not all(hasattr(transformers, each.__name__) for each in classes):
        raise UserError(
            f"{model.name_or_path}: comes with code of its own, which an edit can't extend: edit the model that it was "
            "made from, or an edit that can be folded (where: mlp)"
        )
    config_class, model_class = carried_classes(model, file, "Edited")
    model.config.__class__, model.__class__ = config_class, model_class
    model.config.edits = [_setting(each) for each in edits]
    extended: Any = model
    extended.attach_edits()
    for target, source in zip(extended.edits, edits, strict=True):
        for name, values in source.edit.named_buffers():
            target.get_buffer(name).copy_(values)
    extended.edits.to(device=model.device, dtype=torch.float32)


def _setting(placed: PlacedEdit) -> dict[str, Any]:
    edit: Edit = placed.edit
    if edit.shifts:
        return {"module": placed.place.module, "shift": True}
    ranks = {"keep": edit.keep.shape[1], "drop": edit.drop.shape[1]}
    return {"module": placed.place.module, **ranks, "nonlinearity": edit.nonlinearity}
