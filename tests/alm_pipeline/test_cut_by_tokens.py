"""Texts and conversations are cut by the student's tokens where its context may be too short for `max_bytes`."""

import json
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics
from random import Random
from typing import Any

import polars as pl
import pytest

from alm_pipeline.config import BYTES, AlmConfig, CorpusConfig, FilesSource, StudentConfig, TrainedTokenizer
from alm_pipeline.corpus.examples import iter_examples
from alm_pipeline.new_tokenizer.trained import train_tokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.repair import repair
from alm_pipeline.report import summarize, summary_rows
from alm_pipeline.tokenization.encoder import ByteEncoder
from storage.dataset import Dataset
from storage.errors import UserError
from storage.upkeep.catalog import Catalog
from storage.urls import remove
from tests import tiny

PROSE = [text for _, text in sorted(topics.items()) if len(text) > 1000][:60]
"""Python's language reference: 400 kB"""


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("prose") / "topics.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in PROSE))
    return str(file)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny student with a context of 512 tokens, and 3.4 bytes per token of prose."""
    tokenizer = train_tokenizer(PROSE, 2000, tiny.byte_level_tokenizer())
    return tiny.save(tmp_path_factory.mktemp("models") / "tiny-512", tiny.tiny_llama(len(tokenizer)), tokenizer)


def changed(config: AlmConfig, source: str, student: StudentConfig, **corpus: Any) -> AlmConfig:
    settings = CorpusConfig(name="prose", source=FilesSource(urls=(source,)), **corpus)
    return config.model_copy(update={"corpus": settings, "student": student})


def with_context(student: str, context: int, folder: Path) -> str:
    """Return a copy of a student with another context length."""
    folder.mkdir()
    for file in Path(student).iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    settings = json.loads((Path(student) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": context}))
    return str(folder)


def joined(examples: Dataset) -> dict[str, str]:
    """Return each document's text by its id."""
    rows = pl.read_parquet(f"{examples.url}/*.parquet").with_columns(pl.col("id").str.split("#").list.first())
    return dict(rows.group_by("id", maintain_order=True).agg(pl.col("text").str.join()).iter_rows())


def test_prose_uses_a_context_of_512_tokens(config: AlmConfig, prose: str, student: str, tmp_path: Path) -> None:
    pipeline = Pipeline(changed(config, prose, StudentConfig(model=student)), str(tmp_path))
    counts = pipeline.shard().counts
    assert list(joined(pipeline.examples).values()) == PROSE
    assert pipeline.tokenize("student").dropped == {}
    rows = pl.read_parquet(f"{pipeline.tokens('student').url}/*.parquet")
    lengths = rows.select(pl.col("id").str.split("#").list.first(), pl.col("token_ids").list.len())
    assert lengths["token_ids"].max() <= 512
    continued = lengths.filter(pl.col("id") == pl.col("id").shift(-1))["token_ids"]
    assert (counts["cut_examples"], counts["cut_tokens"]) == (len(continued), continued.sum())
    assert continued.mean() / 512 > 0.85


def test_a_student_learns_examples_of_its_whole_context(config: AlmConfig, tmp_path: Path) -> None:
    """Its positions are learned: one token more has none."""
    file = tmp_path / "letters.jsonl"
    file.write_text("\n".join(json.dumps({"text": letter * 500}) for letter in "qxjz"))
    model = tiny.save(tmp_path / "gpt2", tiny.tiny_gpt2(400), tiny.byte_level_tokenizer())
    setting = changed(config, str(file), StudentConfig(model=model), held_out=0.3)
    train = config.train.model_copy(update={"steps": 2})
    pipeline = Pipeline(setting.model_copy(update={"teacher": model, "train": train}), str(tmp_path / "store"))
    assert pipeline.run().results["held_out_bits_per_byte"]["student_after"] > 0
    lengths = pl.read_parquet(f"{pipeline.tokens('student').url}/*.parquet")["token_ids"].list.len()
    assert lengths.max() == 128


MADE: dict[str, TrainedTokenizer | str] = {
    "trained": TrainedTokenizer(vocab_size=800, train_bytes=50_000),
    "of bytes": BYTES,
}


