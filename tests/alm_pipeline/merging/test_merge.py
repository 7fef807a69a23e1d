"""A base and its tuned child become one folder; parents that do not fit are refused by name."""

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.merging.merge import merge_models
from alm_pipeline.merging.rule import SPARSE_METHODS, MergeMethod, MergeRule
from alm_pipeline.transfer import weights
from storage.errors import UserError
from tests import tiny


class Family:
    """A tiny model and its child, in one folder."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerFast, *, tied: bool = True) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self.model = tiny.tiny_llama(len(tokenizer), tied=tied)
        self.base = self.save("base", self.model)
        self.tuned = self.save("tuned", self.child())

    def child(self) -> PreTrainedModel:
        generator, child = torch.Generator().manual_seed(1), copy.deepcopy(self.model)
        for value in child.parameters():
            value.data += 0.1 * torch.randn(value.shape, generator=generator)
        return child

    def save(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None = None) -> str:
        model.save_pretrained(self.folder / name)
        (tokenizer or self.tokenizer).save_pretrained(self.folder / name)
        return str(self.folder / name)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def both(request: pytest.FixtureRequest, byte_level: PreTrainedTokenizerFast, tmp_path: Path) -> Family:
    return Family(tmp_path, byte_level, tied=request.param)


@pytest.fixture
def family(byte_level: PreTrainedTokenizerFast, tmp_path: Path) -> Family:
    return Family(tmp_path, byte_level)


def tensors(folder: str | Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in Path(folder).glob("*.safetensors"):
        found |= load_file(file)
    return found


@pytest.mark.parametrize("method", get_args(MergeMethod))
def test_the_ends_are_the_parents(both: Family, method: Any, tmp_path: Path) -> None:
    for weight, parent in ((0.0, both.base), (1.0, both.tuned)):
        made = tmp_path / f"made-{weight}"
        merge_models(both.base, both.tuned, made, MergeRule(method, weight))
        expected = tensors(parent)
        assert {name: value.numpy().tobytes() for name, value in tensors(made).items()} == {
            name: value.numpy().tobytes() for name, value in expected.items()
        }


def test_between_them_the_model_is_the_formula(both: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SHARD_BYTES", 20_000)  # several files
    merge_models(both.base, both.tuned, tmp_path / "made", MergeRule(weight=0.3))
    assert len(list((tmp_path / "made").glob("*.safetensors"))) > 2
    made, base, tuned = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (tmp_path / "made", both.base, both.tuned)
    )
    assert made.keys() == base.keys()
    for name, value in made.items():
        torch.testing.assert_close(value, base[name] + 0.3 * (tuned[name] - base[name]), rtol=1e-6, atol=1e-7)


def test_a_merge_is_the_same_each_time(family: Family, tmp_path: Path) -> None:
    for name in ("once", "again"):
        merge_models(family.base, family.tuned, tmp_path / name, MergeRule("dare", 0.5, 0.5, 3))
    once, again = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("once", "again"))
    assert once == again


@pytest.mark.parametrize("template", ["tuned", "base"])
def test_settings_and_template_are_one_parents(family: Family, template: Any, tmp_path: Path) -> None:
    for parent in ("base", "tuned"):
        folder = Path(getattr(family, parent))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = f"{{{{ '{parent}' }}}}"
        tokenizer.save_pretrained(folder)
        settings = {"temperature": 0.5 if parent == "base" else 0.7, "do_sample": True}
        (folder / "generation_config.json").write_text(json.dumps(settings))
    merge_models(family.base, family.tuned, tmp_path / "made", template=template)
    assert AutoTokenizer.from_pretrained(tmp_path / "made").chat_template == f"{{{{ '{template}' }}}}"
    stored = json.loads((tmp_path / "made" / "generation_config.json").read_text())
    assert stored["temperature"] == (0.5 if template == "base" else 0.7)
    card = (tmp_path / "made" / "README.md").read_text()
    assert f"settings of | {getattr(family, template)} |" in card
    assert "linear, weight 0.5" in card


def test_the_wider_precision_is_kept(family: Family, tmp_path: Path) -> None:
    narrow = family.save("narrow", family.child().to(torch.bfloat16))
    merge_models(family.base, narrow, tmp_path / "wide")
    assert {value.dtype for value in tensors(tmp_path / "wide").values()} == {torch.float32}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "wide", dtype="auto").dtype == torch.float32
    also_narrow = family.save("also-narrow", family.child().to(torch.bfloat16))
    merge_models(narrow, also_narrow, tmp_path / "narrow-made")
    assert {value.dtype for value in tensors(tmp_path / "narrow-made").values()} == {torch.bfloat16}


def test_tokens_that_only_the_child_has_are_no_obstacle(family: Family, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(family.tokenizer)
    tokenizer.add_tokens(["<think>"])
    model, child = copy.deepcopy(family.model), family.child()
    for each in (model, child):
        each.resize_token_embeddings(len(tokenizer))
    base, tuned = family.save("wide", model), family.save("wide-tuned", child, tokenizer)
    merge_models(base, tuned, tmp_path / "made")
    assert "<think>" in AutoTokenizer.from_pretrained(tmp_path / "made").get_vocab()


def test_other_settings_are_told(family: Family, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    child = family.child()
    child.config.max_position_embeddings *= 2
    tuned = family.save("longer", child)
    with caplog.at_level(logging.WARNING):
        merge_models(family.base, tuned, tmp_path / "made")
    assert "other settings: max_position_embeddings" in caplog.text


@pytest.mark.parametrize("weight", [-0.6, 1.6])
def test_a_weight_far_beyond_the_parents_is_told(
    family: Family, tmp_path: Path, weight: float, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        merge_models(family.base, family.tuned, tmp_path / "made", MergeRule(weight=weight))
    assert f"weight {weight}: far beyond both parents" in caplog.text


def _other_architecture(family: Family) -> str:
    return tiny.save(family.folder / "other", tiny.tiny_gemma(len(family.tokenizer)), family.tokenizer)


def _other_vocabulary(family: Family) -> str:
    child = family.child()
    child.resize_token_embeddings(len(family.tokenizer) + 8)
    return family.save("other", child)


def _other_ids(family: Family) -> str:
    folder = family.save("other", family.child())
    file = Path(folder) / "tokenizer.json"
    state = json.loads(file.read_text())
    vocabulary = state["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(state))
    return folder


def _untied(family: Family) -> str:
    child = family.child()
    child.config.tie_word_embeddings = False
    return family.save("other", child)


def _more_layers(family: Family) -> str:
    folder = family.save("other", family.child())
    file = Path(folder) / "model.safetensors"
    state = load_file(file)
    del state["model.norm.weight"]
    save_file(state, file, metadata={"format": "pt"})
    return folder


def _quantized(family: Family) -> str:
    folder = family.save("other", family.child())
    file = Path(folder) / "model.safetensors"
    state = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(state | {name: state[name].to(torch.int8)}, file, metadata={"format": "pt"})
    return folder


def _adapter(family: Family) -> str:
    folder = family.save("other", family.child())
    (Path(folder) / "adapter_config.json").write_text("{}")
    return folder


UNFIT: dict[str, tuple[Callable[[Family], str], str]] = {
    "another architecture": (_other_architecture, "only models of one architecture"),
    "another vocabulary size": (_other_vocabulary, "model.embed_tokens.weight has shape"),
    "other ids": (_other_ids, "other ids for a, b"),
    "a head of its own": (_untied, "tie_word_embeddings"),
    "other tensors": (_more_layers, "only one of them has model.norm.weight"),
    "quantized weights": (_quantized, "model.layers.0.mlp.up_proj.weight does not hold floating-point numbers"),
    "an adapter": (_adapter, "adapter"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_parents_that_do_not_fit_are_refused(family: Family, kind: str, side: str, tmp_path: Path) -> None:
    make, message = UNFIT[kind]
    other = make(family)
    names = (other, family.tuned) if side == "base" else (family.base, other)
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        merge_models(*names, tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.bad_input
@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan")])
@pytest.mark.parametrize("method", SPARSE_METHODS)
def test_a_density_out_of_range_is_refused(family: Family, method: Any, density: float, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="above 0 and at most 1"):
        merge_models(family.base, family.tuned, tmp_path / "made", MergeRule(method, 0.5, density))


@pytest.mark.bad_input
def test_a_density_without_use_is_refused(family: Family, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only ties and dare have one"):
        merge_models(family.base, family.tuned, tmp_path / "made", MergeRule("linear", 0.5, 0.5))
