"""Alignments as a frame to look at."""

from pathlib import Path

import polars as pl
import pytest

from alm_pipeline.alignment.inspect import chunk_frame
from alm_pipeline.alignment.stage import align_datasets, alignments_dataset
from alm_pipeline.tokenization.stage import tokenize, tokens_dataset
from storage.dataset import Dataset
from storage.errors import UserError
from tests.corpora import conversations, text_examples

SHARDS = [["The fox jumps.", "東京 is 🙂", "a\u2581b"], ["x = 1\n\n"], []]
COLUMNS = ["id", "start", "end", "text", "teacher", "student", "kind"]


def aligned(examples: Dataset, teacher: str, student: str) -> Dataset:
    sides = []
    for tokenizer in (teacher, student):
        sides.append(tokens_dataset(examples, tokenizer, None))
        tokenize(examples, sides[-1], tokenizer, None)
    alignments = alignments_dataset(sides[0], sides[1], "tiny")
    align_datasets(sides[0], sides[1], alignments)
    return alignments


@pytest.fixture
def alignments(tmp_path: Path, llama_folder: str, gemma_folder: str) -> Dataset:
    return aligned(text_examples(tmp_path, SHARDS), llama_folder, gemma_folder)


def test_texts_join_to_the_examples(alignments: Dataset) -> None:
    frame = chunk_frame(alignments.url)
    assert frame.columns == COLUMNS
    assert frame["id"].unique(maintain_order=True).to_list() == ["0-0", "0-1"]
    assert "".join(frame.filter(pl.col("id") == "0-0")["text"]) == SHARDS[0][0]
    for row in frame.iter_rows(named=True):
        text = SHARDS[0][int(row["id"][-1])].encode()
        assert row["text"] == text[row["start"] : row["end"]].decode(errors="replace")


def test_tokens_are_what_they_cover(alignments: Dataset) -> None:
    frame = chunk_frame(alignments.url, example="0-0")
    assert frame["id"].unique().to_list() == ["0-0"]
    for row in frame.iter_rows(named=True):
        if row["kind"] == "content":
            assert "".join(row["teacher"]) == "".join(row["student"]) == row["text"]
    first = frame.row(0, named=True)
    assert (first["kind"], first["teacher"], first["student"], first["text"]) == ("unpaired", [], ["<2>"], "")
    assert first["start"] == first["end"] == 0


def test_bytes_that_are_no_whole_characters(alignments: Dataset) -> None:
    frame = chunk_frame(alignments.url, example="0-1")
    assert "\ufffd" in {token for row in frame["student"] for token in row}
    covered = frame.filter(pl.col("end") > pl.col("start"))
    assert covered["start"].to_list() == [0, *covered["end"].to_list()[:-1]]
    assert covered["end"][-1] == len(SHARDS[0][1].encode())


def test_another_shard(alignments: Dataset) -> None:
    assert "".join(chunk_frame(alignments.url, shard=1)["text"]) == SHARDS[1][0]


def test_nothing_to_show(alignments: Dataset) -> None:
    for frame in (chunk_frame(alignments.url, example="0-2"), chunk_frame(alignments.url, shard=2)):
        assert frame.shape == (0, len(COLUMNS))
        assert frame.schema["teacher"] == pl.List(pl.String)


def test_a_conversation(tmp_path: Path, llama_folder: str, gemma_folder: str) -> None:
    chat = [{"role": "user", "content": "The fox"}, {"role": "assistant", "content": "jumps"}]
    frame = chunk_frame(aligned(conversations(tmp_path, [chat]), llama_folder, gemma_folder).url)
    assert "".join(frame["text"]) == "The foxjumps"
    paired = frame.filter(pl.col("kind") == "paired")
    assert paired["teacher"].to_list() == [["<2>"], ["<2>"]]
    assert paired["student"].to_list() == [["<5>"], ["<5>"]]
    assert frame["start"].to_list() == [0, *frame["end"].to_list()[:-1]]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"shard": 3}, "there is no shard 3; it has 3, from 0"),
        ({"shard": -1}, "there is no shard -1"),
        ({"example": "0-9"}, "shard 0 has no example 0-9; it has 0-0 to 0-2"),
        ({"shard": 2, "example": "0-0"}, "shard 2 has no example 0-0; it is empty"),
    ],
)
def test_what_is_not_there(alignments: Dataset, choice: dict[str, int | str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        chunk_frame(alignments.url, **choice)  # type: ignore[arg-type]


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    examples = text_examples(tmp_path, SHARDS)
    with pytest.raises(UserError, match="holds examples, not alignments"):
        chunk_frame(examples.url)
    with pytest.raises(UserError, match="no complete dataset"):
        chunk_frame(f"{tmp_path}/alignments/none")
