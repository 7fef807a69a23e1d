"""Pair biases in the store: counted over all shards, computed once, and repaired like other datasets."""

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from alm_pipeline.config import AlmConfig
from alm_pipeline.objective.chunking import pair_bias_stage as stage
from alm_pipeline.objective.chunking.pair_bias import pair_biases
from alm_pipeline.objective.chunking.pair_bias_stage import chunk_end_pairs, read_pair_biases, token_counts
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.repair import repair
from storage.dataset import Dataset
from storage.schemas import ChunkKind, TokenKind
from storage.upkeep.catalog import Catalog
from storage.upkeep.lineage_notes import highlights
from storage.upkeep.prune import find_waste
from storage.upkeep.verify import verify
from storage.urls import join_url, overwrite, read_bytes, remove


@pytest.fixture(params=["disk", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path, memory: object, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))
    return str(tmp_path / "root") if request.param == "disk" else "memory://bucket/root"


@pytest.fixture
def pipeline(config: AlmConfig, root: str) -> Pipeline:
    """Complete except for the scores."""
    objective = config.objective.model_copy(update={"chunking": "pair_bias"})
    made = Pipeline(config.model_copy(update={"objective": objective}), root)
    made.shard()
    made.tokenize("teacher")
    made.tokenize("student")
    made.align()
    made.pair_biases()
    return made


def datasets(pipeline: Pipeline) -> dict[str, Dataset]:
    sides = {f"{side}_tokens": pipeline.tokens(side) for side in ("teacher", "student")}  # type: ignore[arg-type]
    return {**sides, "alignments": pipeline.alignments}


def rows(dataset: Dataset) -> list[dict[str, list[int]]]:
    shards = range(len(dataset.complete_manifest().shards))
    return [row for shard in shards for row in dataset.read_shard(shard).to_pylist()]


def test_tokens_of_all_shards_are_counted_without_scaffold(pipeline: Pipeline) -> None:
    tokens = pipeline.tokens("teacher")
    expected = Counter(
        id_
        for row in rows(tokens)
        for id_, kind in zip(row["token_ids"], row["kinds"], strict=True)
        if kind == TokenKind.CONTENT
    )
    counts = token_counts(tokens)
    assert {id_: int(counts[id_]) for id_ in np.flatnonzero(counts)} == expected
    assert expected.total() < tokens.complete_manifest().counts["tokens"]  # <bos> is not counted


def test_pairs_at_the_ends_of_content_chunks(pipeline: Pipeline) -> None:
    sides = ("teacher_tokens", "student_tokens")
    expected = set()
    for teacher, student, chunks in zip(*map(rows, datasets(pipeline).values()), strict=True):
        ends = [np.cumsum(chunks[side]).tolist() for side in sides]
        for t, s, kind in zip(*ends, chunks["kinds"], strict=True):
            if kind == ChunkKind.CONTENT:
                expected.add((teacher["token_ids"][t - 1], student["token_ids"][s - 1]))
    pairs = chunk_end_pairs(datasets(pipeline))
    assert list(zip(pairs.teacher_ids.tolist(), pairs.student_ids.tolist(), strict=True)) == sorted(expected)


def test_what_is_stored_is_what_was_computed(pipeline: Pipeline) -> None:
    folder = pipeline.stored_pair_biases
    assert folder
    found = read_pair_biases(folder)
    tokenizers = [pipeline.tokenizer(side).fast for side in ("teacher", "student")]  # type: ignore[arg-type]
    counts = [token_counts(pipeline.tokens(side)) for side in ("teacher", "student")]  # type: ignore[arg-type]
    expected = pair_biases(tokenizers[0], tokenizers[1], counts[0], counts[1], chunk_end_pairs(datasets(pipeline)))
    for column, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(column, other)
    assert 0 < found.at_most(0.0, *found[:2]).sum() < len(found.teacher_ids)


def test_the_table_is_read_without_this_project(pipeline: Pipeline) -> None:
    folder = pipeline.stored_pair_biases
    assert folder
    table = pl.read_parquet(folder.fetch() / "pair_biases.parquet")
    assert table.schema == {
        "teacher_id": pl.Int32,
        "student_id": pl.Int32,
        "towards_teacher": pl.Float32,
        "towards_student": pl.Float32,
    }
    assert table.equals(table.sort("teacher_id", "student_id"))


def test_biases_are_computed_once(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(stage, "pair_biases")
    manifest = pipeline.pair_biases()
    assert manifest == Pipeline(pipeline.config, pipeline.root).pair_biases()
    assert manifest
    assert manifest.results["pairs"] > manifest.results["pairs_within"]["0.0"] > 0


def test_other_chunkings_need_none(config: AlmConfig, tmp_path: Path) -> None:
    pipeline = Pipeline(config, str(tmp_path))
    assert pipeline.stored_pair_biases is None
    assert pipeline.pair_biases() is None


def test_the_store_knows_what_they_were_made_from(pipeline: Pipeline) -> None:
    assert pipeline.stored_pair_biases
    store, key = Catalog.open(pipeline.root), f"pair_biases/{pipeline.stored_pair_biases.name}"
    assert store.inputs(key) == {"alignments": f"alignments/{pipeline.alignments.name}"}
    node = store.lineage(key)
    assert [made_from.role for made_from in node.inputs] == ["alignments"]
    assert highlights(node) == []
    # waste like the alignments, because no student was made from either
    assert key in {item.url.removeprefix(f"{store.root}/") for item in find_waste(store, before=4e9)}


def test_damaged_files_are_computed_again(pipeline: Pipeline) -> None:
    folder = pipeline.stored_pair_biases
    assert folder
    url, key = join_url(folder.url, "pair_biases.parquet"), f"pair_biases/{folder.name}"
    whole = read_bytes(url)
    assert whole
    assert verify(folder.url, checksums=True) == []
    overwrite(url, b"x" * len(whole))
    (finding,) = verify(folder.url, checksums=True)
    assert "is damaged" in finding.problem
    (done,) = repair(Catalog.open(pipeline.root), [key], checksums=True)
    assert (done.refused, done.remaining, read_bytes(url)) == ("", (), whole)
    remove(url)
    remove(str(folder.path / "pair_biases.parquet"))
    (done,) = repair(Catalog.open(pipeline.root), [key])
    assert (done.refused, done.remaining, read_bytes(url)) == ("", (), whole)
