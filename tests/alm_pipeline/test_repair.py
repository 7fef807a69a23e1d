"""Damaged data is written again, to the same bytes, from the manifests; nothing is lost if that is impossible."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from alm_pipeline import pipeline as pipeline_module
from alm_pipeline.config import AlmConfig, FilesSource, StudentConfig, TrainedTokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.repair import STAGES_OF_KIND, WRITTEN_BY, Repair, repair
from storage import dataset as dataset_module
from storage.columns import join_rows, list_rows
from storage.dataset import Dataset
from storage.folders import StoredFolder
from storage.upkeep.catalog import KINDS, Catalog
from storage.urls import file_sizes, join_url, overwrite, read_bytes, remove


@pytest.fixture(params=["disk", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path, memory: object, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))
    return str(tmp_path / "root") if request.param == "disk" else "memory://bucket/root"


def contents(root: str) -> dict[str, bytes | None]:
    """Return all files without training times, which differ between runs."""
    return {name: read_bytes(join_url(root, name)) for name in file_sizes(root) if "runs/" not in name}


def repair_all(root: str, checksums: bool = False, config: AlmConfig | None = None) -> list[Repair]:
    store = Catalog.open(root)
    return list(repair(store, list(store.entries), checksums, config))


def flip(url: str) -> None:
    content = bytearray(read_bytes(url) or b"")
    content[len(content) // 2] ^= 1
    overwrite(url, bytes(content))


def cached(config: AlmConfig, root: str) -> Pipeline:
    student = StudentConfig(model=config.student.model, tokenizer=TrainedTokenizer(vocab_size=320))
    made = Pipeline(config.model_copy(update={"student": student}), root)
    made.cache()
    return made


def test_everything_damaged_is_written_again_to_the_same_bytes(config: AlmConfig, root: str) -> None:
    pipeline = cached(config, root)
    assert pipeline.made_tokenizer
    assert repair_all(root) == []
    whole = contents(root)
    remove(pipeline.examples.shard_url(1))
    flip(pipeline.tokens("student").shard_url(0))
    overwrite(pipeline.alignments.record_url(1), b"{")
    remove(join_url(pipeline.made_tokenizer.url, "tokenizer.json"))
    # its configuration is taken from what was made from it
    remove(join_url(pipeline.tokens("teacher").url, "manifest.json"))
    # the scores' shards stay: they cost the most
    scores = pipeline.scores
    overwrite(join_url(scores.url, "shard-00009.parquet"), b"x")
    done = repair_all(root, checksums=True)
    assert [item.key.split("/")[0] for item in done] == [
        "tokenizers",
        "examples",
        "tokens",
        "tokens",
        "alignments",
        "teacher_scores",
    ]
    assert [(item.refused, item.remaining) for item in done] == [("", ())] * 6
    assert contents(root) == whole
    assert repair_all(root, checksums=True) == []


def test_only_the_damaged_shard_is_written(config: AlmConfig, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = cached(config, root)
    remove(pipeline.scores.shard_url(1))
    written: list[str] = []
    write_shard = Dataset.write_shard

    def watch(self: Dataset, shard: int, *arguments: object, **named: object) -> object:
        written.append(self.shard_url(shard))
        return write_shard(self, shard, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Dataset, "write_shard", watch)
    (done,) = repair_all(root)
    assert (written, done.remaining) == ([f"{pipeline.scores.url}/.again/shard-00001.parquet"], ())


def test_changed_bytes_are_reported(config: AlmConfig, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline(config, root)
    pipeline.shard()
    for again, changed in ((dataset_module.encode_parquet, False), (lambda table: b"of another Arrow", True)):
        remove(pipeline.examples.shard_url(1))
        monkeypatch.setattr(dataset_module, "encode_parquet", again)
        (done,) = repair_all(root)
        assert (done.remaining, done.changed) == ((), changed)


def test_a_damaged_student_is_trained_again(config: AlmConfig, tmp_path: Path) -> None:
    pipeline = Pipeline(config, str(tmp_path))
    pipeline.run()
    whole = contents(pipeline.student.url)
    flip(join_url(pipeline.student.url, "model.safetensors"))
    assert repair_all(str(tmp_path)) == []
    (done,) = repair_all(str(tmp_path), checksums=True)
    assert (done.refused, done.remaining) == ("", ())
    assert contents(pipeline.student.url) == whole


def test_a_student_in_a_bucket_comes_back_from_this_machines_copy(
    config: AlmConfig, memory: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))
    root = "memory://bucket/root"
    pipeline = Pipeline(config, root)
    pipeline.run()
    whole = contents(root)
    remove(join_url(pipeline.student.url, "model.safetensors"))
    with monkeypatch.context() as patch:
        patch.delattr("alm_pipeline.training.stage.train")
        (done,) = repair_all(root)
    assert (done.remaining, contents(root)) == ((), whole)
    # with a copy that differs, it is trained again
    (pipeline.student.path / "model.safetensors").write_bytes(b"other")
    remove(join_url(pipeline.student.url, "model.safetensors"))
    (done,) = repair_all(root)
    assert (done.remaining, contents(root)) == ((), whole)


@pytest.mark.bad_input
@pytest.mark.parametrize(("column", "value"), [("logprobs", np.nan), ("boundary_logprobs", np.inf)])
def test_scores_that_are_not_finite_are_scored_again(
    config: AlmConfig, tmp_path: Path, column: str, value: float
) -> None:
    """Their checksums are right: an earlier version stored them."""
    root = str(tmp_path)
    scores = cached(config, root).scores
    whole, shards, record = contents(root), len(scores.complete_manifest().shards), scores.required_records([0])[0]
    table = scores.read_shard(0)
    rows = [row.copy() for row in list_rows(table[column])]
    rows[0][1] = value
    for url in (join_url(scores.url, "manifest.json"), scores.record_url(0), scores.shard_url(0)):
        remove(url)
    columns = {name: table[name] for name in table.column_names} | {column: join_rows(rows, pa.float32())}
    scores.write_shard(0, columns, counts=record.counts)
    scores.finish(shards)
    assert repair_all(root) == []
    (done,) = repair_all(root, checksums=True)
    assert f"token 1: the log-probability{' of a boundary' if value > 0 else ''} is {value}" in done.damages[0].problem
    assert (done.refused, done.remaining, contents(root)) == ("", (), whole)


def refused(root: str, config: AlmConfig | None = None) -> str:
    """Return the reason, after checking that nothing was removed."""
    before = contents(root)
    (done,) = repair_all(root, config=config)
    assert done.remaining == done.damages
    assert contents(root) == before
    return done.refused


def test_another_corpus_is_refused(config: AlmConfig, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": f"The fox {k}."}) + "\n" for k in range(9)))
    corpus = config.corpus.model_copy(update={"source": FilesSource(urls=(str(file),))})
    pipeline = Pipeline(config.model_copy(update={"corpus": corpus}), str(tmp_path / "root"))
    pipeline.shard()
    remove(pipeline.examples.shard_url(0))
    whole = file.read_text()
    file.write_text(whole.replace("fox", "dog"))
    assert "its configuration now makes another dataset: the corpus" in refused(str(tmp_path / "root"))
    file.unlink()
    assert "texts.jsonl" in refused(str(tmp_path / "root"))
    file.write_text(whole)
    (done,) = repair_all(str(tmp_path / "root"))
    assert done.remaining == ()


def test_an_unknown_configuration_is_requested(config: AlmConfig, root: str) -> None:
    pipeline = Pipeline(config, root)
    pipeline.shard()
    remove(join_url(pipeline.examples.url, "manifest.json"))
    assert "no manifest records the configuration" in refused(root)
    other = config.model_copy(update={"corpus": config.corpus.model_copy(update={"max_bytes": 100})})
    assert "now makes another dataset" in refused(root, other)
    (done,) = repair_all(root, config=config)
    assert done.remaining == ()


def test_a_missing_input_is_reported_before_anything_is_removed(config: AlmConfig, root: str) -> None:
    pipeline = Pipeline(config, root)
    pipeline.shard()
    pipeline.tokenize("teacher")
    remove(pipeline.tokens("teacher").shard_url(0))
    remove(pipeline.examples.url)
    assert f"was made from examples/{pipeline.examples.name}, which no longer exists" in refused(root)


def test_a_foreign_file_is_not_included_in_a_student(config: AlmConfig, tmp_path: Path) -> None:
    pipeline = cached(config, str(tmp_path))
    tokenizer = pipeline.made_tokenizer
    assert isinstance(tokenizer, StoredFolder)
    remove(join_url(tokenizer.url, "tokenizer.json"))
    overwrite(join_url(tokenizer.url, "mine.txt"), b"x")
    assert "mine.txt: does not belong to the folder" in refused(str(tmp_path))


def test_a_killed_repair_is_resumed(config: AlmConfig, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline(config, root)
    pipeline.shard()
    whole = contents(root)
    remove(pipeline.examples.shard_url(1))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline_module, "write_examples", killed)
        with pytest.raises(KeyboardInterrupt):
            repair_all(root)
    # what was there is: the manifest, and the shards that are whole
    assert pipeline.examples.manifest()
    assert pipeline.examples.read_shard(0).num_rows
    (done,) = repair_all(root)
    assert done.remaining == ()
    assert contents(root) == whole


@pytest.mark.parametrize("damage", [lambda url: remove(url), lambda url: overwrite(url, b"{")])
def test_a_lost_manifest_is_written_from_the_records(
    config: AlmConfig, root: str, damage: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(config, root)
    pipeline.shard()
    pipeline.tokenize("teacher")
    whole = contents(root)
    damage(join_url(pipeline.examples.url, "manifest.json"))
    monkeypatch.delattr(Dataset, "write_shard")
    (done,) = repair_all(root)
    assert done.remaining == ()
    assert contents(root) == whole


def test_every_kind_has_a_stage_that_writes_it() -> None:
    assert sorted([*STAGES_OF_KIND, *WRITTEN_BY]) == sorted(KINDS)


def test_another_format_is_reported_and_not_touched(config: AlmConfig, root: str) -> None:
    pipeline = Pipeline(config, root)
    pipeline.shard()
    url = join_url(pipeline.examples.url, "manifest.json")
    overwrite(url, json.dumps(json.loads(read_bytes(url) or b"") | {"format_version": 1}).encode())
    before = contents(root)
    (done,) = repair_all(root)
    assert (done.refused, contents(root)) == ("", before)
    assert [damage.problem[:23] for damage in done.remaining] == ["was written in format 1"]
