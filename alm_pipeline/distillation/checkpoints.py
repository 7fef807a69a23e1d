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

from storage.errors import UserError

STATE = "trainer_state.json"
"""what the trainer writes last"""
UNFINISHED = ".unfinished"
"""the folder that checkpoints are written in"""


def checkpoint_name(step: int) -> str:
    return f"checkpoint-{step}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[-1])


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


def saved_position(checkpoint: Path, rank: int) -> dict[str, Any]:
    try:
        position: dict[str, Any] = json.loads((checkpoint / stream_file(rank)).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: is not there: go on with as many processes as wrote the checkpoint, "
            "or delete it to start again"
        ) from error
    return position


def stream_file(rank: int) -> str:
    return f"stream_{rank}.json"


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
        folders = sorted(self.checkpoints.glob("checkpoint-*"), key=step_of)
        best = self.best_step()
        return [folder.name for folder in folders if folder in folders[-self.newest :] or step_of(folder) == best]

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
