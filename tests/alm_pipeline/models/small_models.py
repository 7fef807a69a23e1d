"""Tiny models of transformers' own configuration classes: the named ones by hand, all others by shrinking defaults."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

VOCABULARY = 64
_MOST_PARAMETERS = 20_000_000
MAPPINGS: dict[str, Any] = {
    "AutoModelForCausalLM": MODEL_FOR_CAUSAL_LM_MAPPING,
    "AutoModelForImageTextToText": MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
}

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
_VISION = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
_SQUARE = _VISION | {"image_size": 28, "patch_size": 14}
_LLAMA4 = TEXT | {"intermediate_size_mlp": 64, "num_local_experts": 2}
_LLAMA4_VISION = {
    **(_SQUARE | {"intermediate_size": 128, "image_size": 16, "patch_size": 8}),
    "vision_output_dim": 32,
    "projector_input_dim": 32,
    "projector_output_dim": 32,
}
_MLLAMA = {name: value for name, value in TEXT.items() if name != "head_dim"} | {
    "num_hidden_layers": 3,
    "cross_attention_layers": [1],
}
_MLLAMA_VISION = {
    **_SQUARE,
    "num_global_layers": 1,
    "attention_heads": 4,
    "vision_output_dim": 64,
    "intermediate_layers_indices": [0],
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_QWEN = TEXT | {"rope_parameters": _ROPE}
_QWEN_TOKENS = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
_QWEN_VISION = {"depth": 1, "hidden_size": 32, "num_heads": 4, "patch_size": 4}
_WIDE = {"out_hidden_size": 32, "intermediate_size": 64}

Parts = Callable[[], tuple[type[PreTrainedModel], Any]]
NAMED: dict[str, Parts] = {
    "Llama 4, text": lambda: (transformers.Llama4ForCausalLM, transformers.Llama4TextConfig(**_LLAMA4)),
    "Llama 4": lambda: (
        transformers.Llama4ForConditionalGeneration,
        transformers.Llama4Config(text_config=_LLAMA4, vision_config=_LLAMA4_VISION),
    ),
    "Llama 3.2 Vision, text": lambda: (transformers.MllamaForCausalLM, transformers.MllamaTextConfig(**_MLLAMA)),
    "Llama 3.2 Vision": lambda: (
        transformers.MllamaForConditionalGeneration,
        transformers.MllamaConfig(text_config=_MLLAMA, vision_config=_MLLAMA_VISION),
    ),
    "Gemma 3": lambda: (
        transformers.Gemma3ForConditionalGeneration,
        transformers.Gemma3Config(
            text_config=TEXT | {"sliding_window": 16, "final_logit_softcapping": 1.5},  # which the whole leaves out
            vision_config=_SQUARE,
            mm_tokens_per_image=4,
            image_token_index=63,
            boi_token_index=62,
            eoi_token_index=61,
        ),
    ),
    "Mistral 3": lambda: (
        transformers.Mistral3ForConditionalGeneration,
        transformers.Mistral3Config(
            text_config=TEXT | {"model_type": "mistral"},
            vision_config=_SQUARE | {"model_type": "pixtral"},
            image_token_index=10,
        ),
    ),
    "Qwen 2 VL": lambda: (
        transformers.Qwen2VLForConditionalGeneration,
        transformers.Qwen2VLConfig(
            text_config=_QWEN, vision_config=_QWEN_VISION | {"embed_dim": 32, "mlp_ratio": 2}, **_QWEN_TOKENS
        ),
    ),
    "Qwen 2.5 VL": lambda: (
        transformers.Qwen2_5_VLForConditionalGeneration,
        transformers.Qwen2_5_VLConfig(
            text_config=_QWEN, vision_config=_QWEN_VISION | _WIDE | {"fullatt_block_indexes": [0]}, **_QWEN_TOKENS
        ),
    ),
    "Qwen 3 VL": lambda: (
        transformers.Qwen3VLForConditionalGeneration,
        transformers.Qwen3VLConfig(
            text_config=_QWEN,
            vision_config=_QWEN_VISION | _WIDE | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
            **_QWEN_TOKENS,
        ),
    ),
    "Llava": lambda: (
        transformers.LlavaForConditionalGeneration,
        transformers.LlavaConfig(
            text_config=TEXT | {"model_type": "llama"},
            vision_config=_SQUARE | {"model_type": "clip_vision_model", "projection_dim": 32},
            image_token_index=10,
        ),
    ),
    "Aya Vision, a scale that the whole leaves out": lambda: (
        transformers.AyaVisionForConditionalGeneration,
        transformers.AyaVisionConfig(
            text_config=TEXT | {"model_type": "cohere2", "logit_scale": 0.3},
            vision_config=_SQUARE | {"model_type": "siglip_vision_model"},
            image_token_index=10,
        ),
    ),
}


def named_model(name: str) -> PreTrainedModel:
    """A tiny model of the list, with weights that tell its layers apart."""
    torch.manual_seed(0)
    kind, config = NAMED[name]()
    return kind(config).eval()


def _most(setting: str) -> int | None:
    """Return the most that a size of this name is, by what the names end in; None if it is not a size."""
    ends: tuple[tuple[tuple[str, ...], int], ...] = (
        (("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
        (("layers", "depth", "n_layer", "key_value_heads", "kv_heads", "per_tok"), 2),
        (("heads", "n_head", "experts"), 4),
        (("head_dim", "_rank"), 8),
        (("hidden_size", "embd", "d_model", "_dim", "width"), 32),
        (("intermediate_size", "inner", "ffn_dim"), 64),
        (("image_size",), 28),
        (("patch_size",), 14),
        (("positions", "_ctx", "position_embeddings"), 128),
    )
    return next((most for names, most in ends if setting.endswith(names)), None)


def small_settings(kind: Any) -> dict[str, Any]:
    """Return the sizes of a configuration class's defaults, made small, for its parts too."""
    default = kind()
    small: dict[str, Any] = {}
    for name, value in default.to_dict().items():
        if isinstance(value, int) and not isinstance(value, bool):
            if name.endswith(("token_id", "token_index")):
                small[name] = min(value, VOCABULARY - 4)
            elif (most := _most(name)) is not None:
                small[name] = min(value, most)
    parts = {name: getattr(default, name, None) for name in kind.sub_configs or {}}
    return small | {name: small_settings(type(part)) for name, part in parts.items() if part is not None}


def small_model(kind: Any, automatic: str, change: Callable[[Any], None] = lambda config: None) -> PreTrainedModel:
    """Build a small model of a configuration class, as its automatic class would. Raises whatever its code raises."""
    model_class = MAPPINGS[automatic][kind]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class

    def settings() -> Any:
        config = kind(**small_settings(kind))
        change(config)
        part = config.get_text_config(decoder=True)
        return part if model_class.config_class is not kind and model_class.config_class is type(part) else config

    with torch.device("meta"):
        parameters = sum(value.numel() for value in model_class(settings()).parameters())
    if parameters > _MOST_PARAMETERS:
        raise ValueError(f"{parameters:,} parameters")
    torch.manual_seed(0)
    model: PreTrainedModel = model_class(settings())
    return model.eval()
