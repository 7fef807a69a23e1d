"""A column that is missing in texts which are not the run's corpus: the message names what sets it there."""

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from alm_pipeline.config import AlmConfig, CorpusConfig
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.preflight.checks.registry import preflight
from flows.cli.app import app

FOUND = "; it has 'title', 'body'. "
BY_OPTION = "Set --text (a flow's parameter `text`) to one of these, or to a template of them."
ARGUMENTS = {
    "compare": ["{model}", "--corpus", "{file}"],
    "acceptance": ["{model}", "{model}", "--corpus", "{file}"],
    "tokenizers": ["{model}", "{other}", "--corpus", "{file}"],
    "transfer": ["{model}", "{other}", "out", "--corpus", "{file}"],
    "contamination": ["{config}", "--questions", "{file}"],
    "calibrate": ["{model}", "--corpus", "{file}"],
}
RUNS_OWN = {"init"}
"""whose --text is the run's corpus.text"""

pytestmark = pytest.mark.bad_input


def test_every_command_with_the_option_is_here() -> None:
    commands = get_command(app).commands.items()  # type: ignore[attr-defined]
    having = {name for name, command in commands if any(option.name == "text" for option in command.params)}
    assert having - RUNS_OWN == set(ARGUMENTS)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"title": f"What is {k}?", "body": f"It is {k}."}) + "\n" for k in range(9)))
    return str(path)


def refused(arguments: list[str], config: AlmConfig, file: str, folder: Path) -> str:
    (folder / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    values = {"model": config.teacher, "other": config.student.model, "file": file, "config": str(folder / "run.yaml")}
    failed = CliRunner().invoke(app, [argument.format(**values) for argument in arguments])
    assert failed.exit_code == 1, failed.output
    return re.sub(r"\s+", " ", failed.output)


@pytest.mark.parametrize("command", ARGUMENTS)
def test_a_command_names_its_option(
    command: str, config: AlmConfig, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused([command, *ARGUMENTS[command]], config, file, tmp_path)
    assert f"{file} has no column " in message
    assert FOUND + BY_OPTION in message
    assert "corpus." not in message.partition(" has no column ")[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["--demonstrations", "pairs.jsonl", "--control", "{file}"],
            "Set evaluation.control_text (--control-text) to one of these, or to a template of them.",
            id="control",
        ),
        pytest.param(
            ["--demonstrations", "{file}"],
            "Name its columns with demonstrations.prompt, .positive, .negative or .choices.",
            id="demonstrations",
        ),
    ],
)
def test_an_edit_names_its_settings(
    config: AlmConfig, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    pair = {"prompt": "It was", "positive": " good", "negative": " bad"}
    Path("pairs.jsonl").write_text("".join(json.dumps(pair | {"prompt": f"{k} was"}) + "\n" for k in range(9)))
    assert message in refused(["edit", "{model}", "out", *arguments], config, file, tmp_path)


def test_questions_to_leave_out_name_their_setting(config: AlmConfig, file: str, tmp_path: Path) -> None:
    corpus = CorpusConfig.model_validate({**config.texts.model_dump(), "decontaminate": {"questions": [file]}})
    pipeline = Pipeline(config.model_copy(update={"corpus": corpus}), str(tmp_path / "store"))
    (found,) = [item for item in preflight(pipeline._inputs()) if item.field.startswith("corpus.decontaminate")]
    assert "Set corpus.decontaminate.text to one of these, or to a template of them." in found.sentence
