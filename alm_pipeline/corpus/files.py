"""Files under any fsspec URL: their names and their rows.

A file's name is its path below the fixed part of the URL's pattern, so that the ids made from it are the same wherever
the corpus is stored. Passwords, queries and fragments of URLs are no part of it: a new signature gives the same ids.
Files are sorted by name, whatever the order of the URLs. The lines of a file are read here rather
than by `datasets`, so that a bad row is counted and does not fail its file.
"""

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import PurePosixPath
from typing import IO, Any

from alm_pipeline.config import FileFormat, FilesSource
from alm_pipeline.corpus.errors import failing_as, require_columns
from storage.errors import UserError
from storage.printed.secrets import naming_path, naming_query
from storage.urls import is_local, open_filesystem

SourceRow = dict[str, Any]
"""A row's values by column."""

_GLOB_CHARACTERS = re.compile(r"[*?\[]")
_FORMAT_OF_SUFFIX: dict[str, FileFormat] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_BYTE = re.compile(r"\\ud[89a-f][0-9a-f]{2}")
_ARRAY_OF_OBJECTS = re.compile(rb"\s*\[\s*(\{|$)")
_READ_BYTES = 2**20
# Arrow's unit of reading; small, since a single row can hold megabytes of text
_BATCH_ROWS = 256


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A file of the corpus; `folder` is the fixed part of its URL's pattern, `name` the path below it."""

    fs: Any
    path: str
    folder: str
    name: str

    @property
    def url(self) -> str:
        """The file as messages name it: a plain path on a disk, otherwise a URL."""
        shown = self.path if is_local(self.fs) else str(self.fs.unstrip_protocol(self.path))
        return _valid_unicode(shown)


def list_files(source: FilesSource) -> list[CorpusFile]:
    """List the files that match the source's URLs and not `exclude`, each once, sorted by name.

    Names are distinct: if names of two URLs collide, all names become paths below the URLs' common folder; if they only
    differ in their queries (`/download?id=1`), a hash of the query is added.
    Raises UserError if a URL matches nothing, all files are excluded, or names collide across file systems.
    """
    matches: dict[str, CorpusFile] = {}
    for url in source.urls:
        for file in _match(url):
            matches.setdefault(file.url, file)
    files = [file for file in matches.values() if not _is_excluded(file, source.exclude)]
    if not files:
        raise UserError(f"corpus.source.exclude excludes all {len(matches)} files; narrow its patterns")
    return sorted(_with_distinct_names(files), key=lambda file: file.name)


def _match(url: str) -> list[CorpusFile]:
    with failing_as(f"cannot list {url}", "check the URL, its credentials and permissions"):
        fs, path = open_filesystem(url)
        paths = _matching_paths(fs, path, url)
    if not paths:
        raise UserError(f"no file matches {url} in corpus.source.urls; check the path and the pattern")
    folder = _fixed_folder(path) if path not in paths else path_of_name(fs, path).rpartition("/")[0]
    return [CorpusFile(fs, file, folder, _name(path_of_name(fs, file), folder)) for file in paths]


def path_of_name(fs: Any, path: str) -> str:
    """Return the part of a file's path that names are made from: on a disk all of it."""
    return path if is_local(fs) else naming_path(path)


def _matching_paths(fs: Any, path: str, url: str) -> list[str]:
    if not _GLOB_CHARACTERS.search(path):
        return _single_path(fs, path, url)
    if fs.isfile(path):  # a file with brackets in its name, or a URL with a query
        return [path]
    return [name for name, info in fs.glob(path, detail=True).items() if _is_file(fs, name, info)]


def _single_path(fs: Any, path: str, url: str) -> list[str]:
    try:
        kind = fs.info(path)["type"]
    except FileNotFoundError:
        return []
    if kind == "directory":
        raise UserError(f"{url} is a folder; write {url.rstrip('/')}/** for all files in it")
    return [path]


