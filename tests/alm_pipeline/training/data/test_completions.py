"""Prompts with completions: only completions are learned and measured, also across pieces and between tokens."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alm_pipeline.config import AlmConfig, FilesSource, ObjectiveConfig
from alm_pipeline.corpus import iter_examples
from alm_pipeline.corpus.token_cutting import TokenLimit
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.objective.batch_loss import LossCounts
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.tokenization.completions import with_completions
from alm_pipeline.tokenization.rows import EncodedExample
from alm_pipeline.training.data.arrays import ExampleArrays
from alm_pipeline.training.data.examples import COLUMNS, aligned_examples, read_examples
from alm_pipeline.training.data.packing import make_batch, plan_batches
from alm_pipeline.training.model.terms import micro_batch_losses
from storage.columns import list_rows
from storage.dataset import read_aligned
from storage.schemas import ChunkKind, TokenKind
from tests.alm_pipeline.corpus import limits
from tests.alm_pipeline.corpus.helpers import corpus, jsonl

# between two tokens, within a token of either side, at both ends, and without a prompt
TEXTS = [("How much is {} + 1?", " It is {}."), ("The qui", "ck brown fox {} jumps."), ("", "The lazy dog {}.")]
OBJECTIVE = ObjectiveConfig(terms={"alm": 1.0, "sft": 1.0}, chunking="unconstrained")
LEARNED = OBJECTIVE.model_copy(update={"assistant_only": True})


def with_rows(config: AlmConfig, path: Path, rows: list[dict[str, Any]], **settings: Any) -> AlmConfig:
    path.write_bytes(jsonl(*rows))
    source = FilesSource(urls=(str(path),))
    return config.model_copy(update={"corpus": config.corpus.model_copy(update={"source": source, **settings})})


def pair_rows(count: int) -> Iterator[dict[str, Any]]:
    for k in range(count):
        prompt, completion = TEXTS[k % len(TEXTS)]
        yield {"prompt": prompt.format(k), "completion": completion.format(k + 1)}


@dataclass(frozen=True)
class _Cached:
    pipeline: Pipeline
    tables: dict[str, pa.Table]
    alignments: pa.Table
    completion_at: list[int]
    texts: list[str]


def cached(config: AlmConfig, root: Path) -> _Cached:
    pipeline = Pipeline(config, str(root))
    pipeline.cache()
    examples = pipeline.examples.read_shard(0, ["text", "completion_at"])
    columns = ["teacher_tokens", "student_tokens", "byte_lengths", "kinds", "assistant"]
    return _Cached(
        pipeline,
        read_aligned(pipeline.caches, 0, {**COLUMNS, "alignments": (*COLUMNS["alignments"], "assistant")}),
        pipeline.alignments.read_shard(0, columns),
        examples["completion_at"].to_pylist(),
        examples["text"].to_pylist(),
    )


@pytest.fixture(scope="module")
def pairs(config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> _Cached:
    folder = tmp_path_factory.mktemp("pairs")
    short = config.model_copy(update={"train": config.train.model_copy(update={"steps": 2})})
    rows = list(pair_rows(60))
    return cached(with_rows(short, folder / "a.jsonl", rows, shard_bytes=2**20), folder / "data")


def test_chunks_that_are_wholly_in_the_completion_are_learned(pairs: _Cached) -> None:
    """By the bytes alone: those that begin at or after the completion, and hold content of both sides."""
    straddling = 0
    columns = (list_rows(pairs.alignments[name]) for name in ("byte_lengths", "kinds", "assistant"))
    for completion_at, lengths, kinds, learned in zip(pairs.completion_at, *columns, strict=True):
        ends = np.cumsum(lengths)
        starts = ends - lengths
        expected = (starts >= completion_at) & (kinds == ChunkKind.CONTENT)
        assert ((learned & (kinds != ChunkKind.UNPAIRED)) == expected).all()
        across = (starts < completion_at) & (ends > completion_at)
        assert (kinds[across] == ChunkKind.UNPAIRED).all()
        straddling += across.sum()
    assert straddling >= 20


def test_the_chunks_are_those_of_the_text(pairs: _Cached, config: AlmConfig, tmp_path: Path) -> None:
    rows = [{"text": text} for text in pairs.texts]
    plain = Pipeline(with_rows(config, tmp_path / "a.jsonl", rows, shard_bytes=2**20), str(tmp_path / "data"))
    plain.cache()
    expected = plain.alignments.read_shard(0, ["teacher_tokens", "student_tokens", "byte_lengths"])
    assert expected.equals(pairs.alignments.select(expected.column_names))
    assert plain.scores.read_shard(0, ["logprobs"]).to_pylist() == [
        {"logprobs": pytest.approx(row, nan_ok=True)} for row in pairs.tables["scores"]["logprobs"].to_pylist()
    ]


def learned_teacher_tokens(pairs: _Cached) -> npt.NDArray[np.bool_]:
    """[teacher tokens of all examples] those of chunks that are learned, by the alignments."""
    columns = (list_rows(pairs.alignments[name]) for name in ("teacher_tokens", "kinds", "assistant"))
    tokens, kinds, learned = map(np.concatenate, columns)
    return np.repeat(learned & (kinds != ChunkKind.UNPAIRED), tokens)


def with_scores(pairs: _Cached, changed: npt.NDArray[np.bool_]) -> dict[str, pa.Table]:
    """Return the tables with other teacher's scores of these tokens."""
    scores = pairs.tables["scores"]
    offsets = scores["logprobs"].combine_chunks().offsets
    for name in ("logprobs", "boundary_logprobs"):
        values = np.concatenate(list_rows(scores[name]))
        other = pa.ListArray.from_arrays(offsets, pa.array(np.where(changed, values - 3, values), pa.float32()))
        scores = scores.set_column(scores.column_names.index(name), name, pa.chunked_array([other]))
    return {**pairs.tables, "scores": scores}


