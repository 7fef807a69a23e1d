"""The head outside of a model gives the same logits as the model, for every kind of head."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from alm_pipeline.models.configuration import load_config
from alm_pipeline.models.loading import load_head_model
from alm_pipeline.models.output_head import Head, LayerHead, check_output_head, hidden_states, output_head
from alm_pipeline.scoring.head import token_and_boundary_logprobs
from storage.errors import UserError
from tests import tiny

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
# each with the settings that its logits depend on, far from their defaults
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, untied": ("Llama", {"tie_word_embeddings": False}),
    "qwen": ("Qwen2", {}),
    "phi, bias": ("Phi", {"tie_word_embeddings": False}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 64, "pad_token_id": 0}),
    "gemma 2, cap": ("Gemma2", {"final_logit_softcapping": 1.5}),
    "gemma 3, no cap": ("Gemma3", {"final_logit_softcapping": None}),
    "cohere, scale": ("Cohere", {"logit_scale": 0.3}),
    "granite, divisor": ("Granite", {"logits_scaling": 3.0}),
    "hyperclova, multiplier of a divisor's name": ("HyperCLOVAX", {"logits_scaling": 3.0}),
    "falcon-h1, multiplier": (
        "FalconH1",
        {"lm_head_multiplier": 0.3, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    ),
    "inkling, padded": ("Inkling", {"unpadded_vocab_size": 45, "logits_mup_width_multiplier": 2.0}),
    "nanochat, cap": ("NanoChat", {"final_logit_softcapping": 1.5}),
    "minicpm3, divided states": (
        "MiniCPM3",
        {"num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
         "v_head_dim": 16, "dim_model_base": 8, "head_dim": None},
    ),
    "recurrent gemma, cap": ("RecurrentGemma", {"logits_soft_cap": 1.5, "num_hidden_layers": 3, "lru_width": 32}),
}  # fmt: skip
IDS = torch.arange(1, 13)[None]


def tiny_model(family: str, options: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    text = getattr(transformers, f"{family}TextConfig", None) or getattr(transformers, f"{family}Config")
    sizes = {} if family == "GPT2" else SIZES
    causal = getattr(transformers, f"{family}ForCausalLM", None) or getattr(transformers, f"{family}LMHeadModel")
    model: PreTrainedModel = causal(text(**{**sizes, **options})).eval()
    layer = model.get_output_embeddings()
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_numbers_and_gradients_are_those_of_the_models_own_logits(name: str) -> None:
    model = tiny_model(*MODELS[name])
    check_output_head(model)
    assert isinstance(output_head(model), Head)
    assert_same_as_model(model)


TABLES = {"gemma 4, tables with a part for each layer": ("Gemma4", {"hidden_size_per_layer_input": 8})}


# Inkling's layers are large however they are set
@pytest.mark.parametrize("name", [*(name for name in MODELS if name != "inkling, padded"), *TABLES])
def test_the_head_is_loaded_without_the_layers(name: str, tmp_path: Path) -> None:
    """It gives the whole model's logits from its hidden states, and holds nothing of its layers."""
    model = tiny_model(*(MODELS | TABLES)[name])
    model.save_pretrained(tmp_path)
    head = load_head_model(str(tmp_path), load_config(str(tmp_path)), "float32", device="cpu")
    check_output_head(head)
    assert head.config.get_text_config().num_hidden_layers == 0
    assert sum(value.numel() for value in head.parameters()) < sum(value.numel() for value in model.parameters()) / 2
    with torch.no_grad():
        logits = output_head(head).logits(hidden_states(model, IDS)[0])
        torch.testing.assert_close(logits, model(input_ids=IDS, use_cache=False).logits[0], rtol=1e-5, atol=1e-5)


def assert_same_as_model(model: Any) -> None:
    targets, boundary = IDS[0].roll(-1), torch.arange(0, 45, 3)
    trained = dict(model.named_parameters())
    own = torch.log_softmax(model(input_ids=IDS, use_cache=False).logits[0].float(), -1)
    expected = torch.stack([own.gather(-1, targets[:, None]).squeeze(-1), own[:, boundary].logsumexp(-1)])
    hidden = hidden_states(model, IDS, torch.arange(IDS.shape[1])[None])[0]
    got = torch.stack(token_and_boundary_logprobs(hidden, targets, output_head(model), boundary))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    wanted, found = (
        torch.autograd.grad(
            (numbers * weights).sum(), list(trained.values()), allow_unused=True, materialize_grads=True
        )
        for numbers in (expected, got)
    )
    for parameter, wanted_grad, found_grad in zip(trained, wanted, found, strict=True):
        torch.testing.assert_close(
            found_grad, wanted_grad, rtol=1e-3, atol=1e-4, msg=lambda m, p=parameter: f"{p}: {m}"
        )


