"""Conversion of a gguf file of a Llama or Gemma 3 model with tied embeddings into a Hugging Face folder.

It reads the gguf's tensors and metadata directly. `from_pretrained(gguf_file=…)` needs accelerate, leaves a
quantization config in the folder and gives a tokenizer with subtly different ids. The files do not depend on the
machine or on library versions: the same gguf gives the same bytes.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, ReaderTensor, dequantize
from safetensors.torch import save_file

from alm_pipeline.models.demo.tokenizer import Metadata, build_tokenizer, tokenizer_config

# the rounding error is far below that of the quantization: at most 0.0003 bits per byte compared with float32
WEIGHTS_DTYPE = torch.bfloat16

_LLAMA_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA3_NAMES = _LLAMA_NAMES | {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_LAYER_NAMES = {"llama": _LLAMA_NAMES, "gemma3": _GEMMA3_NAMES}


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the config, generation config, weights and tokenizer of the gguf's model into the new folder."""
    folder.mkdir()
    reader = GGUFReader(gguf)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    reader.fields.clear()  # they hold an array view for every token, score and merge: a gigabyte for Gemma
    _write_json(folder / "config.json", model_config(metadata))
    _write_json(folder / "generation_config.json", _special_ids(metadata))
    save_file(read_weights(reader, metadata), folder / "model.safetensors", metadata={"format": "pt"})
    # safetensors writes a file that only its owner may read, whatever the umask
    shutil.copymode(folder / "config.json", folder / "model.safetensors")
    build_tokenizer(metadata).save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", tokenizer_config(metadata))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_weights(reader: GGUFReader, metadata: Metadata, dtype: torch.dtype = WEIGHTS_DTYPE) -> dict[str, torch.Tensor]:
    """Return the dequantized tensors by their names in transformers, rounded to `dtype`."""
    return {
        hugging_face_name(tensor.name, metadata["general.architecture"]): _weight(tensor, metadata).to(dtype)
        for tensor in reader.tensors
    }


def hugging_face_name(name: str, architecture: str) -> str:
    """Return the name in transformers: `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`.

    Raises KeyError for an unknown name.
    """
    if not name.startswith("blk."):
        return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]
    _, layer, module, kind = name.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[architecture][module]}.{kind}"


def _weight(tensor: ReaderTensor, metadata: Metadata) -> torch.Tensor:
    # torch uses the dequantized array itself; a float32 tensor is a read-only view of the file and is copied
    weight = torch.from_numpy(np.require(dequantize(tensor.data, tensor.tensor_type), requirements="W"))
    if metadata["general.architecture"] == "gemma3":
        # Gemma's RMSNorm multiplies by 1 + w: llama.cpp stores 1 + w, and transformers w
        return weight - 1 if tensor.name.endswith("norm.weight") else weight
    heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    key = heads.get(tensor.name.split(".")[-2])
    return _rotate_halves(weight, metadata[key]) if key else weight


def _rotate_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of each head [heads · size, inputs] from llama.cpp's RoPE pairs to transformers' halves."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def model_config(metadata: Metadata) -> dict[str, Any]:
    """Return the content of config.json."""
    return _common_config(metadata) | {"llama": _llama_config, "gemma3": _gemma3_config}[
        metadata["general.architecture"]
    ](metadata)


def _common_config(metadata: Metadata) -> dict[str, Any]:
    prefix = metadata["general.architecture"]
    return {
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": metadata[f"{prefix}.embedding_length"],
        "intermediate_size": metadata[f"{prefix}.feed_forward_length"],
        "num_hidden_layers": metadata[f"{prefix}.block_count"],
        "num_attention_heads": metadata[f"{prefix}.attention.head_count"],
        "num_key_value_heads": metadata[f"{prefix}.attention.head_count_kv"],
        "max_position_embeddings": metadata[f"{prefix}.context_length"],
        # the file has float32, in which 1e-05 is 9.99999974e-06
        "rms_norm_eps": float(f"{metadata[f'{prefix}.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": metadata[f"{prefix}.rope.freq_base"],
        "attention_bias": False,
        "tie_word_embeddings": True,
        "dtype": str(WEIGHTS_DTYPE).removeprefix("torch."),
        **_special_ids(metadata),
    }


def _special_ids(metadata: Metadata) -> dict[str, int]:
    kinds = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {key: metadata[f"tokenizer.ggml.{kind}_token_id"] for key, kind in kinds.items()}


def _llama_config(metadata: Metadata) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "head_dim": metadata["llama.rope.dimension_count"],
    }


def _gemma3_config(metadata: Metadata) -> dict[str, Any]:
    """Return Gemma's fields. Those not in the gguf are as in google/gemma-3-270m: every sixth layer attends fully."""
    layers = range(1, metadata["gemma3.block_count"] + 1)
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": metadata["gemma3.attention.key_length"],
        "query_pre_attn_scalar": metadata["gemma3.attention.key_length"],
        "rope_local_base_freq": 10_000.0,
        "sliding_window": metadata["gemma3.attention.sliding_window"],
        "layer_types": ["full_attention" if layer % 6 == 0 else "sliding_attention" for layer in layers],
    }
