"""Publishing is all or nothing, and errors that the user can fix name the URL."""

import errno
import hashlib
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry, known_implementations

from storage import urls
from storage.errors import UserError
from storage.urls import (
    absolute_url,
    download,
    file_sizes,
    hash_url,
    is_local,
    join_url,
    list_files,
    list_folders,
    list_names,
    open_filesystem,
    overwrite,
    publish,
    read_bytes,
    remove,
    upload,
)


def test_what_was_published_is_read(root: str) -> None:
    url = join_url(root, "deep", "er", "file")
    assert publish(url, b"first") == b"first"
    assert read_bytes(url) == b"first"
    overwrite(url, b"second")
    assert read_bytes(url) == b"second"


def test_existing_content_stays_and_is_returned(root: str) -> None:
    publish(join_url(root, "file"), b"first")
    assert publish(join_url(root, "file"), b"second") == b"first"
    assert read_bytes(join_url(root, "file")) == b"first"
    assert list_names(root) == ["file"]


def test_one_of_many_writers_wins_and_all_see_which(root: str) -> None:
    for attempt in range(5):
        url = join_url(root, f"file-{attempt}")
        with ThreadPoolExecutor(8) as pool:
            seen = set(pool.map(partial(publish, url), [b"%d" % k * 1000 for k in range(8)]))
        assert seen == {read_bytes(url)}


