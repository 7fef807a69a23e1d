"""A store written in another format is refused in one sentence wherever it is opened, and hides nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.dataset import Dataset, load_manifest, open_dataset
from storage.errors import OtherFormatError
from storage.folders import StoredFolder, load_folder_manifest, stored_folder
from storage.schemas import FORMAT_VERSION
from storage.upkeep.catalog import Catalog, EntryState
from storage.upkeep.prune import delete
from storage.upkeep.verify import verify
from storage.urls import overwrite, read_bytes
from tests.storage.stores import key, small_store

SENTENCE = (
    f"was written in format 1, and this version of alm-pipeline reads format {FORMAT_VERSION}: use the version that "
    "wrote it, or run its stage again, which writes a new folder"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))


def _make_format_1(member: Dataset | StoredFolder) -> None:
    url = f"{member.url}/manifest.json"
    overwrite(url, json.dumps(json.loads(read_bytes(url) or b"") | {"format_version": 1}).encode())


@pytest.mark.parametrize("open_it", [open_dataset, load_manifest])
def test_a_dataset_is_refused(root: str, open_it: Callable[[str], Any]) -> None:
    scores = small_store(root)["scores"]
    _make_format_1(scores)
    with pytest.raises(OtherFormatError) as refusal:
        open_it(scores.url)
    assert str(refusal.value) == f"{scores.url}/manifest.json: {SENTENCE}"


@pytest.mark.parametrize("open_it", [stored_folder, load_folder_manifest])
def test_a_folder_is_refused(root: str, open_it: Callable[[str], Any]) -> None:
    student = small_store(root)["student"]
    _make_format_1(student)
    with pytest.raises(OtherFormatError) as refusal:
        open_it(student.url)
    assert str(refusal.value) == f"{student.url}/manifest.json: {SENTENCE}"


@pytest.mark.parametrize("role", ["examples", "scores", "student", "tokenizer"])
def test_it_is_listed_beside_the_others(root: str, role: str) -> None:
    members = small_store(root)
    _make_format_1(members[role])
    entries = Catalog.open(root).entries
    states = {entry_key: entry.state for entry_key, entry in entries.items() if entry.state != EntryState.COMPLETE}
    assert states == {key(members[role]): EntryState.OTHER_FORMAT}
    assert entries[key(members[role])].problem == SENTENCE
    assert len(entries) == len(members)


def test_a_lineage_stops_at_it(root: str) -> None:
    members = small_store(root)
    _make_format_1(members["teacher_tokens"])
    node = Catalog.open(root).lineage(key(members["scores"])).inputs[0]
    assert node.entry
    assert (node.entry.state, node.inputs) == (EntryState.OTHER_FORMAT, ())


def test_verifying_reports_it_and_leaves_it_to_a_person(root: str) -> None:
    scores = small_store(root)["scores"]
    _make_format_1(scores)
    (damage,) = verify(scores.url, checksums=True)
    assert (damage.url, damage.problem) == (f"{scores.url}/manifest.json", SENTENCE)
    assert not damage.is_repairable


def test_it_can_be_deleted(root: str) -> None:
    scores = small_store(root)["other_scores"]
    _make_format_1(scores)
    delete(Catalog.open(root), key(scores))
    assert key(scores) not in Catalog.open(root).entries
