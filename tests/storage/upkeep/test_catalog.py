"""The catalog of a root: what is stored, and what it was made from."""

import json
from pathlib import Path

import pytest

from storage.errors import UserError
from storage.folders import FOLDER_KINDS
from storage.schemas import Kind
from storage.upkeep.catalog import KINDS, Catalog, EntryState, LineageNode, is_root, named_inputs
from storage.urls import overwrite, read_bytes, remove
from tests.storage.stores import STUDENT, key, member, small_store


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))


def test_everything_is_found_with_its_sizes(root: str) -> None:
    made = small_store(root)
    store = Catalog.open(root + "/")
    assert set(store.entries) == {key(member) for member in made.values()}
    assert {entry.state for entry in store.entries.values()} == {EntryState.COMPLETE}
    scores = store.entries[key(made["scores"])]
    assert scores.bytes == sum(len(read_bytes(scores.file(name)) or b"") for name in scores.files)
    assert len(scores.files) == 5
    assert scores.modified
    assert scores.provenance == {"commit": "c0ffee"}


def test_inputs_and_users_are_known(root: str) -> None:
    made = small_store(root)
    store, of = Catalog.open(root), {role: key(member) for role, member in made.items()}
    assert store.inputs(of["examples"]) == {}
    assert store.inputs(of["teacher_tokens"]) == {"examples": of["examples"]}
    assert store.inputs(of["student_tokens"]) == {"examples": of["examples"], "tokenizer": of["tokenizer"]}
    assert store.inputs(of["scores"]) == {"tokens": of["teacher_tokens"]}
    assert set(store.users(of["teacher_tokens"])) == {
        of[role] for role in ("alignments", "scores", "other_scores", "student")
    }
    assert store.origins([of["student"]]) == set(of.values()) - {of["other_scores"]}


def test_a_student_that_teaches_is_known_by_its_model(root: str) -> None:
    student = small_store(root)["student"]
    scores = member(root, Kind.TEACHER_SCORES, "again", tokens="gone-0123456789abcdef", teacher=STUDENT)
    assert Catalog.open(root).inputs(key(scores)) == {
        "tokens": "tokens/gone-0123456789abcdef",
        "teacher": key(student),
    }


def _shape(node: LineageNode) -> object:
    return (node.role, [_shape(made_from) for made_from in node.inputs]) if node.inputs else node.role


def test_a_lineage_goes_through_the_nearest_inputs(root: str) -> None:
    made = small_store(root)
    node = Catalog.open(root).lineage(key(made["student"]))
    assert _shape(node) == (
        "",
        [
            ("alignments", [("teacher_tokens", ["examples"]), ("student_tokens", ["examples", "tokenizer"])]),
            ("scores", ["tokens"]),
        ],
    )
    assert [made_from.shown_before for made_from in node.inputs[1].inputs] == [True]


def test_a_lineage_shows_what_is_gone(root: str) -> None:
    made = small_store(root)
    remove(made["examples"].url)
    tokens = Catalog.open(root).lineage(key(made["teacher_tokens"]))
    assert [(made_from.key, made_from.entry) for made_from in tokens.inputs] == [(key(made["examples"]), None)]


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (lambda manifest: manifest | {"format_version": 9}, EntryState.OTHER_FORMAT),
        (lambda manifest: manifest | {"name": "other-0123456789abcdef"}, EntryState.FOREIGN),
        (lambda manifest: manifest | {"identity": {"tokens": "other"}}, EntryState.EDITED),
        (lambda manifest: {"rows": 1}, EntryState.DAMAGED),
    ],
)
@pytest.mark.parametrize("role", ["scores", "student"])
def test_one_bad_manifest_hides_nothing_else(root: str, role: str, change: object, state: EntryState) -> None:
    made = small_store(root)
    url = f"{made[role].url}/manifest.json"
    overwrite(url, json.dumps(change(json.loads(read_bytes(url) or b""))).encode())  # type: ignore[operator]
    store = Catalog.open(root)
    assert len(store.entries) == len(made)
    assert [entry.state for entry in store.entries.values() if entry.state != EntryState.COMPLETE] == [state]
    assert store.entries[key(made[role])].state == state
    assert store.inputs(key(made[role])) == {}


def test_an_incomplete_dataset_is_listed(root: str) -> None:
    made = small_store(root)
    remove(f"{made['scores'].url}/manifest.json")
    entry = Catalog.open(root).entries[key(made["scores"])]
    assert (entry.state, entry.manifest, entry.provenance) == (EntryState.NOT_COMPLETE, None, {})


def test_every_kind_is_listed() -> None:
    assert sorted(KINDS) == sorted([*Kind, *FOLDER_KINDS])


def test_a_stray_file_is_not_a_dataset(root: str) -> None:
    made = small_store(root)
    overwrite(f"{root}/examples/notes.txt", b"a stray file")
    assert set(Catalog.open(root).entries) == {key(member) for member in made.values()}


def test_roots_and_datasets_are_distinguished(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = small_store(root)
    assert is_root(root)
    assert not is_root(made["scores"].url + "/")
    monkeypatch.chdir(tmp_path)
    assert is_root("nothing-here")
    assert not is_root("students/tiny")
    # a root may have a dataset's name in a folder with the name of a kind
    assert small_store(f"{root}/tokens/mine")
    assert is_root(f"{root}/tokens/mine")


def test_an_empty_root_is_reported(root: str) -> None:
    with pytest.raises(UserError, match="contains no datasets; `alm run --storage"):
        Catalog.open(root)


def test_settings_are_not_inputs() -> None:
    assert named_inputs({"source": "x", "config": {"tokens": 3}, "tokenizer": "e" * 64}) == {}
