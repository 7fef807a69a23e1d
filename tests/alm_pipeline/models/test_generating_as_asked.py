"""What a model's generation_config.json says takes no part where a function continues texts by what it is asked for."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import alm_pipeline
from alm_pipeline.comparison.drafts import proposals
from alm_pipeline.editing.directions.neutral import greedy_answers
from alm_pipeline.ensemble.generation import generate_text, greedy_continuation
from alm_pipeline.models.loading import generating_as_asked
from tests import tiny

PROMPT = [5, 9, 33, 71]
NEW = 8
PACKAGE = Path(alm_pipeline.__file__).parent
OTHERWISE = {
    "rollouts/local_writer.py": "it replaces the settings when it loads the model, which is its own",
    "rollouts/vllm_writer.py": "vLLM takes all of its settings from the call",
    "scoring/served/engines.py": "vLLM scores texts, and what it continues them by is not used",
}


def model_and_tokens() -> tuple[PreTrainedModel, list[int]]:
    """A model that repeats itself, and what it writes if each token is the likeliest."""
    model = tiny.tiny_llama(400).eval()
    model.generation_config.eos_token_id = None
    ids = list(PROMPT)
    with torch.no_grad():
        for _ in range(NEW):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return model, ids[len(PROMPT) :]


def settings_that_change_it(tokens: list[int]) -> Iterator[tuple[str, Any]]:
    yield "repetition_penalty", 50.0
    yield "no_repeat_ngram_size", 1
    yield "suppress_tokens", [tokens[0]]
    yield "begin_suppress_tokens", [tokens[0]]
    yield "bad_words_ids", [[tokens[0]]]
    yield "sequence_bias", [[[tokens[0]], -1e4]]
    yield "forced_eos_token_id", [tokens[-1] + 1]
    yield "max_time", 1e-9
    yield "do_sample", True


@pytest.mark.parametrize("name", [name for name, _ in settings_that_change_it([0])])
def test_no_setting_of_a_model_changes_what_is_continued_greedily(name: str) -> None:
    model, expected = model_and_tokens()
    value = dict(settings_that_change_it(expected))[name]
    model.generation_config.temperature = 50.0 if name == "do_sample" else None
    setattr(model.generation_config, name, value)
    ids = torch.tensor([PROMPT])
    greedy: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "max_new_tokens": NEW, "pad_token_id": 0}
    torch.manual_seed(0)
    assert model.generate(ids, **greedy)[0, len(PROMPT) :].tolist() != expected, "the setting changes nothing"  # type: ignore[operator]
    with generating_as_asked(model):
        assert model.generate(ids, **greedy)[0, len(PROMPT) :].tolist() == expected  # type: ignore[operator]
    assert getattr(model.generation_config, name) == value
    assert greedy_answers(model, [PROMPT], NEW, 1000) == [expected]
    # the target accepts each token of a draft that is the same model
    assert proposals(model, model, PROMPT, ahead=3, max_tokens=NEW).accepted > 0
    assert getattr(model.generation_config, name) == value


def test_the_tokens_that_end_a_text_still_end_it() -> None:
    model, expected = model_and_tokens()
    model.generation_config.eos_token_id = expected[3]
    with generating_as_asked(model):
        ids = torch.tensor([PROMPT])
        written = model.generate(ids, max_new_tokens=NEW, pad_token_id=0)  # type: ignore[operator]
    assert written[0, len(PROMPT) :].tolist() == expected[: expected.index(expected[3]) + 1]


def test_texts_are_continued_as_asked(tmp_path: Path) -> None:
    """`alm generate`, and the teacher's samples in a report."""
    tokenizer, model = tiny.byte_level_tokenizer(), tiny.tiny_llama(400)
    written: list[list[str]] = []
    for penalty in (1.0, 50.0):
        model.generation_config.repetition_penalty = penalty
        folder = tiny.save(tmp_path / str(penalty), model, tokenizer)
        written.append([])
        generate_text(folder, "The quick", written[-1].append, max_tokens=NEW)
        assert greedy_continuation(model.eval(), tokenizer, "model", "The quick", NEW) == "".join(written[-1])
    assert written[0] == written[1]


def test_sampling_draws_from_all_tokens(tmp_path: Path) -> None:
    """Not from the 50 likeliest, which is transformers' default, nor by the model's own top_k."""
    letters = [chr(code) for code in range(33, 127)]
    backend = Tokenizer(models.BPE({letter: id_ for id_, letter in enumerate(letters)}, []))
    model = tiny.tiny_llama(len(letters), tied=False)
    with torch.no_grad():  # every token follows every text with about the same probability
        model.get_input_embeddings().weight[:] = 1.0  # type: ignore[index]
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    model.generation_config.do_sample, model.generation_config.top_k = True, 3
    model.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    written: list[str] = []
    generate_text(str(tmp_path), "a", written.append, max_tokens=400, temperature=100.0, seed=0)
    assert len(set("".join(written))) > 80


def test_every_generation_is_as_asked() -> None:
    """Every call of `generate` with tokens is within `generating_as_asked`, or there is a reason."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        tree, name = ast.parse(file.read_text()), file.relative_to(PACKAGE).as_posix()
        within = {
            id(call)
            for block in ast.walk(tree)
            if isinstance(block, ast.With) and any("generating_as_asked" in ast.unparse(i) for i in block.items)
            for call in ast.walk(block)
        }
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        calls = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "generate"]
        if calls:
            found[name] = all(id(call) in within for call in calls)
    assert {name for name, is_within in found.items() if not is_within} == set(OTHERWISE)
    assert len(found) > len(OTHERWISE) + 3
