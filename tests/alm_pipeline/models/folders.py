"""Model folders of every kind that `from_pretrained` loads, with files beside them that it does not read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.new_tokenizer.byte_level import byte_level_tokenizer
from alm_pipeline.transfer.bytes.byte_model import put_on_bytes
from tests import tiny

UNREAD = (
    "README.md",
    "LICENSE",
    ".gitattributes",
    "picture.png",
    "unknown.bin",
    "pytorch_model.bin",
    "consolidated.safetensors",
    "other.json",
    "config.0.1.0.json",
    "train.py",
    "original/params.json",
    "original/model.safetensors",
    "original/code.py",
    "metrics.parquet",
)
"""Files that a folder on a hub may hold, and that are not opened when its model is loaded."""

_SCALED = """
from transformers import LlamaForCausalLM
from .factor import FACTOR

class ScaledLlama(LlamaForCausalLM):
    def forward(self, *arguments, **named):
        output = super().forward(*arguments, **named)
        output.logits = output.logits * FACTOR
        return output
"""


def single(folder: Path) -> None:
    tokenizer = tiny.byte_level_tokenizer()
    tiny.save(folder, tiny.tiny_llama(len(tokenizer)), tokenizer)


def sharded(folder: Path) -> None:
    tokenizer = tiny.byte_level_tokenizer()
    tiny.tiny_llama(len(tokenizer)).save_pretrained(folder, max_shard_size="60KB")
    tokenizer.save_pretrained(folder)
    assert (folder / "model.safetensors.index.json").is_file()


def named_weights(folder: Path) -> None:
    """The configuration names the file of the weights."""
    single(folder)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    edit_config(folder, transformers_weights="weights.safetensors")


def versioned(folder: Path) -> None:
    """The configuration names another one for newer versions of transformers."""
    single(folder)
    shutil.copy(folder / "config.json", folder / "config.5.0.0.json")
    edit_config(folder, configuration_files=["config.0.1.0.json", "config.5.0.0.json"])


def adapter(folder: Path) -> None:
    """A model with an adapter beside it."""
    single(folder)
    layers = [f"base_model.model.model.layers.{layer}.self_attn.q_proj." for layer in range(2)]
    parts = {"lora_A.weight": torch.ones(2, 32), "lora_B.weight": torch.ones(32, 2)}
    # safetensors refuses tensors that share memory
    tensors = {layer + part: values.clone() for layer in layers for part, values in parts.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def coded(folder: Path) -> None:
    """A model of a type that transformers knows, with code of its own, which imports a second file."""
    single(folder)
    (folder / "modeling_scaled.py").write_text(_SCALED)
    (folder / "factor.py").write_text("FACTOR = 2.0\n")
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_scaled.ScaledLlama"})


def coded_elsewhere(folder: Path) -> None:
    """As `coded`, with the code in another repository, here a folder."""
    coded(folder)
    code = folder.parent / f"code-of-{folder.name}"
    code.mkdir()
    for name in ("modeling_scaled.py", "factor.py"):
        (folder / name).rename(code / name)
    edit_config(folder, auto_map={"AutoModelForCausalLM": f"{code}--modeling_scaled.ScaledLlama"})


def byte_student(folder: Path) -> None:
    """A student of this project with n-gram embeddings."""
    tokenizer = tiny.byte_level_tokenizer()
    model = tiny.tiny_llama(len(tokenizer))
    target = byte_level_tokenizer(tokenizer)
    put_on_bytes(model, LoadedTokenizer.of(tokenizer), LoadedTokenizer.of(target), ngram_embeddings=True)
    tiny.save(folder, model, target)


KINDS: dict[str, Callable[[Path], None]] = {
    kind.__name__: kind
    for kind in (single, sharded, named_weights, versioned, adapter, coded, coded_elsewhere, byte_student)
}
CODED = ("coded", "coded_elsewhere", "byte_student")


def make(kind: str, folder: Path) -> Path:
    """Write a folder of that kind, with all the files of `UNREAD` beside."""
    KINDS[kind](folder)
    for name in UNREAD:
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        if not file.exists():
            file.write_text("{}" if name.endswith("json") else "# text\n")
    return folder


def edit_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