class Adapted(nn.Module):
    """Like peft's layer with a low-rank adapter."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.down = layer, nn.Linear(layer.in_features, 3, bias=False)
        self.up = nn.Linear(3, layer.out_features, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.base_layer(hidden) + 2 * self.up(self.down(hidden))


class Copied(nn.Module):
    """Like peft's wrapper of a layer that is trained as a whole."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.original_module, self.modules_to_save = layer, nn.ModuleDict({"default": nn.Linear(*layer.weight.T.shape)})
        self.active_adapters, self.disable_adapters = ["default"], False

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        layer = self.original_module if self.disable_adapters else self.modules_to_save["default"]
        return layer(hidden)


class Quantized(nn.Linear):
    """A layer that does not multiply by its weight."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden, self.weight * 0.5, self.bias)


@pytest.mark.parametrize(
    ("wrap", "kind"),
    [
        (Adapted, LayerHead),
        (Copied, Head),
        (lambda layer: nn.Sequential(nn.Linear(32, 32), nn.GELU(), layer), LayerHead),
        (lambda layer: Quantized(*layer.weight.T.shape), LayerHead),
    ],
    ids=["low-rank adapter", "trained copy", "several layers", "quantized"],
)
@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_a_head_that_is_not_one_linear_layer(family: str, wrap: Any, kind: type) -> None:
    model = tiny_model(family, {"tie_word_embeddings": False})
    model.lm_head = wrap(model.lm_head)
    assert isinstance(output_head(model), kind)
    check_output_head(model)
    assert_same_as_model(model)


def test_a_trained_copy_that_is_switched_off_is_not_used() -> None:
    model = tiny_model("Llama", {"tie_word_embeddings": False})
    model.lm_head = Copied(model.lm_head)
    model.lm_head.disable_adapters = True
    assert_same_as_model(model)


class Shell:
    """Like peft's model around a model, whose `base_model` differs from transformers'."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.inside, self.base_model = model, None

    def get_base_model(self) -> PreTrainedModel:
        return self.inside


def test_a_model_inside_a_peft_model() -> None:
    model = tiny_model("Llama", {})
    assert output_head(Shell(model)).weight_VH is output_head(model).weight_VH
    positions = torch.arange(12)[None]
    torch.testing.assert_close(hidden_states(Shell(model), IDS, positions), hidden_states(model, IDS, positions))


@pytest.mark.parametrize("wrap", [nn.Identity, Adapted])
def test_the_head_in_another_dtype_trains_the_same_parameters(wrap: Any) -> None:
    model = tiny_model("Llama", {"tie_word_embeddings": False}).bfloat16()
    if wrap is Adapted:
        model.lm_head = Adapted(model.lm_head).bfloat16()
    head = output_head(model, torch.float32)
    assert head.dtype == torch.float32
    logits = head.logits(torch.randn(3, 32))
    assert logits.dtype == torch.float32
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.lm_head.parameters())


def test_rows_of_padding_are_those_beyond_the_tokenizers() -> None:
    model = tiny.tiny_llama(50)
    assert output_head(model).vocabulary == 50
    assert output_head(model, rows=45).vocabulary == 45
    assert output_head(model, rows=45).logits(torch.randn(3, 32)).shape == (3, 45)


def test_a_model_without_an_output_layer_is_refused() -> None:
    model = tiny.tiny_llama(50)
    with pytest.raises(UserError, match="llama: has no output layer"):
        output_head(model.base_model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_architecture_with_other_logits_is_refused(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.tiny_llama(50).to(dtype)
    check_output_head(model)
    forward = model.forward

    def halved(**inputs: Any) -> Any:
        output = forward(**inputs)
        output.logits = output.logits / 2
        return output

    monkeypatch.setattr(model, "forward", halved)
    with pytest.raises(UserError, match="llama: its logits differ from those"):
        check_output_head(model)


def test_a_layer_between_the_last_states_and_the_head_is_refused() -> None:
    model = transformers.BertLMHeadModel(
        transformers.BertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=32,
            is_decoder=True,
        )
    )
    with pytest.raises(UserError, match="bert: its logits differ from those"):
        check_output_head(model)
    assert model.training
