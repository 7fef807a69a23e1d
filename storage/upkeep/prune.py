"""Finds and removes what is not needed: remains of killed writes, incomplete datasets, datasets without a student.

Only what was written before a given moment counts: another run may still be working on newer files. Whatever its age,
nothing is removed from a folder in which a process is working, and of a link only the link is removed. Results of
computation are distinguished from litter, so that they are removed only on request.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum

from storage.dataset import Manifest
from storage.errors import UserError
from storage.folders import FOLDER_KINDS, working_folder
from storage.lease import HOLDER, LEASE, MARK, hold_unused
from storage.replacement import REPLACEMENT
from storage.schemas import MANIFEST, Kind
from storage.upkeep.catalog import Catalog, CatalogEntry, EntryState, newest
from storage.upkeep.uploads import InterruptedUpload, abort_upload, interrupted_uploads
from storage.urls import (
    FileInfo,
    absolute_url,
    empty,
    is_local,
    join_url,
    link_target,
    open_filesystem,
    remove,
    remove_empty_folder,
)

_TEMPORARY = re.compile(r"(?:.*/)?\..+\.[0-9a-f]{8}\.tmp")
_REPLACEMENT = f"{REPLACEMENT}/"
_ENDS = ("students", "rounds", "hypernetworks", Kind.CHOICE_SCORES, Kind.NEXT_BYTES)
"""the kinds that are wanted for themselves: what they were made from is used"""


class WasteReason(StrEnum):
    """Why something can be removed."""

    TEMPORARY = "temporary"
    """The remains of a killed write: useless."""
    INCOMPLETE = "incomplete"
    """It has no manifest; its run would continue from there."""
    UNUSED = "unused"
    """It is complete, but no complete student, and no choice scores, were made from it."""


_PARTS = (
    ("checkpoints/", WasteReason.TEMPORARY, "of a finished student"),
    (".restoring/", WasteReason.TEMPORARY, "a killed download"),
    (_REPLACEMENT, WasteReason.INCOMPLETE, "made again, not finished"),
)
"""The folders that a complete dataset or folder does not need."""


@dataclass(frozen=True)
class WasteItem:
    """Something that can be removed, or a folder of such things."""

    url: str
    reason: WasteReason
    what: str
    bytes: int
    modified: float | None
    """Seconds since 1970; None if unknown."""
    folder: str
    """The dataset or folder that it is in, or is."""
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
    items += [_of_upload(catalog.root, upload) for upload in interrupted_uploads(catalog.root)]
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
    items = {key: _of_entry(entry, WasteReason.UNUSED) for key, entry in complete.items() if not _is_end(entry)}
    needed = catalog.origins(key for key in complete if key not in items or not items[key].is_older(before))
    return [item for key, item in items.items() if key not in needed]


def _is_end(entry: CatalogEntry) -> bool:
    """Whether it is wanted for itself; so is what a served model wrote, since each of its tokens was paid for."""
    writer = entry.manifest.identity.get("writer") if entry.manifest else None
    return entry.kind in _ENDS or (isinstance(writer, dict) and "served_model" in writer)


def discard(item: WasteItem) -> None:
    """Remove an item. A folder's manifest is removed first, so that half a folder never counts as complete.

    Raises HeldError, and removes nothing, if a process is working in its folder.
    """
    if item.url == item.folder:
        _remove_entry(item.url)
        return
    with hold_unused(item.folder):
        if item.upload:
            abort_upload(item.upload)
        else:
            remove(item.url)


def delete(catalog: Catalog, key: str, force: bool = False) -> int:
    """Remove a dataset or folder; returns the number of bytes freed.

    Raises UserError if it does not exist, or, unless forced, if something else was made from it; HeldError, whether
    forced or not, if a process is working in it.
    """
    if key not in catalog.entries:
        raise UserError(f"{join_url(catalog.root, key)}: does not exist; `alm list {catalog.root}` lists what does")
    if (users := catalog.users(key)) and not force:
        raise UserError(
            f"{join_url(catalog.root, key)}: was read to make {', '.join(users)}, which can't be repaired without it: "
            "delete those first, or --force"
        )
    entry = catalog.entries[key]
    _remove_entry(entry.url)
    return _freed(entry)


def _remove_entry(url: str) -> None:
    if link_target(url):
        remove(url)
        return
    with hold_unused(url):
        remove(join_url(url, MANIFEST))
        empty(url, keep=(LEASE, f"{LEASE}{HOLDER}"))
    remove_empty_folder(url)
    root, kind, name = absolute_url(url).rsplit("/", 2)
    if kind in FOLDER_KINDS and not is_local(open_filesystem(url)[0]):
        remove(str(working_folder(root, kind, name)))


def _freed(entry: CatalogEntry) -> int:
    return 0 if entry.link else entry.bytes


def _of_entry(entry: CatalogEntry, reason: WasteReason = WasteReason.INCOMPLETE) -> WasteItem:
    return WasteItem(entry.url, reason, _describe(entry), _freed(entry), entry.modified, entry.url)


def _describe(entry: CatalogEntry) -> str:
    if entry.link:
        return f"a link to {entry.link}"
    if isinstance(entry.manifest, Manifest):
        return f"{entry.manifest.rows:,} rows"
    shards = sum(name.endswith(".json") for name in entry.files)
    return f"{shards} shards so far" if entry.manifest is None and entry.kind not in FOLDER_KINDS else "files"


def _litter(entry: CatalogEntry) -> Iterator[WasteItem]:
    """Yield temporary files, and what a complete dataset or folder no longer needs; nothing beyond a link."""
    if entry.link:
        return
    for name, info in entry.files.items():
        if _TEMPORARY.fullmatch(name):
            yield _of_part(entry, name, WasteReason.TEMPORARY, "a killed write", [info])
        elif name.startswith(MARK):
            yield _of_part(entry, name, WasteReason.TEMPORARY, "the mark of a killed writer", [info])
    if entry.state != EntryState.COMPLETE:
        return
    for part, reason, what in _PARTS:
        files = [info for name, info in entry.files.items() if name.startswith(part) and not _TEMPORARY.fullmatch(name)]
        if files and not (part == _REPLACEMENT and entry.has_ready_replacement):
            yield _of_part(entry, part.rstrip("/"), reason, what, files)


def _of_part(entry: CatalogEntry, name: str, reason: WasteReason, what: str, files: Collection[FileInfo]) -> WasteItem:
    size = sum(info.bytes for info in files)
    return WasteItem(entry.file(name), reason, what, size, newest(files), entry.url)


def _of_upload(root: str, upload: InterruptedUpload) -> WasteItem:
    kind, name = upload.url.removeprefix(f"{root}/").split("/")[:2]
    what, folder = "an interrupted upload", join_url(root, kind, name)
    return WasteItem(upload.url, WasteReason.TEMPORARY, what, upload.bytes, upload.modified, folder, upload)
