"""The one module that opens URLs: everything else in this project asks here for a filesystem."""

import os
import re
import secrets
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from storage.errors import UserError

_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
}


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL (or local path), and the path in it.

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
        raise UserError(f"{url}: not a URL that fsspec knows: {error}") from error
    return fs, path.rstrip("/")


def _protocol(url: str) -> str:
    match = re.match(r"([A-Za-z0-9+.-]+)(::|://)", url)
    return match[1] if match else "file"


def _options(url: str) -> dict[str, Any]:
    # A listing that is cached would hide the shards that another process has just published.
    return {"use_listings_cache": False} if _protocol(url) in _EXTRAS else {}


def is_local(fs: Any) -> bool:
    return isinstance(fs, LocalFileSystem)


def join_url(root: str, *parts: str) -> str:
    return "/".join([root.rstrip("/"), *parts])


def read_bytes(url: str) -> bytes | None:
    """The whole content, or None where nothing is there."""
    fs, path = open_filesystem(url)
    try:
        return bytes(fs.cat_file(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{url}: can't be read: {error}") from error


def publish(url: str, content: bytes) -> None:
    """Write so that a reader sees all of `content` or nothing, also after a kill.

    On a disk: a temporary file in the same folder, flushed, then renamed. On an object store: one PUT.
    """
    fs, path = open_filesystem(url)
    try:
        if is_local(fs):
            _replace_file(Path(path), content)
        else:
            fs.pipe_file(path, content)
    except OSError as error:
        raise UserError(f"{url}: can't be written: {error}") from error


def _replace_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def list_names(url: str) -> list[str]:
    """The names directly under a folder, sorted; none where the folder is not there."""
    fs, path = open_filesystem(url)
    try:
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))
    except FileNotFoundError:
        return []
