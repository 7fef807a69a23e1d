"""The only module that opens URLs: all other modules use its functions.

What the user can fix (no permission, no such bucket, a full disk, no credentials) is raised as a UserError that
names the URL. The error of a lost connection or a busy server keeps its type and gets a note that names the URL: after
the retries made here, the caller may try again later.
"""

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.cached import CachingFileSystem
from fsspec.implementations.local import LocalFileSystem

from storage.errors import REFUSALS, TRANSIENT, UserError, http_status
from storage.local.files import check_regular, link_new, list_kinds, placing, remove_local, stat_files, write_file
from storage.printed.secrets import REFERENCE

_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
}


# fsspec would take these for local paths
_ONE_SLASH = re.compile(rf"(?:https?|{'|'.join(_EXTRAS)}):/(?!/)")

# their drivers would take it for a part of the bucket's name, and show it in errors
_BUCKET_WITH_LOGIN = re.compile(r"(?:.*::)?(?:s3a?|gs|gcs)://(?!arn:)[^/]*[@:]")


class _LocalDisk(LocalFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The disk, but a folder that can't be listed is an error; fsspec's glob would skip it."""

    def ls(self, path: str, detail: bool = False, **options: Any) -> Any:
        try:
            return super().ls(path, detail=detail, **options)
        except PermissionError as error:
            raise UserError(f"cannot list {path}: {error.strerror}; make it readable, or narrow the pattern") from error

    def walk(self, path: str, *arguments: Any, **options: Any) -> Any:
        return super().walk(path, *arguments, **{"on_error": _raise_unless_gone, **options})


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URL (or local path) and the path in it, which is absolute on a disk.

    Credentials and endpoints come from the environment, as each driver documents; a URL may also name environment
    variables, as `https://${LOGIN}@host/x?sig=${SIGNATURE}`.
    Raises UserError if the protocol is unknown or has one slash, a bucket has a login, the driver is not installed, or
    a variable is not set.
    """
    url = _with_variables(url)
    if one_slash := _ONE_SLASH.match(url):
        raise UserError(f"{url}: {one_slash[0]} has one slash: write {one_slash[0]}/")
    if _BUCKET_WITH_LOGIN.match(url):
        raise UserError(
            f"{url}: no login can be written before a bucket: its driver takes that from the environment, such as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or GOOGLE_APPLICATION_CREDENTIALS"
        )
    try:
        fs, path = fsspec.core.url_to_fs(url, **_options(url))
    except ImportError as error:
        extra = _EXTRAS.get(protocol_of(url))
        fix = f"pip install 'alm-pipeline[{extra}]'" if extra else f"install its driver ({error})"
        raise UserError(f"{url}: the storage driver is not installed: {fix}") from error
    except ValueError as error:
        raise UserError(f"{url}: not a URL that can be opened: {error}") from error
    if protocol_of(url) in _S3:
        fs.retries = _S3_ROUNDS
    # the root of a disk stays '/': an empty path would be the current folder
    return (_LocalDisk(), path.rstrip("/") or "/") if is_local(fs) else (fs, path.rstrip("/"))


def _with_variables(url: str) -> str:
    """Put the values of environment variables in the places of their references, as they are."""
    if "://" not in url:
        return url
    if missing := [name for name in REFERENCE.findall(url) if name not in os.environ]:
        raise UserError(f"{url}: the environment variable {missing[0]} is not set: set it where the run works")
    return REFERENCE.sub(lambda match: os.environ[match[1]], url)


_CACHES = ("filecache", "simplecache", "blockcache", "cached")


def _check_no_cache(url: str) -> None:
    """Raise UserError if a cache of fsspec is in front of a store: it would hide what other processes write."""
    if protocol_of(url) in _CACHES:
        raise UserError(f"{url}: a store can't be used through a cache: leave out `{protocol_of(url)}::`")


def protocol_of(url: str) -> str:
    match = re.match(r"([A-Za-z0-9+.-]+)(::|://)", url)
    return match[1] if match else "file"


def configure(url: str, settings: Mapping[str, Any]) -> None:
    """Set driver settings (endpoint, credentials, …) with which this process opens URLs of the same protocol."""
    fsspec.config.conf.setdefault(protocol_of(url), {}).update(settings)


def configuration_as_environment() -> dict[str, str]:
    """Return environment variables that give a new process the driver settings of this one."""
    return {f"FSSPEC_{protocol.upper()}": json.dumps(settings) for protocol, settings in fsspec.config.conf.items()}


_S3 = ("s3", "s3a")
_S3_CONFIG = {"connect_timeout": 5, "read_timeout": 20, "retries": {"mode": "standard", "total_max_attempts": 5}}
_S3_ROUNDS = 3


def _options(url: str) -> dict[str, Any]:
    """Return the options of a URL's driver; the user's fsspec configuration overrides them.

    S3: a request whose connection is refused, or that is answered with 500, 502, 503 or 504, is sent up to 5 times,
    after random pauses of up to 1, 2, 4 and 8 s. If a connection breaks off or is silent for 20 s, s3fs makes up to 3
    rounds of this, and up to 3 rounds of reading a body. So this gives up on a server that is down after 15 s, and on
    one that accepts connections but does not answer after 5 minutes.
    """
    protocol = protocol_of(url)
    # a cached listing would hide the shards that another process has just published
    options: dict[str, Any] = {"use_listings_cache": False} if protocol in _EXTRAS else {}
    if protocol in _S3:
        s3, s3a = (fsspec.config.conf.get(name, {}).get("config_kwargs", {}) for name in _S3)
        options["config_kwargs"] = {**_S3_CONFIG, **s3, **s3a}
    return options


def is_local(fs: Any) -> bool:
    return isinstance(fs, LocalFileSystem)


def keeps_copies(fs: Any) -> bool:
    """Whether a file system is one of fsspec's caches (`simplecache::`, `filecache::`, …) of another."""
    return isinstance(fs, CachingFileSystem)


def join_url(root: str, *parts: str) -> str:
    """Join path parts to a root URL, which may be a bare protocol, as in `memory://`."""
    start = root if root.endswith("://") else root.rstrip("/") + "/"
    return start + "/".join(parts)


def absolute_url(url: str) -> str:
    """Return a local path as an absolute path, any other URL unchanged, both without a slash at the end."""
    fs, path = open_filesystem(url)
    return path if is_local(fs) else url.rstrip("/")


def read_bytes(url: str) -> bytes | None:
    """Read the whole content; None if nothing exists there."""
    fs, path = open_filesystem(url)
    with naming_errors(url, "read"):
        return _content(fs, path)


def _content(fs: Any, path: str) -> bytes | None:
    """Read the content; None if nothing exists there. Only "not found" means that."""
    try:
        if is_local(fs):
            check_regular(path)
        # S3's driver would ask for the size of every object first, to read one of over 50 MB in parts at once
        return bytes(fs.cat_file(path, **({"max_concurrency": 1} if "s3" in fs.protocol else {})))
    except FileNotFoundError:
        return None


_PUBLISH_ATTEMPTS = 20
"""how often the name may be taken by something that is gone when it is read, as the lease of an ended process is"""
_PUBLISH_PAUSE_S = 0.02


def publish(url: str, content: bytes) -> bytes:
    """Write `content` unless something exists there; a reader sees all of it or nothing, even after a kill.

    Returns what is stored afterward: `content`, or what existed before, which is not changed. If several runs publish
    at once, one wins and each learns which; on a store without conditional writes the last one wins.
    On a disk: a temporary file in the same folder, flushed, then linked. On an object store: one conditional PUT.

    Raises UserError if the name is taken by something that can't be read, such as a folder or a dangling link.
    """
    _check_no_cache(url)
    fs, path = open_filesystem(url)
    with naming_errors(url, "written"):
        for attempt in range(_PUBLISH_ATTEMPTS):
            try:
                write_file(Path(path), content, link_new) if is_local(fs) else _create_object(fs, path, content)
                return content
            except Exception as error:
                stored = _content_instead(fs, path, error)
            if stored is not None:
                return stored
            time.sleep(_PUBLISH_PAUSE_S * attempt)
    what = "a link to something that does not exist" if is_local(fs) and Path(path).is_symlink() else "something"
    raise UserError(
        f"{url}: can't be written: its name is taken by {what} that can't be read: remove it, or choose another storage"
    )


def _content_instead(fs: Any, path: str, error: Exception) -> bytes | None:
    """Return what exists where writing failed; None if the name was taken and is free again.

    Raises `error` if nothing exists there, and the error of reading if the name is taken by what can't be read.
    """
    is_taken = _is_taken(error)
    try:
        stored = _content(fs, path)
    except Exception as unreadable:
        raise (unreadable if is_taken else error) from None
    # drivers report in many ways that something exists: what can be read does
    if stored is None and not is_taken:
        raise error
    return stored


def _is_taken(error: Exception) -> bool:
    cause = str(error.__cause__)
    return isinstance(error, FileExistsError) or "PreconditionFailed" in cause or "ConditionalRequestConflict" in cause


def _create_object(fs: Any, path: str, content: bytes) -> None:
    try:
        fs.pipe_file(path, content, mode="create")
    except OSError as error:
        if "NotImplemented" not in str(error.__cause__):
            raise
        fs.pipe_file(path, content)  # a store without conditional writes


def overwrite(url: str, content: bytes) -> None:
    """Write as `publish` does, but replace what exists."""
    _check_no_cache(url)
    fs, path = open_filesystem(url)
    with naming_errors(url, "written"):
        if is_local(fs):
            write_file(Path(path), content, Path.replace)
        else:
            fs.pipe_file(path, content)


def upload(path: Path, url: str) -> None:
    """Copy a local file of any size to a URL, which then has all of it or is unchanged."""
    _check_no_cache(url)
    fs, target = open_filesystem(url)
    with naming_errors(url, "written"):
        if is_local(fs):
            with placing(Path(target), Path.replace) as temporary:
                fs.put_file(str(path), str(temporary))
        else:
            fs.put_file(str(path), target)


def download(url: str, path: Path) -> bool:
    """Copy a file of any size to a local path, which then has all of it or is unchanged; False if there is no file."""
    fs, source = open_filesystem(url)
    with naming_errors(url, f"copied to {path}"):
        if not _exists(fs, source):
            return False
        with placing(path, Path.replace) as temporary:
            fs.get_file(source, str(temporary))
    return True


def move(url: str, target: str) -> None:
    """Give a file another URL of the same store, in place of what is there; on an object store, copy it.

    Does nothing if the file does not exist, as after a move that a kill interrupted.
    """
    fs, path = open_filesystem(url)
    with naming_errors(target, "written"):
        try:
            if is_local(fs):
                place = Path(open_filesystem(target)[1])
                place.parent.mkdir(parents=True, exist_ok=True)
                Path(path).replace(place)
            else:
                fs.copy(path, open_filesystem(target)[1])
        except FileNotFoundError:
            return


def remove(url: str) -> None:
    """Remove a file, or a folder with its contents, if it exists. Of a link, only the link is removed."""
    _check_no_cache(url)
    fs, path = open_filesystem(url)
    with naming_errors(url, "removed"):
        if is_local(fs):
            remove_local(Path(path))
        elif _exists(fs, path):
            fs.rm(path, recursive=True)


def empty(url: str, keep: Collection[str]) -> None:
    """Remove what is in a folder, in a few requests, except for the files of these names directly in it."""
    fs, path = open_filesystem(url)
    with naming_errors(url, "removed"):
        if is_local(fs):
            for child in Path(path).iterdir() if Path(path).is_dir() else ():
                if child.name not in keep:
                    remove_local(child)
            return
        fs.invalidate_cache()
        if files := [file for file in fs.find(path) if file.removeprefix(f"{path}/") not in keep]:
            fs.rm(files)


def remove_empty_folder(url: str) -> None:
    """Remove a folder on a disk, unless it has files; an object store has no empty folders."""
    fs, path = open_filesystem(url)
    if is_local(fs):
        with suppress(OSError):
            Path(path).rmdir()


def _exists(fs: Any, path: str) -> bool:
    fs.invalidate_cache()
    return bool(fs.exists(path))


def link_target(url: str) -> str | None:
    """Return where a symbolic link on a disk points to; None for anything else."""
    fs, path = open_filesystem(url)
    return str(Path(path).readlink()) if is_local(fs) and Path(path).is_symlink() else None


def list_names(url: str) -> list[str]:
    """List the names of files and folders directly under a folder, sorted; empty if the folder does not exist."""
    return sorted(_list(url))


def list_folders(url: str) -> list[str]:
    """List as `list_names` does, but without files."""
    return sorted(name for name, is_file in _list(url).items() if not is_file)


def _list(url: str) -> dict[str, bool]:
    """Return the names directly under a folder, and whether each is a file; a linked folder is none."""
    fs, path = open_filesystem(url)
    with naming_errors(url, "listed"), suppress(FileNotFoundError):
        if is_local(fs):
            # below a file there can't be any, which is an error; a broken link leads to none
            is_something_else = os.path.lexists(path) and not Path(path).is_dir()
            return {} if is_something_else else list_kinds(path)
        fs.invalidate_cache()
        places = {entry["name"].rstrip("/"): entry["type"] for entry in fs.ls(path, detail=True)}
        # object stores also list the empty object that marks a folder
        return {place.rsplit("/", 1)[-1]: kind == "file" for place, kind in places.items() if place != path}
    return {}


def file_sizes(url: str) -> dict[str, int]:
    """Return the size in bytes of each file below a folder, by relative path; empty if the folder does not exist."""
    return {name: info.bytes for name, info in list_files(url).items()}


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What a listing reports about a file."""

    bytes: int
    modified: float | None
    """Seconds since 1970; None if the driver does not report it."""


def list_files(url: str) -> dict[str, FileInfo]:
    """List all files below a folder, by relative path, in one request; empty if the folder does not exist.

    An object store lists 1,000 files per request.
    """
    fs, path = open_filesystem(url)
    with naming_errors(url, "listed"):
        if is_local(fs):
            # a link to itself is a broken link like others: the folder does not exist
            found = sorted(stat_files(path)) if Path(path).exists() else ()
            return {file[len(path) + 1 :]: FileInfo(size, time) for file, size, time in found}
        fs.invalidate_cache()  # a driver's own cache would hide what another process has just written
        listing = fs.find(path, detail=True)
    # if `path` is a file, the listing has the file itself (with Azure's driver in a list); the same goes for an empty
    # folder that an object store still lists
    entries = listing.items() if isinstance(listing, Mapping) else ()
    return {
        file.removeprefix(f"{path}/"): FileInfo(info["size"], modified_time(info))
        for file, info in entries
        if file != path
    }


# of Google and others; S3; Azure; memory
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "created")


def modified_time(info: Mapping[str, Any]) -> float | None:
    time = next((info[key] for key in _TIME_KEYS if info.get(key) is not None), None)
    if isinstance(time, datetime):
        return time.timestamp()
    return float(time) if isinstance(time, int | float) else None


def hash_url(url: str) -> str | None:
    """Return the SHA-256 of a file of any size, in hex; None if the file does not exist."""
    fs, path = open_filesystem(url)
    with naming_errors(url, "read"):
        try:
            with fs.open(path, "rb", **({} if is_local(fs) else {"block_size": 16 * 2**20})) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return None


@contextmanager
def naming_errors(url: str, verb: str) -> Iterator[None]:
    """Turn errors that the user can fix into a UserError that names the URL; add the URL as a note to others."""
    try:
        yield
    except Exception as error:
        if not _is_fixable(error):
            error.add_note(f"{url}: can't be {verb}")
            raise
        message = str(error).partition("\nRequestId:")[0]  # Azure's driver adds a page
        raise UserError(f"{url}: can't be {verb}: {message}{_fix(url, error)}") from error


def _fix(url: str, error: Exception) -> str:
    if isinstance(error, PermissionError):
        # S3 answers so to a request for what does not exist, too, unless the bucket may be listed
        permission = "the permission (s3:ListBucket too)" if protocol_of(url) in _S3 else "the permission"
        return f"; grant {permission}, or choose another location"
    fix = "; free some space and run it again: completed shards are kept"
    return fix if isinstance(error, OSError) and error.errno in _FULL else ""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


# what drivers raise without an errno
_FIXABLE = (PermissionError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)


def _is_fixable(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is None:  # botocore's timeouts have no errno either
        return isinstance(error, _FIXABLE) or str(error).startswith("Forbidden:")  # Google's driver, for a 403
    if isinstance(error, OSError):
        return not isinstance(error, ConnectionError | TimeoutError) and error.errno not in TRANSIENT
    # each driver has its own type for missing credentials; only their names are alike
    return "Credential" in type(error).__name__ or http_status(error) in REFUSALS
