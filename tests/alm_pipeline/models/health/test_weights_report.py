"""A model whose files do not hold exactly its tensors is not loaded; tensors left out on purpose raise no alarm."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from alm_pipeline.models.loading import load_model
from storage.errors import UserError
from tests import tiny

Tensors = dict[str, Tensor]
WEIGHTS = "model.safetensors"


@pytest.fixture
def untied(tmp_path: Path) -> Path:
    tiny.save(tmp_path, tiny.tiny_llama(400, tied=False), tiny.byte_level_tokenizer())
    return tmp_path


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def reconfigure(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda stored: {prefix + name: value for name, value in stored.items()}


def renamed(pattern: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda stored: {re.sub(pattern, new, name): value for name, value in stored.items()}


def without(pattern: str) -> Callable[[Tensors], Tensors]:
    return lambda stored: {name: value for name, value in stored.items() if not re.search(pattern, name)}


def added(**tensors: tuple[int, ...]) -> Callable[[Tensors], Tensors]:
    return lambda stored: {**stored, **{name: torch.ones(shape) for name, shape in tensors.items()}}


LAYER = "model.layers.0.self_attn.q_proj"
WRONG: list[tuple[str, Callable[[Tensors], Tensors], tuple[str, ...]]] = [
    ("torch.compile", prefixed("_orig_mod."), ("lack 21 tensors", "lm_head.weight", "as torch.compile writes")),
    ("data parallel", prefixed("module."), ("lack 21 tensors", "as DistributedDataParallel writes")),
    ("FSDP", prefixed("_fsdp_wrapped_module."), ("lack 21 tensors", "as FSDP writes")),
    ("peft", prefixed("base_model.model."), ("lack 21 tensors", "as peft writes")),
    ("another prefix", prefixed("student.net."), ("lack 21 tensors", "have 'student.net.' in front")),
    ("compiled layers", renamed(r"(layers\.\d+\.)", r"\1_orig_mod."), ("lack 18 tensors", "as torch.compile writes")),
    ("checkpointed", renamed(r"(\.mlp\.)", r"\1_checkpoint_wrapped_module."), ("lack 6 tensors", "checkpointing")),
    ("a lacking prefix", renamed(r"^model\.layers\.", ""), ("lack 18 tensors", "lack 'model.layers.' in front")),
    ("a layer fewer", without(r"layers\.1\."), ("lack 9 tensors", "and 6 more", "fetch all files")),
    ("one tensor fewer", without(r"0\.mlp\.up_proj"), ("lack 1 tensor of", "mlp.up_proj", "drawn at random")),
    ("no embedding", without("embed_tokens"), ("lack 1 tensor of", "model.embed_tokens.weight")),
    ("no head", without("lm_head"), ("lack 1 tensor of", "lm_head.weight", "tie_word_embeddings")),
    ("unmerged, wrapped", renamed("q_proj", "q_proj.base_layer"), ("lack 2 tensors", "merge_and_unload")),
    ("unmerged, beside", added(**{f"{LAYER}.lora_A.default.weight": (4, 32)}), ("merge_and_unload",)),
    ("a value head", added(**{"v_head.summary.weight": (1, 32)}), ("v_head.summary.weight", "another task")),
    ("a bias that is not used", added(**{f"{LAYER}.bias": (32,)}), (f"{LAYER}.bias", "config.json")),
    ("another shape", added(**{"model.norm.weight": (16,)}), ("model.norm.weight is (16,), and (32,) in the model",)),
    (
        "other shapes",
        lambda stored: {name: value.reshape(-1)[:8].clone() for name, value in stored.items()},
        ("lm_head.weight is (8,), and (400, 32) in the model", "and 18 more"),
    ),
]


@pytest.mark.bad_input
@pytest.mark.parametrize("device_map", [None, "cpu"])
@pytest.mark.parametrize(("change", "parts"), [pytest.param(change, parts, id=name) for name, change, parts in WRONG])
def test_other_tensors_than_the_models_are_refused(
    change: Callable[[Tensors], Tensors], parts: tuple[str, ...], device_map: str | None, untied: Path
) -> None:
    rewrite(untied, change)
    with pytest.raises(UserError) as caught:
        load_model(str(untied), "float32", device_map=device_map)
    message = str(caught.value)
    assert message.startswith(f"{untied}: ")
    assert [part for part in parts if part not in message] == []
    assert "\n" not in message


@pytest.mark.bad_input
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool])
def test_weights_that_are_quantized_unsaid_are_refused(dtype: torch.dtype, untied: Path) -> None:
    rewrite(untied, lambda stored: {**stored, f"{LAYER}.weight": (stored[f"{LAYER}.weight"] * 99).to(dtype)})
    with pytest.raises(UserError, match=rf"1 tensor of its weights are stored as [UIB]\w+ \({LAYER}"):
        load_model(str(untied), "float32", device="cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_weights_of_every_real_type_are_read(dtype: torch.dtype, untied: Path) -> None:
    rewrite(untied, lambda stored: {name: value.to(dtype) for name, value in stored.items()})
    expected = load_file(untied / WEIGHTS)[f"{LAYER}.weight"].float()
    model = load_model(str(untied), "float32", device="cpu")
    torch.testing.assert_close(model.get_parameter(f"{LAYER}.weight"), expected, rtol=0, atol=0)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("values", "part"),
    [
        pytest.param({"num_hidden_layers": 3, "layer_types": None}, "lack 9 tensors", id="more layers"),
        pytest.param({"num_hidden_layers": 1, "layer_types": None}, "9 tensors of its weights are not in", id="fewer"),
        pytest.param({"hidden_size": 64}, "have other shapes than config.json", id="wider"),
        pytest.param({"attention_bias": True}, "lack 8 tensors", id="biases"),
        pytest.param({"tie_word_embeddings": False, "vocab_size": 300}, "have other shapes", id="vocabulary"),
        pytest.param({"model_type": "gpt2"}, "of another architecture or class", id="architecture"),
    ],
)
def test_a_configuration_of_another_model_is_refused(values: dict[str, Any], part: str, untied: Path) -> None:
    reconfigure(untied, **values)
    with pytest.raises(UserError, match=re.escape(part)):
        load_model(str(untied), "float32")


@pytest.mark.bad_input
def test_one_file_of_several_is_refused(untied: Path) -> None:
    load_model(str(untied), "float32").save_pretrained(untied / "parts", max_shard_size="50KB")
    first = min((untied / "parts").glob("model-00001-of-*.safetensors"))
    first.replace(untied / WEIGHTS)
    with pytest.raises(UserError, match="holds only a part of the model"):
        load_model(str(untied), "float32")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (AutoModel, r"lack 1 tensor of the model \(lm_head\.weight\)"),
        (AutoModelForSequenceClassification, "was saved as LlamaForSequenceClassification"),
    ],
)
def test_weights_of_another_class_are_refused(saved: Any, message: str, untied: Path) -> None:
    saved.from_config(AutoConfig.from_pretrained(untied)).save_pretrained(untied)
    with pytest.raises(UserError, match=message):
        load_model(str(untied), "float32")


FINE: list[tuple[str, Callable[[Tensors], Tensors]]] = [
    ("as it was saved", lambda stored: stored),
    ("without the model's own prefix", renamed("^model.", "")),  # transformers adds it
    ("old rotary buffers", added(**{"model.layers.0.self_attn.rotary_emb.inv_freq": (4,)})),
    ("old positions", added(**{"model.embeddings.position_ids": (1, 8)})),
    ("old masks", added(**{"model.layers.0.attention.masked_bias": (1,)})),
    ("a part that sees", added(**{"vision_tower.encoder.weight": (4,), "multi_modal_projector.linear.weight": (4,)})),
]


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in FINE])
def test_what_decides_nothing_is_no_alarm(change: Callable[[Tensors], Tensors], untied: Path) -> None:
    expected = load_file(untied / WEIGHTS)["model.layers.1.mlp.up_proj.weight"]
    rewrite(untied, change)
    model = load_model(str(untied), "float32", device="cpu")
    assert torch.equal(model.state_dict()["model.layers.1.mlp.up_proj.weight"], expected)


def test_a_tied_head_need_not_be_stored(llama_folder: str) -> None:
    assert "lm_head.weight" not in load_file(Path(llama_folder, WEIGHTS))
    model = load_model(llama_folder, "float32", device="cpu")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_several_files_are_one_model(untied: Path) -> None:
    whole = load_model(str(untied), "float32", device="cpu")
    whole.save_pretrained(untied / "parts", max_shard_size="50KB")
    assert len(list((untied / "parts").glob("*.safetensors"))) > 2
    parts = load_model(str(untied / "parts"), "float32", device="cpu")
    assert all(torch.equal(parts.state_dict()[name], value) for name, value in whole.state_dict().items())


SIZES = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8, "pad_token_id": 0},
    **{"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "d_model": 32, "n_layers": 2, "n_heads": 4},
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1},
    **{"topk_group": 1, "moe_intermediate_size": 32, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8},
    **{"qk_nope_head_dim": 8, "v_head_dim": 8, "ffn_dim": 64, "word_embed_proj_dim": 32},
}
FAMILIES = (
    *("bloom", "cohere2", "deepseek_v3", "falcon", "gemma", "gemma2", "gemma3_text", "glm4_moe", "gpt2", "gpt_bigcode"),
    *("gpt_neox", "gptj", "granite", "granitemoe", "llama", "mamba", "mistral", "mixtral", "mpt", "nemotron", "olmo2"),
    *("opt", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2"),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_of_models_alarms(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = AutoConfig.for_model(family)
    known = {name: size for name, size in SIZES.items() if name in config.to_dict() or name in config.attribute_map}
    for name, size in known.items():
        setattr(config, name, size)
    for kinds in ("layer_types", "mlp_layer_types"):
        if isinstance(vars(config).get(kinds), list):
            setattr(config, kinds, getattr(config, kinds)[:2])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="alm_pipeline"):
        load_model(str(tmp_path), "float32", device="cpu")
    assert [message for message in caplog.messages if "tensor" in message or "weights" in message] == []
