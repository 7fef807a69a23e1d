"""What is kept of a task is named by its questions: those of other files are measured again, wherever the files are."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from alm_pipeline.config import AlmConfig, RoundsConfig, ScoreConfig
from alm_pipeline.editing.directions.settings import DemonstrationsConfig, EditEvaluationConfig
from alm_pipeline.editing.measurements import Measurements
from alm_pipeline.ensemble.tasks import task_files
from alm_pipeline.evaluation.local_tasks import write_task
from alm_pipeline.methods.tasks import ComparedTasks
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.rounds.on_policy import OnPolicy


def write_questions(file: Path, answer: int) -> Path:
    rows = [{"question": f"{k}?", "choices": ["one", "two"], "answer": answer} for k in range(3)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A task whose questions are beside its folder, as `alm make-task` writes it."""
    write_task(tmp_path / "tasks", "mine", "multiple_choice", write_questions(tmp_path / "questions.jsonl", 0))
    return tmp_path / "tasks"


def of_comparison(folder: Path, config: AlmConfig) -> object:
    return ComparedTasks(("mine",), folder).identity()


def of_edit(folder: Path, config: AlmConfig) -> object:
    evaluation = EditEvaluationConfig(tasks=("mine",), task_folder=str(folder))
    base = ModelReference(config.student.model, False)
    return Measurements(base, evaluation, DemonstrationsConfig(url="pairs.jsonl"), ScoreConfig(), False).identity


def of_rounds(folder: Path, config: AlmConfig) -> object:
    rounds = RoundsConfig(start="model", tasks=("mine",), task_folder=str(folder))
    made = OnPolicy(config.model_copy(update={"rounds": rounds}), str(folder.parent / "root"))
    made.prepare()
    return made.folder.name


@pytest.mark.parametrize("identity", [of_comparison, of_edit, of_rounds])
def test_other_questions_are_measured_again(
    folder: Path, config: AlmConfig, identity: Callable[[Path, AlmConfig], object]
) -> None:
    first = identity(folder, config)
    assert identity(folder, config) == first
    write_questions(folder.parent / "questions.jsonl", 1)
    other = identity(folder, config)
    assert other != first
    (folder / "mine.yaml").write_text((folder / "mine.yaml").read_text().replace("acc_bytes", "acc_norm"))
    assert identity(folder, config) not in (first, other)


@pytest.mark.parametrize(
    "data",
    [
        "dataset_path: json\ndataset_kwargs: {data_files: FOLDER/a.jsonl}",
        "dataset_path: json\ndataset_kwargs: {data_files: {test: [FOLDER/a.jsonl]}}",
        "dataset_path: json\ndataset_kwargs: {data_files: 'FOLDER/*.jsonl'}",
        "dataset_path: FOLDER\ndoc_to_text: !function code.text",
        "dataset_path: json\ndataset_kwargs: {data_dir: FOLDER}",
    ],
)
def test_data_is_found_wherever_a_task_names_it(tmp_path: Path, data: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "tasks").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text("1")
    (tmp_path / "tasks" / "mine.yaml").write_text(data.replace("FOLDER", str(tmp_path / "data")))
    before = task_files(tmp_path / "tasks")
    (tmp_path / "data" / "a.jsonl").write_text("2")
    assert task_files(tmp_path / "tasks") != before
