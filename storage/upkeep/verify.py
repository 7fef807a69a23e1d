"""Whether what is stored is what was written, and taking away what is not.

By default by listing each folder once: which files are there, and their sizes. Checksums read everything.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from storage.dataset import Manifest, Record, parse_stored
from storage.errors import UserError
from storage.folders import FOLDER_KINDS, FolderManifest
from storage.schemas import MANIFEST
from storage.upkeep.catalog import INVALID_MANIFEST, Entry, State, open_entry
from storage.urls import FileInfo, hash_url, join_url, publish, read_bytes, remove

_SHARD_FILE = re.compile(r"shard-(\d{5,})\.(parquet|json)")
_READERS = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with what is stored, and what it takes to mend it."""

    url: str
    """of the file, or the folder"""
    problem: str
    stale: tuple[str, ...] = ()
    """URLs that have to go"""
    again: bool = False
    """its stage has to run then; where nothing has to go or run, a person has to look"""


def verify(url: str, checksums: bool = False) -> list[Finding]:
    """What is wrong with the dataset or folder at a URL; nothing where it is complete and as it was written."""
    return verify_entry(open_entry(url), checksums)


def verify_entry(entry: Entry, checksums: bool = False) -> list[Finding]:
    if entry.state == State.OTHER_FORMAT:
        return [Finding(entry.file(MANIFEST), entry.problem)]
    if entry.state == State.FOREIGN:
        # what was moved here may be the only one of it: a person decides
        return [
            Finding(entry.file(MANIFEST), f"another's ({entry.problem}): move it back, or `alm delete {entry.url}`")
        ]
    files = _visible(entry)
    parts = _folder_findings if entry.kind in FOLDER_KINDS else _dataset_findings
    return [*_manifest_findings(entry), *parts(entry, files, checksums)]


def invalidate(findings: Sequence[Finding]) -> None:
    """Remove what is stale, manifests first, so that the next run of the stage writes just that.

    A manifest is not lost: it goes to a hidden file beside it, for the configuration that it holds.
    """
    stale = list(dict.fromkeys(url for finding in findings for url in finding.stale))
    for url in sorted(stale, key=lambda url: not url.endswith(f"/{MANIFEST}")):
        if url.endswith(f"/{MANIFEST}"):
            _set_aside(url)
        remove(url)


def _set_aside(url: str) -> None:
    content, folder = read_bytes(url), url.rsplit("/", 1)[0]
    if content and open_entry(folder).state in (State.COMPLETE, State.EDITED):
        publish(join_url(folder, INVALID_MANIFEST), content)


def _visible(entry: Entry) -> dict[str, FileInfo]:
    """Its files without sub-folders and hidden ones, which are no part of it."""
    return {name: info for name, info in entry.files.items() if "/" not in name and not name.startswith(".")}


def _manifest_findings(entry: Entry) -> list[Finding]:
    if entry.state == State.COMPLETE:
        return []
    if entry.state == State.NOT_COMPLETE:
        return [Finding(entry.url, "not complete: it has no manifest", again=True)]
    manifest = entry.file(MANIFEST)
    return [Finding(manifest, f"{entry.state.removeprefix('manifest ')}: {entry.problem}", (manifest,), again=True)]


def _dataset_findings(entry: Entry, files: dict[str, FileInfo], checksums: bool) -> list[Finding]:
    if isinstance(entry.manifest, Manifest):
        records: dict[int, Record | None] = dict(enumerate(entry.manifest.shards))
        found = [*_sum_findings(entry, entry.manifest), *_record_findings(entry, entry.manifest, files, checksums)]
    else:
        records, found = _read_records(entry, files)
    known = {shard: record for shard, record in records.items() if record}
    problems = _in_threads(lambda shard: _shard_problem(entry, files, shard, known[shard], checksums), known)
    found += [
        Finding(entry.file(shard_file(shard)), problem, _of_shard(entry, shard), again=True)
        for shard, problem in zip(known, problems, strict=True)
        if problem
    ]
    return [*found, *_foreign_shards(entry, files, records)]


def shard_file(shard: int, ending: str = "parquet") -> str:
    return f"shard-{shard:05d}.{ending}"