def test_content_that_disappears_meanwhile_is_written(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = join_url(root, "file")
    publish(url, b"first")
    content = urls._content

    def gone(*arguments: Any) -> bytes | None:
        remove(url)
        return content(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(urls, "_content", gone)
        assert publish(url, b"second") == b"second"
    assert read_bytes(url) == b"second"


def test_a_disk_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert publish(str(tmp_path / "file"), b"first") == b"first"
    assert publish(str(tmp_path / "file"), b"second") == b"first"
    assert _names(tmp_path) == ["file"]


def test_a_store_without_conditional_writes(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = MemoryFileSystem.pipe_file

    def refuse(self: MemoryFileSystem, path: str, value: bytes, mode: str = "overwrite") -> None:
        if mode == "create":
            raise OSError(22, "refused") from Exception(
                "An error occurred (NotImplemented): A header is not implemented"
            )
        pipe(self, path, value, mode)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    assert publish("memory://bucket/file", b"content") == b"content"
    assert read_bytes("memory://bucket/file") == b"content"


def test_missing_content_is_read_as_none(root: str) -> None:
    assert read_bytes(join_url(root, "none")) is None
    assert list_names(join_url(root, "none")) == []
    assert file_sizes(join_url(root, "none")) == {}


def test_names_are_sorted_and_direct(root: str) -> None:
    for name in ("b", "a", "folder/c", ".hidden"):
        publish(join_url(root, name), b"12")
    assert list_names(root) == list_names(root + "/") == [".hidden", "a", "b", "folder"]
    assert list_folders(root) == ["folder"]
    assert file_sizes(root) == {".hidden": 2, "a": 2, "b": 2, "folder/c": 2}


def test_a_listing_reports_sizes_and_times(root: str) -> None:
    before = time.time()
    publish(join_url(root, "folder/c"), b"12")
    listed = list_files(root)
    assert {name: info.bytes for name, info in listed.items()} == {"folder/c": 2}
    # a disk's clock is coarser than the processor's
    assert all(info.modified and before - 1 <= info.modified <= time.time() + 1 for info in listed.values())


@pytest.mark.parametrize(
    ("info", "modified"),
    [
        ({"mtime": 5.5, "created": 9.0}, 5.5),
        ({"mtime": 0.0, "created": 9.0}, 0.0),
        ({"LastModified": datetime(1970, 1, 2, tzinfo=UTC)}, 86400.0),
        ({"last_modified": datetime(1970, 1, 2, tzinfo=UTC)}, 86400.0),
        ({"mtime": datetime(1970, 1, 2, tzinfo=UTC)}, 86400.0),
        ({"size": 3}, None),
    ],
)
def test_each_driver_reports_times_differently(info: dict[str, Any], modified: float | None) -> None:
    assert urls.modified_time(info) == modified


def test_a_files_hash(root: str) -> None:
    url = join_url(root, "file")
    publish(url, b"abc" * 1_000_000)
    assert hash_url(url) == hashlib.sha256(b"abc" * 1_000_000).hexdigest()
    assert hash_url(join_url(root, "none")) is None


def test_a_file_contains_no_names(root: str) -> None:
    publish(join_url(root, "file"), b"")
    assert list_names(join_url(root, "file")) == []
    assert file_sizes(join_url(root, "file")) == {}


def test_a_file_that_a_driver_lists_as_a_list_contains_no_names(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("memory://bucket/file", b"")
    monkeypatch.setattr(MemoryFileSystem, "find", lambda _, path, **__: [path])  # as Azure's driver returns it
    assert file_sizes("memory://bucket/file") == {}


def test_a_linked_folder_is_a_folder(tmp_path: Path) -> None:
    publish(str(tmp_path / "folder" / "file"), b"")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    assert list_folders(str(tmp_path)) == ["folder", "link"]


class _MarkedFolders(MemoryFileSystem):
    """Lists the empty object that some tools write to make a folder, as S3 does."""

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        marker = {"name": f"{path}/", "size": 0, "type": "file"}
        return [marker, *super().ls(path, detail=True, **options)]


def test_a_folders_marker_is_not_listed(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    publish("memory://bucket/folder/file", b"")
    monkeypatch.setattr(urls, "open_filesystem", lambda url: (_MarkedFolders(), "/bucket/folder"))
    assert list_names("memory://bucket/folder") == ["file"]


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_published_file_has_no_temporary_beside_it(tmp_path: Path) -> None:
    publish(str(tmp_path / "file"), b"content")
    assert _names(tmp_path) == ["file"]


@pytest.mark.parametrize("failing", [(os, "fsync"), (Path, "replace")])
def test_a_failed_write_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: tuple[Any, str]
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    publish(str(tmp_path / "file"), b"before")
    monkeypatch.setattr(*failing, fail)
    with pytest.raises(UserError, match=r"/file: can't be written: .*No space left"):
        overwrite(str(tmp_path / "file"), b"after")
    assert _names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"before"


def test_a_failed_first_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"/file: can't be written: .*No space left"):
        publish(str(tmp_path / "file"), b"content")
    assert _names(tmp_path) == []


@pytest.mark.parametrize(
    "interruption", [KeyboardInterrupt(), ConnectionResetError("gone"), OSError(errno.EIO, "away")]
)
def test_errors_worth_a_retry_keep_their_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    def fail(*_: Any) -> None:
        raise interruption

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(interruption)):
        publish(str(tmp_path / "file"), b"content")
    assert _names(tmp_path) == []


class _NoCredentialsError(Exception):
    """Has the name of botocore's error, which is not an OSError."""


class _StoreError(Exception):
    """Has the response's status under a driver's name: `status_code` (Azure) or `code` (Google)."""

    def __init__(self, message: str, **status: int) -> None:
        super().__init__(message)
        self.__dict__.update(status)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (_NoCredentialsError("Unable to locate credentials"), "Unable to locate credentials"),
        (_StoreError("No such container.\nRequestId:1\nContent: <?xml", status_code=404), "No such container."),
        (_StoreError("Failed to authenticate", status_code=403), "Failed to authenticate"),
        (_StoreError("Invalid Credentials, 401", code=401), "Invalid Credentials, 401"),
        (OSError("Forbidden: b/bucket\nno access"), "Forbidden: b/bucket\nno access"),
    ],
)
def test_refusals_of_a_store_are_user_errors(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    monkeypatch.setattr(MemoryFileSystem, "cat_file", _raiser(error))
    with pytest.raises(UserError, match=rf"^memory://bucket/x: can't be read: {re.escape(said)}$"):
        read_bytes("memory://bucket/x")


@pytest.mark.parametrize(
    "error", [_StoreError("busy", status_code=503), _StoreError("at fault", code=500), OSError("reset")]
)
def test_failures_of_a_store_keep_their_type(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(MemoryFileSystem, "cat_file", _raiser(error))
    with pytest.raises(type(error)) as raised:
        read_bytes("memory://bucket/x")
    assert raised.value is error


def _raiser(error: Exception) -> Callable[..., bytes]:
    def fail(*_: Any, **__: Any) -> bytes:
        raise error

    return fail


def test_a_location_that_cannot_hold_a_file_is_named(tmp_path: Path) -> None:
    # instead of a read-only folder, which root could write to
    (tmp_path / "file").write_bytes(b"")
    below = str(tmp_path / "file" / "folder" / "x")
    with pytest.raises(UserError, match=r"/file/folder/x: can't be written: "):
        publish(below, b"content")
    with pytest.raises(UserError, match=r"/file/folder/x: can't be read: "):
        read_bytes(below)
    with pytest.raises(UserError, match=r"/file/folder/x: can't be listed: "):
        list_names(below)


@pytest.mark.parametrize(
    ("protocol", "extra"), [("gs", "gcs"), ("gcs", "gcs"), ("abfs", "azure"), ("az", "azure"), ("s3", "s3")]
)
def test_a_missing_driver_is_named_by_its_extra(monkeypatch: pytest.MonkeyPatch, protocol: str, extra: str) -> None:
    # a missing driver, whatever is installed where the test runs
    monkeypatch.delitem(_registry, protocol, raising=False)
    monkeypatch.setitem(known_implementations, protocol, {"class": "no_such.Driver", "err": "Install it"})
    with pytest.raises(UserError, match=rf"{protocol}://bucket/x: .*pip install 'alm-pipeline\[{extra}\]'"):
        read_bytes(f"{protocol}://bucket/x")


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(UserError, match=r"nope://x: not a URL that can be opened: Protocol not known: nope"):
        publish("nope://x", b"")


def test_the_users_s3_settings_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 77}, "anon": True})
    fs, _ = open_filesystem("s3://bucket/x")
    assert fs.anon
    assert fs.config_kwargs == {**urls._S3_CONFIG, "read_timeout": 77}


