"""Plain transformers loads the model of a zero-step transfer; it begins, chats and stops as before."""

import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from alm_pipeline.comparison.texts import compare_models
from alm_pipeline.config import AlmConfig, CorpusConfig, FilesSource, SpecialTokens
from alm_pipeline.corpus.examples import iter_examples
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.tokenization.templates.choice import TemplateChoice, known_templates
from alm_pipeline.transfer.zero_step import transfer
from storage.errors import UserError
from tests import tiny


@pytest.mark.parametrize("special_tokens", ["source", "target"])
@pytest.mark.parametrize("names", [("llama_folder", "gemma_folder"), ("gemma_folder", "llama_folder")])
def test_the_folder_loads_generates_and_chats(
    names: tuple[str, str], special_tokens: SpecialTokens, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source, target = map(request.getfixturevalue, names)
    counts, _ = transfer(source, target, tmp_path / "moved", special_tokens=special_tokens)
    model, tokenizer = (auto.from_pretrained(tmp_path / "moved") for auto in (AutoModelForCausalLM, AutoTokenizer))
    assert model.config.vocab_size == sum(counts.values()) == len(tokenizer)
    special = AutoTokenizer.from_pretrained(source if special_tokens == "source" else target)
    assert tokenizer.eos_token == special.eos_token
    assert model.generation_config.eos_token_id == model.config.eos_token_id
    # the same tokens end turns as before, spelled as in the template
    ends = {"llama_folder": "<|im_end|>", "gemma_folder": "<eos>"}[names[0]]
    if special_tokens == "target":
        ends = {"gemma_folder": "<end_of_turn>", "llama_folder": "<|im_end|>"}[names[1]]
    assert tokenizer.convert_ids_to_tokens(model.config.eos_token_id) == ends
    chat = [{"role": "user", "content": "Add 1 and 2."}]
    inputs = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 1
    assert tokenizer.chat_template == special.chat_template


def test_the_new_model_has_the_template_that_is_named(gemma_folder: str, llama_folder: str, tmp_path: Path) -> None:
    choice = TemplateChoice.of("--template", "chatml")
    transfer(gemma_folder, llama_folder, tmp_path / "moved", special_tokens="target", template=choice)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "moved")
    assert tokenizer.chat_template == known_templates()["chatml"].read_text()
    ends = AutoModelForCausalLM.from_pretrained(tmp_path / "moved").generation_config.eos_token_id
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in (ends if isinstance(ends, list) else [ends])


def test_special_ids_follow_their_tokens(byte_level: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = tiny.tiny_llama(len(byte_level))
    folder = tiny.save(tmp_path / "source", model, byte_level)
    ids = byte_level.get_vocab()
    model.config.bos_token_id = ids["<|im_start|>"]
    model.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    model.generation_config.suppress_tokens = [5]
    model.generation_config.do_sample, model.generation_config.temperature = True, 0.6
    model.save_pretrained(folder)
    target = tiny.byte_level_tokenizer(300)
    target.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    target.save_pretrained(tmp_path / "target")
    transfer(folder, str(tmp_path / "target"), tmp_path / "moved")
    moved = AutoModelForCausalLM.from_pretrained(tmp_path / "moved")
    assert moved.config.bos_token_id == target.convert_tokens_to_ids("<|im_start|>")
    expected = [target.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    assert moved.generation_config.eos_token_id == expected
    assert moved.generation_config.suppress_tokens is None
    assert moved.generation_config.temperature == 0.6


def test_a_model_keeps_its_precision(llama_folder: str, gemma_folder: str, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(llama_folder).save_pretrained(tmp_path / "half")
    transfer(str(tmp_path / "half"), gemma_folder, tmp_path / "moved")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "moved").dtype == torch.bfloat16


def test_a_folder_with_files_is_left_alone_and_an_error_leaves_nothing(
    llama_folder: str, gemma_folder: str, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("here")
    with pytest.raises(UserError, match="exists already"):
        transfer(llama_folder, gemma_folder, tmp_path / "mine")
    with pytest.raises(UserError, match="not a local folder"):
        transfer(llama_folder, str(tmp_path / "nothing"), tmp_path / "moved")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_models_are_compared_on_the_same_bytes(
    llama_folder: str, gemma_folder: str, corpus_url: str, tmp_path: Path
) -> None:
    copied = str(shutil.copytree(gemma_folder, tmp_path / "copied"))
    corpus = CorpusConfig(name="texts", source=FilesSource(urls=(corpus_url,)), max_bytes=100, max_examples=12)
    found = compare_models([gemma_folder, llama_folder, copied], [corpus])
    assert found.bits_per_byte[0] == found.bits_per_byte[2] != found.bits_per_byte[1]
    assert found.total.texts + sum(found.left_out.values()) == 12
    assert found.bits_per_byte[0] == pytest.approx(slow_bits(gemma_folder, corpus), rel=1e-3)


def slow_bits(folder: str, corpus: CorpusConfig) -> float:
    """Bits per byte with plain transformers, text by text. Gemma begins with <bos>, so every token is predicted."""

    model, tokenizer = (auto.from_pretrained(folder) for auto in (AutoModelForCausalLM, AutoTokenizer))
    nats, size = 0.0, 0
    for example in iter_examples(corpus, Counter()):
        assert example.text is not None
        ids = tokenizer(example.text, return_tensors="pt").input_ids
        nats -= (
            model(input_ids=ids)
            .logits[0, :-1]
            .double()
            .log_softmax(-1)[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
            .sum()
            .item()
        )
        size += len(example.text.encode())
    return nats / np.log(2) / size


def test_the_pipeline_with_no_steps_is_the_transfer(
    config: AlmConfig, llama_folder: str, gemma_folder: str, tmp_path: Path
) -> None:
    """Gemma gets a tokenizer without <bos> before texts; the pipeline adds it, and aligns with the result."""
    student = config.student.model_copy(
        update={"model": gemma_folder, "tokenizer": llama_folder, "initialization": "focus", "level": "none"}
    )
    train = config.train.model_copy(update={"steps": 0})
    chosen = config.model_copy(update={"student": student, "train": train})
    pipeline = Pipeline(chosen, str(tmp_path / "data"))
    manifest = pipeline.run()
    bits = manifest.results["held_out_bits_per_byte"]
    assert bits["student_before"] == bits["student_after"]
    assert math.isfinite(bits["student_after"])
    counts, _ = transfer(gemma_folder, llama_folder, tmp_path / "moved", initialization="focus", level="none")
    assert manifest.results["initialization"] == counts
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (pipeline.student.path, tmp_path / "moved")]
    for name, value in models[0].state_dict().items():
        torch.testing.assert_close(value, models[1].state_dict()[name], rtol=0, atol=0)
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (pipeline.student.path, tmp_path / "moved")]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert tokenizers[0]("a").tokens()[0] == "<bos>"
    assert pipeline.made_tokenizer is not None
