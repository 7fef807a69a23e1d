"""A student's checkpoints: which of them are complete, which are kept, and how they are uploaded to the store.

On the local disk a checkpoint is written in a folder of its own and moved into place once it is complete. Uploads go
file by file, and `TRAINER_STATE` is last, so an uploaded checkpoint with that file is complete.
"""

import json
import shutil
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors.torch import load_file
from transformers import PreTrainedModel

from storage.errors import UserError

TRAINER_STATE = "trainer_state.json"
"""the file that is written last"""
STREAM_STATE = "stream.json"
UNFINISHED = ".unfinished"
"""the folder in which checkpoints are written"""


def checkpoint_name(step: int) -> str:
    return f"checkpoint-{step}"


def checkpoint_step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[-1])


def checkpoint_names(checkpoints: Path) -> list[str]:
    """Return the names of the existing checkpoints, oldest first."""
    return [folder.name for folder in sorted(checkpoints.glob("checkpoint-*"), key=checkpoint_step)]


def last_checkpoint(checkpoints: Path) -> Path | None:
    """Return the latest complete checkpoint, after removing what a kill left incomplete."""
    shutil.rmtree(checkpoints / UNFINISHED, ignore_errors=True)
    for folder in checkpoints.glob("checkpoint-*"):
        if not _is_complete(folder):
            shutil.rmtree(folder)
    return max(checkpoints.glob("checkpoint-*"), key=checkpoint_step, default=None)


def _is_complete(folder: Path) -> bool:
    try:
        return isinstance(json.loads((folder / TRAINER_STATE).read_text()), dict)
    except (OSError, json.JSONDecodeError):
        return False


def finish_checkpoint(unfinished: Path, checkpoints: Path) -> None:
    """Move a checkpoint that was written in `UNFINISHED` into place, atomically."""
    finished = checkpoints / unfinished.name
    _remove(finished)
    unfinished.replace(finished)


def _remove(checkpoint: Path) -> None:
    # first the file that marks it complete: a kill may interrupt the removal
    (checkpoint / TRAINER_STATE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def load_stream_state(checkpoint: Path) -> dict[str, Any]:
    """Return the position from which the batch stream continues, for any number of processes."""
    state: dict[str, Any] = json.loads((checkpoint / STREAM_STATE).read_text(encoding="utf-8"))
    return state


def load_weights(checkpoint: Path, model: PreTrainedModel) -> None:
    """Load a checkpoint's weights. Raises UserError if they are not those of this model."""
    # several files, if the model has more than 50 GB
    files = sorted(checkpoint.glob("model*.safetensors"))
    weights = {name: value for file in files for name, value in load_file(file).items()}
    keys = model.load_state_dict(weights, strict=False)
    missing = set(keys.missing_keys) - set(model.all_tied_weights_keys)
    if other := sorted(missing | set(keys.unexpected_keys)):
        raise UserError(
            f"{checkpoint}: the checkpoint is of another student: {other[0]} differs: delete the folder "
            f"{checkpoint.parent.name}/ to start again"
        )


class CheckpointKeeper:
    """Keeps the newest checkpoints and the best one, locally and, through a thread, in the store.

    One upload runs at a time while training continues. The next checkpoint waits for it, so the store is at most one
    checkpoint late. An exception of an upload is raised at the next checkpoint, or at the end, which waits for the
    last upload.
    """

    def __init__(
        self,
        checkpoints: Path,
        newest: int,
        best_step: Callable[[], int | None],
        upload: Callable[[Collection[str]], None],
    ) -> None:
        """`upload` makes the store hold exactly the checkpoints of the given names."""
        self.checkpoints, self.newest, self.best_step, self.upload = checkpoints, newest, best_step, upload
        self._thread = ThreadPoolExecutor(1, "checkpoint-upload")
        self._running_upload: Future[None] | None = None

    def keep(self) -> None:
        """Remove checkpoints that are not to be kept, and upload the others. Call it after each checkpoint."""
        self._wait()
        names = self._names_to_keep()
        for folder in self.checkpoints.glob("checkpoint-*"):
            if folder.name not in names:
                _remove(folder)
        self._running_upload = self._thread.submit(self.upload, names)

    def _names_to_keep(self) -> list[str]:
        """Return them oldest first."""
        names = checkpoint_names(self.checkpoints)
        best = self.best_step()
        best_name = None if best is None else checkpoint_name(best)
        return [name for name in names if name in names[-self.newest :] or name == best_name]

    def _wait(self) -> None:
        upload, self._running_upload = self._running_upload, None
        if upload:
            upload.result()

    def __enter__(self) -> "CheckpointKeeper":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # also after an error: the next holder of the lease must not find this process still uploading
        self._thread.shutdown(wait=True)
        upload_error = self._running_upload.exception() if self._running_upload else None
        if upload_error and error:
            error.add_note(f"The last checkpoint was not uploaded: {upload_error}")
        elif upload_error:
            raise upload_error
