"""A name that is taken by something unreadable is an error that names it, at once: only "not found" is "not there"."""

import ast
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage import urls
from storage.errors import UserError
from storage.lease import hold
from storage.urls import move, overwrite, publish, read_bytes, remove
from tests.storage.proxy import Proxy, answer
from tests.storage.samples import columns, dataset
from tests.storage.test_disk_faults import guarded
from tests.storage.test_server_faults import proxy

__all__ = ["guarded", "proxy"]
PROJECT = Path(__file__).parents[2]


def _others_file(path: Path) -> None:
    path.write_bytes(b"secret")
    path.chmod(0)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


TAKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder": (Path.mkdir, "Is a directory"),
    "another user's file": (_others_file, "Permission denied"),
    "a dangling link": (lambda path: path.symlink_to("nothing"), "a link to something that does not exist"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    "a link to a folder": (lambda path: path.symlink_to("/"), "Is a directory"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "a named pipe": (os.mkfifo, "not a regular file"),
    "a socket": (_socket, "not a regular file"),
}
"""what may be at a name instead of a file, and the error"""


@pytest.mark.bad_input
@pytest.mark.parametrize("what", TAKEN)
def test_a_taken_name_is_reported_at_once(guarded: Path, what: str) -> None:
    make, problem = TAKEN[what]
    make(guarded / "x")
    with pytest.raises(UserError, match=rf"{guarded}/x: can't be written: .*{problem}"):
        publish(str(guarded / "x"), b"content")
    assert [path.name for path in guarded.iterdir()] == ["x"]  # no temporary file is left


@pytest.mark.bad_input
@pytest.mark.parametrize("what", [what for what in TAKEN if what != "a dangling link"])
def test_what_is_unreadable_is_not_missing(guarded: Path, what: str) -> None:
    make, problem = TAKEN[what]
    make(guarded / "x")
    with pytest.raises(UserError, match=rf"{guarded}/x: can't be read: .*{problem}"):
        read_bytes(str(guarded / "x"))


@pytest.mark.bad_input
@pytest.mark.parametrize("what", ["a folder", "another user's file", "a link to itself", "a named pipe"])
def test_a_dataset_with_a_taken_name_is_reported(guarded: Path, what: str) -> None:
    target = dataset(str(guarded))
    record = Path(target.record_url(0))
    record.parent.mkdir(parents=True)
    TAKEN[what][0](record)
    with pytest.raises(UserError, match=r"shard-00000\.json: can't be (read|written): "):
        target.write_shard(0, columns(target.kind), {})


ERRNOS = ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EFBIG", "ENAMETOOLONG", "ENOTDIR", "ELOOP", "EINVAL")


@pytest.mark.bad_input
@pytest.mark.parametrize("code", ERRNOS)
@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
def test_an_error_of_the_disk_ends_a_publication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, taken: bool
) -> None:
    """Unless something is there: that is what counts."""
    attempts: list[Path] = []

    def fail(path: Path, *_: Any) -> None:
        attempts.append(path)
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)), str(path))

    if taken:
        (tmp_path / "x").write_bytes(b"before")
    monkeypatch.setattr(urls, "write_file", fail)
    if taken:
        assert publish(str(tmp_path / "x"), b"after") == b"before"
    else:
        with pytest.raises(UserError, match=rf"{tmp_path}/x: can't be written: "):
            publish(str(tmp_path / "x"), b"after")
    assert len(attempts) == 1


@pytest.mark.bad_input
@pytest.mark.parametrize("what", ["a folder", "a file where its folder should be", "no permission"])
def test_a_lease_that_can_not_be_taken_is_reported(guarded: Path, what: str) -> None:
    match what:
        case "a folder":
            (guarded / "x" / ".lease").mkdir(parents=True)
        case "no permission":
            guarded.chmod(0o555)
        case _:
            (guarded / "x").write_bytes(b"")
    with pytest.raises(UserError, match=rf"{guarded}/x.*(can't be locked)"), hold(str(guarded / "x" / ".lease")):
        pass


