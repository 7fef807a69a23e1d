"""A base's transfer applied to a fine-tune: the formula's limits, a case by hand, and models that do not fit."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.transfer import weights
from alm_pipeline.transfer.task_arithmetic import apply_transfer
from alm_pipeline.transfer.zero_step import transfer
from storage.errors import UserError
from tests import tiny


def moved(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Change the weights a little, as training would."""
    generator = torch.Generator().manual_seed(seed)
    trained = copy.deepcopy(model)
    for value in trained.parameters():
        value.data += 0.1 * torch.randn(value.shape, generator=generator)
    return trained


def save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def models(
    request: pytest.FixtureRequest,
    byte_level: PreTrainedTokenizerFast,
    sentencepiece: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> dict[str, str]:
    """A base, its transfer (trained on), a fine-tune; and the zero-step transfers of base and fine-tune."""
    model = tiny.tiny_llama(len(byte_level), tied=request.param)
    folders = {
        "base": tiny.save(tmp_path / "base", model, byte_level),
        "fine_tune": save(tmp_path / "fine_tune", moved(model, 1), byte_level),
        "target": save(tmp_path / "target", model, sentencepiece),
    }
    for name in ("base", "fine_tune"):
        folders[f"{name}_zero"] = str(tmp_path / f"{name}_zero")
        transfer(folders[name], folders["target"], folders[f"{name}_zero"], special_tokens="target", level="none")
    zero = AutoModelForCausalLM.from_pretrained(folders["base_zero"])
    tokenizer = AutoTokenizer.from_pretrained(folders["base_zero"])
    return folders | {"transferred": save(tmp_path / "transferred", moved(zero, 2), tokenizer)}


def state(folder: str | Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return tensors


def assert_same(left: str | Path, right: str | Path) -> None:
    states = state(left), state(right)
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-5, atol=1e-5, msg=name)


def test_a_fine_tune_that_is_the_base_becomes_the_transferred_base(models: dict[str, str], tmp_path: Path) -> None:
    apply_transfer(models["base"], models["transferred"], models["base"], tmp_path / "made")
    assert_same(tmp_path / "made", models["transferred"])


def test_a_transfer_that_changed_nothing_gives_the_fine_tune(models: dict[str, str], tmp_path: Path) -> None:
    apply_transfer(models["base"], models["base"], models["fine_tune"], tmp_path / "made")
    assert_same(tmp_path / "made", models["fine_tune"])


def test_a_scale_of_nothing_gives_the_fine_tunes_zero_step_transfer(models: dict[str, str], tmp_path: Path) -> None:
    apply_transfer(models["base"], models["transferred"], models["fine_tune"], tmp_path / "made", scale=0.0)
    assert_same(tmp_path / "made", models["fine_tune_zero"])


def test_between_them_it_is_the_formula(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "SHARD_BYTES", 20_000)  # several files
    apply_transfer(models["base"], models["transferred"], models["fine_tune"], tmp_path / "made", scale=0.5)
    assert len(list((tmp_path / "made").glob("*.safetensors"))) > 2
    made, base, other = state(tmp_path / "made"), state(models["base"]), state(models["transferred"])
    fine, base_zero, fine_zero = (state(models[name]) for name in ("fine_tune", "base_zero", "fine_tune_zero"))
    for name, value in made.items():
        with_rows = name.startswith(("model.embed_tokens", "lm_head"))
        start, before = (fine_zero, base_zero) if with_rows else (fine, base)
        expected = start[name] + 0.5 * (other[name] - before[name])
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5, msg=name)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(models["transferred"]).get_vocab()


def test_tokens_that_the_fine_tune_added_come_along(
    models: dict[str, str], byte_level: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Many chat models add the tokens of their turns to a base: the template, the end of turn and the rows follow."""
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<turn>", "</turn>"]}, replace_extra_special_tokens=True
    )
    tokenizer.eos_token = "</turn>"
    tokenizer.chat_template = "{% for message in messages %}<turn>{{ message['content'] }}</turn>{% endfor %}"
    model = AutoModelForCausalLM.from_pretrained(models["fine_tune"])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tuned = tiny.save(tmp_path / "chat", model, tokenizer)
    apply_transfer(models["base"], models["transferred"], tuned, tmp_path / "made")
    result, own = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "made"),
        AutoTokenizer.from_pretrained(tmp_path / "made"),
    )
    ids = own.apply_chat_template([{"role": "user", "content": "1"}], return_dict=True)["input_ids"]
    assert own.decode(ids) == "<turn>1</turn>"
    assert result.config.eos_token_id == own.eos_token_id == own.convert_tokens_to_ids("</turn>")
    for token in ("<turn>", "</turn>"):
        row = result.get_input_embeddings().weight[own.convert_tokens_to_ids(token)]
        assert torch.equal(row, model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(token)])
    assert result.generate(torch.tensor([ids]), max_new_tokens=2).shape[0] == 1


def wrong(models: dict[str, str], tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        apply_transfer(
            **{name: models[name] for name in ("base", "transferred", "fine_tune")} | changes, folder=tmp_path / "m"
        )
    assert not (tmp_path / "m").exists()
    return str(caught.value)


def test_models_that_do_not_belong_together_are_refused(
    models: dict[str, str], byte_level: PreTrainedTokenizerFast, gemma_folder: str, tmp_path: Path
) -> None:
    assert "not a fine-tune of this base" in wrong(models, tmp_path, fine_tune=gemma_folder)
    deeper = tiny.tiny_llama(len(byte_level))
    deeper.model.layers.append(copy.deepcopy(deeper.model.layers[0]))
    deeper.config.num_hidden_layers = 3
    assert "only one of them has" in wrong(models, tmp_path, fine_tune=save(tmp_path / "deeper", deeper, byte_level))
    wider = tiny.tiny_llama(len(byte_level))
    wider.model.norm.weight = torch.nn.Parameter(torch.ones(33))
    message = wrong(models, tmp_path, fine_tune=save(tmp_path / "wider", wider, byte_level))
    assert "model.norm.weight has shape (33,)" in message
    gpt2 = save(tmp_path / "gpt2", tiny.tiny_gpt2(len(byte_level)), byte_level)
    assert "do not have the same base" in wrong(models, tmp_path, fine_tune=gpt2)
    bare = tmp_path / "bare"
    byte_level.save_pretrained(bare)
    assert "has no config.json" in wrong(models, tmp_path, base=str(bare))
