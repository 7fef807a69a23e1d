"""A hypernetwork among the other things of a store, and from the command line; a run that begins from it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

from alm_pipeline.config import AlmConfig, StudentConfig
from alm_pipeline.hypernetwork.stage import HypernetPipeline
from alm_pipeline.hypernetwork.training import HypernetTraining
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.repair import repair
from alm_pipeline.transfer.zero_step import transfer
from flows.cli.app import app
from storage.errors import UserError
from storage.upkeep.catalog import Catalog
from storage.upkeep.lineage_notes import highlights
from storage.upkeep.prune import _unused
from storage.urls import file_sizes, join_url, overwrite
from tests.alm_pipeline.hypernetwork.test_training import Killed, small


@pytest.fixture(scope="module")
def made(config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> HypernetPipeline:
    root = tmp_path_factory.mktemp("hypernet") / "data"
    pipeline = HypernetPipeline(small(config, objective={"terms": {"alm": 1, "sft": 1}}), str(root))
    pipeline.run()
    return pipeline


def test_a_run_begins_from_it(made: HypernetPipeline, config: AlmConfig, gemma_folder: str) -> None:
    network = made.hypernetwork.url
    settings = {"initialization": "hypernetwork", "hypernetwork": network, "tokenizer": gemma_folder}
    student = StudentConfig(model=config.student.model, **settings)  # type: ignore[arg-type]
    run = Pipeline(config.model_copy(update={"student": student}), made.root)
    results = run.run().results
    assert results["initialization"]["predicted"] > 20
    assert results["level"]
    plain = student.model_copy(update={"initialization": "fvt", "hypernetwork": None})
    fvt = Pipeline(config.model_copy(update={"student": plain}), made.root)
    assert fvt.scores.name == run.scores.name
    assert fvt.student.name != run.student.name


def test_a_store_keeps_it(made: HypernetPipeline) -> None:
    catalog = Catalog.open(made.root)
    key = f"hypernetworks/{made.hypernetwork.name}"
    inputs = catalog.inputs(key)
    assert set(inputs) == {"examples", "teacher_tokens", "scores", "substrings"}
    assert all(name in catalog.entries for name in inputs.values())
    assert key not in {item.url.removeprefix(f"{made.root}/") for item in _unused(catalog, 2**40)}
    lines = highlights(catalog.lineage(key))
    assert lines[0] == f"for: {made.config.model}"
    assert any("low_rank" in line for line in lines)
    shown = CliRunner().invoke(app, ["list", made.root, "--json"])
    assert {"substrings", "hypernetworks"} <= {row["kind"] for row in json.loads(shown.stdout)["folders"]}


def test_a_damaged_one_is_found_and_says_how_to_make_it_again(config: AlmConfig, tmp_path: Path) -> None:
    made = HypernetPipeline(small(config), str(tmp_path / "data"))
    before = made.run()
    overwrite(f"{made.hypernetwork.url}/model.safetensors", b"")
    catalog = Catalog.open(made.root)
    (found,) = repair(catalog, list(catalog.entries))
    assert "and the same `alm hypernet` write it again" in found.refused
    assert CliRunner().invoke(app, ["delete", made.hypernetwork.url]).exit_code == 0
    assert HypernetPipeline(made.config, made.root).run() == before


def test_the_command_prints_what_came_out(made: HypernetPipeline, tmp_path: Path) -> None:
    file = tmp_path / "hypernet.yaml"
    file.write_text(yaml.safe_dump(made.config.model_dump(mode="json")))
    result = CliRunner().invoke(app, ["hypernet", str(file), "--storage", made.root, "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["hypernetwork"] == made.hypernetwork.url
    (row,) = document["tokenizers"]
    table = CliRunner().invoke(app, ["hypernet", str(file), "--storage", made.root])
    assert f"{row['fvt']:.4f}" in table.stdout
    for url in (made.hypernetwork.url, made.stored_substrings.url):
        assert CliRunner().invoke(app, ["describe", url]).exit_code == 0
        assert CliRunner().invoke(app, ["head", url]).exit_code == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("corpus: {name: x}\nmodel: m\nmodle: n", "modle: no such setting; did you mean model"),
        ("model: m", "corpus: is missing"),
        ("corpus: [", "can't be read as YAML"),
    ],
)
def test_a_wrong_file_is_refused_by_line_or_field(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "hypernet.yaml"
    file.write_text(text)
    result = CliRunner().invoke(app, ["hypernet", str(file)])
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert str(file) in result.stderr.replace("\n", "")


def test_another_machine_goes_on_from_the_checkpoint_in_a_bucket(
    config: AlmConfig,
    gemma_folder: str,
    memory: MemoryFileSystem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, chosen = f"memory://{tmp_path.name}", small(config)
    whole = HypernetPipeline(chosen, str(tmp_path / "whole"))
    expected = whole.run()
    steps, original = list[int](), HypernetTraining._step

    def dies_late(self: HypernetTraining, *arguments: Any) -> dict[str, Any]:
        steps.append(1)
        if len(steps) == 4:  # after the checkpoint of step 2
            raise Killed
        return original(self, *arguments)

    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "first machine"))
    with monkeypatch.context() as patched:
        patched.setattr(HypernetTraining, "_step", dies_late)
        with pytest.raises(Killed):
            HypernetPipeline(chosen, root).run()
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "second machine"))
    resumed = HypernetPipeline(chosen, root)
    assert not resumed.hypernetwork.path.exists()
    assert resumed.run() == expected
    assert len(file_sizes(join_url(resumed.hypernetwork.url, "checkpoints"))) == 0
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "third machine"))
    setting = {"initialization": "hypernetwork", "hypernetwork": resumed.hypernetwork.url}
    counts, _ = transfer(config.student.model, gemma_folder, tmp_path / "moved", **setting)  # type: ignore[arg-type]
    assert counts["predicted"] > 20


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": {"held_out": 0.0}}, r"corpus\.held_out: is 0"),
        ({"teacher": "/nowhere"}, "teacher: is not used, as the objective has no term alm"),
    ],
    ids=["held_out", "teacher"],
)
def test_what_decides_nothing_or_stops_the_training_is_refused_first(
    config: AlmConfig, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    chosen = small(config)
    corpus = chosen.corpus.model_copy(update=changes.pop("corpus", {}))
    made = HypernetPipeline(chosen.model_copy(update={**changes, "corpus": corpus}), str(tmp_path / "data"))
    with pytest.raises(UserError, match=message):
        made.run()
    assert not (tmp_path / "data").exists()
