"""The stages together: contexts, trained tokenizers, conversations, and mistakes told early."""

import json
from pathlib import Path

import polars as pl
import pytest

from alm_pipeline.config import AlmConfig, FilesSource, StudentConfig, TrainedTokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.report import summarise, summary_table
from storage.errors import UserError
from storage.schemas import ChunkKind
from tests import tiny


def test_examples_are_cut_to_the_smallest_context(config: AlmConfig, tmp_path: Path) -> None:
    """A context of 64 tokens holds any 56 bytes, whatever the tokenizer; no text is lost."""
    tokenizer, model = tiny.byte_level_tokenizer(), tiny.tiny_llama(400)
    model.config.max_position_embeddings = 64
    student = StudentConfig(model=tiny.save(tmp_path / "short", model, tokenizer))
    pipeline = Pipeline(config.model_copy(update={"student": student}), str(tmp_path))
    manifest = pipeline.shard()
    texts = pl.read_parquet(f"{pipeline.examples.url}/*.parquet")["text"]
    assert texts.str.len_bytes().max() <= 56
    whole = Path(config.corpus.source.urls[0]).read_text().splitlines()  # type: ignore[union-attr]
    assert manifest.counts["text_bytes"] == sum(len(json.loads(line)["text"].encode()) for line in whole)
    assert pipeline.tokenize("student").dropped == {}


def test_conversations_align_by_content_and_pair_the_end_of_turn(config: AlmConfig, tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    chats = [
        [{"role": "user", "content": f"How much is {k} + 1?"}, {"role": "assistant", "content": f"{k + 1}."}]
        for k in range(40)
    ]
    file.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    corpus = config.corpus.model_copy(update={"source": FilesSource(urls=(str(file),)), "messages": "messages"})
    pipeline = Pipeline(config.model_copy(update={"corpus": corpus}), str(tmp_path / "data"))
    pipeline.run()
    summary = summarise(pipeline)
    assert summary.aligned_share == 1.0
    rows = pl.read_parquet(f"{pipeline.alignments.url}/*.parquet")
    assert rows["kinds"].list.count_matches(ChunkKind.PAIRED).to_list() == [2] * 40


def test_a_tokenizer_of_another_model_is_told_before_scoring(config: AlmConfig, tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "wrong", tiny.tiny_llama(300), tiny.byte_level_tokenizer(400))
    pipeline = Pipeline(config.model_copy(update={"teacher": folder}), str(tmp_path))
    pipeline.shard()
    with pytest.raises(UserError, match="highest id is 399, the model's embedding has 300 rows"):
        pipeline.tokenize("teacher")


def test_a_stage_before_its_inputs_is_told(config: AlmConfig, tmp_path: Path) -> None:
    student = StudentConfig(model=config.student.model, tokenizer=TrainedTokenizer(vocab_size=320))
    pipeline = Pipeline(config.model_copy(update={"student": student}), str(tmp_path))
    with pytest.raises(UserError, match="no manifest"):
        pipeline.tokenize("teacher")
    pipeline.shard()
    with pytest.raises(UserError, match="no manifest"):
        pipeline.tokenize("student")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": "no/such-folder"}, "no/such-folder: no such folder, and not to be had"),
        ({"teacher": "demo:nonsense"}, "smollm2-135m-instruct"),
    ],
)
def test_a_model_that_is_not_there_is_told(
    config: AlmConfig, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Pipeline(config.model_copy(update=change), str(tmp_path)).shard()


def test_the_summary_says_everything(config: AlmConfig, tmp_path: Path) -> None:
    pipeline = Pipeline(config, str(tmp_path))
    pipeline.run()
    summary = summarise(pipeline)
    scores = pipeline.scores.complete_manifest()
    assert summary.teacher_tokens == scores.counts["tokens"]
    cached = [pipeline.tokens("teacher"), pipeline.tokens("student"), pipeline.alignments, pipeline.scores]
    stored = sum(file.stat().st_size for dataset in cached for file in Path(dataset.url).glob("*.parquet"))
    assert summary.cache_bytes_a_teacher_token == stored / summary.teacher_tokens
    assert summary_table(summary, {"shard": 1.0}).row_count >= 14
