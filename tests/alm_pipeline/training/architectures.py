"""Tiny models of the families that students come from, each with its special features."""

from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2, "pad_token_id": 0}
_SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
"""dropout would draw other random numbers for packed rows than for unpacked ones"""

# learned positions: 40, the length of the longest example, and fewer than a row
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied": ("Llama", _SIZES | {"tie_word_embeddings": True}),
    "llama, untied": ("Llama", _SIZES | {"tie_word_embeddings": False}),
    "qwen 2, biases": ("Qwen2", _SIZES | {"tie_word_embeddings": True}),
    "qwen 3, norms of queries": ("Qwen3", _SIZES | {"tie_word_embeddings": False}),
    "gemma 2, soft caps": (
        "Gemma2",
        _SIZES | _SLIDING | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma 3, sliding windows": ("Gemma3", _SIZES | _SLIDING),
    "mistral, sliding windows": ("Mistral", _SIZES | {"sliding_window": 8}),
    "gpt-2, learned positions": ("GPT2", _GPT | _NO_DROPOUT | {"n_positions": 40}),
    "gpt-j, bias of the head": ("GPTJ", _GPT | _NO_DROPOUT | {"rotary_dim": 8, "tie_word_embeddings": False}),
    "phi, bias of the head": ("Phi", _SIZES | {"tie_word_embeddings": False}),
}


def tiny_architecture(name: str, vocab_size: int, attention: str = "eager") -> PreTrainedModel:
    torch.manual_seed(0)
    family, options = ARCHITECTURES[name]
    text = getattr(transformers, f"{family}TextConfig", None) or getattr(transformers, f"{family}Config")
    causal = getattr(transformers, f"{family}ForCausalLM", None) or getattr(transformers, f"{family}LMHeadModel")
    model: PreTrainedModel = causal._from_config(text(**options, vocab_size=vocab_size), attn_implementation=attention)
    for part in model.modules():
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.normal_(part.bias, std=0.2)
    return model


def attentions(name: str) -> list[str]:
    """Return the attention implementations that the architecture has on every machine."""
    return ["eager"] if name.startswith(("gemma 2", "gpt-j")) else ["eager", "sdpa"]
