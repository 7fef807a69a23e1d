"""Files with derived content: damaged or foreign files count as missing, and a read-only folder is not an error."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from alm_pipeline.runtime.derived_files import read_derived, write_derived

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "derived"


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_what_is_written_is_read(folder: Path) -> None:
    assert read_derived("name.npz") is None
    write_derived("name.npz", CONTENT)
    assert read_derived("name.npz") == CONTENT
    write_derived("empty", b"")
    assert read_derived("empty") == b""
    assert _names(folder) == ["empty", "name.npz"]


def _flip(at: int) -> Callable[[Path], object]:
    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[at] ^= 1
        file.write_bytes(content)

    return damage


def _as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(_flip(0), id="a bit of the hash"),
        pytest.param(_flip(64), id="the first bit"),
        pytest.param(_flip(-1), id="the last bit"),
        pytest.param(lambda file: file.write_bytes(file.read_bytes()[:-1]), id="a byte less"),
        pytest.param(lambda file: file.write_bytes(file.read_bytes() + b"\0"), id="a byte more"),
        pytest.param(lambda file: file.write_bytes(file.read_bytes()[:30]), id="a part of the hash"),
        pytest.param(lambda file: file.write_bytes(b""), id="nothing"),
        pytest.param(lambda file: shutil.copy(file.with_name("another"), file), id="another's content"),
        pytest.param(_as_folder, id="a folder"),
    ],
)
def test_a_damaged_file_is_as_none_and_written_again(folder: Path, damage: Callable[[Path], object]) -> None:
    write_derived("name", CONTENT)
    write_derived("another", b"other")
    damage(folder / "name")
    assert read_derived("name") is None
    write_derived("name", CONTENT)
    assert (read_derived("name") == CONTENT) == (damage is not _as_folder)
    assert _names(folder) == ["another", "name"]


@pytest.mark.bad_input
def test_a_folder_that_cant_be_written_is_no_error(folder: Path) -> None:
    folder.parent.write_text("a file where the cache folder should be")
    write_derived("name", CONTENT)
    assert read_derived("name") is None


def test_writers_at_the_same_time_leave_a_whole_file(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: write_derived("name", CONTENT), range(64)))
        assert {bytes(content or b"") for content in pool.map(lambda _: read_derived("name"), range(8))} == {CONTENT}
    assert _names(folder) == ["name"]
