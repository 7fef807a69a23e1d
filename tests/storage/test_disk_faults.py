"""A disk that is full, read-only or forbidden: the error names the file and the fix, and no file is partial."""

import os
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from storage.columns import list_array
from storage.dataset import Dataset
from storage.errors import UserError
from storage.urls import download, file_sizes, list_names, overwrite, publish, read_bytes, remove, upload
from tests.storage.samples import columns, dataset

NOBODY = 65534
LARGE = bytes(1 << 20)


@contextmanager
def _file_size_limit(size: int) -> Iterator[None]:
    """Let the kernel cut off a write that makes a file larger than this, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _names(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def _upload(url: str) -> None:
    with tempfile.NamedTemporaryFile() as source:
        source.write(LARGE)
        source.flush()
        with _file_size_limit(64 << 10):
            upload(Path(source.name), url)


def _overwrite(url: str) -> None:
    with _file_size_limit(64 << 10):
        overwrite(url, LARGE)


def test_an_interrupted_publication_leaves_nothing(tmp_path: Path) -> None:
    with (
        _file_size_limit(64 << 10),
        pytest.raises(UserError, match=r"/x: can't be written: .*File too large.*; free some space and run it again"),
    ):
        publish(str(tmp_path / "x"), LARGE)
    assert _names(tmp_path) == []


@pytest.mark.parametrize("writing", [_overwrite, _upload])
def test_an_interrupted_write_leaves_the_old_content(tmp_path: Path, writing: Callable[[str], None]) -> None:
    publish(str(tmp_path / "x"), b"before")
    with pytest.raises(UserError, match=r"/x: can't be written: .*File too large.*; free some space and run it again"):
        writing(str(tmp_path / "x"))
    assert _names(tmp_path) == ["x"]
    assert read_bytes(str(tmp_path / "x")) == b"before"


def test_a_download_to_a_full_disk_names_both_ends(remote: str, tmp_path: Path) -> None:
    publish(f"{remote}/x", LARGE)
    target = tmp_path / "x"
    with (
        _file_size_limit(64 << 10),
        pytest.raises(UserError, match=rf"{remote}/x: can't be copied to {target}: .*; free some space"),
    ):
        download(f"{remote}/x", target)
    assert _names(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def _write_large(target: Dataset, shard: int) -> None:
    """Write about 300 kB that don't compress."""
    values = np.random.default_rng(shard).random(40_000).astype(np.float32)
    rows = list_array(values, np.array([0, 0, 0, len(values)]), pa.float32())
    target.write_shard(shard, columns(target.kind, shard) | {"logprobs": rows, "boundary_logprobs": rows}, {})


def test_a_full_disk_is_reported_and_the_run_resumed(small_disk: Path, tmp_path: Path) -> None:
    full, roomy = dataset(str(small_disk)), dataset(str(tmp_path / "roomy"))
    publish(str(small_disk / "filler"), bytes(100 << 10))
    _write_large(full, 0)
    with pytest.raises(
        UserError, match=r"shard-00001\.parquet: can't be written: .*No space left.*; free some space and run"
    ):
        _write_large(full, 1)
    assert list_names(full.url) == ["shard-00000.json", "shard-00000.parquet"]
    assert full.read_shard(0).num_rows == 3
    remove(str(small_disk / "filler"))
    remove(full.shard_url(0))  # makes space for the other one
    _write_large(full, 1)
    _write_large(roomy, 1)
    assert read_bytes(full.shard_url(1)) == read_bytes(roomy.shard_url(1))


@pytest.fixture
def guarded() -> Iterator[Path]:
    """A folder of a user without privileges; the test continues as that user."""
    with tempfile.TemporaryDirectory() as name:
        folder, user = Path(name), os.geteuid()
        folder.chmod(0o755)
        if user == 0:
            os.chown(folder, NOBODY, -1)
            os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            os.seteuid(user)
            folder.chmod(0o755)


def test_a_read_only_folder_is_reported(guarded: Path) -> None:
    publish(str(guarded / "x"), b"before")
    guarded.chmod(0o555)
    for name in ("x", "new", "new/deeper"):
        with pytest.raises(UserError, match=rf"/{name}: can't be written: .*Permission denied.*; grant the permission"):
            overwrite(str(guarded / name), b"after")
    with pytest.raises(UserError, match=r"/new: can't be written: .*Permission denied.*; grant the"):
        publish(str(guarded / "new"), b"after")
    with pytest.raises(UserError, match=r"/x: can't be removed: .*Permission denied.*; grant the"):
        remove(str(guarded / "x"))
    assert file_sizes(str(guarded)) == {"x": 6}


def test_a_dataset_in_a_read_only_folder_is_reported(guarded: Path) -> None:
    target = dataset(str(guarded))
    target.write_shard(0, columns(target.kind), {})
    Path(target.url).chmod(0o555)
    with pytest.raises(UserError, match=r"shard-00001\.parquet: can't be written: .*; grant the permission"):
        target.write_shard(1, columns(target.kind, 1), {})
    with pytest.raises(UserError, match=r"manifest\.json: can't be written: .*; grant the permission"):
        target.finish(1)
    assert list_names(target.url) == ["shard-00000.json", "shard-00000.parquet"]
    Path(target.url).chmod(0o755)
    assert target.finish(1) == target.manifest()


def test_an_unreadable_file_is_reported(guarded: Path) -> None:
    publish(str(guarded / "x"), b"secret")
    (guarded / "x").chmod(0)
    with pytest.raises(UserError, match=r"/x: can't be read: .*Permission denied.*; grant the"):
        read_bytes(str(guarded / "x"))


@pytest.mark.parametrize("reading", [list_names, file_sizes, read_bytes])
def test_an_unreadable_folder_is_reported(guarded: Path, reading: Callable[[str], object]) -> None:
    """It does not count as empty or missing."""
    publish(str(guarded / "folder" / "x"), b"secret")
    (guarded / "folder").chmod(0)
    with pytest.raises(UserError, match=r"/folder.*ermission denied"):
        reading(str(guarded / "folder" / "x") if reading is read_bytes else str(guarded / "folder"))
    (guarded / "folder").chmod(0o755)
