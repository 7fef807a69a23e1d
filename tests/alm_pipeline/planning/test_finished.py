"""A finished run is answered from its record, and never once anything that decides it has changed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alm_pipeline.config import AlmConfig, StudentConfig, TrainedTokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.planning import finished
from alm_pipeline.planning.finished import find_finished, record_finished
from alm_pipeline.recipes.overrides import Overrides, override
from alm_pipeline.report import RunSummary, summarize
from storage.folders import CHECKPOINTS

ROOT = Path(__file__).parents[3]


def recorded(config: AlmConfig, root: Path, until: str = "student") -> RunSummary:
    pipeline = Pipeline(config, str(root))
    summary = summarize(pipeline, with_student=until == "student")
    record_finished(pipeline, summary, until)
    assert find_finished(config, str(root), until) == summary
    return summary


@pytest.mark.parametrize("until", ["student", "scores"])
def test_a_finished_run_is_found_until_where_it_went(config: AlmConfig, finished_store: Path, until: str) -> None:
    assert find_finished(config, str(finished_store), until) is None
    recorded(config, finished_store, until)
    other = {"student": "scores", "scores": "student"}[until]
    assert find_finished(config, str(finished_store), other) is None


def machine_folder() -> Path:
    """Where this test's machine keeps its records: `tests.conftest` gives each test a folder of its own."""
    return Path(vars(finished)["cache_folder"]())


def files_of_inputs(config: AlmConfig) -> list[Path]:
    folders = [Path(config.teacher), Path(config.student.model), Path(config.teacher).parent / "corpus"]
    return sorted(file for folder in folders for file in folder.rglob("*") if file.is_file())


def test_no_file_of_an_input_can_change_unnoticed(config: AlmConfig, finished_store: Path) -> None:
    """Every file, with its size and times as before, since a record outlives the process that would compare inodes."""
    recorded(config, finished_store)
    files = files_of_inputs(config)
    assert len(files) >= 10
    for file in files:
        before, stat = file.read_bytes(), file.stat()
        file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert find_finished(config, str(finished_store), "student") is None, file
        file.write_bytes(before)
    assert find_finished(config, str(finished_store), "student")


@pytest.mark.parametrize("place", ["teacher", "student.model", "corpus"])
def test_a_new_file_of_an_input_is_noticed(config: AlmConfig, finished_store: Path, place: str) -> None:
    recorded(config, finished_store)
    folder = Path(config.teacher).parent / "corpus"
    folder = {"teacher": Path(config.teacher), "student.model": Path(config.student.model)}.get(place, folder)
    for name in ("b.jsonl", "additional_chat_templates/tool.jinja") if place != "corpus" else ("b.jsonl",):
        new = folder / name
        new.parent.mkdir(exist_ok=True)
        new.write_text('{"text": "another"}')
        assert find_finished(config, str(finished_store), "student") is None
        new.unlink()
    assert find_finished(config, str(finished_store), "student")


def test_every_dataset_and_folder_of_the_store_counts(config: AlmConfig, finished_store: Path) -> None:
    summary = recorded(config, finished_store)
    for url in summary.places.values():
        manifest = Path(url) / "manifest.json"
        before = manifest.read_bytes()
        manifest.unlink()
        assert find_finished(config, str(finished_store), "student") is None, url
        manifest.write_bytes(json.dumps({**json.loads(before), "provenance": {}}).encode())
        assert find_finished(config, str(finished_store), "student") is None, url
        manifest.write_bytes(before)
    assert find_finished(config, str(finished_store), "student")


@pytest.mark.parametrize(
    "setting", [{"train.seed": 9}, {"score.batch_tokens": 64}, {"log.project": "x"}, {"objective.gamma": 0.3}]
)
def test_another_configuration_is_another_run(
    config: AlmConfig, finished_store: Path, setting: dict[str, object]
) -> None:
    recorded(config, finished_store)
    assert find_finished(override(config, Overrides(settings=setting)), str(finished_store), "student") is None