def test_every_loop_of_the_storage_ends() -> None:
    """A new `while` has to be looked at: can it run for ever?"""
    loops = {
        (file.name, function.name)
        for file in (PROJECT / "storage").rglob("*.py")
        if file.parent.name != "printed"  # whose loops are over a text in memory
        for function in ast.walk(ast.parse(file.read_text()))
        if isinstance(function, ast.FunctionDef) and any(isinstance(part, ast.While) for part in ast.walk(function))
    }
    assert loops == {
        ("uploads.py", "_uploads"),  # ends when the server's pages do not advance
        ("catalog.py", "origins"),  # every key is looked at once
        ("files.py", "stat_files"),  # every folder is looked into once: links are not followed
        ("lease.py", "_acquire"),  # waits for a living holder, as it should; any error of the store ends it
        ("lease.py", "_is_abandoned"),  # a minute after the last sign of life
        ("lease.py", "_beat"),  # a thread that ends with the lease
    }


FORBIDDEN = answer(403, "AccessDenied")


@pytest.mark.bad_input
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_bucket_that_forbids_something_is_an_error(proxy: Proxy, s3_root: str, method: str) -> None:
    """A 403 is not a 404, which a bucket that may not be listed answers for what does not exist."""
    publish(f"{s3_root}/x", b"before")
    proxy.harm(method, FORBIDDEN, 1000)
    match method:
        case "PUT":
            with pytest.raises(UserError, match=rf"{s3_root}/new: can't be written: .*s3:ListBucket"):
                publish(f"{s3_root}/new", b"content")
            assert publish(f"{s3_root}/x", b"after") == b"before"
        case _:
            with pytest.raises(UserError, match=rf"{s3_root}/x: can't be (read|written): .*s3:ListBucket"):
                publish(f"{s3_root}/x", b"after")
            with pytest.raises(UserError, match=rf"{s3_root}/none: can't be read: .*s3:ListBucket"):
                read_bytes(f"{s3_root}/none")
    assert len(proxy.requests) < 40


@pytest.mark.bad_input
@pytest.mark.parametrize("method", ["POST", "DELETE", "HEAD", "GET"])
def test_a_locked_object_is_not_removed_in_silence(proxy: Proxy, s3_root: str, method: str) -> None:
    publish(f"{s3_root}/folder/x", b"before")
    for name in (method, "POST", "DELETE"):
        proxy.harm(name, FORBIDDEN, 1000)
    with pytest.raises(UserError, match=rf"{s3_root}/folder/x: can't be removed: "):
        remove(f"{s3_root}/folder/x")
    proxy.heal()
    assert read_bytes(f"{s3_root}/folder/x") == b"before"


@pytest.mark.bad_input
@pytest.mark.parametrize("cache", urls._CACHES)
@pytest.mark.parametrize("writing", [lambda url: publish(url, b""), lambda url: overwrite(url, b""), remove])
def test_a_store_behind_a_cache_is_refused(tmp_path: Path, cache: str, writing: Callable[[str], object]) -> None:
    with pytest.raises(UserError, match=rf"can't be used through a cache: leave out `{cache}::`"):
        writing(f"{cache}::file://{tmp_path}/x")


def test_a_drivers_listings_cache_hides_nothing(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the user has switched it on: another process's files are seen, and removed ones are not."""
    import fsspec

    monkeypatch.setitem(fsspec.config.conf, "s3", {"use_listings_cache": True})
    publish(f"{s3_root}/folder/x", b"1")
    assert urls.list_names(f"{s3_root}/folder") == ["x"]
    assert urls.file_sizes(s3_root) == {"folder/x": 1}
    script = f"from storage.urls import publish, remove; publish({s3_root + '/folder/y'!r}, b'12')"
    script += f"; remove({s3_root + '/folder/x'!r})"
    subprocess.run([sys.executable, "-c", script], cwd=PROJECT, check=True)
    assert urls.list_names(f"{s3_root}/folder") == ["y"]
    assert urls.file_sizes(s3_root) == {"folder/y": 2}
    assert urls.list_folders(s3_root) == ["folder"]


def test_a_file_is_moved_over_another(root: str) -> None:
    publish(f"{root}/again/x", b"new")
    publish(f"{root}/x", b"old")
    move(f"{root}/again/x", f"{root}/x")
    assert read_bytes(f"{root}/x") == b"new"
    move(f"{root}/none", f"{root}/x")
    assert read_bytes(f"{root}/x") == b"new"
