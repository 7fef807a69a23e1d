"""The files of a source under any fsspec URL, and their names.

A file's name is its path below the fixed part of the URL's pattern, so that the ids made from it are the same wherever
the corpus is stored. Passwords, queries and fragments of URLs are left out: a new signature gives the same ids.
Files are sorted by name, whatever the order of the URLs.

A pattern takes data files: all that are of a known kind and have rows. It takes text files only where it matches no
data file. What it does not take is counted, in files, by reason; a URL without a pattern is read or refused.
"""

import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from alm_pipeline.config import FileFormat, FilesSource
from alm_pipeline.corpus.files.kinds import FileKind, Role, kind_of, without_compression
from alm_pipeline.corpus.files.saved_datasets import saved_files, saved_split
from storage.errors import UserError, http_status, user_error
from storage.printed.counts import counts_in_words
from storage.printed.secrets import naming_path, naming_query
from storage.urls import is_local, keeps_copies, open_filesystem

_GLOB_CHARACTERS = re.compile(r"[*?\[]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_BYTE = re.compile(r"\\ud[89a-f][0-9a-f]{2}")
_MOST_ENDINGS = 20


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A file of the corpus; `folder` is the fixed part of its URL's pattern, `name` the path below it."""

    fs: Any
    path: str
    folder: str
    name: str
    format: FileFormat

    @property
    def url(self) -> str:
        """The file as messages name it: a plain path on a disk, otherwise a URL."""
        return _shown(self.fs, self.path)

    @property
    def plain_path(self) -> str:
        """The path without a URL's query and fragment."""
        return path_of_name(self.fs, self.path)


@dataclass(frozen=True)
class FileListing:
    """The files of a source, sorted by name, and the number of those left out, by reason."""

    files: tuple[CorpusFile, ...]
    left_out: Counter[str]


@dataclass(frozen=True, slots=True)
class _Match:
    """A file that a URL matches; `pattern` is the part of the URL below the fixed folder, '' if it has no pattern."""

    fs: Any
    path: str
    folder: str
    pattern: str
    linked_folder: bool

    @property
    def name(self) -> str:
        return _name(path_of_name(self.fs, self.path), self.folder)

    def as_file(self, format: FileFormat) -> CorpusFile:
        return CorpusFile(self.fs, self.path, self.folder, self.name, format)

    @property
    def url(self) -> str:
        return self.as_file("text").url

    @property
    def kind(self) -> FileKind:
        return kind_of(path_of_name(self.fs, self.path))


def list_files(source: FilesSource) -> FileListing:
    """List the files to read, each once: those that match the source's URLs, not `exclude`, and are of a known kind.

    Names are distinct: if names of two URLs collide, all names become paths below the URLs' common folder; if they only
    differ in their queries (`/download?id=1`), a hash of the query is added.
    Raises UserError if a URL matches nothing or nothing of a known kind, all files are excluded, names collide across
    file systems, or a file is special (a FIFO, a device, a folder, a broken link).
    """
    left_out: Counter[str] = Counter()
    files: list[CorpusFile] = []
    excluded = 0
    for url in source.urls:
        matches = _match(url)
        kept = [match for match in matches if not _is_excluded(match, source.exclude)]
        excluded += len(matches) - len(kept)
        files += _files_to_read(url, kept, source.format, left_out)
    if not files:
        raise UserError(f"corpus.source.exclude excludes all {excluded} files; narrow its patterns")
    named = _with_distinct_names(_each_once(files, left_out))
    return FileListing(tuple(sorted(named, key=lambda file: file.name)), left_out)


def _each_once(files: list[CorpusFile], left_out: Counter[str]) -> list[CorpusFile]:
    """Return each file under the first of its names; count its other paths, which are links to it."""
    once: dict[tuple[Any, str], CorpusFile] = {}
    paths = {(file.fs, file.path): file for file in reversed(files)}  # under the name that the first URL gives it
    for file in sorted(paths.values(), key=lambda file: (file.name, file.path)):
        once.setdefault((file.fs, os.path.realpath(file.path) if is_local(file.fs) else file.path), file)
    if links := len(paths) - len(once):
        left_out["files that are links to others"] += links
    return list(once.values())


def _match(url: str) -> list[_Match]:
    if not url.strip():
        raise UserError("corpus.source.urls contains an empty URL; write a path or URL, or remove it")
    _refuse_special_archive(url)
    with user_error(f"cannot list {url}", "check the URL, its credentials and permissions"):
        fs, path = open_filesystem(url)
        _refuse_copies(fs, url)
        if folder := _saved_folder(fs, path):
            return [_Match(fs, file, folder, "", linked_folder=False) for file in saved_files(fs, folder)]
        matched = _matching_paths(fs, path, url)
    if not matched:
        raise UserError(f"no file matches {url} in corpus.source.urls; check the path and the pattern{_brackets(url)}")
    fixed = _fixed_folder(path)
    if path in matched:  # a URL without a pattern
        return [_Match(fs, path, path_of_name(fs, path).rpartition("/")[0], "", linked_folder=False)]
    return [_Match(fs, name, fixed, path.removeprefix(fixed), linked) for name, linked in matched.items()]


def _saved_folder(fs: Any, path: str) -> str | None:
    """Return the folder of a dataset that `save_to_disk` wrote, if the path, without a pattern, is one."""
    if _GLOB_CHARACTERS.search(path_of_name(fs, path)) or "http" in fs.protocol:
        return None
    folder = path.rstrip("/")
    return saved_split(fs, folder) if fs.isdir(folder) else None


def _refuse_copies(fs: Any, url: str) -> None:
    if keeps_copies(fs):
        raise UserError(
            f"{url} goes through fsspec's cache, which keeps copies of files that may have changed; "
            f"write it without {url.partition('::')[0]}::"
        )


def _refuse_special_archive(url: str) -> None:
    """Refuse `zip://…::PATH` and the like where PATH is a FIFO, a device, …: opening it may never end."""
    for archive in url.split("::")[1:]:
        fs, path = open_filesystem(archive)
        if is_local(fs) and os.path.lexists(path) and (what := _special(path)):
            raise UserError(f"{url}: {path} is {what}; name an archive")


def _brackets(url: str) -> str:
    return "; a `[` in a name is written `[[]`" if "[" in url else ""


def _matching_paths(fs: Any, path: str, url: str) -> dict[str, bool]:
    """Return the paths of files and linked folders that match, each with whether it is a linked folder."""
    if not _GLOB_CHARACTERS.search(path_of_name(fs, path)):
        return _single_path(fs, path, url)
    if _is_single(fs, path):  # a file with brackets in its name
        return {path: False}
    listing = fs.glob(path, detail=True)
    if not listing and not is_local(fs):
        _kind_of_path(fs, _fixed_folder(path))  # raises the error for which glob would find nothing
    for name, info in listing.items():
        _refuse_folder_of_rows(fs, name, info, listing)
    files = {name: info for name, info in listing.items() if info["type"] != "directory"}
    return {name: bool(info.get("islink")) and fs.isdir(name) for name, info in files.items()}


def _is_single(fs: Any, path: str) -> bool:
    return bool(os.path.lexists(path) and not fs.isdir(path)) if is_local(fs) else bool(fs.isfile(path))


def _refuse_folder_of_rows(fs: Any, path: str, info: dict[str, Any], listing: Iterable[str]) -> None:
    """Refuse a folder that is named as a file, as Spark's are, unless its files match too."""
    is_named_as_file = info["type"] == "directory" and kind_of(path).role == "data"
    if is_named_as_file and not any(other.startswith(f"{path}/") for other in listing):
        raise UserError(f"{_shown(fs, path)} is a folder; write {_shown(fs, path)}/** for all files in it")


def _single_path(fs: Any, path: str, url: str) -> dict[str, bool]:
    if is_local(fs) and os.path.lexists(path) and not fs.isdir(path):
        return {path: False}  # what is special about it is known below
    kind = _kind_of_path(fs, path)
    if kind is None:
        return {}
    if kind == "directory":
        raise UserError(f"{url} is a folder; write {url.rstrip('/')}/** for all files in it")
    return {path: False}


def _kind_of_path(fs: Any, path: str) -> str | None:
    """Return whether a path is a file or a directory; None if nothing is there."""
    try:
        return str(fs.info(path)["type"])
    except FileNotFoundError as error:
        # over HTTP it is also raised where the server refuses or can't be reached, with the reason as its cause
        cause = error.__cause__
        if cause is None or http_status(cause) == 404 or isinstance(cause, FileNotFoundError | KeyError):
            return None
        raise cause from None


def _files_to_read(
    url: str, matches: list[_Match], format: FileFormat | str, left_out: Counter[str]
) -> Iterator[CorpusFile]:
    """Yield the files of one URL that are read, and count the others."""
    reasons: Counter[str] = Counter()
    visible = []
    for match in matches:
        if not match.pattern:
            _require_regular(match)
        if match.linked_folder or _is_hidden(match):
            reasons["linked folders" if match.linked_folder else "hidden files"] += 1
        else:
            visible.append(match)
    chosen = dict(_chosen(visible, format, reasons))
    if matches and not chosen:
        raise UserError(_nothing_to_read(url, visible, reasons))
    for match, file_format in chosen.items():
        _require_regular(match)
        yield match.as_file(file_format)
    left_out.update(_few(reasons))


def _chosen(
    matches: list[_Match], format: FileFormat | str, reasons: Counter[str]
) -> Iterator[tuple[_Match, FileFormat]]:
    """Yield the files to read with their formats; count the others by reason."""
    if format != "auto":
        yield from ((match, format) for match in matches)  # type: ignore[misc]  # `auto` is the only other value
        return
    kinds = [(match, match.kind) for match in matches]
    taken = _roles_taken({kind.role for _, kind in kinds})
    _refuse_two_endings((match, kind) for match, kind in kinds if match.pattern and kind.role in taken)
    for match, kind in kinds:
        if kind.format is not None and (kind.role in taken or not match.pattern):
            yield match, kind.format
        else:
            reasons[_reason(match, kind)] += 1


def _roles_taken(present: set[Role]) -> set[Role]:
    """Return the roles of a pattern's files that are read: a README is text only among texts."""
    if "data" in present:
        return {"data"}
    return {"text", "documentation"} if present <= {"text", "documentation"} else {"text"}


def _reason(match: _Match, kind: FileKind) -> str:
    match kind.role:
        case "text":
            return "text files beside data"
        case "documentation" | "metadata":
            return f"files of {kind.role}"
        case "archive":
            return f"archive files {kind.ending}"
        case "data" | "unknown":
            if is_local(match.fs) and (what := _special(match.path)):
                return f"files that are {what}"
            return f"files of unknown kind {kind.ending}" if kind.ending else "files without a known ending"


def _few(reasons: Counter[str]) -> Counter[str]:
    """Return the most frequent reasons, and the sum of the others: a folder may have any number of endings."""
    rest = reasons.most_common()[_MOST_ENDINGS:]
    few = Counter(dict(reasons.most_common(_MOST_ENDINGS)))
    return few + Counter({"files of other unknown kinds": sum(count for _, count in rest)})


def _nothing_to_read(url: str, visible: list[_Match], reasons: Counter[str]) -> str:
    if len(visible) == 1 and not visible[0].pattern:
        return f"{visible[0].url} {_unreadable(visible[0].kind)}"
    counts = counts_in_words(_few(reasons))
    return (
        f"{url} matches no file of a known kind ({counts}); {_archive_fix(visible)}"
        "set corpus.source.format, such as `text` for one document per file, or change the pattern"
    )


def _archive_fix(visible: list[_Match]) -> str:
    return "unpack archives; " if any(match.kind.role == "archive" for match in visible) else ""


def _unreadable(kind: FileKind) -> str:
    if kind.role == "archive":
        return f"is an archive ({kind.ending}); unpack it and name the files in it"
    what = f"has an unknown ending ({kind.ending})" if kind.ending else "has no known ending"
    return (
        f"{what}; set corpus.source.format to how it is read (`text` makes it one document), or rename it "
        "(.parquet, .arrow, .jsonl, .json, .csv, .tsv, .txt)"
    )


def _is_hidden(match: _Match) -> bool:
    """Whether a pattern that names no hidden file or folder matches one, as `datasets` leaves them out too."""
    hidden = any(part.startswith((".", "__")) for part in match.name.split("/"))
    return bool(match.pattern) and hidden and not re.search(r"(^|/)(\.|__)", match.pattern.lstrip("/"))


def _refuse_two_endings(kinds: Iterable[tuple[_Match, FileKind]]) -> None:
    """Refuse files that differ only in their endings: they are most likely the same rows, which would count twice.

    Texts are refused only where one is compressed: `a.txt` and `a.md` may be two documents.
    """
    seen: dict[tuple[Any, PurePosixPath], _Match] = {}
    for match, kind in kinds:
        path = PurePosixPath(without_compression(path_of_name(match.fs, match.path)))
        other = seen.setdefault((match.fs, path.with_suffix("") if kind.role == "data" else path), match)
        if other is not match:
            raise UserError(
                f"{other.url} and {match.url} have the same name with two endings, and would be read twice if they "
                "have the same content; exclude one with corpus.source.exclude, or name both in corpus.source.urls"
            )


def _require_regular(match: _Match) -> None:
    """Raise UserError if a path on a disk is not that of a regular file: reading a FIFO or a device never ends."""
    if is_local(match.fs) and (what := _special(match.path)):
        raise UserError(f"{match.url} is {what}; name a file, or exclude it with corpus.source.exclude")


def _special(path: str) -> str | None:
    """Return what a path on a disk is, if not a regular file."""
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a link that leads to itself"
        if isinstance(error, FileNotFoundError):
            return "a link to a file that does not exist"
        return f"not accessible ({error.strerror})"
    return None if stat.S_ISREG(mode) else _SPECIAL.get(stat.S_IFMT(mode), "a special file")


_SPECIAL = {
    stat.S_IFIFO: "a FIFO and not a file",
    stat.S_IFSOCK: "a socket and not a file",
    stat.S_IFCHR: "a device and not a file",
    stat.S_IFBLK: "a device and not a file",
    stat.S_IFDIR: "a folder and not a file",
}


def path_of_name(fs: Any, path: str) -> str:
    """Return the part of a file's path that names and kinds are made from: on a disk all of it."""
    return path if is_local(fs) else naming_path(path)


def _fixed_folder(pattern: str) -> str:
    fixed: list[str] = []
    for part in pattern.split("/"):
        if _GLOB_CHARACTERS.search(part):
            break
        fixed.append(part)
    return "/".join(fixed)


def _name(path: str, folder: str) -> str:
    return _valid_unicode(path.removeprefix(folder).lstrip("/"))


def _shown(fs: Any, path: str) -> str:
    return _valid_unicode(path if is_local(fs) else str(fs.unstrip_protocol(path)))


def _valid_unicode(path: str) -> str:
    # paths on a disk are bytes; Python represents those that are not UTF-8 by lone surrogates
    if _ESCAPED_BYTE.search(path) or _SURROGATE.search(path):
        path = path.replace("\\", r"\\")  # so that no other path looks like this one
    return path.encode("utf-8", "backslashreplace").decode()


def _is_excluded(file: _Match, patterns: Iterable[str]) -> bool:
    return any(_excludes(pattern, file) for pattern in patterns)


def _excludes(pattern: str, file: _Match) -> bool:
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
