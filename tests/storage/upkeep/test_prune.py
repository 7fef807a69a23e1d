"""What can be removed is listed by reason; nothing that is younger, needed or unknown is removed."""

import os
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage import lease
from storage.errors import UserError
from storage.folders import StoredFolder
from storage.lease import HeldError, marked_as_writer
from storage.upkeep import prune, uploads
from storage.upkeep.catalog import Catalog
from storage.upkeep.prune import WasteItem, WasteReason, blockers, delete, discard, find_waste
from storage.upkeep.uploads import interrupted_uploads
from storage.urls import file_sizes, list_names, overwrite, remove
from tests.storage.s3_server import BUCKET, S3Server, client
from tests.storage.stores import key, small_store

EVER, NEVER = 1e12, 0.0


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALM_CACHE", str(tmp_path / "cache"))


def _found(root: str, before: float = EVER, with_incomplete: bool = False) -> list[tuple[str, str]]:
    store = Catalog.open(root)
    return [(item.reason, item.url.removeprefix(f"{root}/")) for item in find_waste(store, before, with_incomplete)]


def test_a_dataset_that_no_student_was_made_from_is_unused(root: str) -> None:
    made = small_store(root)
    assert _found(root) == [(WasteReason.UNUSED, key(made["other_scores"]))]
    (item,) = find_waste(Catalog.open(root), EVER)
    assert item.bytes == sum(file_sizes(made["other_scores"].url).values())


def test_without_a_student_everything_is_unused(root: str) -> None:
    made = small_store(root)
    delete(Catalog.open(root), key(made["student"]))
    assert {url for _, url in _found(root)} == {key(member) for role, member in made.items() if role != "student"}


def test_nothing_young_is_removed(root: str) -> None:
    made = small_store(root)
    overwrite(f"{made['scores'].url}/.shard-00000.parquet.0123abcd.tmp", b"x")
    remove(f"{made['other_scores'].url}/manifest.json")
    assert _found(root, before=NEVER) == []


def test_a_young_dataset_keeps_its_inputs(tmp_path: Path) -> None:
    made = small_store(str(tmp_path))
    remove(made["student"].url)
    for file in tmp_path.rglob("*.*"):
        os.utime(file, (1000, 1000))
    os.utime(f"{made['alignments'].url}/manifest.json", (5000, 5000))
    # the alignments' run may continue with scores and a student of these tokens
    assert {url for _, url in _found(str(tmp_path), before=2000)} == {key(made["scores"]), key(made["other_scores"])}


def test_remains_of_a_killed_run_are_found_anywhere(tmp_path: Path) -> None:
    made = small_store(str(tmp_path))
    left = [
        f"{made['scores'].url}/.shard-00000.parquet.0123abcd.tmp",
        f"{made['student'].url}/.model.safetensors.0123abcd.tmp",
    ]
    # neither a hidden file of the user nor a shard
    for url in [*left, f"{made['scores'].url}/.notes.tmp"]:
        overwrite(url, b"12345")
    found = [item for item in find_waste(Catalog.open(str(tmp_path)), EVER) if item.reason is WasteReason.TEMPORARY]
    assert sorted((item.url, item.bytes) for item in found) == [(url, 5) for url in sorted(left)]
    for item in found:
        discard(item)
    assert list_names(made["scores"].url)[0] == ".notes.tmp"
    assert not any(Path(url).exists() for url in left)