def loss_and_gradient(pairs: _Cached, tables: dict[str, pa.Table]) -> list[torch.Tensor]:
    name = pairs.pipeline.config.student.model
    model = AutoModelForCausalLM.from_pretrained(name)
    vocabulary = HeadVocabulary(torch.arange(len(AutoTokenizer.from_pretrained(name))))
    examples = ExampleArrays.of(aligned_examples(tables, LEARNED))
    (plan, *_) = plan_batches(np.diff(examples.token_offsets), 4096, 256)
    batch = vars(make_batch(examples, plan))
    losses = micro_batch_losses(model, batch, vocabulary, LEARNED, LossCounts.of(batch))
    sum(losses.terms.values()).backward()  # type: ignore[union-attr]
    return [losses.terms["alm"].detach(), *(weight.grad for weight in model.parameters() if weight.grad is not None)]


def test_the_loss_does_not_depend_on_the_teachers_scores_of_a_prompt(pairs: _Cached) -> None:
    learned = learned_teacher_tokens(pairs)
    assert 0.2 < learned.mean() < 0.9
    as_it_is = loss_and_gradient(pairs, pairs.tables)
    # P(boundary) after a prompt is what its completion is conditional on
    within_prompts = ~learned & ~np.append(learned[1:], False)
    other_prompts = loss_and_gradient(pairs, with_scores(pairs, within_prompts))
    assert all(torch.equal(*both) for both in zip(as_it_is, other_prompts, strict=True))
    other_completions = loss_and_gradient(pairs, with_scores(pairs, learned))
    assert not torch.isclose(as_it_is[0], other_completions[0], rtol=0.01)


def test_training_reads_completions_whatever_the_objective_says(pairs: _Cached) -> None:
    tables = [read_examples(pairs.pipeline.caches, 0, "train", objective) for objective in (OBJECTIVE, LEARNED)]
    assert tables[0].equals(tables[1])
    tokenizer = AutoTokenizer.from_pretrained(pairs.pipeline.config.student.model)
    rows = tables[0].to_pylist()
    assert len(rows) > 30
    for row in rows:
        spelled = tokenizer.decode(
            [id_ for id_, learned in zip(row["token_ids"], row["learned"], strict=True) if learned]
        )
        assert any(completion.split("{}")[1] in spelled for _, completion in TEXTS)
        assert not any(part in spelled for part in ("How", "The qui"))


def test_the_objective_that_is_implied_makes_the_same_student(pairs: _Cached) -> None:
    config, root = pairs.pipeline.config, pairs.pipeline.root
    objective = config.objective.model_copy(update={"assistant_only": True})
    explicit = Pipeline(config.model_copy(update={"objective": objective}), root)
    assert explicit.student.name == pairs.pipeline.student.name


def test_bits_per_byte_are_those_of_the_completions(pairs: _Cached) -> None:
    held_out = pairs.pipeline.distillation.held_out
    tokens = pairs.pipeline.tokens("teacher").read_shard(0, ["byte_lengths", "kinds"])
    splits = pairs.tables["examples"]["split"].to_pylist()
    scores = list_rows(pairs.tables["scores"]["logprobs"])
    rows = zip(splits, pairs.completion_at, *map(list_rows, tokens.columns), scores, strict=True)
    nats, size = 0.0, 0
    for split, completion_at, lengths, kinds, logprobs in rows:
        counted = (np.cumsum(lengths) - lengths >= completion_at) & (kinds == TokenKind.CONTENT) & (split == "held_out")
        nats -= float(logprobs[counted].sum())
        size += int(lengths[counted].sum())
    assert size
    assert held_out.teacher_bits_per_byte == pytest.approx(nats / np.log(2) / size, rel=1e-5)


