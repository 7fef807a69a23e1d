"""What can be known before a model is loaded is known then: where results go, what texts there are, wrong options."""

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
    "evaluate MODEL --tasks mine --task-folder nowhere": "task folder nowhere: not a folder",
    "edit MODEL file/edited --demonstrations pairs.jsonl": r"FOLDER: file/.*written",
    "transfer MODEL OTHER out --corpus texts.jsonl": r"has no column 'text'; it has 'body'\. Set --text",
    "tokenizers MODEL OTHER --corpus texts.jsonl --text body --out file/out": r"--out: file/.*written",
    "tokenizers MODEL OTHER --corpus texts.jsonl --text body --picture file/a.png": r"--picture: file/.*written",
    "tokenizers nowhere OTHER --corpus texts.jsonl --text body --out tasks": "tasks: exists already: name a new folder",
    "audit nowhere --picture file/a.png": r"--picture: file/.*written",
    "acceptance MODEL MODEL --corpus texts.jsonl --text body --max-tokens 600": "600 new ones are more than its",
}

CALIBRATE, EDIT = "calibrate MODEL --output out", "edit MODEL out --demonstrations pairs.jsonl"
UNREAD = {
    **{
        f"{CALIBRATE} --questions questions.jsonl {option}": f"{name}: not used"
        for option, name in {
            "--task-folder tasks": "task_folder",
            "--few-shot 2": "few_shot",
            "--text body": "text",
            "--examples 3": "examples",
            "--places 3": "places",
        }.items()
    },
    **{
        f"{CALIBRATE} --questions mine --{name} x": f"{name}: not used, as mine is a task"
        for name in ("prompt", "choices", "answer", "cluster", "delimiter")
    },
    **{
        f"{CALIBRATE} --corpus texts.jsonl --text body {option}": f"{name}: not used, as no questions are named"
        for option, name in {"--limit 3": "limit", "--few-shot 3": "few_shot", "--prompt x": "prompt"}.items()
    },
    "calibrate MODEL OTHER --output out --questions questions.jsonl --weights 0.5 --method ensemble --density 0.5": (
        "density: not used, as an ensemble merges no tensors"
    ),
    "calibrate MODEL OTHER --output out --questions questions.jsonl --weights 0.5 --mask-seed 3": (
        "mask_seed: not used, as linear draws nothing"
    ),
    "merge MODEL OTHER out --seed 3": "seed: not used, as linear draws nothing, and only dare does: leave it out",
    "transfer MODEL OTHER out --donor OTHER": "donor: not used, as the initialization is fvt, and not omp",
    "transfer MODEL OTHER out --omp-terms 3": "omp_terms: not used",
    "transfer MODEL OTHER out --text body --examples 3": "text, examples: not used, as no corpus is named: leave them",
    f"{EDIT} --task-folder tasks": "task_folder is not used without tasks",
    f"{EDIT} --limit 3": "limit is not used without tasks",
    f"{EDIT} --control-text body": "control_text is not used without control",
    f"{EDIT} --control-examples 3": "control_examples is not used without control",
    f"{EDIT} --strength 2": "sea has no strength: leave it out",
    f"{EDIT} --method mean_shift --energy 0.5 --no-center": "mean_shift has no energy and no center: leave them out",
}
"""Options that another one makes pointless: what they ask for would not happen, and nothing would say so."""


@pytest.mark.bad_input
@pytest.mark.parametrize("command", LATE | UNREAD)
def test_it_is_known_before_a_model_is_loaded(here: Path, command: str, llama_folder: str, gemma_folder: str) -> None:
    names = {"MODEL": llama_folder, "OTHER": gemma_folder}
    arguments = [names.get(word, word) for word in command.split()]
    stores = {"calibrate", "edit"} & {arguments[0]}
    result = CliRunner().invoke(app, [*arguments, *(["--storage", str(here / "store")] if stores else [])])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    shown = " ".join(result.stderr.split())
    assert re.search((LATE | UNREAD)[command], shown), shown
    assert not (here / "out").exists()
