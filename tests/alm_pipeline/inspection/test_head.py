"""The first rows of every kind of dataset, readable."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alm_pipeline.config import AlmConfig, CorpusConfig, FilesSource
from alm_pipeline.inspection.folder_head import folder_head
from alm_pipeline.inspection.frame import chunk_frame
from alm_pipeline.inspection.head import READERS, REASONS, head
from alm_pipeline.inspection.picture import picture
from alm_pipeline.naming.columns import COLUMN_DESCRIPTIONS
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.tokenization.encoder import Dropped
from storage.columns import list_rows
from storage.errors import UserError
from storage.schemas import Kind
from tests.alm_pipeline.inspection.datasets import Chunk, Row, Side, write


@pytest.fixture(scope="module")
def pipeline(config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Conversations, one of which the teacher's tokenizer can't spell, scored with the likeliest tokens."""
    folder = tmp_path_factory.mktemp("head")
    conversations = [
        [
            {"role": "user", "content": f"How many apples are {k} and {k}?"},
            {"role": "assistant", "content": "\u2581" if k == 1 else f"There are {2 * k}, naïve."},
        ]
        for k in range(12)
    ]
    lines = [json.dumps({"id": f"c{k}", "messages": it}) for k, it in enumerate(conversations)]
    (folder / "chat.jsonl").write_text("\n".join(lines))
    source = FilesSource(urls=(str(folder / "chat.jsonl"),))
    corpus = CorpusConfig(name="chat", source=source, messages="messages", id="id", held_out=0.3, max_bytes=100_000)
    score = config.score.model_copy(update={"top_k": 2})
    made = Pipeline(config.model_copy(update={"corpus": corpus, "score": score}), str(folder / "store"))
    made.cache()
    return made


def rows(url: str, count: int = 20) -> list[dict[str, Any]]:
    return head(url, count).rows


def test_every_kind_has_a_reader_and_described_columns(pipeline: Pipeline) -> None:
    assert set(READERS) == set(Kind)
    for dataset in pipeline.caches.values():
        document = head(dataset.url, 2).document()
        assert [row["column"] for row in document["columns"]] == list(COLUMN_DESCRIPTIONS[dataset.kind])
        assert len(document["rows"]) == 2
        assert json.dumps(document, allow_nan=False)


def test_every_reason_has_a_meaning() -> None:
    assert {str(reason) for reason in Dropped} <= set(REASONS)


def test_examples_are_shown_as_they_are(pipeline: Pipeline) -> None:
    first = rows(pipeline.examples.url)[0]
    assert first["messages"][0] == {"role": "user", "content": "How many apples are 0 and 0?"}
    assert first["text"] == "How many apples are 0 and 0?There are 0, naïve."


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_tokens_are_shown_as_text_also_those_of_the_template(pipeline: Pipeline, side: Any) -> None:
    found = {row["id"]: row for row in rows(pipeline.tokens(side).url)}
    for row in (row for row in found.values() if not row["dropped"]):
        content = b"".join(token["text"].encode() for token in row["tokens"] if token["kind"] == "content")
        assert sum(token["bytes"] for token in row["tokens"]) > 0
        assert len(content) >= sum(token["bytes"] for token in row["tokens"] if token["kind"] == "content")
        assert not [token for token in row["tokens"] if token["text"].startswith("<") and token["text"][1:-1].isdigit()]
    template = [token["text"] for token in found["c0"]["tokens"] if token["kind"] != "content"]
    assert {"teacher": "<start_of_turn>", "student": "<|im_start|>"}[side] in template
    assert {token["role"] for token in found["c0"]["tokens"]} >= {"user", "assistant"}


def test_dropped_examples_are_among_the_rows_with_their_reason(pipeline: Pipeline) -> None:
    url = pipeline.tokens("teacher").url
    reason = {row["id"]: row["dropped"] for row in rows(url)}
    assert reason == {f"c{k}": "holds_the_space_stand_in" if k == 1 else None for k in range(12)}
    (only,) = head(url, 5, only_dropped=True).rows
    assert (only["id"], only["tokens"]) == ("c1", [])
    (of_pair,) = head(pipeline.alignments.url, 5, only_dropped=True).rows
    assert (of_pair["id"], of_pair["dropped"]) == ("c1", "teacher: holds_the_space_stand_in")
    assert head(pipeline.tokens("student").url, 5, only_dropped=True).rows == []
    assert head(url, 1).dropped == {"holds_the_space_stand_in": 1}


def test_scores_are_probabilities_beside_their_tokens(pipeline: Pipeline) -> None:
    tokens = list_rows(pipeline.tokens("teacher").read_shard(0)["token_ids"])
    stored = pipeline.scores.read_shard(0)
    columns = {name: list_rows(stored[name]) for name in stored.column_names[1:]}
    for place, row in enumerate(rows(pipeline.scores.url)):
        assert [token["id"] for token in row["tokens"]] == tokens[place].tolist()
        for k, token in enumerate(row["tokens"]):
            logprob = float(columns["logprobs"][place][k])
            assert token["probability"] == (None if math.isnan(logprob) else pytest.approx(np.exp(logprob)))
            assert token["boundary_probability"] == pytest.approx(np.exp(columns["boundary_logprobs"][place][k]))
            first, second = token["likeliest_next"]
            assert first["probability"] >= second["probability"] > 0
            assert first["probability"] == pytest.approx(np.exp(columns["top_logprobs"][place][2 * k]))


def test_chunks_have_the_text_of_scaffold(pipeline: Pipeline) -> None:
    frame = chunk_frame(pipeline.alignments.url, 0, "c0")
    assert rows(pipeline.alignments.url, 1)[0]["chunks"] == frame.drop("id").to_dicts()
    scaffold = [part for row in frame.filter(frame["kind"] != "content").to_dicts() for part in row["teacher"]]
    assert "<start_of_turn>" in scaffold
    labels = [box.label for chunk in picture(pipeline.alignments.url, "c0").chunks for box in chunk.tokens["teacher"]]
    assert "‹<start_of_turn>›" in labels


def test_an_id_stays_where_the_tokenizer_has_gone(tmp_path: Path) -> None:
    url = write(tmp_path, [[Row("0", "ab", Side([(7, 0, 0), (1, 0, 2)]), Side([(1, 0, 2)]), [Chunk(2, 1, 2)])]]).url
    assert rows(url)[0]["chunks"][0]["teacher"] == ["<7>", "ab"]


@pytest.mark.bad_input
def test_a_shard_that_does_not_exist_is_named(pipeline: Pipeline) -> None:
    with pytest.raises(UserError, match="has no shard 99: it has"):
        head(pipeline.examples.url, 1, 99)
    with pytest.raises(UserError, match="not a complete"):
        head(pipeline.root, 1)
    with pytest.raises(UserError, match="not a complete folder"):
        folder_head(f"{pipeline.root}/students/none", 1)


def test_a_tokenizer_has_its_vocabulary(config: AlmConfig, tmp_path: Path) -> None:
    student = config.student.model_copy(update={"tokenizer": "bytes"})
    pipeline = Pipeline(config.model_copy(update={"student": student}), str(tmp_path))
    pipeline.train_tokenizer()
    assert pipeline.made_tokenizer
    found = folder_head(pipeline.made_tokenizer.url, 5)
    assert found["tokenizer"]["tokens"] == found["results"]["tokens"]
    assert len(found["tokenizer"]["first_tokens"]) == 5
    assert "<|im_start|>" in [token["text"] for token in found["tokenizer"]["special_tokens"]]
    assert found["tokenizer"]["has_chat_template"]
