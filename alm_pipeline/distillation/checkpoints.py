"""A student's checkpoints on this machine's disk: which of them are whole, and where their batches go on."""

import json
import shutil
from pathlib import Path
from typing import Any

from storage.errors import UserError

STATE = "trainer_state.json"
"""what the trainer writes last"""


def last_checkpoint(checkpoints: Path) -> Path | None:
    """The latest whole checkpoint; what a kill left half-written is removed."""
    whole = []
    for folder in checkpoints.glob("checkpoint-*"):
        if _is_whole(folder):
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    return max(whole, key=lambda folder: int(folder.name.rsplit("-", 1)[-1]), default=None)


def _is_whole(folder: Path) -> bool:
    try:
        return isinstance(json.loads((folder / STATE).read_text()), dict)
    except (OSError, json.JSONDecodeError):
        return False


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
