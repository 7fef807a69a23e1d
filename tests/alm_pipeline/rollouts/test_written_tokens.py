"""The tokens of written texts: the writer's own, an end where the text has one, and only the answer learned."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alm_pipeline.alignment.ends import SideEdges
from alm_pipeline.alignment.stage import align_datasets, alignments_dataset
from alm_pipeline.config import SamplingConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.tokenization.stage import tokenize, tokens_dataset
from alm_pipeline.vocabulary.token_edges import token_edges
from storage.dataset import Dataset
from storage.schemas import ChunkKind, TokenKind
from tests.alm_pipeline.rollouts.conftest import WritingPair
from tests.alm_pipeline.rollouts.test_local_writer import MOST, write

SAMPLING = {kind: SamplingConfig(max_tokens=most, seed=1) for kind, most in MOST.items()}


def tokens_of(rollouts: Dataset, model: str) -> tuple[Dataset, list[dict[str, Any]]]:
    tokenizer = ModelReference(model).tokenizer
    tokens = tokens_dataset(rollouts, tokenizer, None)
    manifest = tokenize(rollouts, tokens, tokenizer, None)
    return tokens, [row for shard in range(len(manifest.shards)) for row in tokens.read_shard(shard).to_pylist()]


@pytest.mark.parametrize("writer", ["teacher", "student"])
@pytest.mark.parametrize("kind", ["texts", "talks"])
def test_both_sides_of_what_one_wrote(
    request: pytest.FixtureRequest, pair: WritingPair, writer: str, kind: str
) -> None:
    rows, _, rollouts = write(request.getfixturevalue(kind), getattr(pair, writer), SAMPLING[kind])
    sides = {side: tokens_of(rollouts, getattr(pair, side)) for side in ("teacher", "student")}
    ended = [row["finish_reason"] == "stop" for row in rows]
    assert set(ended) == {True, False}
    for side, (_, tokens) in sides.items():
        for row, encoded, is_ended in zip(rows, tokens, ended, strict=True):
            assert encoded["dropped"] is None
            assert sum(encoded["byte_lengths"] + encoded["uncovered_bytes"]) == len(row["text"].encode())
            if side == writer:
                assert encoded["token_ids"] == row["written_ids"]
            ends = [TokenKind.END_OF_TURN in kinds for kinds in (encoded["kinds"][-2:],)]
            assert ends == [is_ended]
            # what is learned begins where the writer began
            at = row["completion_at"]
            before = at if kind == "texts" else len(json.loads(row["messages"])[0]["content"].encode())
            assert encoded["turn_bytes"] == [before, len(row["text"].encode()) - before]
            assert encoded["roles"][-1] == "completion"


@pytest.mark.parametrize("kind", ["texts", "talks"])
def test_the_end_is_a_paired_position_that_is_learned(
    request: pytest.FixtureRequest, pair: WritingPair, kind: str
) -> None:
    rows, _, rollouts = write(request.getfixturevalue(kind), pair.student, SAMPLING[kind])
    teacher, student = (tokens_of(rollouts, model)[0] for model in pair)
    alignments = alignments_dataset(teacher, student, kind)
    edges = SideEdges(*(token_edges(ModelReference(model).tokenizer.view) for model in pair))
    align_datasets(teacher, student, alignments, edges)
    chunks = [row for shard in range(3) for row in alignments.read_shard(shard).to_pylist()]
    for row, aligned in zip(rows, chunks, strict=True):
        kinds, learned = np.array(aligned["kinds"]), np.array(aligned["assistant"])
        last = np.flatnonzero((kinds == ChunkKind.PAIRED) & learned)
        assert len(last) == (row["finish_reason"] == "stop")
        # nothing of the prompt is learned
        starts = np.cumsum(aligned["byte_lengths"]) - aligned["byte_lengths"]
        at = row["completion_at"] if kind == "texts" else len(json.loads(row["messages"])[0]["content"].encode())
        assert (starts[learned & (kinds == ChunkKind.CONTENT)] >= at).all()
        assert learned.any()


@pytest.mark.parametrize("kind", ["texts", "talks"])
def test_ids_that_encoding_would_change_are_kept(
    request: pytest.FixtureRequest, pair: WritingPair, kind: str, tmp_path: Path
) -> None:
    """A model may spell a word in other tokens than its tokenizer would: here, in single bytes."""
    _, _, rollouts = write(request.getfixturevalue(kind), pair.student, SAMPLING[kind])
    view = ModelReference(pair.student).tokenizer.view
    byte_ids = {view.spelling[id_]: id_ for id_ in np.flatnonzero(view.lengths == 1).tolist()}

    def in_bytes(ids: list[int]) -> list[int]:
        pieces = [[id_] if view.special[id_] else [byte_ids[bytes([b])] for b in view.spelling[id_]] for id_ in ids]
        return [id_ for piece in pieces for id_ in piece]

    table = rollouts.read_shard(0)
    spelled = [in_bytes(row) for row in table["written_ids"].to_pylist()]
    columns = {name: table[name] for name in table.column_names} | {"written_ids": spelled}
    other = Dataset(str(tmp_path), rollouts.kind, rollouts.label, rollouts.identity)
    record = rollouts.complete_manifest().shards[0]
    other.write_shard(0, columns, record.counts)
    other.finish(1)
    _, tokens = tokens_of(other, pair.student)
    assert [row["token_ids"] for row in tokens] == spelled
    assert all(row["dropped"] is None for row in tokens)
    assert [sum(row["byte_lengths"]) for row in tokens] == [len(text.encode()) for text in table["text"].to_pylist()]


def test_ids_that_spell_another_text_are_dropped(pair: WritingPair, texts: Dataset, tmp_path: Path) -> None:
    _, _, rollouts = write(texts, pair.student, SAMPLING["texts"])
    table = rollouts.read_shard(0)
    ids = table["written_ids"].to_pylist()
    ids[1] = ids[0]
    other = Dataset(str(tmp_path), rollouts.kind, rollouts.label, rollouts.identity)
    columns = {name: table[name] for name in table.column_names} | {"written_ids": ids}
    other.write_shard(0, columns, rollouts.complete_manifest().shards[0].counts)
    other.finish(1)
    tokens, rows = tokens_of(other, pair.student)
    assert [row["dropped"] for row in rows][:3] == [None, "tokens_spell_other_bytes", None]
    assert tokens.complete_manifest().dropped == {"tokens_spell_other_bytes": 1}
