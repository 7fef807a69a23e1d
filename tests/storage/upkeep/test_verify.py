"""Damage is found and named, and nothing else is removed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storage.dataset import Dataset
from storage.folders import StoredFolder
from storage.replacement import take_place
from storage.upkeep import verify as verify_module
from storage.upkeep.verify import remove_stale, stale_shards, verify
from storage.urls import list_names, overwrite, read_bytes, remove
from tests.storage.samples import dataset, write

SHARDS = 3


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def scores(root: str) -> Dataset:
    made = dataset(root)
    write(made, SHARDS)
    return made


@pytest.fixture
def student(root: str) -> StoredFolder:
    folder = StoredFolder(root, "students", "tiny", {"stage_version": 1}, provenance={"configuration": {"steps": 3}})
    (folder.path / "checkpoints").mkdir(parents=True)
    for name, text in {"model.bin": "weights", "config.json": "{}", "checkpoints/x": "x"}.items():
        (folder.path / name).write_text(text)
    folder.finish({})
    return folder


def _content(url: str) -> bytes:
    content = read_bytes(url)
    assert content is not None
    return content


def _flip(url: str) -> None:
    content = bytearray(_content(url))
    content[len(content) // 2] ^= 1
    overwrite(url, bytes(content))


def _found(url: str, checksums: bool = False) -> list[tuple[str, str]]:
    return [(finding.url.rsplit("/", 1)[-1], finding.problem) for finding in verify(url, checksums)]


@pytest.mark.parametrize("checksums", [False, True])
def test_undamaged_data_has_no_damages(scores: Dataset, student: StoredFolder, checksums: bool) -> None:
    overwrite(f"{scores.url}/.shard-00000.parquet.0123abcd.tmp", b"in flight")
    assert verify(scores.url, checksums) == verify(student.url, checksums) == []


def test_sizes_take_one_listing_and_one_manifest(scores: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("read_bytes", "hash_url"):
        monkeypatch.delattr(verify_module, name)
    assert verify(scores.url) == []


SHARD, RECORD = "shard-00001.parquet", "shard-00001.json"
DAMAGES: list[tuple[Callable[[str], None], str, str, bool]] = [
    (lambda url: remove(f"{url}/{SHARD}"), SHARD, "is missing", False),
    (lambda url: overwrite(f"{url}/{SHARD}", b"short"), SHARD, "is 5 bytes long, not", False),
    (lambda url: _flip(f"{url}/{SHARD}"), SHARD, "is damaged or foreign", True),
    (lambda url: remove(f"{url}/{RECORD}"), RECORD, "is missing", False),
    (lambda url: overwrite(f"{url}/{RECORD}", b"{"), RECORD, "differs from its record in the manifest", False),
    (
        lambda url: overwrite(f"{url}/{RECORD}", _content(f"{url}/{RECORD}").replace(b'rows": 3', b'rows": 4')),
        RECORD,
        "differs from its record in the manifest",
        True,
    ),
]


@pytest.mark.parametrize(("damage", "name", "problem", "needs_checksums"), DAMAGES)
def test_a_damaged_shard_is_found_and_only_it_is_written_again(
    scores: Dataset, damage: Callable[[str], None], name: str, problem: str, needs_checksums: bool
) -> None:
    whole = {file: _content(f"{scores.url}/{file}") for file in list_names(scores.url)}
    damage(scores.url)
    assert bool(_found(scores.url)) is not needs_checksums
    (found,) = verify(scores.url, checksums=True)
    assert (found.url, found.needs_rerun) == (f"{scores.url}/{name}", True)
    assert found.problem.startswith(problem)
    damaged = {file: read_bytes(f"{scores.url}/{file}") for file in whole}
    write(replace(scores, rewritten=stale_shards([found])), SHARDS)
    # what is there stays until its replacement is complete
    assert {file: read_bytes(f"{scores.url}/{file}") for file in whole} == damaged
    assert set(list_names(f"{scores.url}/.again")) == {SHARD, RECORD, "manifest.json"}
    take_place(scores.url)
    assert verify(scores.url, checksums=True) == []
    assert {file: _content(f"{scores.url}/{file}") for file in whole} == whole


def test_a_shard_and_record_of_another_dataset_are_found(root: str, scores: Dataset) -> None:
    other = dataset(root, teacher="other")
    write(other, SHARDS)
    for name in (SHARD, RECORD):
        overwrite(f"{scores.url}/{name}", _content(f"{other.url}/shard-00002{Path(name).suffix}"))
    assert {name for name, _ in _found(scores.url, checksums=True)} == {SHARD, RECORD}


def test_shards_without_a_manifest_are_found(scores: Dataset) -> None:
    remove(f"{scores.url}/manifest.json")
    # written, but not recorded yet: another run may be working on it
    remove(f"{scores.url}/shard-00002.json")
    assert _found(scores.url) == [(scores.name, "not complete: it has no manifest")]
    overwrite(scores.shard_url(0), b"short")
    overwrite(scores.record_url(1), b"{")
    assert [name for name, _ in _found(scores.url)] == [scores.name, "shard-00001.json", "shard-00000.parquet"]
    assert stale_shards(verify(scores.url)) == {0, 1}


def _edit(url: str, change: dict[str, Any]) -> None:
    overwrite(url, json.dumps(json.loads(_content(url)) | change).encode())


@pytest.mark.parametrize(
    ("change", "problem", "again"),
    [
        ({"rows": 10}, "its rows and bytes are not the sums over its shards", True),
        ({"identity": {}}, "edited: its identity does not match its name", True),
        ({"format_version": 9}, "written in format 9", False),
        ({"name": "other-0123456789abcdef"}, "is in the wrong folder (it belongs to other-0123456789abcdef)", False),
        ({"shards": 1}, "damaged: ", True),
    ],
)
def test_an_edited_or_foreign_manifest_is_found(
    scores: Dataset, change: dict[str, Any], problem: str, again: bool
) -> None:
    _edit(f"{scores.url}/manifest.json", change)
    (found,) = verify(scores.url)
    assert found.url == f"{scores.url}/manifest.json"
    assert problem in found.problem
    assert (found.needs_rerun, bool(found.stale_urls)) == (again, again)
    # no shard is written again because of it
    assert stale_shards([found]) == set()


def test_a_file_without_a_record_is_found(scores: Dataset) -> None:
    for name in ("shard-00007.parquet", "shard-00007.json", "notes.txt"):
        overwrite(f"{scores.url}/{name}", b"x")
    found = verify(scores.url)
    assert sorted(finding.url.rsplit("/", 1)[-1] for finding in found) == [
        "notes.txt",
        "shard-00007.json",
        "shard-00007.parquet",
    ]
    assert not any(finding.needs_rerun for finding in found)
    remove_stale(found)
    # a file that somebody put there is theirs to move
    assert _found(scores.url) == [("notes.txt", "is not part of the dataset: move it elsewhere")]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda url: remove(f"{url}/model.bin"), "is missing"),
        (lambda url: overwrite(f"{url}/model.bin", b"x"), "is 1 bytes long, not 7"),
    ],
)
def test_a_damaged_file_of_a_folder_is_found(
    student: StoredFolder, damage: Callable[[str], None], problem: str
) -> None:
    damage(student.url)
    assert _found(student.url) == [("model.bin", problem)]


def test_a_flipped_bit_of_a_folder_is_found_by_checksums(student: StoredFolder) -> None:
    _flip(f"{student.url}/model.bin")
    assert _found(student.url) == []
    assert [name for name, _ in _found(student.url, checksums=True)] == ["model.bin"]


def test_a_folder_without_recorded_sizes_is_verified(student: StoredFolder) -> None:
    manifest = json.loads(_content(f"{student.url}/manifest.json"))
    del manifest["sizes"]
    overwrite(f"{student.url}/manifest.json", json.dumps(manifest).encode())
    assert verify(student.url, checksums=True) == []
    remove(f"{student.url}/model.bin")
    assert _found(student.url) == [("model.bin", "is missing")]


def test_a_foreign_file_in_a_folder_is_found(student: StoredFolder) -> None:
    overwrite(f"{student.url}/mine.txt", b"x")
    assert _found(student.url) == [("mine.txt", "is not in the manifest: move it elsewhere")]
