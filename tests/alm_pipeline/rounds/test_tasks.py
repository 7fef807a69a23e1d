"""Tasks of lm_eval in rounds: every student's accuracy, by question; and what is checked before the first round."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from alm_pipeline.config import AlmConfig, SamplingConfig
from alm_pipeline.ensemble.harness import evaluate
from alm_pipeline.rounds.on_policy import OnPolicy
from storage.errors import UserError
from tests.lm_eval_tasks import write_choices
from tests.writers import WORDS, sentences

QUESTIONS = [
    (text[:-1].rpartition(" ")[0], [f" {word}" for word in WORDS[:3]], number % 3)
    for number, text in enumerate(sentences(9, 5))
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "tasks"
    made.mkdir()
    write_choices(made, "endings", QUESTIONS)
    return made


def with_tasks(config: AlmConfig, folder: Path, *names: str) -> AlmConfig:
    assert config.rounds
    changes = {"count": 1, "start": "model", "tasks": names, "task_folder": str(folder), "task_limit": 6}
    return config.model_copy(update={"rounds": config.rounds.model_copy(update=changes)})


def test_every_student_is_measured_on_tasks(text_rounds: AlmConfig, folder: Path, tmp_path: Path) -> None:
    made = OnPolicy(with_tasks(text_rounds, folder, "endings"), str(tmp_path / "root"))
    made.run()
    rows = json.loads((made.folder.path / "rounds.json").read_text())["measures"]
    found = {row["student"]: row for row in rows if (row["domain"], row["measure"]) == ("endings", "acc")}
    assert list(found) == [0, 1]
    for student, row in found.items():
        model = made.model(student)
        (alone,) = evaluate([model.name], ["endings"], task_folder=folder, limit=6)
        assert row["value"] == pytest.approx(alone["results"]["endings"]["acc,none"])
    assert found[1]["difference"] == pytest.approx(found[1]["value"] - found[0]["value"])
    page = (made.pipeline(1).student.path / "runs" / "report.html").read_text()
    assert "endings: acc" in page


def test_results_are_named_by_the_tasks_and_not_by_their_place(
    text_rounds: AlmConfig, folder: Path, tmp_path: Path
) -> None:
    """Other questions are measured, and the same ones in another folder are not measured again."""
    root, moved = str(tmp_path / "root"), tmp_path / "moved"
    first = OnPolicy(with_tasks(text_rounds, folder, "endings"), root)
    first.prepare()
    name = first.folder.name
    folder.rename(moved)
    assert OnPolicy(with_tasks(text_rounds, moved, "endings"), root).folder.name == name
    write_choices(moved, "endings", QUESTIONS[:5])
    assert OnPolicy(with_tasks(text_rounds, moved, "endings"), root).folder.name != name


@pytest.mark.bad_input
@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_vllm_is_named_before_the_first_training(text_rounds: AlmConfig, tmp_path: Path) -> None:
    assert text_rounds.rounds
    rounds = text_rounds.rounds.model_copy(update={"sampling": SamplingConfig(engine="vllm")})
    with pytest.raises(UserError, match=r"rounds\.sampling\.engine: vLLM is not installed"):
        OnPolicy(text_rounds.model_copy(update={"rounds": rounds}), str(tmp_path / "root")).run()
    assert not (tmp_path / "root").exists()


@pytest.mark.bad_input
def test_a_task_that_does_not_exist_is_refused_before_the_first_round(
    text_rounds: AlmConfig, folder: Path, tmp_path: Path
) -> None:
    (folder / "broken.yaml").write_text((folder / "endings.yaml").read_text().replace("endings", "broken"))
    made = OnPolicy(with_tasks(text_rounds, folder, "broken"), str(tmp_path / "root"))
    with pytest.raises(UserError, match=r"rounds\.tasks: lm_eval cannot load broken"):
        made.run()
    assert not (tmp_path / "root").exists()


@pytest.mark.bad_input
def test_settings_of_tasks_without_tasks_are_refused(text_rounds: AlmConfig, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rounds\.task_folder, rounds\.task_limit: not used"):
        OnPolicy(with_tasks(text_rounds, folder), str(tmp_path / "root")).run()
