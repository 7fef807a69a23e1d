"""A student's checkpoints on this machine's disk: which of them are whole, and where their batches go on."""

import json
import shutil
from pathlib import Path
from typing import Any

STATE = "trainer_state.json"
"""what the trainer writes last"""
STREAM = "stream.json"


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


def saved_position(checkpoint: Path) -> dict[str, Any]:
    """Where the stream's batches go on, for any number of processes."""
    position: dict[str, Any] = json.loads((checkpoint / STREAM).read_text(encoding="utf-8"))
    return position