def _of_shard(entry: Entry, shard: int) -> tuple[str, ...]:
    return tuple(entry.file(name) for name in (MANIFEST, shard_file(shard, "json"), shard_file(shard)))


def _sum_findings(entry: Entry, manifest: Manifest) -> Iterator[Finding]:
    sums = (sum(record.rows for record in manifest.shards), sum(record.bytes for record in manifest.shards))
    if sums != (manifest.rows, manifest.bytes):
        url = entry.file(MANIFEST)
        yield Finding(url, "its rows and bytes are not the sums of its shards'", (url,), again=True)


def _record_findings(
    entry: Entry, manifest: Manifest, files: dict[str, FileInfo], checksums: bool
) -> Iterator[Finding]:
    """A record beside its shard says what the manifest says, to the byte."""

    def problem(shard: int) -> str | None:
        name, expected = shard_file(shard, "json"), manifest.shards[shard].to_json()
        if name not in files:
            return "is missing"
        same = files[name].bytes == len(expected) and (not checksums or read_bytes(entry.file(name)) == expected)
        return None if same else "is not the record that the manifest holds"

    shards = range(len(manifest.shards))
    for shard, found in zip(shards, _in_threads(problem, shards), strict=True):
        if found:
            yield Finding(entry.file(shard_file(shard, "json")), found, _of_shard(entry, shard), again=True)


def _read_records(entry: Entry, files: dict[str, FileInfo]) -> tuple[dict[int, Record | None], list[Finding]]:
    """The records of a dataset without a manifest; None for a damaged one, which is a finding."""
    matches = [match for name in files if (match := _SHARD_FILE.fullmatch(name)) and match[2] == "json"]
    shards = sorted(int(match[1]) for match in matches)

    def read(shard: int) -> Record | UserError:
        url = entry.file(shard_file(shard, "json"))
        try:
            return parse_stored(Record, url, read_bytes(url) or b"")
        except UserError as error:
            return error

    read_ones = dict(zip(shards, _in_threads(read, shards), strict=True))
    damaged = [
        Finding(entry.file(shard_file(shard, "json")), "is damaged", _of_shard(entry, shard), again=True)
        for shard, record in read_ones.items()
        if isinstance(record, UserError)
    ]
    return {shard: record if isinstance(record, Record) else None for shard, record in read_ones.items()}, damaged


def _shard_problem(entry: Entry, files: dict[str, FileInfo], shard: int, record: Record, checksums: bool) -> str | None:
    return _file_problem(entry, files, shard_file(shard), record.bytes, record.sha256 if checksums else None)


def _file_problem(
    entry: Entry, files: dict[str, FileInfo], name: str, size: int | None, sha256: str | None
) -> str | None:
    if name not in files:
        return "is missing"
    if size is not None and files[name].bytes != size:
        return f"is {files[name].bytes} bytes long, not {size}"
    if sha256 is not None and hash_url(entry.file(name)) != sha256:
        return "is damaged, or another's: its SHA-256 is not the one that was written"
    return None


def _foreign_shards(entry: Entry, files: dict[str, FileInfo], records: dict[int, Record | None]) -> Iterator[Finding]:
    for name in files:
        match = _SHARD_FILE.fullmatch(name)
        if match is None and name != MANIFEST:
            yield Finding(entry.file(name), "belongs to no dataset: move it elsewhere")
        # without a manifest it may be one in flight
        elif match and entry.manifest and int(match[1]) not in records:
            yield Finding(entry.file(name), "belongs to no record of the manifest", (entry.file(name),))


def _folder_findings(entry: Entry, files: dict[str, FileInfo], checksums: bool) -> list[Finding]:
    if not isinstance(entry.manifest, FolderManifest):
        return []
    manifest = entry.manifest
    problems = _in_threads(
        lambda name: _file_problem(
            entry, files, name, manifest.sizes.get(name), manifest.files[name] if checksums else None
        ),
        manifest.files,
    )
    found = [
        Finding(entry.file(name), problem, (entry.file(MANIFEST), entry.file(name)), again=True)
        for name, problem in zip(manifest.files, problems, strict=True)
        if problem
    ]
    foreign = sorted(files.keys() - manifest.files.keys() - {MANIFEST})
    return [*found, *(Finding(entry.file(name), "is not in the manifest: move it elsewhere") for name in foreign)]


def _in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(function, items))