@pytest.mark.parametrize(
    "setting", [{"publish": {"repo": "me/it"}}, {"trust_remote_code": True}], ids=["publish", "trust_remote_code"]
)
def test_what_a_record_can_not_stand_for_is_not_recorded(
    config: AlmConfig, finished_store: Path, setting: dict[str, object]
) -> None:
    config = override(config, Overrides(settings=setting))
    pipeline = Pipeline(config, str(finished_store))
    record_finished(pipeline, summarize(pipeline), "student")
    assert find_finished(config, str(finished_store), "student") is None


def test_a_student_that_is_asked_for_again_is_not_finished(
    config: AlmConfig, finished_store: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(finished_store, tmp_path / "store"))
    recorded(config, root)
    student = Pipeline(config, str(root)).student
    (student.path / CHECKPOINTS).mkdir()
    (student.path / CHECKPOINTS / "left over").touch()  # a kill came between the manifest and removing them
    assert find_finished(config, str(root), "student") is None
    shutil.rmtree(student.path / CHECKPOINTS)
    assert find_finished(config, str(root), "student")
    student.request_replacement()
    assert find_finished(config, str(root), "student") is None


def _other_program() -> dict[str, str]:
    return {"alm_pipeline": "other"}


def _other_packages() -> list[str]:
    return ["transformers-0.dist-info"]


@pytest.mark.parametrize(("name", "other"), [("_program", _other_program), ("_packages", _other_packages)])
def test_another_version_looks_itself(
    config: AlmConfig, finished_store: Path, name: str, other: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(config, finished_store)
    monkeypatch.setattr(finished, name, other)
    assert find_finished(config, str(finished_store), "student") is None


def test_inputs_that_changed_since_the_run_began_are_not_recorded(config: AlmConfig, finished_store: Path) -> None:
    pipeline = Pipeline(config, str(finished_store))
    summary = summarize(pipeline)
    for file in (
        Path(config.teacher) / "model.safetensors",
        Path(config.teacher).parent / "corpus" / "a.jsonl",
    ):
        before = file.read_bytes()
        file.write_bytes(before + b"\n")
        record_finished(pipeline, summary, "student")
        assert find_finished(config, str(finished_store), "student") is None, file
        file.write_bytes(before)
        assert find_finished(config, str(finished_store), "student") is None, file


def test_a_damaged_tokenizer_of_the_run_is_not_answered(config: AlmConfig, tmp_path: Path) -> None:
    student = StudentConfig(model=config.student.model, tokenizer=TrainedTokenizer(vocab_size=320, train_bytes=2048))
    train = config.train.model_copy(update={"steps": 0})
    config = config.model_copy(update={"student": student, "train": train})
    pipeline = Pipeline(config, str(tmp_path))
    pipeline.cache()
    recorded(config, tmp_path, "scores")
    assert pipeline.made_tokenizer
    file = pipeline.made_tokenizer.path / "tokenizer.json"
    file.write_bytes(file.read_bytes() + b" ")
    assert find_finished(config, str(tmp_path), "scores") is None


def test_a_damaged_record_and_a_folder_that_is_not_there(config: AlmConfig, finished_store: Path) -> None:
    recorded(config, finished_store)
    records = list(machine_folder().glob("findings/*.json"))
    assert records
    for record in records:
        record.write_bytes(b"{")
    assert find_finished(config, str(finished_store), "student") is None
    assert find_finished(config, str(finished_store / "elsewhere"), "student") is None


def test_an_answer_loads_no_heavy_library(config: AlmConfig, finished_store: Path, tmp_path: Path) -> None:
    recorded(config, finished_store)
    file = tmp_path / "config.json"
    file.write_text(config.model_dump_json())
    script = (
        "import sys, pathlib\n"
        "from alm_pipeline.planning import finished\n"
        "from alm_pipeline.config import load_config\n"
        f"finished.cache_folder = lambda: pathlib.Path({str(machine_folder())!r})\n"
        f"config = load_config(pathlib.Path({str(file)!r}))\n"
        f"found = finished.find_finished(config, {str(finished_store)!r}, 'student')\n"
        "import alm_pipeline.report\n"
        "print(found is not None, *sorted({'torch', 'transformers', 'prefect', 'numba'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]
