"""Every stored document, damaged in every way: named with its fault, and the rest of the store is there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flows.cli.app import app
from storage.dataset import Dataset, load_manifest
from storage.errors import UserError
from storage.folders import StoredFolder, load_folder_manifest
from storage.upkeep.catalog import Catalog, EntryState
from storage.upkeep.lineage_notes import highlights, origin
from storage.upkeep.verify import verify
from tests.storage.stores import key, small_store


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def a_loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def containing(content: bytes) -> Callable[[Path], Any]:
    return lambda file: file.write_bytes(content)


def changed(**fields: Any) -> Callable[[Path], Any]:
    return lambda file: file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def without_a_field(file: Path) -> None:
    content = json.loads(file.read_text())
    content.pop(next(field for field in ("kind", "name", min(content)) if field in content))
    file.write_text(json.dumps(content))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": containing(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:40]),
    "binary": containing(bytes(range(256))),
    "a page": containing(b"<html>404</html>"),
    "a list": containing(b"[]"),
    "null": containing(b"null"),
    "a number": containing(b"7"),
    "nested": containing(b"[" * 100_000),
    "another object": containing(b'{"format_version": 5}'),
    "a folder": a_folder,
    "a link to itself": a_loop,
    "a missing field": without_a_field,
    "a field too many": changed(comment="edited"),
    "another type": changed(identity=[], bytes="many", counts={"tokens": "x"}),
    "not a number": changed(identity={"x": float("nan")}, rows=float("inf")),
}


@pytest.fixture
def store(tmp_path: Path) -> tuple[str, dict[str, Dataset | StoredFolder]]:
    return str(tmp_path), small_store(str(tmp_path))


def command(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.bad_input
@pytest.mark.parametrize("role", ["scores", "student"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_hides_no_other(damage: str, role: str, store: Any) -> None:
    root, made = store
    member = made[role]
    DAMAGES[damage](Path(member.url, "manifest.json"))
    catalog = Catalog.open(root)
    states = {name: entry.state for name, entry in catalog.entries.items()}
    assert states.pop(key(member)) in (EntryState.DAMAGED, EntryState.OTHER_FORMAT)
    assert set(states.values()) == {EntryState.COMPLETE}
    assert len(states) == 7
    load = load_folder_manifest if isinstance(member, StoredFolder) else load_manifest
    with pytest.raises(UserError, match=r"manifest\.json: ") as caught:
        load(member.url)
    assert "\n" not in str(caught.value)
    assert [damage.url for damage in verify(member.url) if damage.url.endswith("manifest.json")]


@pytest.mark.bad_input
@pytest.mark.parametrize("damage", ["cut", "binary", "a list", "a folder", "another type"])
def test_the_commands_list_the_rest(damage: str, store: Any) -> None:
    root, made = store
    DAMAGES[damage](Path(made["scores"].url, "manifest.json"))
    listed = command("list", root)
    assert listed.exit_code == 0
    assert "8 datasets and folders" in listed.stdout
    assert "manifest damaged" in listed.stdout
    assert "is damaged" in listed.stdout or "can't be read" in listed.stdout
    verified = command("verify", root)
    assert verified.exit_code == 1
    assert "manifest.json" in verified.stdout
    lineage = command("lineage", made["student"].url)
    assert (lineage.exit_code, "manifest damaged" in lineage.stdout) == (0, True)
    assert command("lineage", made["scores"].url).exit_code == 0
    assert command("prune", root).exit_code == 0
    described = command("describe", made["scores"].url)
    assert (described.exit_code, "manifest.json: " in described.stderr) == (1, True)
    inspected = command("inspect", made["scores"].url)
    assert (inspected.exit_code, "manifest.json: " in inspected.stderr) == (1, True)


@pytest.mark.bad_input
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_named(damage: str, store: Any) -> None:
    scores = store[1]["scores"]
    DAMAGES[damage](Path(scores.record_url(1)))
    with pytest.raises(UserError, match=r"shard-00001\.json: ") as caught:
        scores.required_records(range(2))
    assert "\n" not in str(caught.value)
    assert scores.required_records([0])
    Path(scores.url, "manifest.json").unlink()
    # an object store has no folders, so an empty one does not exist there
    assert any(damage == "a folder" or "shard-00001" in found.url for found in verify(scores.url))


NOTES: dict[str, dict[str, Any]] = {
    "a text": {"configuration": "x", "versions": "y"},
    "a list": {"configuration": [1], "versions": [2], "commit": [3]},
    "a number": {"configuration": 5, "versions": 6, "commit": 7},
    "parts of other types": {"configuration": {"train": [1], "student": 5, "corpus": "x"}, "commit": {}},
    "nothing": {},
}


@pytest.mark.bad_input
@pytest.mark.parametrize("role", ["scores", "examples", "student_tokens", "tokenizer", "student"])
@pytest.mark.parametrize("notes", NOTES)
def test_damaged_notes_are_shown_as_such(notes: str, role: str, store: Any) -> None:
    root, made = store
    results = {"results": {"held_out_bits_per_byte": 5}} if isinstance(made[role], StoredFolder) else {}
    changed(provenance=NOTES[notes], **results)(Path(made[role].url, "manifest.json"))
    node = Catalog.open(root).lineage(key(made[role]))
    lines = [*highlights(node), origin(node.entry)]
    assert all(isinstance(line, str) for line in lines)
    if notes in ("a list", "a number"):
        assert "manifest.json: its notes can't be read" in " ".join(lines)
    assert command("lineage", made[role].url).exit_code == 0
    assert command("list", root).exit_code == 0
