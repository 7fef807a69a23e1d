"""Fingerprints: short hashes of everything that decides the bytes of a dataset."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage.errors import UserError
from storage.schemas import FORMAT_VERSION

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""The files whose contents identify a tokenizer."""
MODEL_WEIGHTS = "*.safetensors"
MODEL_FILES = ("config.json", "generation_config.json", MODEL_WEIGHTS, "*.py")
"""The files whose contents identify a model."""


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Return 16 hex digits of the SHA-256 of the identity's canonical JSON."""
    canonical = json.dumps(identity, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def stored_name(kind: str, label: str, identity: Mapping[str, Any]) -> str:
    """Return a folder's name: the label and the fingerprint, so that two configurations never share a folder."""
    return f"{label}-{fingerprint({'kind': kind, 'format': FORMAT_VERSION, 'identity': dict(identity)})}"


def as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity as it is read back from a manifest: tuples become lists."""
    result: dict[str, Any] = json.loads(json.dumps(dict(identity)))
    return result


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a local file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(folder: Path, patterns: tuple[str, ...]) -> str:
    """Return the SHA-256 over the names and contents of the files in `folder` that match, in hex.

    Raises UserError if no file matches: an identity of nothing would fit everything.
    """
    return combine_hashes(hash_by_name(folder, patterns))


def hash_by_name(folder: Path, patterns: tuple[str, ...]) -> dict[str, str]:
    """Return the SHA-256 of each file in `folder` that matches, by name. Raises UserError if no file matches."""
    files = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    if not files:
        raise UserError(f"{folder}: contains none of {', '.join(patterns)}")
    return {file.relative_to(folder).as_posix(): hash_file(file) for file in files}


def combine_hashes(hashes: Mapping[str, str]) -> str:
    """Return the SHA-256 over the names and SHA-256s of files, in hex."""
    lines = [f"{name} {hashes[name]}" for name in sorted(hashes)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
