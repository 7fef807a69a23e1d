"""The commands that write a configuration: `alm show` and `alm init`, and what a command's options mean."""

import inspect
import json
import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from typer.testing import CliRunner, Result

from alm_pipeline.config import AlmConfig, load_config
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.recipes.overrides import FIELDS, Overrides, configure, override
from alm_pipeline.recipes.recipes import RECIPES
from flows.alm import _resolve as resolve
from flows.cli import app as app_module
from flows.cli import check
from flows.cli.app import app
from flows.execution import embedded
from flows.terminal.configurations import chosen_configuration
from storage.errors import UserError
from tests.alm_pipeline.recipes.complete import complete_recipes

ROOT = Path(__file__).parents[3]
OWN = ["--corpus", "texts.jsonl", "--teacher", "TEACHER", "--student", "STUDENT"]


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def error_of(*arguments: str) -> str:
    result = command(*arguments)
    assert result.exit_code in (1, 2), result.output
    assert "Traceback" not in result.stderr
    return " ".join(re.sub("[│╭╮╰╯─]", " ", result.stderr).split())


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_shown_recipe_is_the_recipe(name: str) -> None:
    arguments = OWN if name in ("distill", "draft") else []
    shown = yaml.safe_load(command("show", name, *arguments).stdout)
    expected = configure(name, Overrides(**dict(zip(("corpus", "teacher", "student"), OWN[1::2], strict=True))))
    assert AlmConfig.model_validate(shown) == (expected if arguments else complete_recipes()[name])


def test_options_change_what_is_shown_and_what_is_required_is_null(tmp_path: Path) -> None:
    shown = yaml.safe_load(command("show", "distill", "--teacher", "TEACHER", "--set", "train.seed=4").stdout)
    assert (shown["teacher"], shown["student"]["model"], shown["corpus"]["source"]["urls"]) == ("TEACHER", None, None)
    assert shown["train"]["seed"] == 4
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(shown))
    error = error_of("run", str(tmp_path / "mine.yaml"))
    assert "student.model: is missing (The model to train" in error
    assert "corpus.source.urls: is missing" in error
    (tmp_path / "mine.yaml").write_text(command("show", "maths").stdout)
    changed = yaml.safe_load(command("show", str(tmp_path / "mine.yaml"), "--gamma", "0.3").stdout)
    assert changed["objective"]["gamma"] == 0.3


OVERRIDES: list[dict[str, Any]] = [
    {},
    {"corpus": "texts/*.jsonl", "teacher": "T", "student": "S", "tokenizer": "bytes", "steps": 7},
    {"corpus": "texts.jsonl", "settings": {"corpus.text": "{question} {answer}", "corpus.sample": 0.5}},
    {"learning_rate": 1e-3, "gamma": 0.0, "temperature": 2.0, "settings": {"student.tokenizer": None}},
]


@pytest.mark.parametrize("is_file", [True, False], ids=["file", "recipe"])
@pytest.mark.parametrize("values", OVERRIDES, ids=["nothing", "options", "corpus", "numbers"])
def test_the_flow_means_what_the_command_means(values: dict[str, Any], is_file: bool, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(complete_recipes()["maths"].model_dump(mode="json")))
    name = str(tmp_path / "mine.yaml") if is_file else "transfer"
    settings = [f"{field}={json.dumps(value)}" for field, value in values.get("settings", {}).items()]
    options = {**dict.fromkeys(FIELDS), **values, "settings": settings}
    parameters = {**dict.fromkeys(Overrides.model_fields), **values, "recipe": "transfer", "config": None}
    if is_file:
        parameters["config"] = load_config(tmp_path / "mine.yaml")
    assert chosen_configuration(name, options)[0] == resolve(parameters)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    lines = [json.dumps({"question": f"How much is {k} + 1?", "answer": f"It is {k + 1}."}) for k in range(40)]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "sums.jsonl")


