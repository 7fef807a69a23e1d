"""What can be known before a model is loaded is known then: where results go, what texts and questions there are."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alm_pipeline.evaluation.local_tasks import write_task
from alm_pipeline.models.reference import ModelReference
from flows.cli.app import app


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with questions, a task, and `file`, where no folder can be made; no model can be loaded."""
    rows = [{"question": f"{k}?", "choices": ["one", "two"], "answer": 0} for k in range(8)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "few.jsonl").write_text(json.dumps({**rows[0], "prompt": "?"}))
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"body": f"{k} and {k + 1}"}) + "\n" for k in range(9)))
    pair = {"prompt": "?", "positive": "one", "negative": "two"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    write_task(tmp_path / "tasks", "mine", "multiple_choice", tmp_path / "questions.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ModelReference, "load", None)
    return tmp_path


LATE = {
    "calibrate MODEL --questions questions.jsonl --prompt question --output file/out": r"output: file/out/.*written",
    "calibrate MODEL --questions few.jsonl --output out": "1 clusters in few: at least 4 are needed",
    "calibrate MODEL --corpus texts.jsonl --text body --examples 3 --output out": "3 clusters in texts: at least 4",
    "evaluate MODEL --tasks mine --task-folder tasks --output file/results.json": r"--output: file/.*written",
    "evaluate MODEL --tasks mine --task-folder tasks --output folder": "--output: folder: is a folder: name a file in",
    "evaluate MODEL --tasks mine --task-folder nowhere": "task folder nowhere: there is no such folder",
    "edit MODEL file/edited --demonstrations pairs.jsonl": r"FOLDER: file/.*written",
    "transfer MODEL OTHER out --corpus texts.jsonl": r"has no column 'text'; it has 'body'\. Set --text",
    "tokenizers MODEL OTHER --corpus texts.jsonl --text body --out file/out": r"--out: file/.*written",
    "tokenizers MODEL OTHER --corpus texts.jsonl --text body --picture file/a.png": r"--picture: file/.*written",
    "audit nowhere --picture file/a.png": r"--picture: file/.*written",
    "acceptance MODEL MODEL --corpus texts.jsonl --text body --max-tokens 600": "600 new ones are more than its",
}


@pytest.mark.bad_input
@pytest.mark.parametrize("command", LATE)
def test_it_is_known_before_a_model_is_loaded(here: Path, command: str, llama_folder: str, gemma_folder: str) -> None:
    names = {"MODEL": llama_folder, "OTHER": gemma_folder}
    arguments = [names.get(word, word) for word in command.split()]
    stores = {"calibrate", "edit"} & {arguments[0]}
    result = CliRunner().invoke(app, [*arguments, *(["--storage", str(here / "store")] if stores else [])])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    shown = " ".join(result.stderr.split())
    assert re.search(LATE[command], shown), shown
    assert not (here / "out").exists()
