"""What is stored under a root, and which datasets were made from which.

The catalog itself is not stored: the identity in each manifest names the datasets that were read, and holds the hashes
of tokenizers and models, by which those stored under the root are recognized.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, partial
from typing import Any

from storage.dataset import Manifest, load_manifest
from storage.errors import OtherFormatError, UserError
from storage.fingerprints import stored_name
from storage.folders import FOLDER_KINDS, FolderKind, FolderManifest, load_folder_manifest
from storage.replacement import REPLACEMENT
from storage.schemas import MANIFEST, Kind
from storage.urls import (
    FileInfo,
    absolute_url,
    is_local,
    join_url,
    link_target,
    list_files,
    list_folders,
    open_filesystem,
)

KINDS: tuple[Kind | FolderKind, ...] = (
    "tokenizers",
    Kind.SIGNATURES,
    Kind.DECISIONS,
    Kind.EXAMPLES,
    Kind.TOKENS,
    Kind.ALIGNMENTS,
    "pair_biases",
    Kind.TEACHER_SCORES,
    "substrings",
    "hypernetworks",
    "students",
    Kind.QUESTIONS,
    Kind.CHOICE_SCORES,
    Kind.PLACES,
    Kind.NEXT_BYTES,
    Kind.DEMONSTRATIONS,
    Kind.NEUTRAL_ANSWERS,
    Kind.ACTIVATIONS,
    Kind.ACTIVATION_SUMS,
    "projections",
    "measurements",
    "rounds",
)
"""The folders under a root, each after those that it is made from."""

_ROLES: dict[str, Kind | FolderKind] = {
    "signatures": Kind.SIGNATURES,
    "decisions": Kind.DECISIONS,
    "examples": Kind.EXAMPLES,
    "tokens": Kind.TOKENS,
    "teacher_tokens": Kind.TOKENS,
    "student_tokens": Kind.TOKENS,
    "alignments": Kind.ALIGNMENTS,
    "pair_biases": "pair_biases",
    "scores": Kind.TEACHER_SCORES,
    "questions": Kind.QUESTIONS,
    "places": Kind.PLACES,
    "demonstrations": Kind.DEMONSTRATIONS,
    "neutral_answers": Kind.NEUTRAL_ANSWERS,
    "activations": Kind.ACTIVATIONS,
    "neutral_activations": Kind.ACTIVATIONS,
    "activation_sums": Kind.ACTIVATION_SUMS,
    "substrings": "substrings",
}


class EntryState(StrEnum):
    """The state of a dataset or folder, according to its manifest."""

    COMPLETE = "complete"
    NOT_COMPLETE = "not complete"
    DAMAGED = "manifest damaged"
    FOREIGN = "manifest of another dataset"
    EDITED = "manifest edited"
    OTHER_FORMAT = "other format"


@dataclass(frozen=True)
class CatalogEntry:
    """A dataset or folder under a root, in any state."""

    root: str
    kind: str
    name: str
    listed: Callable[[], Mapping[str, FileInfo]] = field(repr=False, compare=False)
    """Lists its files, which takes a request per thousand of them: only where they are needed."""
    state: EntryState
    manifest: Manifest | FolderManifest | None = None
    """None unless the entry is complete."""
    problem: str = ""
    link: str | None = None
    """Where it is, if the entry is a symbolic link on a disk."""

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.name}"

    @property
    def url(self) -> str:
        return join_url(self.root, self.kind, self.name)

    def file(self, name: str) -> str:
        return join_url(self.url, name)

    @cached_property
    def files(self) -> Mapping[str, FileInfo]:
        return self.listed()

    @cached_property
    def bytes(self) -> int:
        """What it takes in the store; of a complete dataset, what its manifest says."""
        if isinstance(self.manifest, Manifest):
            return self.manifest.stored_bytes
        return sum(info.bytes for info in self.files.values())

    @property
    def modified(self) -> float | None:
        """When its newest file was written, in seconds since 1970; None if unknown."""
        # an empty folder on a disk has no file that may be in use
        return newest(self.files.values()) if self.files else 0.0

    @property
    def provenance(self) -> Mapping[str, Any]:
        """The manifest's account of the run that made it; empty without a manifest."""
        return self.manifest.provenance if self.manifest else {}

    @property
    def has_ready_replacement(self) -> bool:
        """Whether a complete replacement has yet to take its place."""
        return f"{REPLACEMENT}/{MANIFEST}" in self.files


def newest(files: Iterable[FileInfo]) -> float | None:
    """Return when the newest file was written; None if that is unknown for any file, or there are no files."""
    times = [info.modified for info in files]
    known = [time for time in times if time is not None]
    return max(known) if known and len(known) == len(times) else None


@dataclass(frozen=True)
class LineageNode:
    """A dataset in a lineage, and what it was made from."""

    role: str
    """The role in which it was read; empty for the root of the lineage."""
    key: str
    entry: CatalogEntry | None
    """None if it no longer exists."""
    inputs: tuple["LineageNode", ...]
    shown_before: bool
    """Whether an earlier node of the same key has its inputs."""