def test_a_written_configuration_runs_at_once(rows: str, config: AlmConfig, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    done = command("init", str(file), "--corpus", rows, "--teacher", config.teacher, "--student", config.student.model)
    assert done.exit_code == 0, done.output
    assert "columns: question (texts), answer (texts)" in done.stderr
    assert r'corpus.text: "{question}\n{answer}", by the columns; --text sets another' in done.stderr
    assert "How much is 0 + 1?⏎It is 1." in done.stderr
    written = load_config(file)
    assert written.corpus.text == "{question}\n{answer}"
    assert (written.teacher, written.student.model) == (config.teacher, config.student.model)
    assert command("show", str(file)).stdout.partition("\n\n")[2] == file.read_text().partition("\n\n")[2]
    hint = re.search(r"alm run \S+ (--steps .*)", done.stdout)
    assert hint
    _, short = hint[1].split("--set ")
    small = {"train.batch_tokens": 256, "train.row_tokens": 128, "evaluation.samples": 0, "evaluation.max_examples": 4}
    changed = override(written, Overrides(steps=2, settings={**small, short.split("=")[0]: int(short.split("=")[1])}))
    assert Pipeline(changed, str(tmp_path / "store")).run().results


@pytest.mark.parametrize(
    ("arguments", "tokenizer"),
    [
        (["--goal", "bytes"], "bytes"),
        (["--goal", "tokenizer", "--tokenizer", "OTHER"], "OTHER"),
        (["--tokenizer", "OTHER"], "OTHER"),
        (["--tokenizer", "bytes"], "bytes"),
    ],
)
def test_goals(arguments: list[str], tokenizer: str, rows: str, tmp_path: Path) -> None:
    """The student is its own teacher if none is given."""
    done = command("init", str(tmp_path / "mine.yaml"), "--corpus", rows, "--student", "STUDENT", *arguments)
    assert done.exit_code == 0, done.output
    written = load_config(tmp_path / "mine.yaml")
    assert (written.teacher, written.student.model, written.student.tokenizer) == ("STUDENT", "STUDENT", tokenizer)


def test_columns_that_are_given_are_taken(rows: str, tmp_path: Path) -> None:
    arguments = ["--corpus", rows, "--teacher", "T", "--student", "S", "--text", r'"{answer}\n{question}"']
    done = command("init", str(tmp_path / "mine.yaml"), *arguments)
    assert done.exit_code == 0
    assert "by the columns" not in done.stderr
    assert load_config(tmp_path / "mine.yaml").corpus.text == "{answer}\n{question}"


ANSWERS = ["--corpus", "ROWS", "--student", "S", "--teacher", "T"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "add --corpus, --student, --teacher: only in a terminal can it ask"),
        (["--corpus", "ROWS", "--student", "S"], "add --teacher"),
        (["--goal", "bytes", "--corpus", "ROWS"], "add --student, --teacher"),
        (["--goal", "bites", "--corpus", "ROWS"], "did you mean bytes?"),
        (["--corpus", "nothing.jsonl", "--student", "S", "--teacher", "T"], "no file matches nothing.jsonl"),
        ([*ANSWERS, "--text", "{qestion}"], "has no column 'qestion'"),
        ([*ANSWERS, "--text", r"{question}\n{answer}"], "double quotes"),
        ([*ANSWERS, "--text", "a", "--messages", "b"], "one of the two"),
        (
            [*ANSWERS, "--goal", "distill", "--tokenizer", "x"],
            "only with",
        ),
        (["--corpus", "ROWS", "--student", "S", "--teacher", "https://u:hunter2@h/x"], "write ${NAME} in its place"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    arguments: list[str], message: str, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = error_of("init", "mine.yaml", *[rows if part == "ROWS" else part for part in arguments])
    assert message in error
    assert "hunter2" not in error
    assert not (tmp_path / "mine.yaml").exists()


@pytest.mark.bad_input
def test_a_file_that_exists_is_not_overwritten(rows: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine")
    assert "exists already" in error_of("init", str(tmp_path / "mine.yaml"))
    (tmp_path / "link.yaml").symlink_to(tmp_path / "nothing")
    assert "exists already" in error_of("init", str(tmp_path / "link.yaml"))
    assert "ends in .yaml" in error_of("init", str(tmp_path / "mine.txt"))
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    missing = tmp_path / "no" / "folder" / "mine.yaml"
    assert "can't be written" in error_of("init", str(missing), "--corpus", rows, "--teacher", "T", "--student", "S")


def test_it_asks_in_a_terminal(rows: str, tmp_path: Path) -> None:
    """The real command on a real terminal, with answers as they are typed."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    process = subprocess.Popen(
        (sys.executable, "-c", "from flows.cli.app import app; app(prog_name='alm')", "init", "mine.yaml"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env=environment,
        close_fds=True,
    )
    os.close(theirs)
    answers = {"Goal": "tokenizr", "is not one of": "tokenizer", "URL or path": rows, "corpus.text": "", "Student": "S"}
    answers |= {"Teacher": "", "New tokenizer": "OTHER"}
    screen = ""
    for question, answer in answers.items():
        screen += read_until(ours, question)
        os.write(ours, f"{answer}\n".encode())
    screen += read_until(ours, "A short first try")
    assert process.wait(20) == 0
    written = load_config(tmp_path / "mine.yaml")
    assert (written.teacher, written.student.model, written.student.tokenizer) == ("S", "S", "OTHER")
    assert written.corpus.text == "{question}\n{answer}"


def read_until(terminal: int, text: str) -> str:
    """Return what the terminal shows until it has shown a text."""
    shown = ""
    while text not in shown:
        ready, _, _ = select.select([terminal], [], [], 20)
        assert ready, f"{text!r} is not shown: {shown}"
        shown += os.read(terminal, 4096).decode()
    return shown


COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def without_middle(name: str) -> str:
    return name[: len(name) // 2] + name[len(name) // 2 + 1 :]


@pytest.mark.bad_input
@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_misspelt_command_is_answered_with_the_nearest(name: str) -> None:
    error = error_of(without_middle(name))
    assert f"{name} (" in error
    assert inspect.cleandoc(COMMANDS[name].help).split(".")[0][:30].replace("\n", " ") in error


OPTIONS = [(name, item) for name in sorted(COMMANDS) for item in COMMANDS[name].params if item.opts[0].startswith("--")]


@pytest.mark.bad_input
@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=[f"{name} {item.opts[0]}" for name, item in OPTIONS])
def test_a_misspelt_option_is_answered_with_the_nearest(name: str, option: Any) -> None:
    error = error_of(name, f"--{without_middle(option.opts[0][2:])}")
    assert f"{option.opts[0]} (" in error, error


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--lr", "--learning-rate"),
        ("--epochs", "--steps"),
        ("--learning_rate", "--learning-rate"),
        ("--batch-size", "--set train.batch_tokens=VALUE"),
        ("--max-length", "--set train.row_tokens=VALUE"),
        ("--chunking", "--set objective.chunking=VALUE"),
        ("--temp", "--temperature"),
    ],
)
def test_names_of_other_trainers_are_answered_with_the_option(option: str, meant: str) -> None:
    assert f"did you mean {meant} (" in error_of("run", "transfer", option, "1")


@pytest.mark.bad_input
def test_a_recipe_is_no_command_and_choices_are_named() -> None:
    assert "write `alm run distill`" in error_of("distill", "--corpus", "x")
    assert "did you mean scores?" in error_of("run", "transfer", "--until", "scors")
    assert "did you mean focus?" in error_of("transfer", "a", "b", "c", "--initialization", "fcus")
    assert "did you mean" not in error_of("qqqqqq")
    with pytest.raises(UserError, match="'=' is missing"):
        chosen_configuration("transfer", {"settings": ["train.seed"]})


def test_the_first_lines_of_a_run_are_printed(rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a run is checked."""

    def refuse(*_: object) -> None:
        raise UserError("not started")

    monkeypatch.setattr(embedded, "prepare", lambda: None)
    monkeypatch.setattr(check, "require_ready", refuse)
    monkeypatch.setattr(app_module, "log_to_stderr", lambda: None)
    arguments = ["--corpus", rows, "--teacher", str(tmp_path / "a"), "--student", str(tmp_path / "b"), "--steps", "3"]
    shown = error_of("run", "distill", *arguments, "--set", r'corpus.text="Q: {question}\nA: {answer}"')
    assert "the recipe distill also sets" in shown
    assert "warmup_steps 0 instead of 500" in shown
    assert "Q: How much is 0 + 1?⏎A: It is 1." in shown
    assert "not started" in shown
