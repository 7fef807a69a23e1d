"""LoRA trains adapters and embeddings, and merging gives a plain model with the same logits."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

from alm_pipeline.config import AlmConfig, LoraConfig, ObjectiveConfig, TrainConfig
from alm_pipeline.models.output_head import Head, check_output_head, hidden_states, output_head
from alm_pipeline.objective.term_weights import gradmag, last_layer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.training.model.adapters import attach_adapters
from storage.errors import UserError
from tests import tiny
from tests.alm_pipeline.training.architectures import ARCHITECTURES, tiny_architecture
from tests.alm_pipeline.training.data.test_batch_stream import example
from tests.alm_pipeline.training.loop.test_train import FixedStream, contents, log_of, trained

LORA = LoraConfig(rank=4, alpha=8)
IDS = torch.arange(1, 25)[None]


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def moved(model: PreTrainedModel) -> None:
    """Change every trained weight by a large amount."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value += 0.1 * torch.randn(value.shape, generator=generator)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_merged_model_is_saved_as_a_plain_one_with_the_same_logits(name: str, tmp_path: Path) -> None:
    model = tiny_architecture(name, 100)
    names, before, tied = set(model.state_dict()), logits(model), is_tied(model)
    adapters = attach_adapters(model, LORA, seed=0)
    torch.testing.assert_close(logits(model), before)  # new adapters add nothing
    moved(model)
    check_output_head(model)
    assert isinstance(output_head(model), Head)
    adapted = logits(model)
    assert (adapted - before).abs().max() > 0.1
    adapters.merge_and_unload()
    torch.testing.assert_close(logits(model), adapted, rtol=1e-4, atol=1e-5)
    assert set(model.state_dict()) == names
    assert is_tied(model) == tied
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def is_tied(model: PreTrainedModel) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_only_adapters_and_embeddings_are_trained(name: str) -> None:
    model = tiny_architecture(name, 100)
    attach_adapters(model, LORA, seed=0)
    learned = {name: value for name, value in model.named_parameters() if value.requires_grad}
    embeddings = {
        id(value)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
        for value in layer.parameters()
    }
    adapters = {name for name, value in learned.items() if id(value) not in embeddings}
    assert len(learned) - len(adapters) == len(embeddings)
    assert all(".lora_A.default." in name or ".lora_B.default." in name for name in adapters)
    blocks = {name for name, _ in model.base_model.named_parameters() if name.endswith("base_layer.weight")}
    assert len(adapters) == 2 * len(blocks) >= 2 * 8
    hidden_states(model, IDS, IDS - 1).square().sum().backward()
    assert all(value.grad is not None for name, value in learned.items() if name in adapters)


def test_a_run_leaves_untrained_weights_unchanged(config: AlmConfig, tmp_path: Path) -> None:
    """The merged weights of the adapted layers change."""
    before = AutoModelForCausalLM.from_pretrained(config.student.model).state_dict()
    settings: dict[str, Any] = {"steps": 3, "warmup_steps": 0, "learning_rate": 1e-2}
    lora = LoraConfig(rank=4, targets=("*.self_attn.*",))
    _, model = log_of(config, steps(3), tmp_path, lora=lora, **settings)
    assert is_tied(model)
    for name, value in model.state_dict().items():
        learned = ".self_attn." in name or "embed_tokens" in name or "lm_head" in name
        assert torch.equal(value, before[name]) != learned, name


def steps(count: int) -> FixedStream:
    return FixedStream([[[example(30, seed)]] for seed in range(count)])


