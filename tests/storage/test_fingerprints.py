"""Fingerprints depend only on content."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import storage.fingerprints
from storage.errors import UserError
from storage.fingerprints import ReadFiles, fingerprint, hash_file, hash_files, stored_name

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("aé😀"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("kø"), inner, max_size=3),
    max_leaves=8,
)


def test_the_fingerprint_is_of_the_canonical_json() -> None:
    expected = hashlib.sha256('{"a":[1,"é😀",null],"b":{"x":0.5,"y":true}}'.encode()).hexdigest()[:16]
    assert fingerprint({"b": {"y": True, "x": 0.5}, "a": (1, "é😀", None)}) == expected


@settings(derandomize=True, deadline=None)
@given(label=st.text("aé😀-", max_size=400), identity=st.dictionaries(st.text("kø"), st.integers(), max_size=2))
def test_a_name_fits_a_disk_and_has_its_own_label(label: str, identity: dict[str, Any]) -> None:
    name = stored_name("students", label, identity)
    assert len(name.encode()) <= 217
    assert name == f"{label}-{name[-16:]}" or (len(label.encode()) > 200 and label.startswith(name[:-17]))
    # what lists a store reads the label back from the name
    assert stored_name("students", name.rpartition("-")[0], identity) == name


@settings(derandomize=True, deadline=None)
@given(st.dictionaries(st.text("ab😀"), _VALUES, min_size=1), st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_count(identity: dict[str, Any], random: Any) -> None:
    keys = list(identity)
    random.shuffle(keys)
    assert fingerprint({key: identity[key] for key in keys}) == fingerprint(identity)


@pytest.mark.parametrize(
    "other",
    [
        {"a": 2, "b": {"c": "x"}},
        {"a": 1, "b": {"c": "y"}},
        {"a": "1", "b": {"c": "x"}},
        {"a": 1, "b": {"d": "x"}},
        {"a": 1, "b": ["c", "x"]},
        {"a": 1},
        {"a": 1, "b": {"c": "x"}, "e": None},
    ],
)
def test_any_other_value_is_another_fingerprint(other: dict[str, Any]) -> None:
    assert fingerprint(other) != fingerprint({"a": 1, "b": {"c": "x"}})


def test_values_outside_json_have_no_fingerprint() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        fingerprint({"a": float("nan")})


def _folder(place: Path, **files: str) -> Path:
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content)
    return place


def test_files_count_by_name_and_content_wherever_they_lie(tmp_path: Path) -> None:
    here = _folder(tmp_path / "here", **{"a.json": "1", "sub/b.json": "2", "other.txt": "3"})
    there = _folder(tmp_path / "deep" / "there", **{"sub/b.json": "2", "a.json": "1"})
    assert hash_files(here, ("*.json", "**/*.json")) == hash_files(there, ("**/*.json",))


@pytest.mark.parametrize("files", [{"a": "1", "b": "changed"}, {"a": "1", "c": "2"}, {"a": "2", "b": "1"}, {"a": "12"}])
def test_other_files_are_another_hash(tmp_path: Path, files: dict[str, str]) -> None:
    before = hash_files(_folder(tmp_path / "before", a="1", b="2"), ("*",))
    assert hash_files(_folder(tmp_path / "after", **files), ("*",)) != before


def test_a_linked_file_counts_by_its_content(tmp_path: Path) -> None:
    # as in the Hub's cache, where every file is a link
    _folder(tmp_path / "blobs", x="1")
    plain = _folder(tmp_path / "plain", a="1")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a").symlink_to(tmp_path / "blobs" / "x")
    assert hash_files(tmp_path / "links", ("*",)) == hash_files(plain, ("*",))


@pytest.mark.parametrize("folder", ["there", "nowhere"])
def test_a_folder_without_matching_files_has_no_hash(tmp_path: Path, folder: str) -> None:
    _folder(tmp_path / "there", a="1")
    with pytest.raises(UserError, match=rf"{folder}: contains none of \*\.json, \*\.model"):
        hash_files(tmp_path / folder, ("*.json", "*.model"))


def test_a_files_hash_is_the_sha256_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x00\xff")
    assert hash_file(tmp_path / "x") == hashlib.sha256(b"\x00\xff").hexdigest()


def _in_place(file: Path) -> None:
    """Other content of the same size, in the same inode, with the former time of change."""
    info = file.stat()
    with file.open("r+b") as opened:
        opened.write(b"X")
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))


def _renamed_over(file: Path) -> None:
    """Another file of the same size and time of change."""
    other = file.with_name("other")
    other.write_bytes(b"X" * file.stat().st_size)
    info = file.stat()
    os.utime(other, ns=(info.st_atime_ns, info.st_mtime_ns))
    other.replace(file)


def _linked_elsewhere(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(b"X" * file.stat().st_size)
    file.unlink()
    file.symlink_to(other)


CHANGES: dict[str, Callable[[Path], object]] = {
    "rewritten": lambda file: file.write_bytes(b"other"),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "empty": lambda file: file.write_bytes(b""),
    "in place": _in_place,
    "renamed over": _renamed_over,
    "linked elsewhere": _linked_elsewhere,
    "removed": lambda file: file.unlink(),
    "one more": lambda file: file.with_name("c.bin").write_bytes(b""),
}


def _read_files(folder: Path) -> ReadFiles:
    _folder(folder, **{"a.bin": "1234", "b.bin": "5678"})
    return ReadFiles(lambda: {file.name: file for file in folder.glob("*.bin")})


@pytest.mark.bad_input
@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in CHANGES.items()])
def test_a_file_that_changes_after_it_was_hashed_is_an_error(change: Callable[[Path], object], tmp_path: Path) -> None:
    files = _read_files(tmp_path)
    assert files.hashes == {name: hash_file(tmp_path / name) for name in ("a.bin", "b.bin")}
    files.check()
    change(tmp_path / "b.bin")
    with pytest.raises(UserError, match=rf"{tmp_path}/[bc]\.bin: was changed while it was in use.*run again"):
        files.check()


@pytest.mark.bad_input
@pytest.mark.parametrize("change", [pytest.param(CHANGES[n], id=n) for n in ("rewritten", "renamed over", "one more")])
def test_a_file_that_changes_while_it_is_hashed_is_an_error(
    change: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = _read_files(tmp_path)

    def hash_and_change(file: Path) -> str:
        sha256 = hash_file(file)
        if file.name == "b.bin":
            change(file)
        return sha256

    monkeypatch.setattr(storage.fingerprints, "hash_file", hash_and_change)
    with pytest.raises(UserError, match="was changed while it was in use"):
        _ = files.hashes


@pytest.mark.parametrize(
    "touch",
    [
        lambda file: file.chmod(0o600),
        lambda file: file.with_name("link").hardlink_to(file),
        lambda file: file.read_bytes(),
        lambda file: file.with_name("README.md").write_text("other"),
        lambda file: (shutil.copy2(file, file.with_name("copy")), file.with_name("copy").replace(file)),
    ],
    ids=["permissions", "another link", "read", "another file", "an exact copy"],
)
def test_a_file_with_the_same_content_is_no_error(touch: Callable[[Path], object], tmp_path: Path) -> None:
    files = _read_files(tmp_path)
    assert files.hashes
    touch(tmp_path / "b.bin")
    files.check()


def test_files_are_not_hashed_again_for_each_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = _read_files(tmp_path)
    assert files.hashes
    (tmp_path / "a.bin").chmod(0o600)
    hashed: list[Path] = []
    monkeypatch.setattr(storage.fingerprints, "hash_file", lambda file: (hashed.append(file), hash_file(file))[1])
    for _ in range(3):
        files.check()
    assert hashed == [tmp_path / "a.bin"]


@pytest.mark.bad_input
def test_files_that_are_not_hashed_are_compared_too(tmp_path: Path) -> None:
    files = _read_files(tmp_path)
    (tmp_path / "a.bin").chmod(0o600)
    files.check()
    _renamed_over(tmp_path / "b.bin")
    with pytest.raises(UserError, match=r"b\.bin: was changed"):
        files.check()
