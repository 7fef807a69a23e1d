"""The commands that maintain a store, on one that a tiny run wrote."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from alm_pipeline.config import AlmConfig
from alm_pipeline.pipeline import Pipeline
from flows.cli.app import app


def command(*arguments: object) -> Result:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def output(*arguments: object) -> str:
    result = command(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def error_of(*arguments: object) -> str:
    result = command(*arguments)
    assert result.exit_code == 1, result.output
    return result.stderr.replace("\n", "")


@pytest.fixture
def pipeline(config: AlmConfig, tmp_path: Path) -> Pipeline:
    finished = Pipeline(config, str(tmp_path))
    finished.run()
    return finished


def test_a_store_is_listed(pipeline: Pipeline) -> None:
    Path(pipeline.alignments.url, "manifest.json").unlink()
    lines = output("list", pipeline.root).splitlines()
    assert len([line for line in lines if " complete " in line]) == 6
    assert [pipeline.alignments.name in line for line in lines if "not complete" in line] == [True]
    size = sum(file.stat().st_size for file in Path(pipeline.root).rglob("*") if file.is_file())
    assert lines[-1] == f"6 datasets and folders, {size / 1e6:,.2f} MB"
    assert "80 examples" in output("list", pipeline.root)


def test_problems_are_reported_and_repaired(pipeline: Pipeline) -> None:
    assert "6 datasets and folders" in output("verify", pipeline.root)
    shard = Path(pipeline.tokens("teacher").shard_url(1))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "no problems" in output("verify", pipeline.root)
    assert "no problems" in output("verify", pipeline.scores.url, "--checksums")
    for place in (pipeline.root, pipeline.tokens("teacher").url):
        verified = command("verify", place, "--checksums")
        assert verified.exit_code == 1
        assert "is damaged" in verified.stdout
        assert f"alm repair {place} --checksums" in verified.stdout
    assert f"{pipeline.tokens('teacher').name}: repaired, with the same bytes" in output(
        "repair", pipeline.root, "--checksums"
    )
    assert shard.read_bytes() == whole
    assert "no problems" in output("repair", pipeline.root, "--checksums")


def test_repairs_are_also_json(pipeline: Pipeline) -> None:
    Path(pipeline.alignments.shard_url(0)).unlink()
    damaged = json.loads(command("verify", pipeline.root, "--json").stdout)
    assert [row["url"] for row in damaged["damages"]] == [pipeline.alignments.shard_url(0)]
    assert damaged["damages"][0]["fix"] == "alm repair"
    (repaired,) = json.loads(output("repair", pipeline.root, "--json"))["repairs"]
    assert (repaired["folder"], repaired["is_repaired"]) == (f"alignments/{pipeline.alignments.name}", True)
    assert repaired["damages"] == damaged["damages"]
    assert json.loads(output("verify", pipeline.root, "--json"))["damages"] == []


def test_what_is_not_repaired_is_reported(pipeline: Pipeline) -> None:
    Path(pipeline.root, "examples", pipeline.examples.name, "notes.txt").write_text("mine")
    Path(pipeline.student.url, "manifest.json").unlink()
    result = command("repair", pipeline.root)
    assert result.exit_code == 1
    assert "by hand" in result.stdout
    assert "not repaired:" in result.stderr


def test_a_lineage_is_a_tree_down_to_the_corpus(pipeline: Pipeline, corpus_url: str) -> None:
    tree = " ".join(output("lineage", pipeline.student.url).replace("│", "").split())
    assert tree.startswith(f"students/{pipeline.student.name} ")
    for line in (
        f"corpus: format auto, kind files, urls {corpus_url}",
        f"teacher: {pipeline.config.teacher}",
        f"from: {pipeline.config.student.model}",
        f"tokenizer: {pipeline.config.student.model}",
        "gamma 0.1",
        "student after",
        "transformers",
    ):
        assert line in tree
    # once, since all were made by the same
    assert tree.count("made by:") == 1
    for cache in pipeline.caches.values():
        assert f"{cache.kind}/{cache.name} 80 rows, " in tree
    assert "as above" in tree


def test_pruning_deletes_only_with_apply(pipeline: Pipeline) -> None:
    leftover = Path(pipeline.scores.url, ".shard-00000.parquet.0123abcd.tmp")
    leftover.write_bytes(b"x" * 50_000)
    assert "--apply deletes 0" in output("prune", pipeline.root)
    os.utime(leftover, (0, 0))
    assert "--apply deletes 1 and frees 0.05 MB" in output("prune", pipeline.root)
    assert leftover.exists()
    assert "1 deleted, 0.05 MB freed" in output("prune", pipeline.root, "--apply")
    assert not leftover.exists()
    assert "--apply deletes 0" in output("prune", pipeline.root, "--older-than", 0, "--unused", "--incomplete")


def test_pruning_deletes_what_took_computing_only_when_asked(pipeline: Pipeline) -> None:
    output("delete", pipeline.student.url)
    pruned = ("prune", pipeline.root, "--older-than", 0)
    assert "with --unused" in output(*pruned)
    assert "0 deleted" in output(*pruned, "--apply")
    Path(pipeline.scores.url, "manifest.json").unlink()
    assert "with --incomplete" in output(*pruned)
    assert f"teacher_scores/{pipeline.scores.name}: is not complete" in error_of(*pruned, "--unused", "--apply")
    assert "1 deleted" in output(*pruned, "--incomplete", "--apply")
    assert "4 deleted" in output(*pruned, "--unused", "--apply")
    assert "contains no datasets" in error_of("list", pipeline.root)


def test_what_others_were_made_from_is_deleted_only_by_force(pipeline: Pipeline) -> None:
    error = error_of("delete", pipeline.tokens("teacher").url)
    for user in (pipeline.alignments, pipeline.scores, pipeline.student):
        assert f"{user.kind}/{user.name}" in error
    assert pipeline.tokens("teacher").manifest()
    assert "deleted" in output("delete", pipeline.tokens("teacher").url, "--force")
    assert "no longer exists" in output("lineage", pipeline.student.url)


@pytest.mark.parametrize("name", ["list", "verify", "repair", "lineage", "prune", "delete"])
def test_a_place_without_a_store_is_reported(name: str) -> None:
    assert "alm" in error_of(name, "nothing-here")
    if name not in ("list", "prune"):
        assert "contains no datasets" in error_of(name, "nothing-here/tokens/none")
