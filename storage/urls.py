"""The one module that opens URLs: everything else in this project asks here.

What the user can mend (no permission, no such bucket, a full disk, no credentials) is raised as a UserError that
names the URL. A lost connection or a busy server keeps its own type, with a note that names the URL: it is worth
another try, after those that were made here.
"""

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from storage.errors import REFUSALS, UserError, http_status

_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
}


class _LocalDisk(LocalFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The disk, except that a folder that may not be listed is an error; fsspec's glob would pass over it."""

    def ls(self, path: str, detail: bool = False, **options: Any) -> Any:
        try:
            return super().ls(path, detail=detail, **options)
        except PermissionError as error:
            raise UserError(f"cannot list {path}: {error.strerror}; make it readable or narrow the pattern") from error


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL (or local path), and the path in it, which is absolute on a disk.

    Credentials and endpoints come from the environment, as each driver documents.
    Raises UserError when the protocol is unknown or its driver is not installed.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url, **_options(url))
    except ImportError as error:
        extra = _EXTRAS.get(_protocol(url))
        mend = f"pip install 'alm-pipeline[{extra}]'" if extra else f"install its driver ({error})"
        raise UserError(f"{url}: the storage driver is not installed: {mend}") from error
    except ValueError as error:
        raise UserError(f"{url}: not a URL that can be opened: {error}") from error
    if _protocol(url) in _S3:
        fs.retries = _S3_ROUNDS
    # the root of a disk stays '/': an empty path would be the current folder
    return (_LocalDisk(), path.rstrip("/") or "/") if is_local(fs) else (fs, path.rstrip("/"))


def _protocol(url: str) -> str:
    match = re.match(r"([A-Za-z0-9+.-]+)(::|://)", url)
    return match[1] if match else "file"


def configure(url: str, settings: Mapping[str, Any]) -> None:
    """Let this process open URLs of the same protocol with these settings of its driver: endpoint, credentials, …"""
    fsspec.config.conf.setdefault(_protocol(url), {}).update(settings)


def configuration_as_environment() -> dict[str, str]:
    """The variables that give a new process the settings of this one's drivers."""
    return {f"FSSPEC_{protocol.upper()}": json.dumps(settings) for protocol, settings in fsspec.config.conf.items()}


_S3 = ("s3", "s3a")
_S3_CONFIG = {"connect_timeout": 5, "read_timeout": 20, "retries": {"mode": "standard", "total_max_attempts": 5}}
_S3_ROUNDS = 3


def _options(url: str) -> dict[str, Any]:
    """What a URL's driver is opened with, besides what the user's fsspec configuration says, which wins.

    S3: a request that is refused, or answered 500, 502, 503 or 504, is sent up to 5 times, after random pauses of up
    to 1, 2, 4 and 8 s. Where a connection breaks off, or is silent for 20 s, s3fs makes up to 3 rounds of this, and up
    to 3 of reading a body. So a server that is down is given up after 15 s, one that only listens after 5 minutes (15
    where it answers HEAD).
    """
    protocol = _protocol(url)
    # A listing that is cached would hide the shards that another process has just published.
    options: dict[str, Any] = {"use_listings_cache": False} if protocol in _EXTRAS else {}
    if protocol in _S3:
        s3, s3a = (fsspec.config.conf.get(name, {}).get("config_kwargs", {}) for name in _S3)
        options["config_kwargs"] = {**_S3_CONFIG, **s3, **s3a}
    return options


def is_local(fs: Any) -> bool:
    return isinstance(fs, LocalFileSystem)


def join_url(root: str, *parts: str) -> str:
    """The URL of what lies below a root; a root may be a bare protocol, as in `memory://`."""
    start = root if root.endswith("://") else root.rstrip("/") + "/"
    return start + "/".join(parts)


def absolute_url(url: str) -> str:
    """A local path in full, any other URL as it is; without a slash at the end."""
    fs, path = open_filesystem(url)
    return path if is_local(fs) else url.rstrip("/")


def read_bytes(url: str) -> bytes | None:
    """The whole content, or None where nothing is there."""
    fs, path = open_filesystem(url)
    with _naming(url, "read"):
        try:
            return bytes(fs.cat_file(path))
        except FileNotFoundError:
            return None