def test_a_student_is_trained_and_continues_prompts(pairs: _Cached) -> None:
    manifest = pairs.pipeline.train()
    assert set(manifest.results["held_out_bits_per_byte"]) == {"teacher", "student_before", "student_after"}


def test_conversations_learn_the_completions_answers_alone(config: AlmConfig, tmp_path: Path) -> None:
    def chat(k: int) -> dict[str, Any]:
        earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Earlier."}]
        question = {"role": "user", "content": f"How much is {k}?"}
        return {"prompt": [*earlier, question], "completion": [{"role": "assistant", "content": f"It is {k}."}]}

    made = cached(with_rows(config, tmp_path / "a.jsonl", [chat(k) for k in range(20)], shard_bytes=2**20), tmp_path)
    roles = made.pipeline.tokens("student").read_shard(0, ["roles"])["roles"].to_pylist()
    assert roles == [["user", "prompt", "user", "completion"]] * 20
    for k, (lengths, kinds, learned) in enumerate(
        zip(*(list_rows(made.alignments[name]) for name in ("byte_lengths", "kinds", "assistant")), strict=True)
    ):
        assert made.completion_at[k] == 3
        assert lengths[learned].sum() == len(f"It is {k}.")
        assert (kinds[learned] == ChunkKind.PAIRED).sum() == 1  # the end of the turn


def pieces(
    path: Path, row: dict[str, Any], max_bytes: int | None, limit: TokenLimit | None = None
) -> tuple[list[Any], Counter[str]]:
    path.write_bytes(jsonl(row))
    dropped: Counter[str] = Counter()
    return list(iter_examples(corpus(path, max_bytes=max_bytes), dropped, limit=limit)), dropped


@pytest.mark.parametrize("prompt_words", [0, 3, 10, 20, 35])
def test_the_pieces_of_a_long_text_know_where_its_completion_begins(tmp_path: Path, prompt_words: int) -> None:
    prompt, completion = "größe " * prompt_words, "Ärger e\u0301 " * 30  # the accent becomes one character
    found, dropped = pieces(tmp_path / "a.jsonl", {"prompt": prompt, "completion": completion}, 64)
    learned = "".join(example.text.encode()[example.completion_at :].decode() for example in found)
    assert learned == completion.replace("e\u0301", "é")
    assert len(found) >= 5
    assert all(len(example.text.encode()) <= 64 for example in found)
    assert bool(dropped["piece_of_a_prompt"]) == (prompt_words >= 10)


def test_the_pieces_of_a_long_conversation_know_their_completion(tmp_path: Path) -> None:
    turns = [{"role": role, "content": f"{role} {k}"} for k in range(6) for role in ("user", "assistant")]
    system = {"role": "system", "content": "Be brief."}
    found, dropped = pieces(tmp_path / "a.jsonl", {"prompt": [system, *turns[:7]], "completion": turns[7:]}, 60)
    learned = [json.dumps(message) for example in found for message in example.messages[example.completion_at :]]
    assert learned == [json.dumps(message) for message in turns[7:]]
    assert all(example.messages[0] == system for example in found)
    assert dropped["piece_of_a_prompt"] >= 1


def test_pieces_that_a_context_cuts_know_their_completion(tmp_path: Path) -> None:
    limit = limits.limit("byte_level", 48)
    completion = "The quick brown fox jumps over the lazy dog. " * 20
    found, _ = pieces(tmp_path / "a.jsonl", {"prompt": "How many? " * 3, "completion": completion}, None, limit)
    assert "".join(example.text[example.completion_at :] for example in found) == completion
    assert len(found) > 3
    turns = [{"role": role, "content": f"{role} {k}"} for k in range(6) for role in ("user", "assistant")]
    found, _ = pieces(tmp_path / "a.jsonl", {"prompt": turns[:3], "completion": turns[3:]}, None, limit)
    assert [message for example in found for message in example.messages[example.completion_at :]] == turns[3:]
    assert len(found) > 1


@pytest.mark.parametrize(("kind", "ends"), [("metaspace", 1), ("byte_level", 0), ("sentencepiece", 0)])
def test_the_special_token_after_a_text_ends_its_completion(kind: str, ends: int) -> None:
    texts = ["The quick brown fox", "", "12 fox"]
    marked = with_completions(limits.encoder(kind).encode(texts), [10, 0, 0])
    for row, completion_at in ((0, 10), (2, 0)):
        example = marked.example(row)
        assert isinstance(example, EncodedExample)
        starts = np.cumsum(example.byte_lengths) - example.byte_lengths
        is_text = example.byte_lengths > 0
        assert (example.turns[is_text] == (starts[is_text] >= completion_at)).all()
        assert (example.kinds == TokenKind.END_OF_TURN).sum() == ends
        assert (example.turns[example.kinds == TokenKind.END_OF_TURN] == 1).all()
        assert example.roles == ("prompt", "completion")
        assert example.turn_bytes == (completion_at, len(texts[row]) - completion_at)
