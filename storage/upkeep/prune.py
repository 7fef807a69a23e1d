"""Finds and removes what is not needed: remains of killed writes, incomplete datasets, datasets without a student.

Only what was written before a given moment counts: another run may still be working on newer files. Results of
computation are distinguished from litter, so that they are removed only on request.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from storage.dataset import Manifest
from storage.errors import UserError
from storage.folders import FOLDER_KINDS, working_folder
from storage.schemas import MANIFEST
from storage.upkeep.catalog import INVALID_MANIFEST, Catalog, CatalogEntry, EntryState, newest
from storage.urls import (
    InterruptedUpload,
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


class WasteReason(StrEnum):
    """Why something can be removed."""

    TEMPORARY = "temporary"
    """The remains of a killed write: useless."""
    INCOMPLETE = "incomplete"
    """It has no manifest; its run would continue from there."""
    UNUSED = "unused"
    """It is complete, but no complete student was made from it."""


@dataclass(frozen=True)
class WasteItem:
    """Something that can be removed, or a folder of such things."""

    url: str
    reason: WasteReason
    what: str
    bytes: int
    modified: float | None
    """Seconds since 1970; None if unknown."""
    upload: InterruptedUpload | None = None

    def is_older(self, moment: float) -> bool:
        return self.modified is not None and self.modified < moment


def find_waste(catalog: Catalog, before: float, with_incomplete: bool = False) -> list[WasteItem]:
    """Return what can be removed of what was last written before a moment (seconds since 1970).

    A dataset is unused if no complete student, and nothing that was written later, was made from it. While there are
    `blockers`, nothing is known to be unused.
    """
    entries = list(catalog.entries.values())
    items = [item for entry in entries for item in _litter(entry)]
    items += [_of_upload(upload) for upload in interrupted_uploads(catalog.root)]
    items += [_of_entry(entry, WasteReason.INCOMPLETE) for entry in entries if entry.state == EntryState.NOT_COMPLETE]
    if not blockers(catalog, before, with_incomplete):
        items += _unused(catalog, before)
    return [item for item in items if item.is_older(before)]


def blockers(catalog: Catalog, before: float, with_incomplete: bool = False) -> list[str]:
    """Return what stays and is not complete: without a manifest, it may have been made from anything."""

    def goes(entry: CatalogEntry) -> bool:
        return with_incomplete and entry.state == EntryState.NOT_COMPLETE and _of_entry(entry).is_older(before)

    return [key for key, entry in catalog.entries.items() if entry.state != EntryState.COMPLETE and not goes(entry)]


def _unused(catalog: Catalog, before: float) -> list[WasteItem]:
    complete = {key: entry for key, entry in catalog.entries.items() if entry.state == EntryState.COMPLETE}
    items = {key: _of_entry(entry, WasteReason.UNUSED) for key, entry in complete.items() if entry.kind != "students"}
    needed = catalog.origins(key for key in complete if key not in items or not items[key].is_older(before))
    return [item for key, item in items.items() if key not in needed]


def discard(item: WasteItem) -> None:
    """Remove an item. A folder's manifest is removed first, so that half a folder never counts as complete."""
    if item.upload:
        abort_upload(item.upload)
    elif item.reason is WasteReason.TEMPORARY:
        remove(item.url)
    else:
        _remove_entry(item.url)


def delete(catalog: Catalog, key: str, force: bool = False) -> int:
    """Remove a dataset or folder; returns the number of bytes freed.

    Raises UserError if it does not exist, or, unless forced, if something else was made from it.
    """
    if key not in catalog.entries:
        raise UserError(f"{join_url(catalog.root, key)}: does not exist; `alm list {catalog.root}` lists what does")
    if (users := catalog.users(key)) and not force:
        raise UserError(
            f"{join_url(catalog.root, key)}: was read to make {', '.join(users)}, which can't be repaired without it: "
            "delete those first, or --force"
        )
    _remove_entry(catalog.entries[key].url)
    return catalog.entries[key].bytes


def _remove_entry(url: str) -> None:
    root, kind, name = absolute_url(url).rsplit("/", 2)
    remove(join_url(url, MANIFEST))
    remove(url)
    if kind in FOLDER_KINDS and not is_local(open_filesystem(url)[0]):
        remove(str(working_folder(root, kind, name)))


def _of_entry(entry: CatalogEntry, reason: WasteReason = WasteReason.INCOMPLETE) -> WasteItem:
    return WasteItem(entry.url, reason, _describe(entry), entry.bytes, entry.modified)


def _describe(entry: CatalogEntry) -> str:
    if isinstance(entry.manifest, Manifest):
        return f"{entry.manifest.rows:,} rows"
    shards = sum(name.endswith(".json") for name in entry.files)
    return f"{shards} shards so far" if entry.manifest is None and entry.kind not in FOLDER_KINDS else "files"


def _litter(entry: CatalogEntry) -> Iterator[WasteItem]:
    """Yield temporary files, and what a complete dataset or folder no longer needs."""
    for name, info in entry.files.items():
        if _TEMPORARY.fullmatch(name):
            yield WasteItem(entry.file(name), WasteReason.TEMPORARY, "a killed write", info.bytes, info.modified)
    if entry.state != EntryState.COMPLETE:
        return
    for part, what in ((_CHECKPOINTS, "of a finished student"), (_RESTORING, "a killed download")):
        files = [info for name, info in entry.files.items() if name.startswith(part) and not _TEMPORARY.fullmatch(name)]
        if files:
            size = sum(info.bytes for info in files)
            yield WasteItem(entry.file(part.rstrip("/")), WasteReason.TEMPORARY, what, size, newest(files))
    if manifest := entry.files.get(INVALID_MANIFEST):
        yield WasteItem(
            entry.file(INVALID_MANIFEST), WasteReason.TEMPORARY, "of a repair", manifest.bytes, manifest.modified
        )


def _of_upload(upload: InterruptedUpload) -> WasteItem:
    return WasteItem(upload.url, WasteReason.TEMPORARY, "an interrupted upload", upload.bytes, upload.modified, upload)