def publish(url: str, content: bytes) -> bytes:
    """Write where nothing is yet, so that a reader sees all of `content` or nothing, also after a kill.

    Returns what is there afterwards: `content`, or what was there before, which stays. Of runs that publish at once
    one wins, and each sees which; on a store without conditional writes the last one does.
    On a disk: a temporary file in the same folder, flushed, then linked. On an object store: one conditional PUT.
    """
    fs, path = open_filesystem(url)
    with _naming(url, "written"):
        while True:
            try:
                _write_file(Path(path), content, _link) if is_local(fs) else _create_object(fs, path, content)
                return content
            except Exception as error:
                # each driver says in its own way that something is there
                standing = _content(fs, path)
                if standing is not None:
                    return standing
                if not _is_taken(error):
                    raise  # otherwise it is gone already, as a lease may be


def _is_taken(error: Exception) -> bool:
    said = str(error.__cause__)
    return isinstance(error, FileExistsError) or "PreconditionFailed" in said or "ConditionalRequestConflict" in said


def _content(fs: Any, path: str) -> bytes | None:
    """What can be read, None where nothing can."""
    try:
        return bytes(fs.cat_file(path))
    except Exception:
        return None


def _create_object(fs: Any, path: str, content: bytes) -> None:
    try:
        fs.pipe_file(path, content, mode="create")
    except OSError as error:
        if "NotImplemented" not in str(error.__cause__):
            raise
        fs.pipe_file(path, content)  # a store that refuses conditions


def overwrite(url: str, content: bytes) -> None:
    """As `publish`, in place of whatever is there."""
    fs, path = open_filesystem(url)
    with _naming(url, "written"):
        if is_local(fs):
            _write_file(Path(path), content, Path.replace)
        else:
            fs.pipe_file(path, content)


def _write_file(path: Path, content: bytes, place: Callable[[Path, Path], object]) -> None:
    with _placing(path, place) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _placing(path: Path, place: Callable[[Path, Path], object]) -> Iterator[Path]:
    """A path to write to, which `place` makes `path` when all went well and which goes away when not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> None:
    """Make the file appear under its name. Raises FileExistsError where the name is taken."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: here two writers at once may both win
        if path.exists():
            raise FileExistsError(path) from None
        temporary.replace(path)


def upload(path: Path, url: str) -> None:
    """Copy a local file, of any size, to a URL, which holds all of it or stays as it was."""
    fs, target = open_filesystem(url)
    with _naming(url, "written"):
        if is_local(fs):
            with _placing(Path(target), Path.replace) as temporary:
                fs.put_file(str(path), str(temporary))
        else:
            fs.put_file(str(path), target)


def download(url: str, path: Path) -> bool:
    """Copy a file of any size to a local path, which holds all of it or stays as it was; False where none is there."""
    fs, source = open_filesystem(url)
    with _naming(url, f"copied to {path}"):
        if not fs.exists(source):
            return False
        with _placing(path, Path.replace) as temporary:
            fs.get_file(source, str(temporary))
    return True


def remove(url: str) -> None:
    """Remove a file, or a folder with all that is in it; nothing to do where none is there."""
    fs, path = open_filesystem(url)
    with _naming(url, "removed"):
        if fs.exists(path):
            fs.rm(path, recursive=True)


def list_names(url: str) -> list[str]:
    """The names of files and folders directly under a folder, sorted; none where the folder is not there."""
    return sorted(_list(url))


def list_folders(url: str) -> list[str]:
    """As `list_names`, without the files."""
    # a linked folder is neither a 'file' nor a 'directory'
    return sorted(name for name, kind in _list(url).items() if kind != "file")


def _list(url: str) -> dict[str, str]:
    fs, path = open_filesystem(url)
    with _naming(url, "listed"):
        try:
            entries = fs.ls(path, detail=True)
        except FileNotFoundError:
            return {}
    places = {entry["name"].rstrip("/"): entry["type"] for entry in entries}
    # object stores list an empty object that marks the folder, too
    return {place.rsplit("/", 1)[-1]: kind for place, kind in places.items() if place != path}


def file_sizes(url: str) -> dict[str, int]:
    """The sizes in bytes of all files below a folder, by their path from it; none where the folder is not there."""
    return {name: info.bytes for name, info in list_files(url).items()}


@dataclass(frozen=True)
class FileInfo:
    """What a listing says of a file."""

    bytes: int
    modified: float | None
    """seconds since 1970; None where the driver does not say"""


