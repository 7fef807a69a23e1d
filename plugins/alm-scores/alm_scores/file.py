"""The file that says which tokens are boundaries: written by alm-pipeline, read by the plugin. Without torch.

alm-pipeline computes the same hash (`alm_pipeline.scoring.served.vocabulary`), and compares it with the one that comes
with every reply.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "ALM_SCORES_FILE"
"""the environment variable that names the file; without it, the plugin does nothing"""
FORMAT = 1
_FIELDS = {"format", "model", "tokenizer", "rows", "width", "boundary_ids", "carriers", "hash"}
_CARRIERS = 3


class PluginError(SystemExit):
    """Something that keeps the server from serving right scores.

    Both engines log an Exception of a plugin, or may do so, and go on without it; a SystemExit ends the process.
    """


@dataclass(frozen=True)
class ServedVocabulary:
    """Which ids of a model's logits are tokens, which of them are boundaries, and which ids carry numbers."""

    rows: int
    """the ids that are tokens; the model's further ids are padding"""
    width: int
    """the number of logits of the model, padding included"""
    boundary_ids: tuple[int, ...]
    carriers: tuple[int, ...]
    """three ids that no text uses"""
    hash: str
    """of all fields of the file, in hexadecimal digits"""


def served_vocabulary() -> ServedVocabulary | None:
    """Read the file that the environment names; None if it names none. Raises PluginError if it can't be used."""
    name = os.environ.get(VARIABLE)
    return read_file(Path(name)) if name else None


def read_file(file: Path) -> ServedVocabulary:
    """Read and check a file. Raises PluginError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PluginError(f"alm-scores: {VARIABLE}={file}: can't be read: {error}: {_write_again(file)}") from error
    if problem := _problem(content):
        raise PluginError(f"alm-scores: {file}: {problem}: {_write_again(file)}")
    boundary_ids, carriers = tuple(content["boundary_ids"]), tuple(content["carriers"])
    return ServedVocabulary(content["rows"], content["width"], boundary_ids, carriers, content["hash"])


def content_hash(content: dict[str, Any]) -> str:
    """Return the SHA-256 of all fields but the hash itself, as compact JSON with sorted keys."""
    fields = {name: value for name, value in content.items() if name != "hash"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _write_again(file: Path) -> str:
    return f"write it with `alm serve MODEL --file {file}`"


def _problem(content: Any) -> str:
    """Return what is wrong with a file's content; "" if nothing is."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return f"not a file of alm serve in format {FORMAT}, the one that this version of the plugin reads"
    if set(content) != _FIELDS or content["hash"] != content_hash(content):
        return "damaged or edited: its hash is not that of its content"
    rows, width = content["rows"], content["width"]
    boundary_ids, carriers = content["boundary_ids"], content["carriers"]
    if not 0 < rows <= width:
        return f"{rows} tokens do not fit into {width} logits"
    if not boundary_ids or len(set(boundary_ids)) != len(boundary_ids) or not _within(boundary_ids, rows):
        return f"its boundary_ids are not distinct ids from 0 to {rows - 1}"
    if len(set(carriers)) != _CARRIERS or not _within(carriers, width):
        return f"its carriers are not {_CARRIERS} distinct ids from 0 to {width - 1}"
    return ""


def _within(ids: list[int], end: int) -> bool:
    return min(ids) >= 0 and max(ids) < end
