"""A model of the same class as another, small enough to be computed with at once, with random weights.

How a class treats positions, masks and its head does not depend on its sizes, so what a small model does wrong, the
large one does wrong too. A configuration that can't be made small gives None: its own weights then show it later.
"""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from alm_pipeline.models.configuration import empty_model, text_config
from alm_pipeline.models.health.library_log import quiet_transformers

_TOKENS = 64
_SIZES: dict[str, int] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_attention_heads": 4,
    "head_dim": 8,
    "rotary_dim": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
"""what a setting is lowered to, where a configuration has it and it is larger"""
_FEWEST_LAYERS = 2
_MOST_LAYERS = 6
_SPREAD = 0.2
"""of the random weights: with the usual 0.02, leaks between examples would be small"""
_MOST_PARAMETERS = 5_000_000


def small_model(config: Any, name: str) -> PreTrainedModel | None:
    """Return a small model of the class that a loaded configuration has, in float32 on the processor.

    Of a model that also reads images it is the text part, if that has a class of its own. None if there is no small
    one: for a class that comes with its own code, and where the class refuses the small sizes.
    """
    text = text_config(config)
    if not type(config).__module__.startswith("transformers."):
        return None
    try:
        small = _shrunk(text)
        with torch.random.fork_rng(devices=[]), torch.device("meta"), quiet_transformers():
            size = sum(value.numel() for value in empty_model(small, name).parameters())
        if size > _MOST_PARAMETERS:
            return None
        with torch.random.fork_rng(devices=[]), torch.no_grad(), quiet_transformers():
            torch.manual_seed(0)
            model = empty_model(small, name).float().eval()
            logits = model(input_ids=torch.arange(8)[None], use_cache=False).logits
        # random weights may overflow, which says nothing about the model's own
        return model if bool(logits.isfinite().all()) else None
    except Exception:  # each class checks its sizes in its own way
        return None


def _shrunk(config: Any) -> Any:
    small = copy.deepcopy(config)
    groups = getattr(config, "num_key_value_heads", None)
    if isinstance(groups, int):
        small.num_key_value_heads = 4 if groups == config.num_attention_heads else min(groups, 2)
    for name, size in _SIZES.items():
        if isinstance(before := getattr(small, name, None), int) and before > size:
            setattr(small, name, size)
    _set_layers(small)
    small.vocab_size = _TOKENS
    for role in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(small, role, None)
    if hasattr(small, "initializer_range"):
        small.initializer_range = _SPREAD
    if hasattr(small, "quantization_config"):
        del small.quantization_config
    return small


def _set_layers(config: Any) -> None:
    """Keep the first layer of each kind."""
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        config.num_hidden_layers = min(config.num_hidden_layers, _FEWEST_LAYERS)
        return
    chosen = [*dict.fromkeys(kinds), *kinds[:_FEWEST_LAYERS]][: max(_FEWEST_LAYERS, len(set(kinds)))]
    if len(chosen) > _MOST_LAYERS:
        raise ValueError("too many kinds of layers")
    config.num_hidden_layers, config.layer_types = len(chosen), chosen
