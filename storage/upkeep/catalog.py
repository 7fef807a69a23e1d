"""What is stored under a root, and what was made from what.

Nothing is kept for this: a manifest's identity names the datasets that were read, and holds the hashes of tokenizers
and models, by which those that are stored here are found again.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from storage.dataset import Manifest, load_manifest
from storage.errors import OtherFormatError, UserError
from storage.fingerprints import MODEL_FILES, TOKENIZER_FILES, combine_hashes, stored_name
from storage.folders import FOLDER_KINDS, FolderManifest, load_folder_manifest
from storage.schemas import Kind
from storage.urls import (
    FileInfo,
    absolute_url,
    is_local,
    join_url,
    list_files,
    list_folders,
    open_filesystem,
    read_bytes,
)

KINDS = ("examples", "tokenizers", "tokens", "alignments", "pair_biases", "teacher_scores", "students")
"""the folders under a root, each after those that it is made from"""

INVALID_MANIFEST = ".manifest.invalid.json"
"""what a repair moves a manifest to, for it holds the configuration to run again"""

_ROLES = {
    "examples": Kind.EXAMPLES,
    "tokens": Kind.TOKENS,
    "teacher_tokens": Kind.TOKENS,
    "student_tokens": Kind.TOKENS,
    "alignments": Kind.ALIGNMENTS,
    "pair_biases": "pair_biases",
    "scores": Kind.TEACHER_SCORES,
}
# a finished student holds a copy of its tokenizer: of students, only the model tells who was made from them
_KNOWN_BY = {"tokenizers": TOKENIZER_FILES, "students": MODEL_FILES}


class State(StrEnum):
    """What a manifest says of its dataset."""

    COMPLETE = "complete"
    NOT_COMPLETE = "not complete"
    DAMAGED = "manifest damaged"
    FOREIGN = "manifest of another dataset"
    EDITED = "manifest edited"
    OTHER_FORMAT = "other format"


@dataclass(frozen=True)
class Entry:
    """A dataset or folder under a root, whatever its state."""

    root: str
    kind: str
    name: str
    files: Mapping[str, FileInfo]
    state: State
    manifest: Manifest | FolderManifest | None = None
    """where it is complete"""
    problem: str = ""

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.name}"

    @property
    def url(self) -> str:
        return join_url(self.root, self.kind, self.name)

    def file(self, name: str) -> str:
        return join_url(self.url, name)

    @property
    def bytes(self) -> int:
        return sum(info.bytes for info in self.files.values())

    @property
    def modified(self) -> float | None:
        """When its newest file was written, in seconds since 1970; None where that can't be known."""
        # an empty folder on a disk has nothing that could still be written to
        return newest(self.files.values()) if self.files else 0.0

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What its manifest says of the run that made it, or, while it is repaired, said."""
        if self.manifest:
            return self.manifest.provenance
        content = read_bytes(self.file(INVALID_MANIFEST)) if INVALID_MANIFEST in self.files else None
        kept: dict[str, Any] = json.loads(content).get("provenance", {}) if content else {}
        return kept


def newest(files: Iterable[FileInfo]) -> float | None:
    """When the newest of the files was written; None where that can't be known of one, or there are none."""
    times = [info.modified for info in files]
    known = [time for time in times if time is not None]
    return max(known) if known and len(known) == len(times) else None


@dataclass(frozen=True)
class Node:
    """A dataset in a lineage, and what it was made from."""

    role: str
    """as what it was read; empty for the one that was asked for"""
    key: str
    entry: Entry | None
    """None where it is not there any more"""
    inputs: tuple["Node", ...]
    shown_before: bool
    """its inputs stand at an earlier node of the same key"""


