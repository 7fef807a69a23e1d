"""The fingerprint changes only with the content."""

from importlib import metadata
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from alm_pipeline.config import FilesSource, GeneratedSource, HubSource
from alm_pipeline.corpus import source_identity
from storage.errors import UserError


def files(*urls: Path | str, **settings: Any) -> str:
    return source_identity(FilesSource(urls=tuple(map(str, urls)), **settings))


def fill(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"one")
    (folder / "b.md").write_bytes(b"two")
    return folder


def test_files_have_one_identity_wherever_they_are(tmp_path: Path) -> None:
    here, there = fill(tmp_path / "here"), fill(tmp_path / "there" / "deep")
    assert files(here / "*") == files(there / "*") == files(there / "*.md", there / "*.txt")
    assert len(files(here / "*")) == 64


def test_content_and_names_count_and_excluded_files_do_not(tmp_path: Path) -> None:
    folder = fill(tmp_path / "corpus")
    identities = {files(folder / "*")}
    (folder / "a.txt").write_bytes(b"One")
    identities.add(files(folder / "*"))
    (folder / "a.txt").rename(folder / "c.txt")
    identities.add(files(folder / "*"))
    assert len(identities) == 3
    (folder / "d.log").write_bytes(b"three")
    assert files(folder / "*", exclude=("*.log",)) in identities


def test_the_format_counts_and_not_how_it_was_chosen(tmp_path: Path) -> None:
    folder = fill(tmp_path / "corpus")
    assert files(folder / "*", format="text") == files(folder / "*") != files(folder / "*", format="jsonl")


class TaggedFileSystem(MemoryFileSystem):
    """Stores an ETag for each file, as object stores do, and counts how often a file is opened."""

    protocol = "tagged"
    store: dict[str, Any] = {}  # noqa: RUF012  (MemoryFileSystem keeps its files on the class)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("tagged://")))

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = super().info(path, **options)
        return {**found, "ETag": str(hash(self.store[path].getvalue()))} if path in self.store else found

    def _open(self, path: str, mode: str = "rb", *args: Any, **options: Any) -> Any:
        assert mode != "rb", "the identity is to be known without reading"
        return super()._open(path, mode, *args, **options)


def test_files_of_a_store_with_checksums_are_not_read() -> None:
    fsspec.register_implementation("tagged", TaggedFileSystem, clobber=True)
    fs = TaggedFileSystem()
    fs.pipe_file("/bucket/a.txt", b"one")
    first = files("tagged://bucket/*")
    assert files("tagged://bucket/*") == first
    fs.pipe_file("/bucket/a.txt", b"two")
    assert files("tagged://bucket/*") != first


def test_files_of_a_store_without_checksums_are_read(tmp_path: Path) -> None:
    fs = MemoryFileSystem()
    fs.store.clear()
    fs.pipe_file("/bucket/a.txt", b"one")
    fs.pipe_file("/bucket/b.md", b"two")
    assert files("memory://bucket/*") == files(fill(tmp_path / "corpus") / "*")


def test_a_folder_for_datasets_is_identified_by_its_files(tmp_path: Path) -> None:
    here, there = fill(tmp_path / "here"), fill(tmp_path / "there")
    (there / ".cache").mkdir()
    (there / ".cache" / "lock").touch()
    first = source_identity(HubSource(name=str(here)))
    assert source_identity(HubSource(name=str(there))) == first
    assert source_identity(HubSource(name=str(there), streaming=False)) == first
    assert source_identity(HubSource(name=str(there), split="test")) != first
    (there / "a.txt").write_bytes(b"One")
    assert source_identity(HubSource(name=str(there))) != first


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_hub_dataset_is_identified_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def dataset_info(self: object, name: str, revision: str | None) -> huggingface_hub.DatasetInfo:
        assert (name, revision) == ("owner/data", "main")
        return huggingface_hub.DatasetInfo(id=name, sha=COMMIT)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    resolved = source_identity(HubSource(name="owner/data", revision="main"))
    assert resolved == source_identity(HubSource(name="owner/data", revision=COMMIT))
    assert resolved != source_identity(HubSource(name="owner/other", revision=COMMIT))


def test_an_unreachable_hub_is_an_error_without_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def dataset_info(self: object, name: str, revision: str | None) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    with pytest.raises(UserError, match=r"dataset 'owner/data' from .* Hub: no route; .*corpus\.source\.revision"):
        source_identity(HubSource(name="owner/data"))
    assert source_identity(HubSource(name="owner/data", revision=COMMIT))


def test_generated_problems_are_identified_by_their_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    source = GeneratedSource(size=10)
    first = source_identity(source)
    others = [GeneratedSource(size=11), GeneratedSource(size=10, seed=1), GeneratedSource(size=10, task="chain_sum")]
    monkeypatch.setattr(metadata, "version", lambda name: "9.9")
    assert len({first, source_identity(source), *map(source_identity, others)}) == 5


def test_the_generator_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(UserError, match=r"pip install 'alm-pipeline\[demo\]'"):
        source_identity(GeneratedSource())
