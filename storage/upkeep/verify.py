"""Verifies that stored data is what was written, and removes what is damaged.

By default each folder is listed once, to check that every file exists and has its recorded size. With checksums,
everything is read.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from storage.dataset import Manifest, ShardRecord, parse_stored, shard_file
from storage.errors import UserError
from storage.folders import FOLDER_KINDS, FolderManifest
from storage.schemas import MANIFEST
from storage.upkeep.catalog import CatalogEntry, EntryState, open_entry
from storage.urls import FileInfo, hash_url, read_bytes, remove

_SHARD_FILE = re.compile(r"shard-(\d{5,})\.(parquet|json)")
_READERS = 8

Records = dict[int, ShardRecord | None]
"""Records by shard; None for a damaged one."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Damage:
    """A stored file or folder that is wrong, and what is needed to fix it."""

    url: str
    """The file, or the folder."""
    problem: str
    stale_urls: tuple[str, ...] = ()
    """The URLs that must be removed first."""
    needs_rerun: bool = False
    """Whether its stage must run again afterward."""

    @property
    def is_repairable(self) -> bool:
        """Whether `alm repair` can fix it; otherwise a person must look."""
        return bool(self.stale_urls) or self.needs_rerun


def verify(url: str, checksums: bool = False) -> list[Damage]:
    """Return the damages of the dataset or folder at a URL; none if it is complete and as it was written."""
    return verify_entry(open_entry(url), checksums)


def verify_entry(entry: CatalogEntry, checksums: bool = False) -> list[Damage]:
    """Return the damages of a dataset or folder, as `verify` does."""
    if entry.state == EntryState.OTHER_FORMAT:
        return [Damage(entry.file(MANIFEST), entry.problem)]
    if entry.state == EntryState.FOREIGN:
        # what was moved here may be the only copy: a person decides
        problem = f"is in the wrong folder ({entry.problem}): move it back, or `alm delete {entry.url}`"
        return [Damage(entry.file(MANIFEST), problem)]
    if entry.has_ready_replacement:
        return [Damage(entry.url, "its replacement is complete and has not taken its place yet", needs_rerun=True)]
    files = _visible(entry)
    verify_files = _folder_damages if entry.kind in FOLDER_KINDS else _dataset_damages
    return [*_manifest_damages(entry), *verify_files(entry, files, checksums)]


def remove_stale(damages: Sequence[Damage]) -> None:
    """Remove what is stale of damages that need no stage."""
    for url in dict.fromkeys(url for damage in damages for url in damage.stale_urls):
        remove(url)


def stale_shards(damages: Sequence[Damage]) -> frozenset[int]:
    """Return the shards of a dataset that must be written again."""
    names = (url.rsplit("/", 1)[-1] for damage in damages if damage.needs_rerun for url in damage.stale_urls)
    return frozenset(int(match[1]) for name in names if (match := _SHARD_FILE.fullmatch(name)))


def _visible(entry: CatalogEntry) -> dict[str, FileInfo]:
    """Return the entry's files, without hidden ones and those in subfolders, which are not part of it."""
    return {name: info for name, info in entry.files.items() if "/" not in name and not name.startswith(".")}


def _manifest_damages(entry: CatalogEntry) -> list[Damage]:
    if entry.state == EntryState.COMPLETE:
        return []
    if entry.state == EntryState.NOT_COMPLETE:
        return [Damage(entry.url, "not complete: it has no manifest", needs_rerun=True)]
    manifest = entry.file(MANIFEST)
    return [
        Damage(manifest, f"{entry.state.removeprefix('manifest ')}: {entry.problem}", (manifest,), needs_rerun=True)
    ]


def _dataset_damages(entry: CatalogEntry, files: dict[str, FileInfo], checksums: bool) -> list[Damage]:
    if isinstance(entry.manifest, Manifest):
        records: Records = dict(enumerate(entry.manifest.shards))
        damages = [*_sum_damages(entry, entry.manifest), *_record_damages(entry, entry.manifest, files, checksums)]
    else:
        records, damages = _read_records(entry, files)
    known = {shard: record for shard, record in records.items() if record}
    find = _in_threads if checksums else _in_turn
    problems = find(lambda shard: _shard_problem(entry, files, shard, known[shard], checksums), known)
    damages += [shard_damage(entry, shard, problem) for shard, problem in zip(known, problems, strict=True) if problem]
    return [*damages, *_foreign_shards(entry, files, records)]


def shard_damage(entry: CatalogEntry, shard: int, problem: str) -> Damage:
    """Return the damage of a shard that its stage must write again."""
    return Damage(entry.file(shard_file(shard)), problem, _of_shard(entry, shard), needs_rerun=True)