def test_rates_and_freezing_apply_to_adapters_by_name(config: AlmConfig, tmp_path: Path) -> None:
    before = AutoModelForCausalLM.from_pretrained(config.student.model).state_dict()
    settings: dict[str, Any] = {"steps": 1, "warmup_steps": 0, "learning_rate": 1e-2, "lora": LORA}
    rates = {"*.lora_*": 1e-9}
    _, model = log_of(config, steps(1), tmp_path, freeze=("*.mlp.*",), learning_rates=rates, **settings)
    for name, value in model.state_dict().items():
        difference = (value - before[name]).abs().max()
        if "embed_tokens" in name or "lm_head" in name:
            assert difference.item() == pytest.approx(1e-2, rel=0.1)
        else:
            assert difference < 1e-7, name
            assert ".mlp." not in name or difference == 0


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_an_interrupted_run_with_adapters_ends_with_the_same_bytes(
    config: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    lora = LoraConfig(rank=4, dropout=dropout)
    config = config.model_copy(update={"train": config.train.model_copy(update={"lora": lora})})
    unbroken = trained(config, tmp_path / "unbroken", None, monkeypatch)
    resumed = trained(config, tmp_path / "resumed", 3, monkeypatch)
    assert contents(unbroken) == contents(resumed)
    with safe_open(unbroken / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "lora" in name or "base_layer" in name]  # noqa: SIM118
    assert not list(unbroken.glob("adapter*"))


def test_dropout_applies_to_adapters_during_training(config: AlmConfig, tmp_path: Path) -> None:
    losses = {}
    for dropout in (0.0, 0.5):
        lora = LoraConfig(rank=4, dropout=dropout)
        log, _ = log_of(config, steps(3), tmp_path / str(dropout), steps=3, lora=lora, learning_rate=1e-2)
        losses[dropout] = log["loss"].to_list()
    assert losses[0.0][0] == losses[0.5][0]  # new adapters add nothing
    assert losses[0.0][2] != losses[0.5][2]


@pytest.mark.parametrize("term", ["latents", "dskd"])
def test_projections_of_live_terms_are_trained_beside_adapters(config: AlmConfig, tmp_path: Path, term: str) -> None:
    teacher = tiny.save(
        tmp_path / "wide", tiny_architecture("qwen 3, norms of queries", 400), tiny.byte_level_tokenizer()
    )
    objective = ObjectiveConfig.model_validate({"terms": {"alm": 1, term: 1}, "balance": "gradmag"})
    train = config.train.model_copy(update={"steps": 20, "lora": LORA, "learning_rate": 1e-2})
    config = config.model_copy(update={"teacher": teacher, "objective": objective, "train": train})
    pipeline = Pipeline(config, str(tmp_path / "data"))
    pipeline.run()
    log = metrics(pipeline)
    assert sum(log[term][-5:]) < sum(log[term][:5])


def metrics(pipeline: Pipeline) -> Any:
    import polars as pl

    return pl.read_parquet(pipeline.student.path / "metrics.parquet")


def test_gradmag_uses_the_last_layers_adapters() -> None:
    model = tiny_architecture("llama, tied", 100)
    attach_adapters(model, LORA, seed=0)
    learned = last_layer(model.base_model)
    names = {id(value): name for name, value in model.named_parameters()}
    assert {names[id(value)].split(".")[2] for value in learned} == {"1"}
    assert all(".lora_" in names[id(value)] for value in learned)
    for value in learned:
        value.requires_grad_(False)
    with pytest.raises(UserError, match=r"objective\.balance: gradmag needs gradients of the last layer"):
        gradmag({"alm": torch.ones(())}, {"alm": 1.0}, last_layer(model.base_model))


def test_the_seed_alone_decides_the_initial_adapters() -> None:
    def adapters(seed: int, draw: Callable[[], object]) -> list[torch.Tensor]:
        model = tiny_architecture("llama, tied", 100)
        draw()
        state = torch.random.get_rng_state()
        attach_adapters(model, LORA, seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        return [value for name, value in model.named_parameters() if ".lora_A." in name]

    first, again, other = adapters(1, lambda: None), adapters(1, lambda: torch.rand(9)), adapters(2, lambda: None)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


def test_targets_that_cannot_be_adapted_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_architecture("llama, untied", 100)
    with pytest.raises(
        UserError, match=r"train\.lora\.targets: lm_head matches no linear layer; the names are model\."
    ):
        attach_adapters(model, LoraConfig(targets=("lm_head",)), seed=0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"train\.lora: needs peft: pip install 'alm-pipeline\[lora\]'"):
        attach_adapters(model, LORA, seed=0)


def test_defaults_are_the_published_settings() -> None:
    train = TrainConfig.model_validate({"lora": {}})
    assert train.lora
    assert (train.lora.rank, train.lora.alpha, train.lora.dropout) == (64, 64, 0)
    assert TrainConfig().lora is None
