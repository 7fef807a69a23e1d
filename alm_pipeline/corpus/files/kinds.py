"""What a file is, by the ending of its name. A file of an unknown kind is never taken for text.

The compression is decided by the content (see `compression`): a compression's ending is only taken off the name.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from alm_pipeline.config import FileFormat

ENDINGS: dict[FileFormat, tuple[str, ...]] = {
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".feather", ".ipc"),
    "jsonl": (".jsonl", ".ndjson", ".jsonlines"),
    "json": (".json",),
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "text": (".txt", ".text", ".md", ".markdown", ".rst"),
}
"""The endings of each format's files; every other ending is of an unknown kind."""
COMPRESSION_ENDINGS = (".gz", ".bz2", ".xz", ".zst", ".zstd", ".lz4")
ARCHIVE_ENDINGS = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tzst", ".7z", ".rar")

# what `datasets` and the Hub keep beside the data
_METADATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
# what `map` and `filter` of a saved dataset leave in its folder: its rows once more
_CACHE = re.compile(r"cache-[0-9a-f]{16}(_\d+_of_\d+)?\.arrow")
_DOCUMENTATION = re.compile(
    r"(readme|licen[cs]e|copying|notice|changelog|changes|citation|contributing|authors|code_of_conduct|security)"
    r"([._-].*)?",
    re.IGNORECASE,
)
_FORMATS: dict[str, FileFormat] = {ending: name for name, endings in ENDINGS.items() for ending in endings}
_PLAIN_ENDING = re.compile(r"\.[a-z0-9_-]{1,12}")

Role = Literal["data", "text", "documentation", "metadata", "archive", "unknown"]
"""What a file is for: rows, a document, about the data (README; what `datasets` keeps), not readable here."""


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a file's name says about it; `ending` is '' where it says nothing that can be shown."""

    role: Role
    format: FileFormat | None
    ending: str


def kind_of(path: str) -> FileKind:
    """Return the kind of the file at a path (without query and fragment), by its name; case does not matter."""
    name = PurePosixPath(path.lower()).name
    stem = without_compression(name)
    ending = PurePosixPath(stem).suffix
    format = _FORMATS.get(ending)
    shown = ending if _PLAIN_ENDING.fullmatch(ending) else ""
    return FileKind(_role(name, stem, ending, format), format, shown)


def _role(name: str, stem: str, ending: str, format: FileFormat | None) -> Role:
    if ending in ARCHIVE_ENDINGS:
        return "archive"
    if stem in _METADATA or _CACHE.fullmatch(name):
        return "metadata"
    if format is not None and format != "text":
        return "data"
    if _DOCUMENTATION.fullmatch(name):
        return "documentation"
    return "text" if format else "unknown"


def without_compression(name: str) -> str:
    """Return a file's name without the ending of a compression."""
    return next((name[: -len(end)] for end in COMPRESSION_ENDINGS if name.lower().endswith(end)), name)


def says_compressed(path: str) -> bool:
    """Whether the name has the ending of a compression."""
    return path.lower().endswith(COMPRESSION_ENDINGS)
