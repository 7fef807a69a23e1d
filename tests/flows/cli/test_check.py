"""`alm check`, and the same checks at the beginning of `alm run`, before a server starts."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from alm_pipeline.config import AlmConfig
from flows.cli.app import app
from flows.execution import embedded


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def file(config: AlmConfig, tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    content = config.model_dump(mode="json")
    content["corpus"]["held_out"] = 0.5
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_sound_configuration_is_ready(file: str, tmp_path: Path) -> None:
    result = command("check", file, "--storage", str(tmp_path / "data"))
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("ready to run: 0 errors, 0 warnings, checked in ")
    assert not (tmp_path / "data").exists()


@pytest.mark.bad_input
def test_all_findings_are_printed(file: str, tmp_path: Path) -> None:
    options = ["--corpus", "no/file.jsonl", "--teacher", "no/such", "--set", "train.freeze=[none]"]
    result = command("check", file, "--storage", str(tmp_path / "data"), *options)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line for line in lines if not line.startswith("  ")] == [
        "error: teacher: no/such",
        "error: corpus.source.urls: no/file.jsonl",
        "error: train.freeze: none",
    ]
    assert "  no file matches no/file.jsonl in corpus.source.urls; check the path and the pattern" in lines
    assert result.stderr == "3 errors, 0 warnings: this run would stop\n"


@pytest.mark.bad_input
def test_a_warning_is_no_error(file: str, tmp_path: Path) -> None:
    result = command("check", file, "--storage", str(tmp_path / "data"), "--set", "corpus.held_out=0.1")
    assert result.exit_code == 0
    assert result.stdout.startswith("warning: corpus.held_out: 0.1\n  only ")
    assert "ready to run: 0 errors, 1 warning" in result.stdout


@pytest.mark.bad_input
def test_findings_as_json(file: str, tmp_path: Path) -> None:
    options = ["--set", "train.lora={targets: [none]}", "--json"]
    result = command("check", file, "--storage", str(tmp_path / "data"), *options)
    assert result.exit_code == 1
    (found,) = json.loads(result.stdout)["findings"]
    assert found["field"] == "train.lora.targets"
    assert found["value"] == "none"
    assert found["severity"] == "error"
    assert found["sentence"].startswith(found["problem"])
    assert found["sentence"].endswith(found["fix"])


def test_only_what_is_run_is_checked(file: str, tmp_path: Path) -> None:
    options = ["--storage", str(tmp_path / "data"), "--set", "corpus.held_out=0"]
    assert command("check", file, *options).exit_code == 1
    assert command("check", file, *options, "--until", "scores").exit_code == 0


@pytest.mark.bad_input
def test_a_run_is_checked_before_a_server_starts(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[None] = []
    monkeypatch.setattr(embedded, "prepare", lambda: None)
    monkeypatch.setattr(embedded, "use_server", lambda: started.append(None))
    options = ["--storage", str(tmp_path / "data"), "--teacher", "no/such", "--set", "corpus.held_out=0"]
    result = command("run", file, *options)
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "error: 2 problems would stop this run:\n- teacher: no/such\n  no/such: not a local"
    )
    assert "- corpus.held_out: 0.0\n" in result.stderr
    assert started == []
    assert not (tmp_path / "data").exists()