def _is_file(fs: Any, path: str, info: dict[str, Any]) -> bool:
    # a link is listed as 'other'; a broken one stays in the list, so that reading it raises an error
    return info["type"] == "file" or (bool(info.get("islink")) and not fs.isdir(path))


def _fixed_folder(pattern: str) -> str:
    fixed: list[str] = []
    for part in pattern.split("/"):
        if _GLOB_CHARACTERS.search(part):
            break
        fixed.append(part)
    return "/".join(fixed)


def _name(path: str, folder: str) -> str:
    return _valid_unicode(path.removeprefix(folder).lstrip("/"))


def _valid_unicode(path: str) -> str:
    # paths on a disk are bytes; Python represents those that are not UTF-8 by lone surrogates
    if _ESCAPED_BYTE.search(path) or _SURROGATE.search(path):
        path = path.replace("\\", r"\\")  # so that no other path looks like this one
    return path.encode("utf-8", "backslashreplace").decode()


def _is_excluded(file: CorpusFile, patterns: Iterable[str]) -> bool:
    return any(_excludes(pattern, file) for pattern in patterns)


def _excludes(pattern: str, file: CorpusFile) -> bool:
    # '*/test/*' must match a top folder 'test', but not the folders above the corpus
    names = [file.name, "/" + file.name]
    if pattern.startswith("/") or "://" in pattern:
        names += [file.path, file.url]
    return any(fnmatchcase(name, pattern) for name in names)


def _with_distinct_names(files: list[CorpusFile]) -> list[CorpusFile]:
    if _duplicate(files) and all(file.fs is files[0].fs for file in files):
        depth = _common_depth([file.folder for file in files])
        files = [replace(file, name=_name_below(path_of_name(file.fs, file.path), depth)) for file in files]
    files = _with_queries(files)
    if twins := _duplicate(files):
        raise UserError(
            f"two files of corpus.source.urls have the name {twins[0].name!r}: "
            f"{twins[0].url} and {twins[1].url}; ids are made from names, so rename one, "
            "or begin a pattern's `*` in a higher folder"
        )
    return files


def _with_queries(files: list[CorpusFile]) -> list[CorpusFile]:
    """Add the hash of the query to the names of files that have the same path."""
    counts = Counter(file.name for file in files)
    return [
        replace(file, name=f"{file.name}?{query}")
        if counts[file.name] > 1 and not is_local(file.fs) and (query := naming_query(file.path))
        else file
        for file in files
    ]


def _common_depth(folders: list[str]) -> int:
    levels = zip(*(folder.split("/") for folder in folders), strict=False)
    return sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))


def _name_below(path: str, depth: int) -> str:
    return _valid_unicode("/".join(path.split("/")[depth:]))


def _duplicate(files: list[CorpusFile]) -> tuple[CorpusFile, CorpusFile] | None:
    by_name: dict[str, CorpusFile] = {}
    for file in files:
        if file.name in by_name:
            return by_name[file.name], file
        by_name[file.name] = file
    return None


def read_files(source: FilesSource, columns: tuple[str, ...], dropped: Counter[str]) -> Iterator[tuple[str, SourceRow]]:
    """Yield the rows of all files with their ids: '<name>' for a text file, '<name>:<row>' for rows of other files.

    Row numbers begin at 0 and include dropped rows; blank lines of a JSONL file are not rows. A row has at least those
    of `columns` that the file has for it.
    """
    for file in list_files(source):
        yield from READERS[format_of(file, source)](file, columns, dropped)


def format_of(file: CorpusFile, source: FilesSource) -> FileFormat:
    """Return the format of a file: the source's setting or, with `auto`, the format of the file's suffix."""
    if source.format != "auto":
        return source.format
    name = PurePosixPath(path_of_name(file.fs, file.path).lower())
    if name.suffix in _DECOMPRESSORS:
        name = name.with_suffix("")
    return _FORMAT_OF_SUFFIX.get(name.suffix, "text")


