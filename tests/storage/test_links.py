"""Symbolic links are removed, never what they point to; a root, or a kind's folder, may be a link."""

import os
from pathlib import Path

import pytest

from storage.dataset import Dataset
from storage.upkeep.catalog import Catalog, EntryState, open_entry
from storage.upkeep.prune import delete, discard, find_waste
from storage.upkeep.verify import verify
from storage.urls import file_sizes, remove
from tests.storage.samples import dataset, write

EVER = 1e12


@pytest.fixture
def linked(tmp_path: Path) -> tuple[Dataset, Path]:
    """A dataset whose folder is a link to a folder outside the root, with the remains of a killed write."""
    made = dataset(str(tmp_path / "root"))
    write(made, 2)
    elsewhere = tmp_path / "elsewhere"
    Path(made.url).rename(elsewhere)
    (elsewhere / ".shard-00000.parquet.0123abcd.tmp").write_bytes(b"x")
    Path(made.url).symlink_to(elsewhere)
    write(dataset(str(tmp_path / "root"), other=1))
    return made, elsewhere


def _key(made: Dataset) -> str:
    return f"{made.kind}/{made.name}"


def test_a_linked_dataset_is_complete_and_called_a_link(linked: tuple[Dataset, Path]) -> None:
    made, elsewhere = linked
    entry = Catalog.open(made.root).entries[_key(made)]
    assert (entry.state, entry.link, entry.bytes) == (EntryState.COMPLETE, str(elsewhere), entry.bytes)
    # without the byte that the killed write has left
    assert entry.bytes == sum(file_sizes(str(elsewhere)).values()) - 1
    assert verify(made.url, checksums=True) == []
    assert made.read_shard(1).num_rows == 3


@pytest.mark.parametrize("how", ["delete", "prune", "remove"])
def test_only_the_link_is_removed(linked: tuple[Dataset, Path], how: str) -> None:
    made, elsewhere = linked
    before = file_sizes(str(elsewhere))
    catalog = Catalog.open(made.root)
    match how:
        case "delete":
            assert delete(catalog, _key(made)) == 0
        case "prune":
            (item,) = [item for item in find_waste(catalog, EVER, True) if item.url.startswith(made.url)]
            assert (item.url, item.bytes, item.what) == (made.url, 0, f"a link to {elsewhere}")
            discard(item)
        case _:
            remove(made.url)
    assert not os.path.lexists(made.url)
    assert file_sizes(str(elsewhere)) == before
    assert len(Catalog.open(made.root).entries) == 1


@pytest.mark.bad_input
@pytest.mark.parametrize("target", ["nowhere", "itself"])
def test_a_broken_link_is_listed_and_removed(linked: tuple[Dataset, Path], target: str) -> None:
    made, _ = linked
    broken = Path(made.url).with_name("broken-0123456789abcdef")
    broken.symlink_to("nowhere" if target == "nowhere" else broken.name)
    entry = Catalog.open(made.root).entries[f"{made.kind}/{broken.name}"]
    assert entry.state in (EntryState.NOT_COMPLETE, EntryState.DAMAGED)
    assert entry.link == str(broken.readlink())
    assert len(verify(str(broken))) == 1
    delete(Catalog.open(made.root), entry.key)
    assert not os.path.lexists(broken)


@pytest.mark.parametrize("target", ["file", "folder", "loop", "nothing"])
def test_links_in_a_dataset_are_not_followed(tmp_path: Path, target: str) -> None:
    made, elsewhere = dataset(str(tmp_path / "root")), tmp_path / "elsewhere"
    write(made, 1)
    (elsewhere / "folder").mkdir(parents=True)
    (elsewhere / "file").write_bytes(b"mine")
    (elsewhere / "folder" / "file").write_bytes(b"mine")
    link = Path(made.url, "link")
    link.symlink_to({"loop": made.url}.get(target, str(elsewhere / target)))
    assert [(damage.url, damage.is_repairable) for damage in verify(made.url)] == [(str(link), False)]
    delete(Catalog.open(made.root), _key(made))
    assert not Path(made.url).exists()
    assert file_sizes(str(elsewhere)) == {"file": 4, "folder/file": 4}


def test_a_shard_that_is_a_link_is_read_and_its_target_stays(tmp_path: Path) -> None:
    made = dataset(str(tmp_path / "root"))
    write(made, 1)
    shard, moved = Path(made.shard_url(0)), tmp_path / "moved.parquet"
    shard.rename(moved)
    shard.symlink_to(moved)
    assert verify(made.url, checksums=True) == []
    delete(Catalog.open(made.root), _key(made))
    assert moved.exists()


@pytest.mark.parametrize("place", ["root", "kind"])
def test_a_root_or_a_kinds_folder_may_be_a_link(tmp_path: Path, place: str) -> None:
    made, disk = dataset(str(tmp_path / "root")), tmp_path / "disk"
    disk.mkdir()
    if place == "root":
        (tmp_path / "root").symlink_to(disk)
    else:
        (tmp_path / "root").mkdir()
        (tmp_path / "root" / made.kind).symlink_to(disk)
    write(made, 2)
    assert open_entry(made.url).link is None
    assert Catalog.open(made.root).entries[_key(made)].state == EntryState.COMPLETE
    assert verify(made.url, checksums=True) == []
    delete(Catalog.open(made.root), _key(made))
    assert file_sizes(str(disk)) == {}
    assert (tmp_path / "root").is_symlink() or (tmp_path / "root" / made.kind).is_symlink()


def test_a_hard_link_is_a_file(tmp_path: Path) -> None:
    made = dataset(str(tmp_path / "root"))
    write(made, 1)
    (tmp_path / "backup").hardlink_to(made.shard_url(0))
    assert verify(made.url, checksums=True) == []
    delete(Catalog.open(made.root), _key(made))
    assert (tmp_path / "backup").stat().st_size > 0