def test_urls_are_joined() -> None:
    assert join_url("/data/", "x", "y") == join_url("/data", "x", "y") == "/data/x/y"
    assert join_url("s3://bucket/", "x") == "s3://bucket/x"
    assert join_url("memory://", "x") == "memory://x"
    assert join_url("/", "x") == "/x"


def test_only_local_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_url("data/x/") == absolute_url(f"file://{tmp_path}/data/x") == f"{tmp_path}/data/x"
    assert absolute_url("memory://bucket/x/") == "memory://bucket/x"


def test_the_root_of_a_disk_is_not_the_current_folder() -> None:
    fs, path = open_filesystem("/")
    assert is_local(fs)
    assert path == "/"


def test_files_are_copied_both_ways(root: str, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"content")
    upload(tmp_path / "here", join_url(root, "there"))
    assert download(join_url(root, "there"), tmp_path / "deep" / "back")
    assert (tmp_path / "deep" / "back").read_bytes() == b"content"
    assert not download(join_url(root, "none"), tmp_path / "none" / "x")
    assert not (tmp_path / "none").exists()


def test_a_failed_download_leaves_the_old_file(
    memory: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(_fs: Any, _source: str, target: str) -> None:
        Path(target).write_bytes(b"half")
        raise ConnectionResetError

    publish("memory://bucket/x", b"whole")
    (tmp_path / "x").write_bytes(b"before")
    monkeypatch.setattr(MemoryFileSystem, "get_file", break_off)
    with pytest.raises(ConnectionResetError):
        download("memory://bucket/x", tmp_path / "x")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"x": b"before"}


def test_files_and_folders_are_removed(root: str) -> None:
    for name in ("file", "folder/deep/x", "kept"):
        publish(join_url(root, name), b"")
    for name in ("file", "folder", "never was"):
        remove(join_url(root, name))
    # compared by files: some object stores still list an empty folder
    assert file_sizes(root) == {"kept": 0}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:hunter2@bucket/a", "no login can be written before a bucket"),
        ("s3://key:hun/ter2@bucket/a", "no login can be written before a bucket"),
        ("gs://hunter2@bucket/a", "no login can be written before a bucket"),
        ("simplecache::s3a://key:hunter2@bucket/a", "no login can be written before a bucket"),
        ("https:/u:hunter2@host/a", "https:/ has one slash: write https://"),
        ("s3:/bucket/a?sig=hunter2", "s3:/ has one slash: write s3://"),
    ],
)
def test_a_url_that_its_driver_would_misread_is_refused(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        open_filesystem(url)
    assert "ter2" not in str(raised.value)
