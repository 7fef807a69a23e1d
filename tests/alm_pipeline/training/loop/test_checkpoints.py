"""Which checkpoints are whole and kept, and that uploading them neither delays training nor hides an error."""

import shutil
import threading
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from alm_pipeline.config import AlmConfig
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.training import stage
from alm_pipeline.training.loop import train as training
from alm_pipeline.training.loop.checkpoints import (
    RECORD,
    UNFINISHED,
    CheckpointKeeper,
    CheckpointRecord,
    checkpoint_names,
    checkpoint_step,
    finish_checkpoint,
    last_checkpoint,
    problem_of,
)
from storage.folders import StoredFolder
from storage.urls import file_sizes, join_url, overwrite, read_bytes, upload


def write(checkpoints: Path, step: int, content: str = "x") -> Path:
    """Write a checkpoint as the trainer does: first in a folder of its own."""
    folder = checkpoints / UNFINISHED / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(content)
    finish_checkpoint(folder, checkpoints)
    return checkpoints / folder.name


def names(checkpoints: Path) -> list[str]:
    return sorted(folder.name for folder in checkpoints.glob("checkpoint-*"))


def keeper(
    checkpoints: Path, upload: Callable[[Collection[str]], None], newest: int = 1, best: int | None = None
) -> CheckpointKeeper:
    return CheckpointKeeper(checkpoints, newest, lambda: best, upload)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    uploaded: list[list[str]] = []
    with keeper(tmp_path, lambda kept: uploaded.append(list(kept)), newest=2, best=8) as keep:
        for step in (8, 9, 10, 11):
            write(tmp_path, step)
            keep.keep()
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-11", "checkpoint-8"]
    assert uploaded[-1] == ["checkpoint-8", "checkpoint-10", "checkpoint-11"]


def test_training_continues_during_an_upload_and_the_next_checkpoint_waits(tmp_path: Path) -> None:
    may_end, begun, there = threading.Event(), threading.Event(), list[bool]()

    def upload(kept: Collection[str]) -> None:
        begun.set()
        may_end.wait()
        there.extend((tmp_path / name / "model.safetensors").exists() for name in kept)

    with keeper(tmp_path, upload) as keep:
        write(tmp_path, 1)
        keep.keep()
        begun.wait()
        write(tmp_path, 2)
        second = threading.Thread(target=keep.keep)
        second.start()
        second.join(0.1)
        assert second.is_alive()
        assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]
        may_end.set()
        second.join()
    assert there == [True, True]
    assert names(tmp_path) == ["checkpoint-2"]


def fail(_: Collection[str]) -> None:
    raise ConnectionResetError("the store is away")


def test_a_failed_upload_is_raised_at_the_next_checkpoint(tmp_path: Path) -> None:
    with keeper(tmp_path, fail) as keep:
        write(tmp_path, 1)
        keep.keep()
        with pytest.raises(ConnectionResetError):
            keep.keep()


def test_a_failed_upload_is_raised_at_the_end(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with pytest.raises(ConnectionResetError), keeper(tmp_path, fail) as keep:
        keep.keep()
    assert names(tmp_path) == ["checkpoint-1"]


def test_a_failed_upload_does_not_hide_another_error(tmp_path: Path) -> None:
    write(tmp_path, 1)

    def train() -> None:
        with keeper(tmp_path, fail) as keep:
            keep.keep()
            raise ValueError

    with pytest.raises(ValueError) as raised:
        train()
    assert raised.value.__notes__ == ["The last checkpoint was not uploaded: the store is away"]


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_the_store_holds_the_kept_checkpoints(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    root = str(request.getfixturevalue("s3_root")) if kind == "s3" else f"memory://{tmp_path.name}"
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "machine"))
    student = StoredFolder(root, "students", "tiny", {"stage_version": 1})
    checkpoints = student.path / "checkpoints"
    with keeper(checkpoints, partial(student.mirror, "checkpoints", record=RECORD), best=2) as keep:
        for step in (1, 2, 3, 4):
            write(checkpoints, step, content="x" * step)
            keep.keep()
    assert file_sizes(f"{student.url}/checkpoints") == {
        f"checkpoint-{step}/{file}": (checkpoints / f"checkpoint-{step}" / file).stat().st_size
        for step in (2, 4)
        for file in ("model.safetensors", RECORD)
    }


def test_an_unfinished_checkpoint_is_removed(tmp_path: Path) -> None:
    write(tmp_path, 2)
    (tmp_path / UNFINISHED / "checkpoint-4").mkdir()
    (tmp_path / UNFINISHED / "checkpoint-4" / RECORD).write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_checkpoint_replaces_one_of_the_same_step(tmp_path: Path) -> None:
    write(tmp_path, 2, "old")
    assert (write(tmp_path, 2, "new") / "model.safetensors").read_text() == "new"


@pytest.fixture(scope="module")
def trained(config: AlmConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Path, dict[str, bytes]]:
    """A pipeline, a copy of its store as a kill after the last of three checkpoints left it, and the student's files.

    The student has everything that a checkpoint can hold: a moving average, adapters, evaluations.
    """
    folder = tmp_path_factory.mktemp("checkpoints")
    train = config.train.model_copy(update={"ema": 0.9, "keep_checkpoints": 3, "processes": 1})
    pipeline = Pipeline(config.model_copy(update={"train": train}), str(folder / "root"))
    pipeline.cache()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "_save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pipeline.train()
    shutil.copytree(folder / "root", folder / "killed")
    pipeline.train()
    return pipeline, folder / "killed", files_of(pipeline.student.path)


