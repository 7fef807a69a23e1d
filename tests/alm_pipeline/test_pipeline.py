"""The stages together: contexts, trained tokenizers, conversations, and mistakes told early."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from alm_pipeline.config import AlmConfig, FilesSource, StudentConfig, TrainedTokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.report import summarize, summary_table
from storage.errors import UserError
from storage.schemas import ChunkKind
from tests import tiny
from tests.corpora import write_chats


def test_examples_are_cut_to_the_smallest_context(config: AlmConfig, tmp_path: Path) -> None:
    """A context of 64 tokens may not hold 200 bytes: they are cut by tokens, and no text is lost."""
    tokenizer, model = tiny.byte_level_tokenizer(), tiny.tiny_llama(400)
    model.config.max_position_embeddings = 64
    student = StudentConfig(model=tiny.save(tmp_path / "short", model, tokenizer))
    pipeline = Pipeline(config.model_copy(update={"student": student}), str(tmp_path))
    manifest = pipeline.shard()
    texts = pl.read_parquet(f"{pipeline.examples.url}/*.parquet")["text"]
    assert 64 < texts.str.len_bytes().max() <= 200
    whole = Path(config.corpus.source.urls[0]).read_text().splitlines()  # type: ignore[union-attr]
    assert manifest.counts["text_bytes"] == sum(len(json.loads(line)["text"].encode()) for line in whole)
    assert pipeline.tokenize("student").dropped == {}
    lengths = pl.read_parquet(f"{pipeline.tokens('student').url}/*.parquet")["token_ids"].list.len()
    assert 32 < lengths.max() <= 64


def test_conversations_align_by_content_and_pair_the_end_of_turn(config: AlmConfig, tmp_path: Path) -> None:
    source = FilesSource(urls=(write_chats(tmp_path / "chats.jsonl"),))
    corpus = config.corpus.model_copy(update={"source": source, "messages": "messages"})
    pipeline = Pipeline(config.model_copy(update={"corpus": corpus}), str(tmp_path / "data"))
    pipeline.run()
    summary = summarize(pipeline)
    assert summary.aligned_share == 1.0
    rows = pl.read_parquet(f"{pipeline.alignments.url}/*.parquet")
    # start of turn, role, end of header and end of turn, of either turn
    assert rows["kinds"].list.count_matches(ChunkKind.PAIRED).to_list() == [8] * 40
    answers = rows.explode("byte_lengths", "kinds", "assistant").filter("assistant")
    sizes = answers.group_by("id").agg(pl.col("byte_lengths").sum())["byte_lengths"].to_list()
    assert sorted(sizes) == sorted(len(f"{k + 1}.") for k in range(40))
    assert answers["kinds"].value_counts().sort("kinds")["count"].to_list()[1] == 40  # the ends of turns


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
        ({"teacher": "no/such-folder"}, "no/such-folder: not a local folder, and could not be fetched"),
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
    summary = summarize(pipeline)
    scores = pipeline.scores.complete_manifest()
    assert summary.teacher_tokens == scores.counts["tokens"]
    cached = [pipeline.tokens("teacher"), pipeline.tokens("student"), pipeline.alignments, pipeline.scores]
    stored = sum(file.stat().st_size for dataset in cached for file in Path(dataset.url).glob("*.parquet"))
    assert summary.cache_bytes_per_teacher_token == stored / summary.teacher_tokens
    assert summary_table(summary, {"shard": 1.0}).row_count >= 14


def with_normalizer(folder: str, normalizer: dict[str, str], target: Path) -> str:
    shutil.copytree(folder, target)
    state = json.loads((target / "tokenizer.json").read_text())
    (target / "tokenizer.json").write_text(json.dumps({**state, "normalizer": normalizer}))
    return str(target)


def test_both_sides_see_the_text_that_either_tokenizer_means(config: AlmConfig, tmp_path: Path) -> None:
    lower = with_normalizer(config.student.model, {"type": "Lowercase"}, tmp_path / "lower")
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in ["Cafe\u0301 Fox", "fox \u00e9", "The Fox"]))
    corpus = config.corpus.model_copy(update={"source": FilesSource(urls=(str(file),))})

    def texts(student: str, **update: object) -> tuple[list[str], dict[str, int], dict[str, int]]:
        changed = {"corpus": corpus.model_copy(update=update), "student": StudentConfig(model=student)}
        pipeline = Pipeline(config.model_copy(update=changed), str(tmp_path / "data"))
        manifest = pipeline.shard()
        dropped = pipeline.tokenize("student").dropped
        return pl.read_parquet(f"{pipeline.examples.url}/*.parquet")["text"].to_list(), manifest.counts, dropped

    plain, counts, dropped = texts(config.student.model)
    assert (plain, counts["normalized_examples"], dropped) == (["Caf\u00e9 Fox", "fox \u00e9", "The Fox"], 1, {})
    small, counts, dropped = texts(lower)
    assert (small, counts["normalized_examples"], dropped) == (["caf\u00e9 fox", "fox \u00e9", "the fox"], 2, {})
    as_is, counts, dropped = texts(lower, normalize=())
    assert as_is[0] == "Cafe\u0301 Fox"
    assert (counts["normalized_examples"], dropped) == (0, {"changed_by_lowercase": 2})


def test_a_student_that_wants_nfc_shares_the_teachers_caches(config: AlmConfig, tmp_path: Path) -> None:
    nfc = with_normalizer(config.student.model, {"type": "NFC"}, tmp_path / "nfc")
    pipelines = [
        Pipeline(config.model_copy(update={"student": StudentConfig(model=model)}), str(tmp_path))
        for model in (config.student.model, nfc)
    ]
    assert pipelines[0].scores.name == pipelines[1].scores.name
    assert pipelines[0].tokens("student").name != pipelines[1].tokens("student").name


def test_the_teachers_context_limits_nothing(config: AlmConfig, tmp_path: Path) -> None:
    """Neither are texts cut to it nor conversations dropped: it scores in windows."""
    model = tiny.tiny_llama(400)
    model.config.max_position_embeddings = 24
    teacher = tiny.save(tmp_path / "short", model, tiny.byte_level_tokenizer())
    file = tmp_path / "chats.jsonl"
    chats = [[{"role": "user", "content": f"Say {k}: " + tiny.TEXTS[2]}] for k in range(4)]
    file.write_text("\n".join(json.dumps({"messages": chat, "text": chat[0]["content"]}) for chat in chats))
    for messages in (None, "messages"):
        corpus = config.corpus.model_copy(update={"source": FilesSource(urls=(str(file),)), "messages": messages})
        changed = config.model_copy(update={"corpus": corpus, "teacher": teacher})
        pipeline = Pipeline(changed, str(tmp_path / "data"))
        pipeline.cache()
        assert pipeline.tokens("teacher").complete_manifest().dropped == {}
        scores = pl.read_parquet(f"{pipeline.scores.url}/shard-*.parquet")
        assert (scores["logprobs"].list.len() > 24).all()
        assert scores.explode("logprobs")["logprobs"].is_nan().sum() == len(scores)


def test_a_student_trained_in_bfloat16_is_evaluated_and_saved(config: AlmConfig, tmp_path: Path) -> None:
    train = config.train.model_copy(update={"dtype": "bfloat16", "steps": 2})
    pipeline = Pipeline(config.model_copy(update={"train": train}), str(tmp_path))
    assert pipeline.run().results["held_out_bits_per_byte"]["student_after"] > 0
