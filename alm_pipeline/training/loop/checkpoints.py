"""A student's checkpoints: which of them are whole, which are kept, and how they get to the store.

On this machine's disk a checkpoint is written beside the others and moved to its place when all of it is there; of a
store's, which are uploaded file by file, the one with `STATE` is whole, since that is uploaded last.
"""

import json
import shutil
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

STATE = "trainer_state.json"
"""what the trainer writes last"""
STREAM = "stream.json"
UNFINISHED = ".unfinished"
"""the folder that checkpoints are written in"""


def checkpoint_name(step: int) -> str:
    return f"checkpoint-{step}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[-1])


def checkpoint_names(checkpoints: Path) -> list[str]:
    """Of those that are there, oldest first."""
    return [folder.name for folder in sorted(checkpoints.glob("checkpoint-*"), key=step_of)]


def last_checkpoint(checkpoints: Path) -> Path | None:
    """The latest whole checkpoint; what a kill left half-written is removed."""
    shutil.rmtree(checkpoints / UNFINISHED, ignore_errors=True)
    for folder in checkpoints.glob("checkpoint-*"):
        if not _is_whole(folder):
            shutil.rmtree(folder)
    return max(checkpoints.glob("checkpoint-*"), key=step_of, default=None)


def _is_whole(folder: Path) -> bool:
    try:
        return isinstance(json.loads((folder / STATE).read_text()), dict)
    except (OSError, json.JSONDecodeError):
        return False


def finish_checkpoint(written: Path, checkpoints: Path) -> None:
    """Move a checkpoint that was written in `UNFINISHED` to its place, in one step."""
    place = checkpoints / written.name
    _remove(place)
    written.replace(place)


def _remove(checkpoint: Path) -> None:
    """What is half removed must not be taken for whole."""
    (checkpoint / STATE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def saved_position(checkpoint: Path) -> dict[str, Any]:
    """Where the stream's batches go on, for any number of processes."""
    position: dict[str, Any] = json.loads((checkpoint / STREAM).read_text(encoding="utf-8"))
    return position


class CheckpointKeeper:
    """Keeps the newest checkpoints and the best one, here and, by a thread, in the store.

    One upload is under way at a time, and training goes on meanwhile: the next checkpoint waits for it, so that the
    store is at most one behind. What an upload raises is raised then, or at the end, which waits for the last one.
    """

    def __init__(
        self,
        checkpoints: Path,
        newest: int,
        best_step: Callable[[], int | None],
        upload: Callable[[Collection[str]], None],
    ) -> None:
        """`upload` makes the store's checkpoints those of these names."""
        self.checkpoints, self.newest, self.best_step, self.upload = checkpoints, newest, best_step, upload
        self._thread = ThreadPoolExecutor(1, "checkpoint-upload")
        self._under_way: Future[None] | None = None

    def keep(self) -> None:
        """To be called when a checkpoint is finished."""
        self._wait()
        kept = self._kept()
        for folder in self.checkpoints.glob("checkpoint-*"):
            if folder.name not in kept:
                _remove(folder)
        self._under_way = self._thread.submit(self.upload, kept)

    def _kept(self) -> list[str]:
        """Oldest first."""
        names = checkpoint_names(self.checkpoints)
        best = self.best_step()
        best_name = None if best is None else checkpoint_name(best)
        return [name for name in names if name in names[-self.newest :] or name == best_name]

    def _wait(self) -> None:
        upload, self._under_way = self._under_way, None
        if upload:
            upload.result()

    def __enter__(self) -> "CheckpointKeeper":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # also after an error: whoever takes the lease next must not find this process uploading
        self._thread.shutdown(wait=True)
        failed = self._under_way.exception() if self._under_way else None
        if failed and error:
            error.add_note(f"The last checkpoint was not uploaded: {failed}")
        elif failed:
            raise failed
