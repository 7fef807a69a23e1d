"""Low-rank adapters (LoRA, arXiv 2106.09685) on a student's linear layers, by peft.

The adapters are inserted into the student itself, which stays a transformers model. peft trains copies of embeddings.
The copies of a tied input and output would diverge, so the weights themselves are trained here.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alm_pipeline.config import LoraConfig
from alm_pipeline.models.output_head import headless
from alm_pipeline.training.model.parameters import check_patterns, first_match
from storage.errors import UserError


def attach_adapters(model: PreTrainedModel, config: LoraConfig, seed: int) -> Any:
    """Insert adapters, and train only them and the input and output embeddings.

    Returns peft's `LoraModel`. Its `merge_and_unload()` removes the adapters after adding them to the student's
    weights. Raises UserError if peft is missing, or if a pattern of the targets matches no linear layer.
    """
    try:
        import peft
    except ImportError as error:
        raise UserError("train.lora: needs peft: pip install 'alm-pipeline[lora]'") from error
    layers = target_layers(model, config)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft only divides by it
        lora_dropout=config.dropout,
        target_modules=list(layers),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapters = peft.LoraModel(model, settings, "default")
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        embedding.requires_grad_(True)
    return adapters


def target_layers(model: PreTrainedModel, config: LoraConfig) -> dict[str, nn.Module]:
    """Return the linear layers that text passes through and that match the targets, by name.

    Raises UserError if a pattern matches none.
    """
    output, read = model.get_output_embeddings(), set(headless(model).modules())
    linear = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear | Conv1D) and part is not output and part in read
    }
    check_patterns(config.targets, list(linear), "train.lora.targets", "linear layer")
    return {name: part for name, part in linear.items() if first_match(name, config.targets) is not None}