@pytest.mark.parametrize("made", MADE)
def test_a_tokenizer_that_the_run_makes_cuts(
    config: AlmConfig, prose: str, student: str, tmp_path: Path, made: str
) -> None:
    setting = StudentConfig(model=student, tokenizer=MADE[made])
    pipeline = Pipeline(changed(config, prose, setting, max_examples=40, normalize=()), str(tmp_path))
    with pytest.raises(UserError, match=r"tokenizers/.*: not complete .*: run the stage that writes it"):
        pipeline.shard()
    pipeline.train_tokenizer()
    counts = pipeline.shard().counts
    assert counts["cut_tokens"] / counts["cut_examples"] > 0.85 * 512
    assert pipeline.tokenize("student").dropped == {}
    # its own examples and tokenizer are found again by a process that starts with the configuration alone
    again = Pipeline(pipeline.config, str(tmp_path))
    assert again.examples.manifest()
    assert again.tokens("student").manifest()


@pytest.mark.parametrize(("context", "most"), [(2048, 2040), (2052, 2044), (2056, 2048), (8192, 2048)])
def test_a_context_that_holds_every_text_keeps_examples_of_all_tokenizers(
    config: AlmConfig, prose: str, student: str, tmp_path: Path, context: int, most: int
) -> None:
    long = with_context(student, context, tmp_path / "long")
    settings = [StudentConfig(model=long, tokenizer=name) for name in (None, config.teacher, BYTES)]
    pipelines = [Pipeline(changed(config, prose, setting), str(tmp_path)) for setting in settings]
    identities = [pipeline.examples.identity for pipeline in pipelines]
    assert identities[1:] == identities[:-1]
    assert list(identities[0]) == ["stage_version", "source", "config"]
    assert identities[0]["config"]["max_bytes"] == most
    assert len({pipeline.scores.name for pipeline in pipelines}) == 1


def test_a_shorter_context_names_examples_for_their_tokenizer_and_length(
    config: AlmConfig, prose: str, student: str, tmp_path: Path
) -> None:
    models = [student, *(with_context(student, context, tmp_path / str(context)) for context in (511, 2047))]
    settings = [StudentConfig(model=model) for model in models] + [
        StudentConfig(model=student, tokenizer=config.teacher)
    ]
    names = [Pipeline(changed(config, prose, setting), str(tmp_path)).examples.name for setting in settings]
    assert len(set(names)) == 4


def test_the_table_says_how_much_of_the_context_is_used(
    config: AlmConfig, prose: str, student: str, tmp_path: Path
) -> None:
    """It names the setting to raise where bytes are the limit."""
    tokens, rows = [], []
    for context, most in [(512, None), (1500, None), (1500, 2000), (8192, None)]:
        model = with_context(student, context, tmp_path / f"{context} {most}")
        setting = changed(config, prose, StudentConfig(model=model), max_examples=20, max_bytes=most)
        pipeline = Pipeline(setting.model_copy(update={"teacher": student}), str(tmp_path))
        pipeline.cache()
        summary = summarize(pipeline, with_student=False)
        assert summary.context_use
        tokens.append(summary.context_use.tokens)
        rows.append(dict(summary_rows(summary, {}))["context used"])
    assert rows[0] == f"mean {tokens[0] / 512:.0%} of the student's 512 tokens (cut texts)"
    assert rows[1] == f"mean {tokens[1] / 1500:.0%} of the student's 1,500 tokens (cut texts)"
    assert min(tokens[0] / 512, tokens[1] / 1500) > 0.9
    assert rows[2].endswith("of the student's 1,500 tokens (cut texts); corpus.max_bytes, 2,000, is reached first")
    assert rows[3].endswith("of the student's 8,192 tokens (cut texts); corpus.max_bytes, 2,048, is reached first")
    # once counted, once from the bytes
    assert tokens[2] == pytest.approx(tokens[3], rel=0.1)


def chats(count: int) -> list[list[dict[str, str]]]:
    """Return conversations of one to six turns, of up to 500 words each."""
    draw = Random(0)
    words = " ".join(PROSE).split()

    def message(role: str, most: int) -> dict[str, str]:
        start, size = draw.randrange(len(words) - most), draw.randint(1, most)
        return {"role": role, "content": " ".join(words[start : start + size])}

    return [
        [
            part
            for _ in range(draw.randint(1, 6))
            for part in (message("user", 40), message("assistant", draw.choice([20, 100, 460])))
        ]
        for _ in range(count)
    ]