def test_checkpoints_of_a_finished_student_are_left_over(root: str) -> None:
    made = small_store(root)
    for name in ("checkpoints/1/state", "checkpoints/2/state", ".restoring/state"):
        overwrite(f"{made['student'].url}/{name}", b"12345")
    found = [item for item in find_waste(Catalog.open(root), EVER) if item.reason is WasteReason.TEMPORARY]
    assert [(item.url.rsplit("/", 1)[-1], item.bytes) for item in found] == [
        ("checkpoints", 10),
        (".restoring", 5),
    ]
    for item in found:
        discard(item)
    assert Catalog.open(root).entries[key(made["student"])].files.keys() == {
        "config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    # the run of an unfinished student needs them
    overwrite(f"{made['student'].url}/checkpoints/1/state", b"12345")
    remove(f"{made['student'].url}/manifest.json")
    assert WasteReason.TEMPORARY not in {waste for waste, _ in _found(root)}


def test_an_incomplete_dataset_keeps_everything(root: str) -> None:
    made = small_store(root)
    remove(f"{made['student'].url}/manifest.json")
    assert blockers(Catalog.open(root), EVER) == [key(made["student"])]
    assert _found(root) == [(WasteReason.INCOMPLETE, key(made["student"]))]
    # once it is to be removed itself, it needs nothing
    assert len(_found(root, with_incomplete=True)) == len(made)


def test_an_empty_folder_is_removed_as_incomplete(tmp_path: Path) -> None:
    small_store(str(tmp_path))
    (tmp_path / "students" / "begun-0123456789abcdef").mkdir()
    store = Catalog.open(str(tmp_path))
    assert blockers(store, before=1.0) == ["students/begun-0123456789abcdef"]
    assert blockers(store, before=1.0, with_incomplete=True) == []
    (item,) = find_waste(store, 1.0, with_incomplete=True)
    discard(item)
    assert not (tmp_path / "students" / "begun-0123456789abcdef").exists()


def test_a_damaged_manifest_keeps_everything(root: str) -> None:
    made = small_store(root)
    overwrite(f"{made['scores'].url}/manifest.json", b"{")
    assert blockers(Catalog.open(root), EVER, with_incomplete=True) == [key(made["scores"])]
    assert _found(root, with_incomplete=True) == []


def test_a_manifest_is_removed_first(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = small_store(root)
    (item,) = find_waste(Catalog.open(root), EVER)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prune, "empty", killed)
        with pytest.raises(KeyboardInterrupt):
            discard(item)
    assert made["other_scores"].manifest() is None
    discard(item)
    assert file_sizes(made["other_scores"].url) == {}


def test_an_input_of_others_is_not_deleted(root: str) -> None:
    made = small_store(root)
    with pytest.raises(UserError, match=r"was read to make .*students/tiny-.*--force"):
        delete(Catalog.open(root), key(made["scores"]))
    with pytest.raises(UserError, match=r"was read to make .*tokens/corpus-s-"):
        delete(Catalog.open(root), key(made["tokenizer"]))
    assert made["scores"].manifest()
    size = sum(file_sizes(made["scores"].url).values())
    assert delete(Catalog.open(root), key(made["scores"]), force=True) == size
    assert file_sizes(made["scores"].url) == {}
    with pytest.raises(UserError, match="does not exist"):
        delete(Catalog.open(root), key(made["scores"]))


def test_deleting_removes_this_machines_copy(memory: MemoryFileSystem) -> None:
    student = small_store("memory://bucket/root")["student"]
    assert isinstance(student, StoredFolder)
    assert student.path.is_dir()
    delete(Catalog.open("memory://bucket/root"), key(student))
    assert not student.path.exists()


class _Uploads:
    """Answers as s3fs does, in pages of one upload."""

    def __init__(self) -> None:
        self.keys = ["root/tokens/x/shard-00000.parquet", "root/students/y/model.safetensors"]
        self.aborted: list[dict[str, Any]] = []

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, name = path.partition("/")
        return bucket, name, None

    def call_s3(self, method: str, **arguments: Any) -> dict[str, Any]:
        return dict(getattr(self, method)(**arguments))

    def list_multipart_uploads(self, Bucket: str, Prefix: str, KeyMarker: str = "", UploadIdMarker: str = "") -> Any:
        assert (Bucket, Prefix, UploadIdMarker) == ("bucket", "root/", KeyMarker)
        at = int(KeyMarker or 0)
        upload = {"Key": self.keys[at], "UploadId": f"id{at}", "Initiated": datetime.fromtimestamp(1000 + at)}
        more = at + 1 < len(self.keys)
        marker = str(at + 1) if more else ""
        return {"Uploads": [upload], "IsTruncated": more, "NextKeyMarker": marker, "NextUploadIdMarker": marker}

    def list_parts(self, Bucket: str, Key: str, UploadId: str) -> Any:
        return {"Parts": [{"Size": 5}, {"Size": 2}]}

    def abort_multipart_upload(self, **arguments: Any) -> Any:
        self.aborted.append(arguments)
        return {}


def test_interrupted_uploads_are_found_and_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    server = _Uploads()
    monkeypatch.setattr(uploads, "open_filesystem", lambda url: (server, url.removeprefix("s3://")))
    found = interrupted_uploads("s3://bucket/root")
    assert [(item.url, item.bytes, item.modified) for item in found] == [
        (f"s3://bucket/{name}", 7, 1000 + at) for at, name in enumerate(server.keys)
    ]
    monkeypatch.setattr(prune, "hold_unused", lambda _: nullcontext())
    folder = "s3://bucket/root/students/y"
    discard(WasteItem(found[1].url, WasteReason.TEMPORARY, "", 7, 1001, folder, found[1]))
    assert server.aborted == [{"Bucket": "bucket", "Key": server.keys[1], "UploadId": "id1"}]


def test_a_disk_and_memory_have_no_interrupted_uploads(root: str) -> None:
    assert interrupted_uploads(root) == []


def test_a_real_servers_interrupted_upload_is_found_and_aborted(s3_server: S3Server, s3_root: str) -> None:
    made, s3 = small_store(s3_root), client(s3_server.endpoint)
    target = {"Bucket": BUCKET, "Key": f"{made['scores'].url}/shard-00009.parquet".removeprefix(f"s3://{BUCKET}/")}
    upload = s3.create_multipart_upload(**target)["UploadId"]
    s3.upload_part(**target, UploadId=upload, PartNumber=1, Body=bytes(1000))
    (found,) = [item for item in find_waste(Catalog.open(s3_root), EVER) if item.reason is WasteReason.TEMPORARY]
    assert (found.url, found.bytes) == (f"{made['scores'].url}/shard-00009.parquet", 1000)
    discard(found)
    assert interrupted_uploads(s3_root) == []


def _holding(stored: Any) -> Any:
    return stored.held() if isinstance(stored, StoredFolder) else marked_as_writer(stored.url)


@pytest.mark.parametrize("role", ["scores", "student", "tokenizer"])
@pytest.mark.parametrize("complete", [True, False])
def test_what_is_being_written_is_not_removed(
    root: str, monkeypatch: pytest.MonkeyPatch, role: str, complete: bool
) -> None:
    """Neither by force, nor its temporary files, whatever their age."""
    # a holder is alive, however late its beat is on a busy machine
    monkeypatch.setattr(lease._ObjectLease, "GIVEN_UP_AFTER_S", 60.0)
    made = small_store(root)[role]
    overwrite(f"{made.url}/.x.0123abcd.tmp", b"x")
    if not complete:
        remove(f"{made.url}/manifest.json")
    with _holding(made):
        before = file_sizes(made.url).keys()
        catalog = Catalog.open(root)
        with pytest.raises(HeldError, match=rf"{made.url}: process \d+ on .* is working on it"):
            delete(catalog, key(made), force=True)
        items = [item for item in find_waste(catalog, EVER, with_incomplete=True) if item.folder == made.url]
        assert {item.reason for item in items} >= {
            WasteReason.TEMPORARY,
            *([] if complete else [WasteReason.INCOMPLETE]),
        }
        for item in items:
            with pytest.raises(HeldError):
                discard(item)
        assert file_sizes(made.url).keys() >= {name for name in before if not name.startswith((".lease", ".writing"))}
    delete(Catalog.open(root), key(made), force=True)
    assert file_sizes(made.url) == {}


def test_a_student_that_is_made_again_is_not_unused_nor_litter(tmp_path: Path) -> None:
    made = small_store(str(tmp_path))["student"]
    assert isinstance(made, StoredFolder)
    made.request_replacement()
    (item,) = [item for item in find_waste(Catalog.open(str(tmp_path)), EVER) if item.folder == made.url]
    assert (item.reason, item.what) == (WasteReason.INCOMPLETE, "made again, not finished")
    discard(item)
    assert made.manifest()
    assert not made.is_to_be_replaced
