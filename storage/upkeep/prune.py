"""What can go: what killed writings left, what is not complete, what no student was made from.

Nothing here was written less than a while ago: another run may be at it. What cost computing is told apart from litter,
so that it goes only when asked for.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from storage.dataset import Manifest
from storage.errors import UserError
from storage.folders import FOLDER_KINDS, working_folder
from storage.schemas import MANIFEST
from storage.upkeep.catalog import INVALID_MANIFEST, Entry, State, Store, newest
from storage.urls import (
    Upload,
    abort_upload,
    absolute_url,
    interrupted_uploads,
    is_local,
    join_url,
    open_filesystem,
    remove,
)

_TEMPORARY = re.compile(r"(?:.*/)?\..+\.[0-9a-f]{8}\.tmp")
_RESTORING = ".restoring/"
_CHECKPOINTS = "checkpoints/"


class Waste(StrEnum):
    """Why something can go."""

    TEMPORARY = "temporary"
    """what a killed writing left: of no use to anyone"""
    INCOMPLETE = "incomplete"
    """without a manifest: its run would go on from there"""
    UNUSED = "unused"
    """complete, but no complete student was made from it"""


@dataclass(frozen=True)
class Wasted:
    """Something that can go, or a folder of such things."""

    url: str
    waste: Waste
    what: str
    bytes: int
    modified: float | None
    """seconds since 1970; None where that is not known"""
    upload: Upload | None = None

    def is_older(self, moment: float) -> bool:
        return self.modified is not None and self.modified < moment


def find_waste(store: Store, before: float, with_incomplete: bool = False) -> list[Wasted]:
    """What can go of what was last written before a moment (seconds since 1970), and what it takes.

    Unused is what neither a complete student descends from, nor anything that was written later. While there are
    `blockers`, nothing is known to be unused.
    """
    entries = list(store.entries.values())
    found = [item for entry in entries for item in _litter(entry)]
    found += [_of_upload(upload) for upload in interrupted_uploads(store.root)]
    found += [_of_entry(entry, Waste.INCOMPLETE) for entry in entries if entry.state == State.NOT_COMPLETE]
    if not blockers(store, before, with_incomplete):
        found += _unused(store, before)
    return [item for item in found if item.is_older(before)]


def blockers(store: Store, before: float, with_incomplete: bool = False) -> list[str]:
    """What stays and is not complete: only a manifest tells what a dataset is made from, so it may need anything."""

    def goes(entry: Entry) -> bool:
        return with_incomplete and entry.state == State.NOT_COMPLETE and _of_entry(entry).is_older(before)

    return [key for key, entry in store.entries.items() if entry.state != State.COMPLETE and not goes(entry)]


def _unused(store: Store, before: float) -> list[Wasted]:
    complete = {key: entry for key, entry in store.entries.items() if entry.state == State.COMPLETE}
    found = {key: _of_entry(entry, Waste.UNUSED) for key, entry in complete.items() if entry.kind != "students"}
    needed = store.origins(key for key in complete if key not in found or not found[key].is_older(before))
    return [item for key, item in found.items() if key not in needed]


def discard(item: Wasted) -> None:
    """Remove it. Of a folder the manifest goes first: what is half gone is never taken for complete."""
    if item.upload:
        abort_upload(item.upload)
    elif item.waste is Waste.TEMPORARY:
        remove(item.url)
    else:
        _remove_entry(item.url)


def delete(store: Store, key: str, force: bool = False) -> int:
    """Remove a dataset or folder; returns how many bytes that frees.

    Raises UserError when it is not there, or something else was made from it, unless forced.
    """
    if key not in store.entries:
        raise UserError(f"{join_url(store.root, key)}: is not there; `alm list {store.root}` says what is")
    if (users := store.users(key)) and not force:
        raise UserError(
            f"{join_url(store.root, key)}: was read to make {', '.join(users)}: "
            "without it these can't be repaired; delete them first, or --force"
        )
    _remove_entry(store.entries[key].url)
    return store.entries[key].bytes


def _remove_entry(url: str) -> None:
    root, kind, name = absolute_url(url).rsplit("/", 2)
    remove(join_url(url, MANIFEST))
    remove(url)
    if kind in FOLDER_KINDS and not is_local(open_filesystem(url)[0]):
        remove(str(working_folder(root, kind, name)))


def _of_entry(entry: Entry, waste: Waste = Waste.INCOMPLETE) -> Wasted:
    return Wasted(entry.url, waste, _describe(entry), entry.bytes, entry.modified)


def _describe(entry: Entry) -> str:
    if isinstance(entry.manifest, Manifest):
        return f"{entry.manifest.rows:,} rows"
    shards = sum(name.endswith(".json") for name in entry.files)
    return f"{shards} shards so far" if entry.manifest is None and entry.kind not in FOLDER_KINDS else "files"


def _litter(entry: Entry) -> Iterator[Wasted]:
    """Temporary files, and of what is complete what was only needed on the way."""
    for name, info in entry.files.items():
        if _TEMPORARY.fullmatch(name):
            yield Wasted(entry.file(name), Waste.TEMPORARY, "a killed writing", info.bytes, info.modified)
    if entry.state != State.COMPLETE:
        return
    for part, what in ((_CHECKPOINTS, "of a finished student"), (_RESTORING, "a killed download")):
        files = [info for name, info in entry.files.items() if name.startswith(part) and not _TEMPORARY.fullmatch(name)]
        if files:
            size = sum(info.bytes for info in files)
            yield Wasted(entry.file(part.rstrip("/")), Waste.TEMPORARY, what, size, newest(files))
    if kept := entry.files.get(INVALID_MANIFEST):
        yield Wasted(entry.file(INVALID_MANIFEST), Waste.TEMPORARY, "of a repair", kept.bytes, kept.modified)


def _of_upload(upload: Upload) -> Wasted:
    return Wasted(upload.url, Waste.TEMPORARY, "an interrupted upload", upload.bytes, upload.modified, upload)
