"""Each side's chat template and what rows bring for it, from the corpus to the saved student."""

import copy
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from alm_pipeline.config import AlmConfig, CorpusConfig, FilesSource
from alm_pipeline.corpus.examples import iter_examples
from alm_pipeline.corpus.token_cutting import TokenLimit
from alm_pipeline.ensemble.config import EnsembleConfig, MemberConfig, read_config, write_config
from alm_pipeline.ensemble.loading import load
from alm_pipeline.inspection.token_texts import TokenTexts
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.planning.finished import find_finished, record_finished
from alm_pipeline.recipes.overrides import Overrides, override
from alm_pipeline.report import summarize
from alm_pipeline.tokenization.encoder import ByteEncoder
from alm_pipeline.tokenization.templates.choice import TemplateChoice, known_templates
from alm_pipeline.training.data.examples import read_examples
from storage.dataset import Dataset
from storage.schemas import PROMPT
from tests import tiny

LOOK = {"type": "function", "function": {"name": "look", "description": "the weather of a town"}}
ADD = {"type": "function", "function": {"name": "add"}}


def row(number: int) -> dict[str, Any]:
    """A question and two answers, the first of which is context; every third row has tools."""
    messages = [
        {"role": "user", "content": f"How much is {number} + 1?"},
        {"role": "assistant", "content": "Wait.", "weight": 0},
        {"role": "user", "content": "Well?"},
        {"role": "assistant", "content": f"It is {number + 1}.", "weight": 1},
    ]
    return {"messages": messages, **({"tools": [LOOK]} if number % 3 == 0 else {})}