@dataclass(frozen=True)
class Store:
    """Everything under a root, by `kind/name`."""

    root: str
    entries: Mapping[str, Entry]

    @classmethod
    def open(cls, root: str) -> "Store":
        """Raises UserError when nothing is stored there."""
        root = absolute_url(root)
        entries = [entry for kind in KINDS for entry in _entries(root, kind)]
        if not entries:
            raise UserError(f"{root}: holds no datasets; `alm run --storage {root}` writes some")
        return cls(root, {entry.key: entry for entry in entries})

    @cached_property
    def _by_content(self) -> Mapping[str, str]:
        return {
            combine_hashes(hashes): entry.key
            for entry in self.entries.values()
            if isinstance(entry.manifest, FolderManifest)
            and (hashes := _matching(entry.manifest.files, _KNOWN_BY.get(entry.kind, ())))
        }

    def inputs(self, key: str) -> dict[str, str]:
        """What a complete dataset or folder was made from, by role: `kind/name`, whether or not it is there."""
        entry = self.entries.get(key)
        if entry is None or entry.manifest is None:
            return {}
        identity = entry.manifest.identity
        contents = {role: self._by_content.get(value) for role, value in identity.items() if isinstance(value, str)}
        known = {role: found for role, found in contents.items() if found and found != key}
        return {**named_inputs(identity), **known}

    def users(self, key: str) -> list[str]:
        """The complete datasets and folders that were made from this one directly."""
        return [user for user in self.entries if key in self.inputs(user).values()]

    def origins(self, keys: Iterable[str]) -> set[str]:
        """These and everything that they were made from."""
        found: set[str] = set()
        waiting = list(keys)
        while waiting:
            key = waiting.pop()
            if key not in found:
                found.add(key)
                waiting.extend(self.inputs(key).values())
        return found

    def lineage(self, key: str) -> Node:
        """What a dataset was made from, down to the examples; what is read through another input stands there only."""
        return self._node("", key, set())

    def _node(self, role: str, key: str, seen: set[str]) -> Node:
        shown_before = key in seen
        seen.add(key)
        inputs = {} if shown_before else self._nearest_inputs(key)
        nodes = tuple(self._node(role, made_from, seen) for role, made_from in inputs.items())
        return Node(role, key, self.entries.get(key), nodes, shown_before)

    def _nearest_inputs(self, key: str) -> dict[str, str]:
        inputs = self.inputs(key)
        through = {other: self.origins(self.inputs(other).values()) for other in inputs.values()}
        return {
            role: found for role, found in inputs.items() if not any(found in reached for reached in through.values())
        }


def named_inputs(identity: Mapping[str, Any]) -> dict[str, str]:
    """The datasets that an identity names, by role: `kind/name`."""
    named = {**identity, **identity.get("inputs", {})}
    return {role: f"{kind}/{named[role]}" for role, kind in _ROLES.items() if role in named}


def _matching(files: Mapping[str, str], patterns: tuple[str, ...]) -> dict[str, str]:
    return {name: sha for name, sha in files.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}


def _entries(root: str, kind: str) -> Iterator[Entry]:
    names = list_folders(join_url(root, kind))
    files: dict[str, dict[str, FileInfo]] = {name: {} for name in names}
    for path, info in list_files(join_url(root, kind)).items() if names else ():
        name, _, file = path.partition("/")
        if name in files:
            files[name][file] = info
    # some object stores go on listing a folder whose files were removed
    on_disk = is_local(open_filesystem(root)[0])
    for name in names:
        if files[name] or on_disk:
            yield _entry(root, kind, name, files[name])


def open_entry(url: str) -> Entry:
    """The dataset or folder at a URL, whatever its state."""
    root, kind, name = absolute_url(url).rsplit("/", 2)
    return _entry(root, kind, name, list_files(url))


def _entry(root: str, kind: str, name: str, files: Mapping[str, FileInfo]) -> Entry:
    url = join_url(root, kind, name)
    try:
        manifest = load_folder_manifest(url) if kind in FOLDER_KINDS else load_manifest(url)
    except OtherFormatError as error:
        return Entry(root, kind, name, files, State.OTHER_FORMAT, problem=str(error))
    except UserError as error:
        return Entry(root, kind, name, files, State.DAMAGED, problem=str(error))
    if manifest is None:
        return Entry(root, kind, name, files, State.NOT_COMPLETE, problem="it has no manifest")
    if manifest.name != name or (isinstance(manifest, Manifest) and manifest.kind != kind):
        return Entry(root, kind, name, files, State.FOREIGN, problem=f"it is of {manifest.name}")
    if stored_name(kind, manifest.name.rpartition("-")[0], manifest.identity) != name:
        return Entry(
            root, kind, name, files, State.EDITED, problem="its identity is not the one that its name stands for"
        )
    return Entry(root, kind, name, files, State.COMPLETE, manifest)


def is_root(url: str) -> bool:
    """Whether a URL is a storage root, and not the folder of one dataset."""
    parts = absolute_url(url).split("/")
    return len(parts) < 2 or parts[-2] not in KINDS or bool(set(list_folders(url)) & set(KINDS))
