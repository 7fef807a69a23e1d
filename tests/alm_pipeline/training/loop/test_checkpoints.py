"""Which checkpoints are kept, and that uploading them neither delays training nor hides an error."""

import threading
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import pytest

from alm_pipeline.training.loop.checkpoints import (
    TRAINER_STATE,
    UNFINISHED,
    CheckpointKeeper,
    finish_checkpoint,
    last_checkpoint,
)
from storage.folders import StoredFolder
from storage.urls import file_sizes


def write(checkpoints: Path, step: int, content: str = "x") -> Path:
    """Write a checkpoint as the trainer does: first in a folder of its own."""
    folder = checkpoints / UNFINISHED / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(content)
    (folder / TRAINER_STATE).write_text("{}")
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
    with keeper(checkpoints, partial(student.mirror, "checkpoints"), best=2) as keep:
        for step in (1, 2, 3, 4):
            write(checkpoints, step, content="x" * step)
            keep.keep()
    assert file_sizes(f"{student.url}/checkpoints") == {
        f"checkpoint-{step}/{file}": size
        for step in (2, 4)
        for file, size in (("model.safetensors", step), (TRAINER_STATE, 2))
    }


def test_an_unfinished_checkpoint_is_removed(tmp_path: Path) -> None:
    write(tmp_path, 2)
    (tmp_path / UNFINISHED / "checkpoint-4").mkdir()
    (tmp_path / UNFINISHED / "checkpoint-4" / TRAINER_STATE).write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_checkpoint_replaces_one_of_the_same_step(tmp_path: Path) -> None:
    write(tmp_path, 2, "old")
    assert (write(tmp_path, 2, "new") / "model.safetensors").read_text() == "new"
