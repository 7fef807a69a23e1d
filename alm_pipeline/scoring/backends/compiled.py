"""A teacher whose layers are compiled."""

from torch import nn
from transformers import PreTrainedModel

from alm_pipeline.models.output_head import headless
from storage.errors import UserError


def compile_layers(model: PreTrainedModel) -> None:
    """Compile each of the model's layers, once for all lengths, at its first call.

    Raises UserError if the model has no list of layers.
    """
    lists = [module for module in headless(model).modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise UserError(f"score.compile: {model.config.model_type} has no list of layers: leave it out")
    for layer in max(lists, key=len):
        layer.compile(dynamic=True)
