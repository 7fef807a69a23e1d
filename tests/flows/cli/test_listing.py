"""`alm list`: what is stored, and the students side by side."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from alm_pipeline.config import AlmConfig
from alm_pipeline.pipeline import Pipeline
from flows.cli.app import app
from flows.terminal import console
from storage.folders import StoredFolder

BITS = {"teacher": 0.7, "student_before": 0.9}


def command(*arguments: object) -> Result:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def write_student(root: Path, config: AlmConfig, after: float, documents: int = 40) -> str:
    """Write a folder with the manifest of a student, as a run does."""
    recorded = {"configuration": config.model_dump(mode="json")}
    student = StoredFolder(str(root), "students", "a-from-b", {"of": recorded}, provenance=recorded)
    student.path.mkdir(parents=True)
    (student.path / "model.safetensors").write_bytes(b"x" * int(2e6))
    results = {
        "initialization": {},
        "held_out_bits_per_byte": {**BITS, "student_after": after},
        "held_out_standard_errors": {"teacher": 0.01, "student_after": 0.02},
        "held_out_documents": documents,
        "chosen_step": config.train.steps,
    }
    student.finish(results)
    return student.name


def changed(config: AlmConfig, name: str | None, gamma: float, steps: int) -> AlmConfig:
    objective = config.objective.model_copy(update={"gamma": gamma})
    train = config.train.model_copy(update={"steps": steps})
    return config.model_copy(update={"name": name, "objective": objective, "train": train})


@pytest.fixture
def root(config: AlmConfig, tmp_path: Path) -> Path:
    write_student(tmp_path, changed(config, None, 0.2, 2000), 0.82)
    write_student(tmp_path, changed(config, None, 0.3, 10), 0.85, documents=3)
    write_student(tmp_path, changed(config, "the third", 0.4, 500), 0.80)
    (tmp_path / "students" / "unfinished-0").mkdir()
    return tmp_path


def rows(*arguments: object) -> list[dict[str, Any]]:
    result = command("list", *arguments, "--students", "--json")
    assert result.exit_code == 0, result.output
    students: list[dict[str, Any]] = json.loads(result.stdout)["students"]
    return students


def test_students_are_named_by_what_differs(root: Path) -> None:
    found = {row["name"]: row for row in rows(root)}
    assert set(found) == {"γ=0.2, steps=2000", "γ=0.3, steps=10", "the third", None}
    third = found["the third"]
    assert (third["steps"], third["settings"], third["bits_after"]) == (500, {"objective.gamma": 0.4}, 0.80)
    assert third["chosen_step"] == 500
    assert third["bytes"] > 2e6
    assert third["finished"].endswith("+00:00")
    assert found[None]["state"] == "not complete"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_table_is_readable_at_any_width(root: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "_width", width)
    shown = command("list", root, "--students").stdout
    for part in ("the third", "0.8200", "0.9000", "0.7000", "500"):
        assert part in shown
    assert shown.count("tiny-gemma") == 1  # all have the same teacher
    assert "γ=0.3, steps=10: only 3 held-out documents: too few to compare" in shown.replace("\n", " ").replace(
        "  ", " "
    )
    assert f"not complete: {root}" in shown
    if width == 80:
        assert "┃ name" in shown  # a table, not lines


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("bits_after", ["the third", "γ=0.2, steps=2000", "γ=0.3, steps=10", None]),
        ("-bits_after", ["γ=0.3, steps=10", "γ=0.2, steps=2000", "the third", None]),
        ("steps", ["γ=0.3, steps=10", "the third", "γ=0.2, steps=2000", None]),
        ("gamma", ["γ=0.2, steps=2000", "γ=0.3, steps=10", "the third", None]),
        ("name", ["the third", "γ=0.2, steps=2000", "γ=0.3, steps=10", None]),
    ],
)
def test_students_are_sorted(root: Path, field: str, names: list[str | None]) -> None:
    assert [row["name"] for row in rows(root, "--sort", field)] == names


@pytest.mark.bad_input
def test_a_wrong_field_is_answered_with_those_that_exist(root: Path) -> None:
    result = command("list", root, "--students", "--sort", "bits_aftr")
    assert result.exit_code == 1
    error = result.stderr.replace("\n", "")
    assert "did you mean bits_after?" in error
    assert all(field in error for field in ("name", "steps", "chosen_step", "objective.gamma"))
    assert command("list", root, "--sort", "-bytes").exit_code == 0
    assert "there are kind, name" in command("list", root, "--sort", "what").stderr.replace("\n", " ")


def test_the_list_has_no_empty_results(root: Path) -> None:
    shown = command("list", root).stdout
    assert "initialization" not in shown
    assert "the third; bits per byte before 0.9000, after 0.8000, teacher 0.7000" in " ".join(shown.split())


@pytest.mark.bad_input
@pytest.mark.parametrize("provenance", [{"configuration": "text"}, {"configuration": {"train": 3}}, {}])
@pytest.mark.parametrize(
    "results", [{}, {"held_out_bits_per_byte": 3, "chosen_step": "x"}, {"held_out_bits_per_byte": {}}]
)
def test_notes_that_may_hold_anything_are_listed(root: Path, provenance: Any, results: Any) -> None:
    student = StoredFolder(str(root), "students", "odd", {"of": "x"}, provenance=provenance)
    student.path.mkdir(parents=True)
    student.finish(results)
    for arguments in ([], ["--students"], ["--students", "--json"], ["--students", "--sort", "steps"]):
        assert command("list", root, *arguments).exit_code == 0


def test_a_trained_student_records_its_step_and_its_precision(config: AlmConfig, tmp_path: Path) -> None:
    named = config.model_copy(update={"name": "a name of mine"})
    pipeline = Pipeline(named, str(tmp_path))
    assert pipeline.student.name == Pipeline(config, str(tmp_path)).student.name
    pipeline.run()
    (row,) = rows(tmp_path)
    assert (row["name"], row["chosen_step"], row["steps"]) == ("a name of mine", 6, 6)
    assert row["held_out_documents"] > 1
    assert 0 < row["standard_error"] < row["bits_after"]
    assert "a name of mine" in (pipeline.student.path / "README.md").read_text()
