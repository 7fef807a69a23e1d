"""Folders are uploaded and downloaded whole, and files that differ from the published ones are refused."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage import folders
from storage.errors import UserError
from storage.folders import StoredFolder, cache_folder
from storage.urls import file_sizes, join_url, list_names, overwrite, read_bytes, remove


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """machine(name) switches to the machine of this name: each has its own cache."""

    def become(name: str) -> None:
        monkeypatch.setenv("ALM_CACHE", str(tmp_path / name))

    become("first")
    return become


def _folder(root: str, **identity: Any) -> StoredFolder:
    return StoredFolder(root, "students", "tiny", {"stage_version": 1, **identity}, provenance={"commit": "c0ffee"})


def _write(folder: StoredFolder, files: Mapping[str, str]) -> None:
    for name, content in files.items():
        path = folder.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def _published(root: str) -> StoredFolder:
    folder = _folder(root)
    _write(folder, {"model.bin": "weights", "config.json": "{}", "checkpoints/checkpoint-1/state": "x"})
    folder.finish({"bits_per_byte": 1.5})
    return folder


def _mirror(folder: StoredFolder) -> None:
    """Mirror all checkpoints of this machine."""
    folder.mirror("checkpoints", sorted(child.name for child in (folder.path / "checkpoints").glob("*")), "state.json")


def _contents(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): file.read_text() for file in sorted(folder.rglob("*")) if file.is_file()
    }


MANIFEST = """{
 "content": null,
 "files": {
  "config.json": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
  "model.bin": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
 },
 "format_version": 2,
 "identity": {
  "stage_version": 1
 },
 "name": "tiny-1f6e8b5e77395882",
 "provenance": {
  "commit": "c0ffee"
 },
 "results": {
  "bits_per_byte": 1.5
 },
 "sizes": {
  "config.json": 2,
  "model.bin": 7
 }
}
"""


def test_the_manifest_of_a_folder(root: str) -> None:
    folder = _published(root)
    manifest = read_bytes(f"{root}/students/{folder.name}/manifest.json") or b""
    assert manifest.decode() == MANIFEST


def test_a_finished_folder_is_in_the_store_without_its_subfolders(remote: str) -> None:
    folder = _published(remote)
    assert list_names(folder.url) == ["config.json", "manifest.json", "model.bin"]


def test_on_a_disk_the_working_folder_is_the_stored_one(tmp_path: Path) -> None:
    folder = _published(str(tmp_path / "root"))
    assert str(folder.path) == folder.url == f"{tmp_path}/root/students/{folder.name}"
    assert not cache_folder().exists()


def test_stores_do_not_share_a_working_folder() -> None:
    assert _folder("memory://one").path != _folder("memory://other").path


@pytest.mark.parametrize("root", ["memory://{}@bucket/a", "memory://bucket/a?sig={}"])
def test_a_new_login_finds_the_working_folder(root: str) -> None:
    first, second = (_folder(root.format(login)).path for login in ("me:hunter2", "you:hunter3"))
    assert first == second


def test_the_cache_is_the_users_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder().name == "first"
    monkeypatch.delenv("ALM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/alm-pipeline")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "alm-pipeline"


def test_remains_of_a_kill_are_not_published(root: str) -> None:
    folder = _folder(root)
    _write(folder, {"model.bin": "weights", ".manifest.json.12ab.tmp": "half"})
    assert list(folder.finish({}).files) == ["model.bin"]


def test_a_folder_is_complete_with_its_manifest(root: str) -> None:
    folder = _folder(root)
    _write(folder, {"model.bin": "weights"})
    folder.upload("model.bin")
    assert folder.manifest() is None
    with pytest.raises(UserError, match=r"not complete \(it has no manifest\)"):
        folder.fetch()


def test_the_manifest_is_written_last(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ConnectionResetError

    monkeypatch.setattr(folders, "upload", fail)
    with pytest.raises(ConnectionResetError):
        _published(remote)
    assert file_sizes(remote) == {}


def test_another_machine_fetches_it(root: str, machine: Callable[[str], None]) -> None:
    _published(root)
    machine("other")
    path = _folder(root).fetch()
    names = ("model.bin", "config.json")
    assert {name: (path / name).read_text() for name in names} == {"model.bin": "weights", "config.json": "{}"}


def test_local_files_are_not_fetched_again(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _published(remote)
    monkeypatch.delattr(folders, "download")
    assert folder.fetch() == folder.path


def test_a_damaged_file_of_the_cache_is_fetched_again(remote: str) -> None:
    folder = _published(remote)
    _write(folder, {"model.bin": "tampered"})
    assert (folder.fetch() / "model.bin").read_text() == "weights"


@pytest.mark.parametrize("change", [lambda url: overwrite(url, b"tampered"), remove])
def test_a_file_that_differs_from_the_published_one_is_refused(
    root: str, machine: Callable[[str], None], change: Callable[[str], None]
) -> None:
    folder = _published(root)
    change(join_url(folder.url, "model.bin"))
    machine("other")
    with pytest.raises(UserError, match=r"model\.bin: is missing or differs from .* published: `alm repair"):
        folder.fetch()


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "..", "", "a\\b"])
def test_a_manifest_cannot_write_outside_its_folder(root: str, name: str) -> None:
    folder = _published(root)
    manifest = json.loads(read_bytes(f"{folder.url}/manifest.json") or b"")
    overwrite(f"{folder.url}/manifest.json", json.dumps(manifest | {"files": {name: "0"}}).encode())
    with pytest.raises(UserError, match=r"manifest\.json: is damaged \(.*is not a valid file name\)"):
        folder.fetch()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "is damaged"), (b"{}", "is damaged"), (b'{"format_version": 1}', "was written in format 1")],
)
def test_a_damaged_manifest_is_named(root: str, content: bytes, message: str) -> None:
    folder = _folder(root)
    overwrite(f"{folder.url}/manifest.json", content)
    with pytest.raises(UserError, match=rf"manifest\.json: {message}"):
        folder.manifest()


def test_a_moved_folder_is_refused(root: str) -> None:
    folder, other = _published(root), _folder(root, more=1)
    overwrite(f"{other.url}/manifest.json", read_bytes(f"{folder.url}/manifest.json") or b"")
    with pytest.raises(UserError, match=rf"belongs to {folder.name}, or was edited: don't move"):
        other.manifest()


def test_an_edited_folder_is_refused(root: str) -> None:
    folder = _published(root)
    manifest = json.loads(read_bytes(f"{folder.url}/manifest.json") or b"")
    overwrite(f"{folder.url}/manifest.json", json.dumps(manifest | {"identity": {"stage_version": 2}}).encode())
    with pytest.raises(UserError, match="or was edited"):
        folder.manifest()


def _checkpoint(step: int, content: str = "x") -> dict[str, str]:
    return {f"checkpoints/checkpoint-{step}/{file}": content for file in ("model.bin", "state.json")}


def test_checkpoints_go_to_the_store_and_to_another_machine(remote: str, machine: Callable[[str], None]) -> None:
    folder = _folder(remote)
    _write(folder, _checkpoint(1))
    _mirror(folder)
    folder.remove("checkpoints/checkpoint-1")
    _write(folder, _checkpoint(2, "yy"))
    _mirror(folder)
    assert file_sizes(folder.url) == dict.fromkeys(_checkpoint(2), 2)
    machine("other")
    folder.restore("checkpoints")
    assert _contents(folder.path) == _checkpoint(2, "yy")


def test_removed_checkpoints_are_removed_from_the_store(remote: str) -> None:
    folder = _folder(remote)
    _write(folder, _checkpoint(1) | _checkpoint(2))
    _mirror(folder)
    (folder.path / "checkpoints" / "checkpoint-1").rename(folder.path / "elsewhere")
    _mirror(folder)
    assert file_sizes(folder.url) == dict.fromkeys(_checkpoint(2), 1)


def test_only_named_checkpoints_are_mirrored(remote: str) -> None:
    """Others may be incomplete."""
    folder = _folder(remote)
    _write(folder, _checkpoint(1) | _checkpoint(2))
    folder.mirror("checkpoints", ["checkpoint-2"], "state.json")
    assert file_sizes(folder.url) == dict.fromkeys(_checkpoint(2), 1)


def test_a_half_uploaded_checkpoint_is_uploaded_again(remote: str) -> None:
    folder = _folder(remote)
    _write(folder, _checkpoint(1, "new"))
    overwrite(f"{folder.url}/checkpoints/checkpoint-1/model.bin", b"old")
    _mirror(folder)
    assert {name: read_bytes(f"{folder.url}/{name}") for name in _checkpoint(1)} == dict.fromkeys(
        _checkpoint(1), b"new"
    )


def test_an_interrupted_restore_leaves_no_partial_checkpoint(
    remote: str, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _folder(remote)
    _write(folder, _checkpoint(1))
    _mirror(folder)
    machine("other")

    def fail(url: str, path: Path) -> None:
        if url.endswith("state.json"):
            raise ConnectionResetError
        _write(folder, {".restoring/model.bin": "half"})

    with monkeypatch.context() as patch:
        patch.setattr(folders, "download", fail)
        with pytest.raises(ConnectionResetError):
            folder.restore("checkpoints")
    assert not (folder.path / "checkpoints").exists()
    folder.restore("checkpoints")
    assert _contents(folder.path) == _checkpoint(1)


def test_a_machine_with_old_checkpoints_restores_the_missing_ones(remote: str, machine: Callable[[str], None]) -> None:
    folder = _folder(remote)
    _write(folder, _checkpoint(1))
    machine("other")
    _write(folder, _checkpoint(2))
    _mirror(folder)
    machine("first")
    folder.restore("checkpoints")
    assert _contents(folder.path) == _checkpoint(1) | _checkpoint(2)


def test_a_folder_listed_without_files_is_not_restored(remote: str, machine: Callable[[str], None]) -> None:
    """SeaweedFS still lists a folder whose files were removed."""
    folder = _folder(remote)
    _write(folder, _checkpoint(1))
    _mirror(folder)
    folder.remove("checkpoints/checkpoint-1")
    machine("other")
    folder.restore("checkpoints")
    assert not folder.path.exists()


def test_restoring_nothing_and_mirroring_nothing_do_nothing(root: str, memory: MemoryFileSystem) -> None:
    folder = _folder(root)
    folder.restore("checkpoints")
    _mirror(folder)
    assert file_sizes(root) == {}
    assert not folder.path.exists()


def test_files_and_folders_are_removed_from_store_and_machine(root: str) -> None:
    folder = _published(root)
    folder.upload("checkpoints")
    for name in ("checkpoints", "manifest.json", "model.bin", "never was"):
        folder.remove(name)
    # compared by files: some object stores still list an empty folder
    assert file_sizes(folder.url) == {"config.json": 2}
    assert _contents(folder.path) == {"config.json": "{}"}
    assert folder.manifest() is None
