"""Two tokens datasets to alignments, shard by shard."""

from dataclasses import replace
from pathlib import Path

import pytest

from alm_pipeline.alignment.stage import align_datasets, alignments_dataset
from alm_pipeline.tokenization.stage import tokenize, tokens_dataset
from storage.dataset import Dataset
from storage.errors import UserError
from storage.schemas import ChunkKind, Kind
from tests.corpora import conversations, text_examples

SHARDS = [["The fox jumps.", "東京 is far", "a\u2581b"], ["x = 1\n\n", "dog dog"]]


def tokens_of(examples: Dataset, tokenizer: str, max_tokens: int | None = None) -> Dataset:
    tokens = tokens_dataset(examples, tokenizer, max_tokens)
    tokenize(examples, tokens, tokenizer, max_tokens)
    return tokens


def run(teacher: Dataset, student: Dataset) -> Dataset:
    alignments = alignments_dataset(teacher, student, "tiny")
    align_datasets(teacher, student, alignments)
    return alignments


@pytest.fixture
def sides(tmp_path: Path, llama_folder: str, gemma_folder: str) -> tuple[Dataset, Dataset]:
    examples = text_examples(tmp_path, SHARDS)
    return tokens_of(examples, llama_folder), tokens_of(examples, gemma_folder)


def shard_files(dataset: Dataset) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in sorted(Path(dataset.url).iterdir())}


def test_rows_tile_the_tokens(sides: tuple[Dataset, Dataset]) -> None:
    alignments = run(*sides)
    for shard, texts in enumerate(SHARDS):
        teacher, student = (side.read_shard(shard).to_pylist() for side in sides)
        for row, text, *tokens in zip(alignments.read_shard(shard).to_pylist(), texts, teacher, student, strict=True):
            assert row["id"] == tokens[0]["id"]
            if "\u2581" in text:
                assert row["kinds"] == row["byte_lengths"] == []
                continue
            assert sum(row["teacher_tokens"]) == len(tokens[0]["token_ids"])
            assert sum(row["student_tokens"]) == len(tokens[1]["token_ids"])
            assert sum(row["byte_lengths"]) == len(text.encode())


def test_counts(sides: tuple[Dataset, Dataset]) -> None:
    alignments = run(*sides)
    manifest = alignments.complete_manifest()
    chunks = [sum(map(len, alignments.read_shard(shard)["kinds"].to_pylist())) for shard in range(2)]
    content = [sum(len(text.encode()) for text in texts if "\u2581" not in text) for texts in SHARDS]
    assert [record.counts for record in manifest.shards] == [
        {"chunks": chunks[shard], "aligned_bytes": content[shard]} for shard in range(2)
    ]
    assert manifest.dropped == {"without_tokens_on_a_side": 1}
    assert manifest.rows == 5


def test_conversations(tmp_path: Path, llama_folder: str, gemma_folder: str) -> None:
    chat = [{"role": "user", "content": "The fox"}, {"role": "assistant", "content": "jumps"}]
    examples = conversations(tmp_path, [chat])
    alignments = run(tokens_of(examples, llama_folder), tokens_of(examples, gemma_folder))
    (row,) = alignments.read_shard(0).to_pylist()
    assert sum(row["byte_lengths"]) == len("The foxjumps")
    assert row["kinds"].count(ChunkKind.PAIRED) == 2
    assert row["kinds"][0] == ChunkKind.UNPAIRED


def test_resume_writes_only_the_shard_without_a_record(sides: tuple[Dataset, Dataset]) -> None:
    alignments = run(*sides)
    before = shard_files(alignments)
    for name in ("manifest.json", "shard-00000.json"):
        (Path(alignments.url) / name).unlink()
    after = shard_files(run(*sides))
    assert {name: content for name, (content, _) in after.items()} == {
        name: content for name, (content, _) in before.items()
    }
    rewritten = {name for name in after if after[name][1] != before[name][1]}
    assert rewritten == {"manifest.json", "shard-00000.json", "shard-00000.parquet"}
    assert shard_files(run(*sides)) == after


def test_label_names_the_corpus_once(sides: tuple[Dataset, Dataset]) -> None:
    alignments = alignments_dataset(*sides, "tiny")
    assert alignments.label == "tiny-tiny-llama-to-tiny-gemma"
    assert alignments.kind == Kind.ALIGNMENTS
    assert alignments.name != alignments_dataset(*reversed(sides), "tiny").name


def test_tokens_of_other_examples(tmp_path: Path, sides: tuple[Dataset, Dataset], gemma_folder: str) -> None:
    other = tokens_of(text_examples(tmp_path, [["The fox jumps."]]), gemma_folder)
    with pytest.raises(UserError, match="tokens of other examples"):
        run(sides[0], other)


def test_mixed_up_ids(sides: tuple[Dataset, Dataset]) -> None:
    teacher, student = sides
    mixed = replace(student, identity={**student.identity, "max_tokens": 99})
    for shard in range(2):
        columns = {name: column[::-1] for name, column in _columns(student, shard).items()}
        mixed.write_shard(shard, columns, {"tokens": 1})
    mixed.finish(2)
    with pytest.raises(UserError, match="shard 0 holds other examples"):
        run(teacher, mixed)


def test_an_empty_shard(tmp_path: Path, llama_folder: str, gemma_folder: str) -> None:
    examples = text_examples(tmp_path, [[], ["dog"], ["a\u2581b"]])
    manifest = run(tokens_of(examples, llama_folder), tokens_of(examples, gemma_folder)).complete_manifest()
    assert [record.rows for record in manifest.shards] == [0, 1, 1]
    assert [record.counts["chunks"] for record in manifest.shards][::2] == [0, 0]


def test_tokens_have_to_be_complete(sides: tuple[Dataset, Dataset]) -> None:
    (Path(sides[1].url) / "manifest.json").unlink()
    with pytest.raises(UserError, match="not complete"):
        run(*sides)


def _columns(tokens: Dataset, shard: int) -> dict[str, list[object]]:
    table = tokens.read_shard(shard)
    return {name: table[name].to_pylist() for name in table.column_names}