@dataclass(frozen=True)
class Catalog:
    """Everything under a root, by `kind/name`."""

    root: str
    entries: Mapping[str, CatalogEntry]

    @classmethod
    def open(cls, root: str) -> "Catalog":
        """List everything under a root. Raises UserError if nothing is stored there."""
        root = absolute_url(root)
        entries = [entry for kind in KINDS for entry in _entries(root, kind)]
        if not entries:
            raise UserError(f"{root}: contains no datasets; `alm run --storage {root}` writes some")
        return cls(root, {entry.key: entry for entry in entries})

    @cached_property
    def _by_content(self) -> Mapping[str, str]:
        folders = ((entry.key, entry.manifest) for entry in self.entries.values())
        return {
            manifest.content: key
            for key, manifest in folders
            if isinstance(manifest, FolderManifest) and manifest.content
        }

    def inputs(self, key: str) -> dict[str, str]:
        """Return what a complete dataset or folder was made from, by role: `kind/name`, whether or not it exists."""
        entry = self.entries.get(key)
        if entry is None or entry.manifest is None:
            return {}
        identity = entry.manifest.identity
        contents = {role: self._by_content.get(value) for role, value in identity.items() if isinstance(value, str)}
        known = {role: origin for role, origin in contents.items() if origin and origin != key}
        return {**named_inputs(identity), **known}

    def users(self, key: str) -> list[str]:
        """Return the complete datasets and folders that were made directly from this one."""
        return [user for user in self.entries if key in self.inputs(user).values()]

    def origins(self, keys: Iterable[str]) -> set[str]:
        """Return these keys and everything that they were made from."""
        reached: set[str] = set()
        waiting = list(keys)
        while waiting:
            key = waiting.pop()
            if key not in reached:
                reached.add(key)
                waiting.extend(self.inputs(key).values())
        return reached

    def lineage(self, key: str) -> LineageNode:
        """Return what a dataset was made from, down to the examples.

        An input that another input was made from is a node below that one only.
        """
        return self._node("", key, set())

    def _node(self, role: str, key: str, seen: set[str]) -> LineageNode:
        shown_before = key in seen
        seen.add(key)
        inputs = {} if shown_before else self._nearest_inputs(key)
        nodes = tuple(self._node(role, made_from, seen) for role, made_from in inputs.items())
        return LineageNode(role, key, self.entries.get(key), nodes, shown_before)

    def _nearest_inputs(self, key: str) -> dict[str, str]:
        inputs = self.inputs(key)
        through = {other: self.origins(self.inputs(other).values()) for other in inputs.values()}
        return {
            role: origin
            for role, origin in inputs.items()
            if not any(origin in reached for reached in through.values())
        }


def named_inputs(identity: Mapping[str, Any]) -> dict[str, str]:
    """Return the datasets that an identity names, by role: `kind/name`. Those of a mixture are `SOURCE: role`."""
    named = {**identity, **identity.get("inputs", {})}
    found = {role: f"{kind}/{named[role]}" for role, kind in _ROLES.items() if role in named}
    sources = {role: role.rpartition(": ")[2] for role in named if ": " in role}
    return found | {role: f"{_ROLES[own]}/{named[role]}" for role, own in sources.items() if own in _ROLES}


@dataclass(frozen=True)
class _Kind:
    """A folder under a root, whose datasets or folders are listed together when the first of them is looked into."""

    root: str
    kind: str

    @cached_property
    def names(self) -> list[str]:
        return list_folders(join_url(self.root, self.kind))

    @cached_property
    def files(self) -> Mapping[str, Mapping[str, FileInfo]]:
        files: dict[str, dict[str, FileInfo]] = {name: {} for name in self.names}
        for path, info in list_files(join_url(self.root, self.kind)).items():
            name, _, file = path.partition("/")
            if name in files:
                files[name][file] = info
        return files

    def files_of(self, name: str) -> Mapping[str, FileInfo]:
        return self.files[name]


def _entries(root: str, kind: str) -> Iterator[CatalogEntry]:
    listing = _Kind(root, kind)
    on_disk = is_local(open_filesystem(root)[0])
    for name in listing.names:
        url = join_url(root, kind, name)
        if link_target(url):
            yield open_entry(url)
            continue
        entry = _entry(root, kind, name, partial(listing.files_of, name))
        # some object stores still list a folder whose files were removed
        if on_disk or entry.state != EntryState.NOT_COMPLETE or entry.files:
            yield entry


def open_entry(url: str) -> CatalogEntry:
    """Return the dataset or folder at a URL, in any state."""
    root, kind, name = absolute_url(url).rsplit("/", 2)
    return _entry(root, kind, name, lambda: list_files(url))


def _entry(root: str, kind: str, name: str, listed: Callable[[], Mapping[str, FileInfo]]) -> CatalogEntry:
    url = join_url(root, kind, name)
    state, manifest, problem = _read_state(url, kind, name)
    return CatalogEntry(root, kind, name, listed, state, manifest, problem, link_target(url))


def _read_state(url: str, kind: str, name: str) -> tuple[EntryState, Manifest | FolderManifest | None, str]:
    """Return an entry's state, its manifest if it is complete, and the problem if it is not."""
    try:
        manifest = load_folder_manifest(url) if kind in FOLDER_KINDS else load_manifest(url)
    except UserError as error:
        state = EntryState.OTHER_FORMAT if isinstance(error, OtherFormatError) else EntryState.DAMAGED
        # the file is named beside the problem wherever it is shown
        return state, None, str(error).removeprefix(f"{join_url(url, MANIFEST)}: ")
    if manifest is None:
        return EntryState.NOT_COMPLETE, None, "it has no manifest"
    if manifest.name != name or (isinstance(manifest, Manifest) and manifest.kind != kind):
        return EntryState.FOREIGN, None, f"it belongs to {manifest.name}"
    if stored_name(kind, manifest.name.rpartition("-")[0], manifest.identity) != name:
        return EntryState.EDITED, None, "its identity does not match its name"
    return EntryState.COMPLETE, manifest, ""


def is_root(url: str) -> bool:
    """Return whether a URL is a storage root rather than the folder of one dataset."""
    parts = absolute_url(url).split("/")
    return len(parts) < 2 or parts[-2] not in KINDS or bool(set(list_folders(url)) & set(KINDS))