def _read_text(file: CorpusFile, columns: tuple[str, ...], dropped: Counter[str]) -> Iterator[tuple[str, SourceRow]]:
    require_columns(f"{file.url}, a text file,", columns, ["text"])
    with _naming(file), _opened(file) as stream:
        data = stream.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        dropped["invalid_utf8"] += 1
    else:
        yield file.name, {"text": text}


def _read_jsonl(file: CorpusFile, columns: tuple[str, ...], dropped: Counter[str]) -> Iterator[tuple[str, SourceRow]]:
    any_row = False
    for number, line in enumerate(_lines(file)):
        if number == 0 and _ARRAY_OF_OBJECTS.match(line):
            raise UserError(
                f"{file.url} contains one JSON array instead of one object per line; "
                "rewrite it with: jq -c '.[]' FILE > FILE.jsonl"
            )
        row = _parse(line, dropped)
        if row is not None:
            if not any_row:
                require_columns(file.url, columns, row)
            any_row = True
            yield f"{file.name}:{number}", row


def _lines(file: CorpusFile) -> Iterator[bytes]:
    with _naming(file), _opened(file) as opened:
        stream = io.BufferedReader(opened, _READ_BYTES)  # type: ignore[type-var]  # faster at lines than fsspec's
        first = stream.readline().removeprefix(codecs.BOM_UTF8)
        if first.strip():
            yield first
        for line in stream:
            if line.strip():
                yield line


def _parse(line: bytes, dropped: Counter[str]) -> SourceRow | None:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        dropped["invalid_utf8"] += 1
        return None
    except (ValueError, RecursionError):  # also for numbers that are too long and nesting that is too deep
        row = None
    if isinstance(row, dict):
        return row
    dropped["invalid_json"] += 1
    return None


def _read_parquet(file: CorpusFile, columns: tuple[str, ...], dropped: Counter[str]) -> Iterator[tuple[str, SourceRow]]:
    number = 0
    for record_batch in _record_batches(file, columns):
        for row in _rows(record_batch):
            if row is None:
                dropped["invalid_utf8"] += 1
            else:
                yield f"{file.name}:{number}", row
            number += 1


def _record_batches(file: CorpusFile, columns: tuple[str, ...]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with _naming(file), file.fs.open(file.path, "rb") as stream:
        parquet = pq.ParquetFile(stream)
        require_columns(file.url, columns, parquet.schema_arrow.names)
        yield from parquet.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns))


def _rows(record_batch: Any) -> list[SourceRow | None]:
    """Return the batch's rows as dicts; None for a row with a string that is not UTF-8."""
    try:
        return list(record_batch.to_pylist())
    except UnicodeDecodeError:
        if record_batch.num_rows == 1:
            return [None]
        return [row for index in range(record_batch.num_rows) for row in _rows(record_batch.slice(index, 1))]


def _naming(file: CorpusFile) -> AbstractContextManager[None]:
    return failing_as(f"cannot read {file.url}", "fix or remove the file, or exclude it with corpus.source.exclude")


READERS: dict[FileFormat, Callable[[CorpusFile, tuple[str, ...], Counter[str]], Iterator[tuple[str, SourceRow]]]] = {
    "parquet": _read_parquet,
    "jsonl": _read_jsonl,
    "text": _read_text,
}
"""For each file format, the function that yields a file's rows with their ids."""


@contextmanager
def _opened(file: CorpusFile) -> Iterator[IO[bytes]]:
    """Yield the file's bytes, decompressed according to its suffix."""
    decompress = _DECOMPRESSORS.get(PurePosixPath(path_of_name(file.fs, file.path).lower()).suffix)
    with file.fs.open(file.path, "rb") as stored:
        if decompress is None:
            yield stored
        else:
            with decompress(stored) as stream:
                yield stream


def _open_zstd(stored: IO[bytes]) -> Any:
    """Use Arrow's reader, since fsspec's stops after the first frame and accepts a truncated file."""
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(stored, mode="r"), "zstd"))


_DECOMPRESSORS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}