@pytest.fixture(scope="module")
def chats(config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> AlmConfig:
    """Tiny models on conversations with tools; both sides have templates that show them."""
    folder = tmp_path_factory.mktemp("sides")
    (folder / "chats.jsonl").write_text("\n".join(json.dumps(row(k)) for k in range(36)))
    (folder / "teacher.jinja").write_text(known_templates()["plain"].read_text())
    settings = {
        "corpus.source.urls": [str(folder / "chats.jsonl")],
        "corpus.max_bytes": None,
        "teacher_template": str(folder / "teacher.jinja"),
        "student.template": {"template": "chatml", "arguments": {"tools": [ADD["function"]]}},
        "train.steps": 2,
        "train.row_tokens": 512,
        "train.batch_tokens": 1024,
    }
    return override(config, Overrides(settings=settings))


@pytest.fixture(scope="module")
def trained(chats: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    pipeline = Pipeline(chats, str(tmp_path_factory.mktemp("trained")))
    pipeline.run()
    return pipeline


def changed(config: AlmConfig, **settings: Any) -> AlmConfig:
    return override(config, Overrides(settings={name.replace("__", "."): value for name, value in settings.items()}))


def names(config: AlmConfig) -> dict[str, str]:
    pipeline = Pipeline(config, "memory://sides")
    sides = {side: pipeline.tokens(side).name for side in ("teacher", "student")}  # type: ignore[arg-type]
    return {"examples": pipeline.examples.name, "alignments": pipeline.alignments.name, **sides}


@pytest.mark.parametrize("template", ["chatml", {"template": "plain"}, {"arguments": {"enable_thinking": False}}])
def test_a_sides_template_changes_its_own_tokens_alone(config: AlmConfig, template: Any) -> None:
    own = names(config)
    assert names(changed(config, teacher_template=None, student__template={"template": None})) == own
    for side, other in (("teacher", "student"), ("student", "teacher")):
        field = "teacher_template" if side == "teacher" else "student__template"
        found = names(changed(config, **{field: template}))
        assert {name for name in own if found[name] != own[name]} == {side, "alignments"}, other


def tokens_of(trained: Pipeline, side: Any) -> list[dict[str, Any]]:
    return list(trained.tokens(side).read_shard(0).to_pylist())


def test_ids_are_those_of_transformers_with_the_same_arguments(trained: Pipeline) -> None:
    examples = trained.examples.read_shard(0).to_pylist()
    assert {example["template_arguments"] is None for example in examples} == {True, False}
    for side in ("teacher", "student"):
        tokenizer = trained.tokenizer(side).fast  # type: ignore[arg-type]
        for example, tokens in zip(examples, tokens_of(trained, side), strict=True):
            given = json.loads(example["template_arguments"] or "{}")
            ids = tokenizer.apply_chat_template(json.loads(example["messages"]), **given)["input_ids"]
            assert tokens["token_ids"] == ids
            text = tokenizer.decode(ids)
            assert ("the weather of a town" in text) == bool(given)
            assert ('"add"' in text) == (side == "student" and not given), "a row's own replaces the run's"


def test_marked_messages_are_context(trained: Pipeline) -> None:
    for side in ("teacher", "student"):
        assert {tuple(tokens["roles"]) for tokens in tokens_of(trained, side)} == {
            ("user", PROMPT, "user", "assistant")
        }
    assert not trained.config.objective.assistant_only
    assert trained.distillation.config.objective.assistant_only
    learned = read_examples(trained.caches, 0, "train", trained.config.objective)
    tokenizer = trained.tokenizer("student").fast
    for ids, mask in zip(learned["token_ids"].to_pylist(), learned["learned"].to_pylist(), strict=True):
        text = tokenizer.decode(np.array(ids)[np.array(mask)].tolist())
        assert "It is" in text
        assert "Wait" not in text
        assert "Well" not in text


def test_the_saved_student_has_its_template(trained: Pipeline) -> None:
    path = trained.student.path
    saved = AutoTokenizer.from_pretrained(path)
    assert saved.chat_template == trained.tokenizer("student").fast.chat_template
    messages = row(1)["messages"][:1]
    assert '"name": "add"' in saved.apply_chat_template(messages, tokenize=False)
    assert LoadedTokenizer(str(path)).identity == trained.tokenizer("student").identity
    ends = AutoModelForCausalLM.from_pretrained(path).generation_config.eos_token_id
    assert saved.convert_tokens_to_ids("<|im_end|>") in (ends if isinstance(ends, list) else [ends])


def test_samples_continue_before_the_last_answer_with_the_rows_tools(trained: Pipeline) -> None:
    text = (trained.student.path / "samples.txt").read_text()
    prompt = text.split("▶")[0]
    assert prompt.startswith("════ step 0 ════\n\n<|im_start|>system\n# Tools\n\n")
    assert ("the weather of a town" in prompt) != ('"name": "add"' in prompt)
    assert prompt.endswith("Wait.<|im_end|>\n<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\n")


def test_token_texts_are_found_for_both_sides(trained: Pipeline) -> None:
    for side in ("teacher", "student"):
        tokens: Dataset = trained.tokens(side)  # type: ignore[arg-type]
        first = tokens_of(trained, side)[0]["token_ids"][0]
        assert TokenTexts(tokens).of(first) == trained.tokenizer(side).view.spelling[first]  # type: ignore[arg-type]


def test_a_finished_run_is_not_found_after_its_template_changed(trained: Pipeline) -> None:
    summary = summarize(trained, with_student=True)
    record_finished(trained, summary, "student")
    assert find_finished(trained.config, trained.root, "student") == summary
    file = Path(str(trained.config.teacher_template))
    content = file.read_text()
    file.write_text(content + " ")
    assert find_finished(trained.config, trained.root, "student") is None
    file.write_text(content)


def test_another_process_has_the_same_template(llama_folder: str) -> None:
    choice = TemplateChoice.of_option("chatml", "{enable_thinking: false}")
    own = LoadedTokenizer(llama_folder)
    templated = own.with_template(choice)
    assert pickle.loads(pickle.dumps(templated)).identity == templated.identity
    assert templated.identity != own.identity
    assert templated.view is own.view
    assert templated.fast.chat_template != own.fast.chat_template
    assert own.with_template(None) is own


def test_of_several_templates_that_for_tools_is_used_as_transformers_does(byte_level: PreTrainedTokenizerFast) -> None:
    tokenizer = copy.copy(byte_level)
    tokenizer.chat_template = {"default": tiny.CHATML, "tool_use": known_templates()["chatml"].read_text()}
    loaded = LoadedTokenizer.of(tokenizer)
    messages = [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "Rain."}]
    for given in (None, {}, {"tools": [LOOK]}, {"documents": [{"title": "t"}]}):
        batch = ByteEncoder(loaded).encode_conversations([messages], [given])
        assert batch.token_ids.tolist() == tokenizer.apply_chat_template(messages, **(given or {}))["input_ids"]
    chosen = loaded.with_template(TemplateChoice("s", "default"))
    batch = ByteEncoder(chosen).encode_conversations([messages], [{"tools": [LOOK]}])
    assert batch.token_ids.tolist() == tokenizer.apply_chat_template(messages)["input_ids"]
    assert "the weather of a town" in loaded.template.prompt(messages[:1], {"tools": [LOOK]})
    assert loaded.template.prompt(messages[:1]) == "<|im_start|>user\nWeather?<|im_end|>\n"


def test_tools_count_when_a_conversation_is_cut_by_tokens(llama_folder: str, tmp_path: Path) -> None:
    turns = [{"role": role, "content": f"{k} " * 9} for k in range(8) for role in ("user", "assistant")]
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"messages": turns, "tools": [LOOK]}))
    tokenizer = LoadedTokenizer(llama_folder).with_template(TemplateChoice("s", "chatml"))
    encoder = ByteEncoder(tokenizer)
    alone = encoder.conversation_tokens(turns)
    with_tools = encoder.conversation_tokens(turns, {"tools": [LOOK]})
    assert with_tools > alone + 50
    config = CorpusConfig(name="long", source=FilesSource(urls=(str(file),)))
    pieces = {
        limit: list(iter_examples(config, Counter(), None, TokenLimit(limit, encoder))) for limit in (alone, with_tools)
    }
    assert len(pieces[with_tools]) == 1
    assert len(pieces[alone]) > 1
    assert all(piece.arguments == {"tools": [LOOK]} for piece in pieces[alone])
    assert all((piece.tokens or 0) <= alone for piece in pieces[alone])


def test_models_and_ensembles_are_used_with_a_template(llama_folder: str, tmp_path: Path) -> None:
    messages = row(1)["messages"][:1]
    choice = TemplateChoice.of_option("chatml", json.dumps({"tools": [LOOK]}))
    own = load(llama_folder)[1].apply_chat_template(messages, tokenize=False)
    chosen = load(llama_folder, template=choice)[1].apply_chat_template(messages, tokenize=False)
    assert own == "<|im_start|>user\nHow much is 1 + 1?<|im_end|>\n"
    assert "the weather of a town" in chosen
    (tmp_path / "x.jinja").write_text("one {{ town }}")
    member = MemberConfig.model_validate(
        {"model": llama_folder, "template": {"template": "./x.jinja", "arguments": {"town": "Bern"}}}
    )
    file = write_config(EnsembleConfig(members=(member,)), tmp_path / "both")
    (tmp_path / "both" / "x.jinja").write_text("two {{ town }}")
    assert load(str(file))[1].apply_chat_template(messages, tokenize=False) == "two Bern"
    assert load(str(file), template=choice)[1].apply_chat_template(messages, tokenize=False) == chosen
    assert read_config(file).members[0].template != member.template