def _of_shard(entry: CatalogEntry, shard: int) -> tuple[str, ...]:
    return tuple(entry.file(name) for name in (MANIFEST, shard_file(shard, "json"), shard_file(shard)))


def _sum_damages(entry: CatalogEntry, manifest: Manifest) -> Iterator[Damage]:
    sums = (sum(record.rows for record in manifest.shards), sum(record.bytes for record in manifest.shards))
    if sums != (manifest.rows, manifest.bytes):
        url = entry.file(MANIFEST)
        yield Damage(url, "its rows and bytes are not the sums over its shards", (url,), needs_rerun=True)


def _record_damages(
    entry: CatalogEntry, manifest: Manifest, files: dict[str, FileInfo], checksums: bool
) -> Iterator[Damage]:
    """Check that the record beside each shard equals the one in the manifest, to the byte."""

    def problem(shard: int) -> str | None:
        name, expected = shard_file(shard, "json"), manifest.shards[shard].to_json()
        if name not in files:
            return "is missing"
        is_same = files[name].bytes == len(expected) and (not checksums or read_bytes(entry.file(name)) == expected)
        return None if is_same else "differs from its record in the manifest"

    shards, find = range(len(manifest.shards)), _in_threads if checksums else _in_turn
    for shard, description in zip(shards, find(problem, shards), strict=True):
        if description:
            yield Damage(entry.file(shard_file(shard, "json")), description, _of_shard(entry, shard), needs_rerun=True)


def _read_records(entry: CatalogEntry, files: dict[str, FileInfo]) -> tuple[Records, list[Damage]]:
    """Read the records of a dataset without a manifest: (records, None for damaged ones; the damages)."""
    matches = [match for name in files if (match := _SHARD_FILE.fullmatch(name)) and match[2] == "json"]
    shards = sorted(int(match[1]) for match in matches)

    def read(shard: int) -> ShardRecord | UserError:
        url = entry.file(shard_file(shard, "json"))
        try:
            return parse_stored(ShardRecord, url, read_bytes(url) or b"")
        except UserError as error:
            return error

    results = dict(zip(shards, _in_threads(read, shards), strict=True))
    damaged = [
        Damage(entry.file(shard_file(shard, "json")), "is damaged", _of_shard(entry, shard), needs_rerun=True)
        for shard, record in results.items()
        if isinstance(record, UserError)
    ]
    return {shard: record if isinstance(record, ShardRecord) else None for shard, record in results.items()}, damaged


def _shard_problem(
    entry: CatalogEntry, files: dict[str, FileInfo], shard: int, record: ShardRecord, checksums: bool
) -> str | None:
    return _file_problem(entry, files, shard_file(shard), record.bytes, record.sha256 if checksums else None)


def _file_problem(
    entry: CatalogEntry, files: dict[str, FileInfo], name: str, size: int | None, sha256: str | None
) -> str | None:
    if name not in files:
        return "is missing"
    if size is not None and files[name].bytes != size:
        return f"is {files[name].bytes} bytes long, not {size}"
    if sha256 is not None and hash_url(entry.file(name)) != sha256:
        return "is damaged or foreign: its SHA-256 is not the recorded one"
    return None


def _foreign_shards(entry: CatalogEntry, files: dict[str, FileInfo], records: Records) -> Iterator[Damage]:
    for name in files:
        match = _SHARD_FILE.fullmatch(name)
        if match is None and name != MANIFEST:
            yield Damage(entry.file(name), "is not part of the dataset: move it elsewhere")
        # without a manifest, a run may be writing it now
        elif match and entry.manifest and int(match[1]) not in records:
            yield Damage(entry.file(name), "has no record in the manifest", (entry.file(name),))


def _folder_damages(entry: CatalogEntry, files: dict[str, FileInfo], checksums: bool) -> list[Damage]:
    if not isinstance(entry.manifest, FolderManifest):
        return []
    manifest = entry.manifest
    problems = _in_threads(
        lambda name: _file_problem(
            entry, files, name, manifest.sizes.get(name), manifest.files[name] if checksums else None
        ),
        manifest.files,
    )
    damages = [
        Damage(entry.file(name), problem, (entry.file(MANIFEST), entry.file(name)), needs_rerun=True)
        for name, problem in zip(manifest.files, problems, strict=True)
        if problem
    ]
    foreign = sorted(files.keys() - manifest.files.keys() - {MANIFEST})
    return [*damages, *(Damage(entry.file(name), "is not in the manifest: move it elsewhere") for name in foreign)]


def _in_turn(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Apply a function that asks the store for nothing, where threads would take most of the time."""
    return list(map(function, items))


def _in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(function, items))
