"""The command `alm`: what it prints, and that it reports mistakes without a traceback."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

import flows.alm
from alm_pipeline.config import AlmConfig
from alm_pipeline.models.tokenizer import load_tokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.recipes.overrides import Overrides, configure
from flows.cli import app as app_module
from flows.cli import check
from flows.cli.app import _ask_for_student, app
from flows.execution import embedded
from storage.errors import UserError


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def error_of(*arguments: str) -> str:
    result = command(*arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.stderr
    return result.stderr


def test_a_configuration_file_is_checked_field_by_field(tmp_path: Path) -> None:
    content = yaml.safe_load(command("show", "transfer").stdout)
    content["objective"]["gama"] = 0.2
    content["train"]["steps"] = "many"
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content))
    error = error_of("show", str(file))
    assert "mine.yaml" in error
    assert "objective.gama" in error
    assert "train.steps" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["show", "nonsense"],
            "not a recipe, and not the name of a YAML or JSON file; there are distill, draft, transfer",
        ),
        (["show", "missing.yaml"], "missing.yaml: can't be read"),
        (["list", "nothing-here"], "contains no datasets"),
        (["describe", "nothing-here"], "`alm list ROOT` lists what is stored"),
        (["inspect", "nothing-here"], "not a complete dataset"),
        (["run", "transfer", "--set", "train.steps"], "write FIELD=VALUE"),
        (["run", "transfer", "--set", "train.stepz=3"], "train.stepz"),
        (["describe", "no-such-protocol[x]://here"], "no-such-protocol[x]"),
        (["list", "no-such-protocol[x]://here"], "no-such-protocol[x]"),
    ],
)
def test_mistakes_are_reported(arguments: list[str], message: str) -> None:
    assert message in error_of(*arguments)


def test_overrides_reach_the_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def fake_alm(**parameters: Any) -> None:
        calls.append(parameters)
        raise UserError("not run")

    monkeypatch.setattr(flows.alm, "alm", fake_alm)
    monkeypatch.setattr(embedded, "prepare", lambda: None)
    monkeypatch.setattr(embedded, "use_server", lambda: None)
    monkeypatch.setattr(app_module, "log_to_stderr", lambda: None)
    monkeypatch.setattr(check, "require_ready", lambda *_: None)
    options = ["--teacher", "T", "--steps", "7", "--learning-rate", "1e-3", "--set", "train.seed=5"]
    assert "not run" in error_of("run", "maths", "--storage", str(tmp_path), "--until", "scores", *options)
    changed = configure("maths", Overrides(teacher="T", steps=7, learning_rate=1e-3, settings={"train.seed": 5}))
    assert calls == [{"config": changed, "storage": str(tmp_path), "until": "scores"}]


def test_describe_and_inspect(config: AlmConfig, tmp_path: Path) -> None:
    pipeline = Pipeline(config, str(tmp_path))
    pipeline.shard()
    assert "80 examples" in command("list", str(tmp_path)).stdout
    for side in ("teacher", "student"):
        pipeline.tokenize(side)  # type: ignore[arg-type]
    pipeline.align()
    listing = command("list", str(tmp_path)).stdout
    assert "alignments" in listing
    described = yaml.safe_load(command("describe", pipeline.alignments.url).stdout)
    assert described["counts"]["aligned_bytes"] == pipeline.shard().counts["text_bytes"]
    pipeline.run()
    assert "bits per byte before " in command("list", str(tmp_path)).stdout
    student = yaml.safe_load(command("describe", pipeline.student.url).stdout)
    assert "model.safetensors" in student["files"]
    shown = command("inspect", pipeline.alignments.url, "--chunks", "5")
    assert shown.exit_code == 0, shown.output
    assert "5 of" in shown.stdout
    assert "The" in shown.stdout


def test_again_trains_the_student_again_and_keeps_the_caches(config: AlmConfig, tmp_path: Path) -> None:
    pipeline = Pipeline(config, str(tmp_path))
    first = pipeline.run()
    assert not pipeline.student.is_to_be_replaced
    weights = (pipeline.student.path / "model.safetensors").stat().st_ino
    _ask_for_student(config, str(tmp_path))
    assert pipeline.student.manifest() == first
    assert pipeline.scores.manifest() is not None
    assert pipeline.train() == first
    assert (pipeline.student.path / "model.safetensors").stat().st_ino != weights
    assert not pipeline.student.is_to_be_replaced


def test_byte_level_writes_a_tokenizer_once(tmp_path: Path, gemma_folder: str) -> None:
    result = command("byte-level", gemma_folder, str(tmp_path / "bytes"))
    assert result.exit_code == 0, result.output
    assert "bytes: 262 tokens, 6 of them special tokens" in result.stdout.replace("\n", "")
    assert len(load_tokenizer(str(tmp_path / "bytes"))) == 262
    assert "name a new folder" in error_of("byte-level", gemma_folder, str(tmp_path / "bytes"))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "arguments",
    [
        ["byte-level", "{tokenizer}", "https://u:hunter2@host/out"],
        ["transfer", "{tokenizer}", "{tokenizer}", "s3://bucket/out?sig=hunter2"],
    ],
    ids=["byte-level", "transfer"],
)
def test_a_new_folder_is_no_url(
    arguments: list[str], config: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = command(*[part.format(tokenizer=config.teacher) for part in arguments])
    assert result.exit_code == 1
    assert "a URL; name a local folder" in result.stderr
    assert "hunter2" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["list", "describe", "inspect"])
def test_a_server_that_is_away_is_no_traceback(name: str) -> None:
    result = command(name, "ftp://u:hunter2@127.0.0.1:9/tokens/x")
    assert result.exit_code == 1
    assert "Connection refused" in result.stderr
    assert "run the same command again" in result.stderr
    assert "hunter2" not in result.stderr
