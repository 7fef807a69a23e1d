"""`alm on-policy` and `alm write`, as a user runs them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from alm_pipeline.config import parse_config
from flows.cli.app import app
from flows.models.on_policy import on_policy
from storage.dataset import open_dataset
from storage.errors import UserError
from tests import writers
from tests.alm_pipeline.rollouts.openai_server import OpenAIServer

ROUNDS = {
    "count": 1,
    "per_round": 12,
    "held_out": 6,
    "steps": 2,
    "prompts": {"text_bytes": 12, "per_shard": 8},
    "sampling": {"max_tokens": 10},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("writing")


@pytest.fixture(scope="module")
def content(folder: Path) -> dict[str, Any]:
    teacher, student = writers.trained_pair(folder)
    texts = [{"text": text} for text in writers.sentences(60, 3)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    source = {"kind": "files", "urls": [str(folder / "texts.jsonl")]}
    return {
        "corpus": {"name": "texts", "source": source, "held_out": 0.25, "max_bytes": 300},
        "teacher": teacher,
        "student": {"model": student},
        "score": {"dtype": "float32"},
        "train": {"steps": 2, "batch_tokens": 256, "row_tokens": 128, "learning_rate": 1e-3},
        "evaluation": {"samples": 0},
        "rounds": ROUNDS,
    }


@pytest.fixture(scope="module")
def file(folder: Path, content: dict[str, Any]) -> str:
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "mine.yaml")


def run(*arguments: str) -> Any:
    done = CliRunner().invoke(app, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_rounds_are_run_once_and_answered_at_once(file: str, folder: Path) -> None:
    storage = str(folder / "store")
    first = run("on-policy", file, "--storage", storage, "--json")
    assert first.exit_code == 0, first.output
    results = json.loads(first.stdout)
    assert {(row["measure"], row["student"]) for row in results["measures"]} >= {("KL per word", 0), ("KL per word", 1)}
    assert Path(results["rounds"], "rounds.png").is_file()
    again = run("on-policy", file, "--storage", storage, "--json")
    assert json.loads(again.stdout) == results
    shown = run("on-policy", file, "--storage", storage).stdout
    assert "student 0" in shown
    assert "KL per word" in shown
    listed = json.loads(run("list", storage, "--json").stdout)
    assert {"rounds", "students", "examples"} <= {row["kind"] for row in listed["folders"] + listed.get("datasets", [])}


def test_what_a_teacher_writes_is_trained_on(file: str, folder: Path) -> None:
    storage = str(folder / "store")
    done = run("write", file, "--by", "teacher", "--prompts", "9", "--held-out", "5", "--storage", storage, "--json")
    assert done.exit_code == 0, done.output
    (written,) = json.loads(done.stdout)["examples"]
    assert written["texts"] + sum(written["left_out"].values()) == 14
    assert written["written_tokens"] > 0
    source = f"{{kind: written, examples: {written['url']}}}"
    trained = run(
        "run", file, "--set", f"corpus.source={source}", "--set", "corpus.name=teachers", "--storage", storage, "--json"
    )
    assert trained.exit_code == 0, trained.output
    summary = json.loads(trained.stdout)
    assert summary["places"]["examples"] == written["url"]
    checked = run("check", file, "--set", f"corpus.source={source}", "--storage", storage)
    assert checked.exit_code == 0, checked.output
    planned = run("plan", file, "--set", f"corpus.source={source}", "--storage", storage)
    assert planned.exit_code == 0, planned.output


def test_a_server_writes(file: str, folder: Path) -> None:
    with OpenAIServer().serving() as server:
        done = run(
            "write",
            file,
            "--by",
            server.url,
            "--model",
            "a/b",
            "--prompts",
            "4",
            "--held-out",
            "2",
            "--storage",
            str(folder / "store"),
        )
    assert done.exit_code == 0, done.output
    assert "6 texts, 18 tokens written" in done.stdout
    assert "train on it with corpus.source: {kind: written, examples: " in done.stdout
    url = done.stdout.split(": 6 texts")[0].strip().replace("\n", "")
    assert open_dataset(url).identity["writer"] == {"served_model": "a/b", "revision": None}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--by", "nobody"], "nobody: can't write: name teacher, student, or the URL of a server"),
        (["--by", "http://host/v1"], "name the model as the server knows it (--model NAME)"),
        (["--by", "teacher", "--model", "x"], "model and revision are for a server: leave them out"),
    ],
)
def test_who_writes_is_checked_first(file: str, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run("write", file, *arguments, "--storage", str(tmp_path / "store"))
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "store").exists()


@pytest.mark.bad_input
def test_rounds_have_to_be_configured(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "without.yaml").write_text(yaml.safe_dump({**content, "rounds": None}))
    done = run("on-policy", str(tmp_path / "without.yaml"), "--storage", str(tmp_path / "store"))
    assert done.exit_code == 1
    assert "add a section `rounds`" in " ".join(done.stderr.split())


@pytest.mark.flow
@pytest.mark.bad_input
@pytest.mark.usefixtures("prefect_server")
def test_a_pool_needs_a_storage_that_its_machines_share(content: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="gpu_pool gpu: a round goes on from the student's folder"):
        on_policy(config=parse_config(content), storage="memory://rounds", gpu_pool="gpu")
