"""A student's checkpoints: which of them are whole, which are kept, and how they are uploaded to the store.

A checkpoint has a record with the size and SHA-256 of each of its files, which is written last. One without a record,
or whose files differ from it, is never used: the newest whole one is. On the local disk a checkpoint is written in a
folder of its own and moved into place once it is complete. Uploads go file by file, the record last.
"""

import json
import logging
import shutil
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from storage.errors import UserError
from storage.fingerprints import hash_file

RECORD = "record.json"
"""the file that is written last"""
STREAM_STATE = "stream.json"
UNFINISHED = ".unfinished"
"""the folder in which checkpoints are written"""
_HASHED_AT_ONCE = 4
_log = logging.getLogger("alm_pipeline")


class FileRecord(BaseModel):
    """What a file of a checkpoint was when it was written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class CheckpointRecord(BaseModel):
    """The files of a checkpoint, by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: Mapping[str, FileRecord]


def checkpoint_name(step: int) -> str:
    return f"checkpoint-{step}"


def checkpoint_step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[-1])


def checkpoint_names(checkpoints: Path) -> list[str]:
    """Return the names of the existing checkpoints, oldest first."""
    return [folder.name for folder in sorted(_folders(checkpoints), key=checkpoint_step)]


def _folders(checkpoints: Path) -> list[Path]:
    """Return the checkpoints, not what a user or another program has put beside them."""
    return [folder for folder in checkpoints.glob("checkpoint-*") if folder.name.rsplit("-", 1)[-1].isdecimal()]


def write_record(checkpoint: Path) -> None:
    """Write the record of a checkpoint whose other files are written."""
    files = sorted(file for file in checkpoint.iterdir() if file.is_file() and file.name != RECORD)
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:  # hashing releases the interpreter's lock
        hashes = list(pool.map(hash_file, files))
    records = {
        file.name: FileRecord(bytes=file.stat().st_size, sha256=sha256)
        for file, sha256 in zip(files, hashes, strict=True)
    }
    (checkpoint / RECORD).write_text(CheckpointRecord(files=records).model_dump_json(indent=1), encoding="utf-8")


def problem_of(checkpoint: Path) -> str | None:
    """Return why a checkpoint is not whole: a file differs from its record, or it has none; None if it is whole.

    Raises UserError if a file can't be read: then it is not known.
    """
    try:
        return _problem_of(checkpoint)
    except OSError as error:
        raise UserError(
            f"{error.filename or checkpoint}: can't be read: {error.strerror}: make it readable, or remove {checkpoint}"
        ) from error


def _problem_of(checkpoint: Path) -> str | None:
    if not (checkpoint / RECORD).is_file():
        return f"it has no {RECORD}, so it was not written to the end"
    try:
        record = CheckpointRecord.model_validate_json((checkpoint / RECORD).read_bytes())
    except ValidationError:
        return f"its {RECORD} is damaged"
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        problems = pool.map(lambda item: _file_problem(checkpoint / item[0], item[1]), sorted(record.files.items()))
        return next((problem for problem in problems if problem), None)


def _file_problem(file: Path, record: FileRecord) -> str | None:
    if not file.is_file():
        return f"{file.name} is missing"
    if (size := file.stat().st_size) != record.bytes:
        return f"{file.name} is {size} bytes long, not {record.bytes}"
    return None if hash_file(file) == record.sha256 else f"{file.name} is damaged: its SHA-256 differs from its record"


def last_checkpoint(checkpoints: Path, needed_step: Callable[[Path], int | None] = lambda _: None) -> Path | None:
    """Return the latest whole checkpoint, or None if there is none. What is not whole is reported, and removed.

    A checkpoint is of no use without the one of its `needed_step`, whose weights may become the student.
    """
    shutil.rmtree(checkpoints / UNFINISHED, ignore_errors=True)
    whole = remove_damaged(checkpoints)
    for checkpoint in sorted(whole, key=checkpoint_step, reverse=True):
        needed = needed_step(checkpoint)
        if needed is None or checkpoint.with_name(checkpoint_name(needed)) in whole:
            return checkpoint
        _log.warning(
            "%s is not used: the best student so far is that of step %d, whose checkpoint is gone", checkpoint, needed
        )
        _remove(checkpoint)
    return None


def remove_damaged(checkpoints: Path) -> list[Path]:
    """Remove the checkpoints that are not whole, with a warning for each. Return the others."""
    folders = _folders(checkpoints)
    problems = {folder: problem_of(folder) for folder in folders}
    for folder, problem in problems.items():
        if problem:
            _log.warning(
                "%s is not used: %s. Training goes on from another one, or from the beginning", folder, problem
            )
            _remove(folder)
    return [folder for folder in folders if not problems[folder]]


def finish_checkpoint(unfinished: Path, checkpoints: Path) -> None:
    """Write the record of a checkpoint that was written in `UNFINISHED`, and move it into place, atomically."""
    write_record(unfinished)
    finished = checkpoints / unfinished.name
    _remove(finished)
    unfinished.replace(finished)


def _remove(checkpoint: Path) -> None:
    if checkpoint.is_symlink() or checkpoint.is_file():
        checkpoint.unlink()
        return
    # first the file that marks it complete: a kill may interrupt the removal
    if (checkpoint / RECORD).is_file():
        (checkpoint / RECORD).unlink()
    shutil.rmtree(checkpoint, ignore_errors=True)


def load_stream_state(checkpoint: Path) -> dict[str, Any]:
    """Return the position from which the batch stream continues, for any number of processes."""
    state: dict[str, Any] = json.loads((checkpoint / STREAM_STATE).read_text(encoding="utf-8"))
    return state


def load_weights(checkpoint: Path, model: PreTrainedModel) -> None:
    """Load a checkpoint's weights. Raises UserError if they are not those of this model."""
    record = CheckpointRecord.model_validate_json((checkpoint / RECORD).read_bytes())
    # several files, if the model has more than 50 GB
    files = [checkpoint / name for name in sorted(record.files) if fnmatchcase(name, "model*.safetensors")]
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
        for folder in _folders(self.checkpoints):
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