def interrupted(*_: object) -> float:
    raise KeyboardInterrupt


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and file.name[0] != "."}


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip,
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "empty": lambda file: file.write_bytes(b""),
    "missing": Path.unlink,
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "another step's": lambda file: file.write_bytes((file.parents[1] / "checkpoint-2" / file.name).read_bytes()),
}
KINDS = {
    "averages.safetensors",
    "config.json",
    "evaluations.json",
    "generation_config.json",
    "model.safetensors",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "stream.json",
    "trainer_state.json",
}


def test_the_record_names_every_file_of_a_checkpoint(trained: tuple[Pipeline, Path, dict[str, bytes]]) -> None:
    pipeline, killed, _ = trained
    for step in (2, 4, 6):
        folder = killed / "students" / pipeline.student.name / "checkpoints" / f"checkpoint-{step}"
        record = CheckpointRecord.model_validate_json((folder / RECORD).read_bytes())
        assert set(record.files) == {file.name for file in folder.iterdir()} - {RECORD} == KINDS
        assert problem_of(folder) is None


@pytest.mark.bad_input
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", [*sorted(KINDS), RECORD])
def test_a_damaged_checkpoint_is_not_used(
    trained: tuple[Pipeline, Path, dict[str, bytes]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    file: str,
    damage: str,
) -> None:
    pipeline, killed, _ = trained
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(killed / "students" / pipeline.student.name / "checkpoints", checkpoints)
    damaged = checkpoints / "checkpoint-6" / file
    is_same = damage == "another step's" and damaged.read_bytes() == (checkpoints / "checkpoint-2" / file).read_bytes()
    DAMAGES[damage](damaged)
    with caplog.at_level("WARNING"):
        assert last_checkpoint(checkpoints) == checkpoints / ("checkpoint-6" if is_same else "checkpoint-4")
    if not is_same:
        (message,) = caplog.messages
        assert message.startswith(f"{checkpoints}/checkpoint-6 is not used: ")
        assert file in message or file == RECORD  # whose content is the name and sum of another file
        assert checkpoint_names(checkpoints) == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.bad_input
@pytest.mark.parametrize("damaged", [(6,), (6, 4), (6, 4, 2)], ids=["the last", "two", "all"])
@pytest.mark.parametrize("where", ["disk", "memory"])
def test_training_goes_on_from_a_whole_checkpoint_to_the_same_student(
    trained: tuple[Pipeline, Path, dict[str, bytes]],
    tmp_path: Path,
    memory: object,
    monkeypatch: pytest.MonkeyPatch,
    damaged: tuple[int, ...],
    where: str,
) -> None:
    """On a disk and from a store, in which the bits flipped, on a new machine."""
    pipeline, killed, student = trained
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "machine"))
    root = str(tmp_path / "root") if where == "disk" else "memory://bucket/root"
    for name in file_sizes(str(killed)):
        upload(killed / name, join_url(root, name))
    resumed = Pipeline(pipeline.config, root)
    for step, file in zip(damaged, ("optimizer.pt", "rng_state.pth", "stream.json"), strict=False):
        url = join_url(resumed.student.url, "checkpoints", f"checkpoint-{step}", file)
        content = bytearray(read_bytes(url) or b"")
        content[len(content) // 2] ^= 1
        overwrite(url, bytes(content))
    started: list[int] = []
    monkeypatch.setattr(
        training, "TrainingProgress", watching(training.TrainingProgress, lambda step: started.append(step))
    )
    resumed.train()
    assert started[0] == {1: 5, 2: 3, 3: 1}[len(damaged)]
    assert {name: content for name, content in files_of(resumed.student.path).items() if name in WEIGHTS} == {
        name: content for name, content in student.items() if name in WEIGHTS
    }


WEIGHTS = ("model.safetensors", "metrics.parquet", "evaluations.parquet")


def watching(kind: type, report: Callable[[int], None]) -> type:
    class Watching(kind):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            report(state.global_step)
            super().on_step_end(args, state, control, **others)

    return Watching


@pytest.mark.bad_input
def test_without_the_best_students_checkpoint_an_earlier_one_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (2, 4, 6):
        write(tmp_path, step)
    needed = {2: 2, 4: 4, 6: 4}
    flip(tmp_path / "checkpoint-4" / "model.safetensors")
    with caplog.at_level("WARNING"):
        assert last_checkpoint(tmp_path, lambda folder: needed[checkpoint_step(folder)]) == tmp_path / "checkpoint-2"
    assert len(caplog.messages) == 2
    assert "the best student so far is that of step 4, whose checkpoint is gone" in caplog.text


def test_what_lies_beside_checkpoints_stays(tmp_path: Path) -> None:
    write(tmp_path, 2)
    (tmp_path / "checkpoint-notes").mkdir()
    (tmp_path / "checkpoint-2" / "notes.txt").write_text("mine")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert (tmp_path / "checkpoint-notes").is_dir()


def test_the_last_whole_checkpoint_is_not_pruned(tmp_path: Path) -> None:
    """Damaged ones are out of the way before checkpoints are counted."""
    for step in (2, 4, 6):
        write(tmp_path, step)
    for step in (4, 6):
        flip(tmp_path / f"checkpoint-{step}" / "model.safetensors")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    with keeper(tmp_path, lambda _: None, newest=1) as keep:
        keep.keep()
    assert names(tmp_path) == ["checkpoint-2"]


def test_a_checkpoint_that_is_a_link_is_not_emptied(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", 2)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "checkpoint-2").symlink_to(tmp_path / "elsewhere" / "checkpoint-2")
    write(tmp_path / "checkpoints", 4)
    with keeper(tmp_path / "checkpoints", lambda _: None) as keep:
        keep.keep()
    assert names(tmp_path / "checkpoints") == ["checkpoint-4"]
    assert problem_of(tmp_path / "elsewhere" / "checkpoint-2") is None