def test_only_turns_whose_tokens_do_not_fit_are_left_out(config: AlmConfig, student: str, tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    conversations = chats(200)
    file.write_text("\n".join(json.dumps({"messages": chat}) for chat in conversations))
    pipeline = Pipeline(changed(config, str(file), StudentConfig(model=student), messages="messages"), str(tmp_path))
    left_out = pipeline.shard().dropped
    assert pipeline.tokenize("student").dropped == {}
    encoder = ByteEncoder(pipeline.student_tokenizer, max_tokens=512)
    turns = [chat[place : place + 2] for chat in conversations for place in range(0, len(chat), 2)]
    too_long = [turn for turn, reason in zip(turns, encoder.encode_conversations(turns).dropped, strict=True) if reason]
    assert left_out == {"turn_over_context": len(too_long)}
    kept = pl.read_parquet(f"{pipeline.examples.url}/*.parquet")["messages"]
    messages = [message for chat in kept for message in json.loads(chat)]
    assert messages == [message for turn in turns if turn not in too_long for message in turn]


def examples_of(pipeline: Pipeline) -> tuple[list[Any], dict[str, int]]:
    dropped: Counter[str] = Counter()
    limit = pipeline._token_limit()
    assert limit
    return list(iter_examples(pipeline.corpus, dropped, limit=limit)), dict(dropped)


@pytest.mark.parametrize("most", [None, 1, 37])
def test_threads_change_neither_examples_nor_counts(
    config: AlmConfig, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int | None
) -> None:
    file = tmp_path / "mixed.jsonl"
    rows = [{"text": text} for text in PROSE[:20]]
    lines = [json.dumps(row) if k % 3 else "{" for k, row in enumerate([row for row in rows for _ in range(2)])]
    file.write_text("\n".join([json.dumps({"text": "x" * 900}), *lines, json.dumps({"text": " "})]))
    found = []
    for threads in ("1", "7"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        setting = changed(config, str(file), StudentConfig(model=student), max_examples=most)
        found.append(examples_of(Pipeline(setting, str(tmp_path))))
    assert found[0] == found[1]
    assert len(found[0][0]) == most or most is None
    assert found[0][1] == ({"invalid_json": 14, "empty": 1} if most is None else found[0][1])


def test_damaged_examples_and_their_tokenizer_are_made_again(
    config: AlmConfig, prose: str, student: str, tmp_path: Path
) -> None:
    setting = StudentConfig(model=student, tokenizer=TrainedTokenizer(vocab_size=400, train_bytes=20_000))
    pipeline = Pipeline(changed(config, prose, setting, max_examples=30), str(tmp_path / "store"))
    pipeline.train_tokenizer()
    pipeline.shard()
    before = pl.read_parquet(f"{pipeline.examples.url}/*.parquet")
    assert pipeline.made_tokenizer
    catalog = Catalog.open(str(tmp_path / "store"))
    examples, tokenizer = (f"{item.kind}/{item.name}" for item in (pipeline.examples, pipeline.made_tokenizer))
    assert catalog.inputs(examples) == {"tokenizer": tokenizer}
    remove(pipeline.examples.shard_url(0))
    remove(f"{pipeline.made_tokenizer.url}/tokenizer.json")
    done = list(repair(catalog, list(catalog.entries)))
    assert [(item.key, item.refused, item.remaining, item.changed) for item in done] == [
        (tokenizer, "", (), False),
        (examples, "", (), False),
    ]
    assert pl.read_parquet(f"{pipeline.examples.url}/*.parquet").equals(before)


def test_a_tokenizer_that_changes_while_texts_are_cut_ends_the_stage(
    config: AlmConfig, prose: str, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "student"
    with_context(student, 512, copy)
    for file in copy.iterdir():
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    pipeline = Pipeline(changed(config, prose, StudentConfig(model=str(copy)), max_examples=30), str(tmp_path))
    write = Dataset.write_shard

    def write_and_change(self: Dataset, *arguments: Any) -> Any:
        tiny.byte_level_tokenizer(300).save_pretrained(copy)
        return write(self, *arguments)

    monkeypatch.setattr(Dataset, "write_shard", write_and_change)
    with pytest.raises(UserError, match=r"tokenizer.*: was changed while it was in use"):
        pipeline.shard()
    assert pipeline.examples.manifest() is None