def list_files(url: str) -> dict[str, FileInfo]:
    """All files below a folder, by their path from it, in one listing; none where the folder is not there."""
    fs, path = open_filesystem(url)
    with _naming(url, "listed"):
        found = fs.find(path, detail=True)
    # a file is found as itself (by Azure's driver in a list), and so is an empty folder that an object store goes on
    # listing
    entries = found.items() if isinstance(found, Mapping) else ()
    return {
        place.removeprefix(f"{path}/"): FileInfo(info["size"], _modified(info))
        for place, info in entries
        if place != path
    }


# disk and Google; S3; Azure; memory
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "created")


def _modified(info: Mapping[str, Any]) -> float | None:
    time = next((info[key] for key in _TIME_KEYS if info.get(key) is not None), None)
    if isinstance(time, datetime):
        return time.timestamp()
    return float(time) if isinstance(time, int | float) else None


def hash_url(url: str) -> str | None:
    """SHA-256 of a file's content, of any size, in hex; None where nothing is there."""
    fs, path = open_filesystem(url)
    with _naming(url, "read"):
        try:
            with fs.open(path, "rb", **({} if is_local(fs) else {"block_size": 16 * 2**20})) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return None


@dataclass(frozen=True)
class Upload:
    """A file that was sent to S3 in parts and never finished: in no listing, but paid for."""

    url: str
    id: str
    bytes: int
    modified: float | None


def interrupted_uploads(url: str) -> list[Upload]:
    """The unfinished uploads of files below a folder, on S3; elsewhere there are none."""
    fs, path = open_filesystem(url)
    if not hasattr(fs, "call_s3"):
        return []
    bucket, prefix, _ = fs.split_path(path)
    with _naming(url, "listed"):
        found = list(_uploads(fs, bucket, f"{prefix}/" if prefix else ""))
        return [
            Upload(
                f"{_protocol(url)}://{bucket}/{upload['Key']}",
                upload["UploadId"],
                _uploaded(fs, bucket, upload),
                _modified({"created": upload.get("Initiated")}),
            )
            for upload in found
        ]


def _uploads(fs: Any, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    page: dict[str, Any] = {"IsTruncated": True}
    while page.get("IsTruncated"):
        after = {key: page[f"Next{key}"] for key in ("KeyMarker", "UploadIdMarker") if page.get(f"Next{key}")}
        page = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **after)
        yield from page.get("Uploads", [])


def _uploaded(fs: Any, bucket: str, upload: Mapping[str, Any]) -> int:
    # of the first thousand parts: it is for a person to read
    parts = fs.call_s3("list_parts", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    return sum(part["Size"] for part in parts.get("Parts", []))


def abort_upload(upload: Upload) -> None:
    """Let the store forget the parts of an unfinished upload."""
    fs, path = open_filesystem(upload.url)
    bucket, key, _ = fs.split_path(path)
    with _naming(upload.url, "removed"):
        fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload.id)


@contextmanager
def _naming(url: str, verb: str) -> Iterator[None]:
    """Turn what the user can mend into a UserError that names the URL, and note the URL on everything else."""
    try:
        yield
    except Exception as error:
        if not _is_mendable(error):
            error.add_note(f"{url}: can't be {verb}")
            raise
        said = str(error).partition("\nRequestId:")[0]  # Azure's adds a page
        raise UserError(f"{url}: can't be {verb}: {said}{_mend(error)}") from error


def _mend(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "; allow it, or choose another place"
    mend = "; make room and run it again: what is complete is kept"
    return mend if isinstance(error, OSError) and error.errno in _FULL else ""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


# how drivers report a server that is down, overloaded or at fault, and a disk behind a network one that is away
_PASSING = (errno.EIO, errno.EBUSY, errno.EAGAIN, getattr(errno, "EREMOTEIO", errno.EIO))

# what drivers raise without a number
_MENDABLE = (PermissionError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)


def _is_mendable(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is None:  # botocore's timeouts are such, too
        return isinstance(error, _MENDABLE) or str(error).startswith("Forbidden:")  # Google's driver of a 403
    if isinstance(error, OSError):
        return not isinstance(error, ConnectionError | TimeoutError) and error.errno not in _PASSING
    # each driver has its own type for missing credentials, alike only in their names
    return "Credential" in type(error).__name__ or http_status(error) in REFUSALS
