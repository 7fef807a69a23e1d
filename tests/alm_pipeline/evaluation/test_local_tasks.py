"""Tasks over local files: written once, run by lm_eval, and byte for byte what lm_eval's own model makes of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'alm-pipeline[eval]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from alm_pipeline.ensemble.harness import evaluate  # noqa: E402
from alm_pipeline.evaluation.local_tasks import COLUMNS, TASK_KINDS, TaskKind, write_task  # noqa: E402
from flows.cli.app import app  # noqa: E402
from storage.errors import UserError  # noqa: E402

ROWS: dict[TaskKind, list[dict[str, Any]]] = {
    "multiple_choice": [
        {"question": f"Number {k} is", "choices": ["even", "odd", "neither of the two"], "answer": k % 2}
        for k in range(6)
    ],
    "cloze": [{"text": f"The quick brown fox {k} jumps over the dog"} for k in range(4)],
    "gsm8k": [{"question": f"What is {k} and 2?", "answer": f"It is\n#### {k + 2}"} for k in range(3)],
}
METRICS = {
    "multiple_choice": {"acc,none", "acc_bytes,none"},
    "cloze": {"acc,none", "perplexity,none"},
    "gsm8k": {"exact_match,strict-match", "exact_match,flexible-extract"},
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[TaskKind, Path]:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    written = {kind: tmp_path / f"{kind}.jsonl" for kind in ROWS}
    for kind, file in written.items():
        file.write_text("\n".join(map(json.dumps, ROWS[kind])))
    return written


def results_of(found: dict[str, Any], task: str) -> dict[str, float]:
    return {name: value for name, value in found["results"][task].items() if "stderr" not in name and "," in name}


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_an_unmodified_model_has_the_results_of_lm_evals_own(
    kind: TaskKind, llama_folder: str, files: dict[TaskKind, Path], tmp_path: Path
) -> None:
    write_task(tmp_path / "tasks", "mine", kind, files[kind], files[kind] if kind == "gsm8k" else None)
    shots = 1 if kind == "gsm8k" else 0
    (ours,) = evaluate([llama_folder], ["mine"], task_folder=tmp_path / "tasks", few_shot=shots)
    theirs = simple_evaluate(
        "hf",
        device="cpu",
        model_args={"pretrained": llama_folder, "dtype": "float32"},
        tasks=["mine"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        num_fewshot=shots,
        log_samples=False,
    )
    assert results_of(ours, "mine") == results_of(theirs, "mine")
    assert set(results_of(ours, "mine")) == METRICS[kind]


def test_the_byte_normalized_choice_does_not_favor_short_answers(
    llama_folder: str, files: dict[TaskKind, Path], tmp_path: Path
) -> None:
    """acc_bytes divides each choice's log-likelihood by the bytes of the choice."""
    write_task(tmp_path / "tasks", "mine", "multiple_choice", files["multiple_choice"])
    (found,) = evaluate([llama_folder], ["mine"], task_folder=tmp_path / "tasks", samples=True)
    for sample in found["samples"]["mine"]:
        logprobs = [response[0] for response in sample["filtered_resps"]]
        lengths = [len(choice.encode()) for choice in sample["doc"]["choices"]]
        rates = [logprob / length for logprob, length in zip(logprobs, lengths, strict=True)]
        assert sample["acc_bytes"] == (rates.index(max(rates)) == sample["doc"]["answer"])


def test_the_command_writes_once(files: dict[TaskKind, Path], tmp_path: Path) -> None:
    arguments = ["make-task", str(tmp_path / "tasks"), "mine", "--questions", str(files["cloze"]), "--kind", "cloze"]
    written = CliRunner().invoke(app, arguments)
    assert written.exit_code == 0, written.output
    assert (tmp_path / "tasks" / "mine.yaml").is_file()
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1
    assert "mine.yaml: exists already" in again.output


@pytest.mark.bad_input
def test_wrong_questions_are_named(files: dict[TaskKind, Path], tmp_path: Path) -> None:
    for kind in TASK_KINDS:
        other = next(file for known, file in files.items() if not set(COLUMNS[kind]) <= set(ROWS[known][0]))
        with pytest.raises(UserError, match=rf"{other.name}: has no column .*a task {kind} needs"):
            write_task(tmp_path / "tasks", "mine", kind, other)
    (tmp_path / "questions.xlsx").write_text("")
    with pytest.raises(UserError, match="can't read this kind of file"):
        write_task(tmp_path / "tasks", "mine", "cloze", tmp_path / "questions.xlsx")
    with pytest.raises(UserError, match=r"gone\.jsonl"):
        write_task(tmp_path / "tasks", "mine", "cloze", tmp_path / "gone.jsonl")
    failed = CliRunner().invoke(
        app, ["make-task", str(tmp_path), "mine", "--questions", str(files["cloze"]), "--kind", "chess"]
    )
    assert failed.exit_code == 2
    assert "'chess' is not one of" in failed.output
    assert not (tmp_path / "tasks").exists()


WRONG: list[tuple[TaskKind, dict[str, Any], str]] = [
    ("multiple_choice", {"answer": 3}, "answer is 3: numbers are from 0 to 2"),
    ("multiple_choice", {"answer": "3"}, "answer is 3: numbers are from 0 to 2"),
    ("multiple_choice", {"answer": "B"}, "answer is 'B': write the right choice's number, from 0"),
    ("multiple_choice", {"answer": None}, "answer is None: write the right choice's number"),
    ("multiple_choice", {"answer": -1}, "answer is -1: write the right choice's number"),
    ("multiple_choice", {"choices": "even or odd"}, "choices is 'even or odd': write a list"),
    ("multiple_choice", {"choices": ["even"]}, r"choices is \['even'\]: write a list of two texts or more"),
    ("multiple_choice", {"choices": [1, 2]}, r"choices is \[1, 2\]: write a list of two texts"),
    ("cloze", {"text": "fox"}, "text has no last word after others"),
    ("cloze", {"text": "The quick "}, "text has no last word"),
    ("cloze", {"text": None}, "text has no last word"),
    ("gsm8k", {"answer": "It is 4"}, "answer is 'It is 4', without `#### NUMBER` at its end"),
    ("gsm8k", {"answer": 4}, "answer is 4, without"),
]


@pytest.mark.bad_input
@pytest.mark.parametrize(("kind", "changes", "message"), WRONG)
def test_a_row_that_no_model_can_answer_is_named(
    kind: TaskKind, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """lm_eval counts it as wrong, or stops at it after it has evaluated the rows before."""
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, [*ROWS[kind], {**ROWS[kind][0], **changes}])))
    with pytest.raises(UserError, match=rf"rows\.jsonl:{len(ROWS[kind])}: {message}"):
        write_task(tmp_path / "tasks", "mine", kind, file)
    assert not (tmp_path / "tasks").exists()


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["", "../mine", "a,b", "mine*", ".mine", "my quiz"])
def test_a_name_that_can_not_be_named_is_refused(name: str, files: dict[TaskKind, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"name: .* is not a task's"):
        write_task(tmp_path / "tasks", name, "cloze", files["cloze"])


@pytest.mark.bad_input
def test_a_row_that_lm_eval_can_not_read_is_counted(files: dict[TaskKind, Path], tmp_path: Path) -> None:
    files["cloze"].write_text(files["cloze"].read_text() + "\n{broken")
    with pytest.raises(UserError, match=r"has rows that lm_eval can't read \(invalid_json: 1\)"):
        write_task(tmp_path / "tasks", "mine", "cloze", files["cloze"])
