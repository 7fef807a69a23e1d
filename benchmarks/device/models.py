"""Models with random weights, and texts of random tokens."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from alm_pipeline.models.head_vocabulary import HeadVocabulary
from benchmarks.device import SMALL
from benchmarks.device.measuring import SIZES, device

BOUNDARY_SHARE = 0.4


def llama(layers: int | None = None, vocabulary: int | None = None, width: int | None = None) -> PreTrainedModel:
    """As Llama 3.2 1B, with random weights in float32 on the processor, unless the caller moves the default device."""
    width = width or SIZES.width
    heads = max(2, width // 64)
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary or SIZES.vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers or SIZES.layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 4),
            head_dim=64 if width >= 128 else width // heads,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
        )
    )


def gemma() -> PreTrainedModel:
    """Small, with sliding windows, a soft cap, and (on a GPU) Gemma's vocabulary."""
    torch.manual_seed(1)
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=1000 if SMALL else 262_144,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            sliding_window=16,
            final_logit_softcapping=20.0,
        )
    )


def placed(make: Callable[[], PreTrainedModel], dtype: torch.dtype) -> PreTrainedModel:
    """A model whose weights are drawn on the device."""
    with device():
        model: Any = make()
        return cast(PreTrainedModel, model.to(dtype))


def vocabulary_of(model: PreTrainedModel) -> HeadVocabulary:
    size = int(model.config.vocab_size)
    ids = np.random.default_rng(1).permutation(size)[: int(size * BOUNDARY_SHARE)]
    return HeadVocabulary(torch.from_numpy(np.sort(ids)), size)


def random_texts(count: int, vocabulary: int) -> list[Any]:
    """Token ids; lengths are even on a logarithmic scale."""
    generator = np.random.default_rng(0)
    shortest, longest = np.log(SIZES.lengths).tolist()
    lengths = np.exp(generator.uniform(shortest, longest, count)).astype(int)
    return [generator.integers(0, vocabulary, length).astype(np.int32) for length in lengths]


def forward_flops(model: PreTrainedModel, texts: list[Any]) -> float:
    """Of the layers' products and attention, and of the head's; multiplications and additions."""
    config = model.config
    per_token = 2 * sum(weight.numel() for name, weight in model.named_parameters() if weight.dim() == 2)
    if not config.tie_word_embeddings:
        per_token -= 2 * config.vocab_size * config.hidden_size
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return float(sum(per_token * len(ids) + attention * len(ids) ** 2 / 2 for ids in texts))
