"""Low-rank adapters (LoRA, arXiv 2106.09685) on a student's linear layers, by peft.

The adapters are put into the student itself, which stays a transformers model. peft's own ways of training embeddings
make copies of them, which come apart where input and output are one weight; here the weights themselves are trained.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alm_pipeline.config import LoraConfig
from alm_pipeline.training.model.parameters import check_patterns, first_match
from storage.errors import UserError


def attach_adapters(model: PreTrainedModel, config: LoraConfig, seed: int) -> Any:
    """Leave only new adapters and the embeddings, input and output, to be trained.

    Returns peft's `LoraModel`, whose `merge_and_unload()` makes the student as it was, with the adapters added to its
    weights. Raises UserError without peft, and where a pattern of the targets matches no linear layer.
    """
    try:
        import peft
    except ImportError as error:
        raise UserError("train.lora: needs peft: pip install 'alm-pipeline[lora]'") from error
    layers = _targets(model, config)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # it is only divided by
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


def _targets(model: PreTrainedModel, config: LoraConfig) -> dict[str, nn.Module]:
    """The linear layers that match, by name."""
    output = model.get_output_embeddings()
    linear = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear | Conv1D) and part is not output
    }
    check_patterns(config.targets, list(linear), "train.lora.targets", "linear layer")
    return {name: part for name, part in linear.items() if first_match(name, config.targets) is not None}
