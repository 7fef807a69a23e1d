"""`alm plan`, `alm run --plan`, and `alm run` on a finished store, which is answered without a server."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alm_pipeline.config import AlmConfig
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.planning.comparison import Comparison
from alm_pipeline.planning.finished import record_finished
from alm_pipeline.report import summarize
from flows.cli.app import app
from flows.cli.planning import _print_plan_and_run
from flows.execution import embedded
from storage.errors import UserError


def command(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def file(config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("config") / "mine.yaml"
    path.write_text(config.model_dump_json())  # JSON is YAML
    return str(path)


@pytest.fixture(scope="module")
def store(config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    Pipeline(config, str(root)).run()
    return root


def test_a_plan_of_an_empty_store(file: str, config: AlmConfig, tmp_path: Path) -> None:
    options = ("--storage", str(tmp_path), "--score-rate", "1000", "--train-rate", "100", "--price-per-hour", "3.5")
    shown = command("plan", file, *options)
    for text in (config.title, "tokenize teacher", "missing", "bytes per teacher token", "cost: ~", "time: ~"):
        assert text in shown
    assert "note:" not in shown
    assert list(tmp_path.iterdir()) == []


def test_a_plan_as_json_tells_estimates_apart(file: str, store: Path, tmp_path: Path) -> None:
    plan = json.loads(command("plan", file, "--storage", str(tmp_path), "--json"))
    assert plan["teacher_tokens"]["exact"] is False
    plan = json.loads(command("plan", file, "--storage", str(store), "--json", "--gamma", "0.4"))
    assert plan["teacher_tokens"]["exact"] is True
    (missing,) = [stage for stage in plan["stages"] if stage["state"] != "complete"]
    assert (missing["stage"], missing["reasons"]) == ("train", ["objective.gamma 0.1 → 0.4"])


def test_run_with_plan_stops_after_it(file: str, store: Path, tmp_path: Path) -> None:
    shown = command("run", file, "--storage", str(tmp_path), "--plan", "--until", "scores")
    assert "score" in shown
    assert "train " not in shown
    assert list(tmp_path.iterdir()) == []
    assert "train is computed: objective.gamma 0.1 → 0.4" in command(
        "run", file, "--storage", str(store), "--plan", "--gamma", "0.4"
    )


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--price-per-hour", "-1"], "--price-per-hour"),
        (["--score-rate", "0"], "--score-rate"),
        (["--train-rate", "nan"], "--train-rate"),
    ],
)
def test_numbers_of_a_plan_are_checked(file: str, options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["plan", file, *options], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.bad_input
def test_a_plan_of_what_can_not_be_read_is_an_error(file: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["plan", file, "--storage", str(tmp_path), "--corpus", f"{tmp_path}/none.jsonl"])
    assert result.exit_code == 1
    assert "no file matches" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_finished_run_needs_no_server(
    file: str, config: AlmConfig, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise UserError("a server was to start")

    monkeypatch.setattr(embedded, "use_server", refuse)
    arguments = ["run", file, "--storage", str(store)]
    assert "a server was to start" in CliRunner().invoke(app, arguments).stderr
    pipeline = Pipeline(config, str(store))
    summary = summarize(pipeline)
    record_finished(pipeline, summary, "student")
    shown = command(*arguments)
    assert "everything was there already" in shown
    assert f"teacher {summary.teacher_tokens:,}" in shown
    assert "held-out bits per byte" in shown
    assert "seconds" not in shown
    # each of these is work, or another run
    for other in (["--until", "scores"], ["--gamma", "0.4"]):
        assert "a server was to start" in CliRunner().invoke(app, [*arguments, *other]).stderr
    assert "a server was to start" in CliRunner().invoke(app, [*arguments, "--again"]).stderr
    assert "a server was to start" in CliRunner().invoke(app, arguments).stderr  # since it was asked for again


def test_what_was_planned_is_shown_beside_what_came_out(capsys: pytest.CaptureFixture[str]) -> None:
    _print_plan_and_run([])
    assert capsys.readouterr().out == ""
    comparisons = [
        Comparison(what="teacher tokens", planned=110, actual=100),
        Comparison(what="cache", planned=1_000, actual=2_000),
        Comparison(what="time", planned=50, actual=40),
    ]
    _print_plan_and_run([each.model_dump() for each in comparisons])
    shown = capsys.readouterr().out
    for text in ("~110", "+10%", "~1 kB", "-50%", "~50 s", "40 s"):
        assert text in shown
