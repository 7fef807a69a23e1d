"""Files are found, named and decompressed; an unreadable file is an error that names it."""

import bz2
import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import fsspec
import pytest
import zstandard
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from alm_pipeline.config import FileFormat
from alm_pipeline.corpus.files.readers import READERS
from storage.errors import UserError
from tests.alm_pipeline.corpus.helpers import corpus, jsonl, read, texts


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def test_ids_are_paths_below_the_pattern_wherever_the_corpus_is(tmp_path: Path) -> None:
    for home in ("here", "elsewhere/deep"):
        write(tmp_path / home / "b" / "x.txt", b"first")
        write(tmp_path / home / "a.jsonl", jsonl({"text": "second"}, {"text": "third"}))
    expected = {"a.jsonl:0": "second", "a.jsonl:1": "third", "b/x.txt": "first"}
    for home in ("here", "elsewhere/deep"):
        assert texts(corpus(tmp_path / home / "**" / "*.jsonl", tmp_path / home / "**" / "*.txt")) == expected


def test_every_format_has_a_reader() -> None:
    assert set(READERS) == set(get_args(FileFormat))


def test_a_single_file_has_its_own_name(tmp_path: Path) -> None:
    assert texts(corpus(write(tmp_path / "x [1].txt", b"text"))) == {"x [1].txt": "text"}


def test_order_is_by_name_whatever_the_order_of_urls(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        write(tmp_path / name, name.encode())
    assert list(texts(corpus(tmp_path / "*.md", tmp_path / "*.txt"))) == ["a.txt", "b.txt", "c.md"]


def test_a_file_that_two_urls_match_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "sub" / "x.txt", b"text")
    assert texts(corpus(tmp_path / "sub" / "*", tmp_path / "**")) == {"x.txt": "text"}


def test_colliding_names_include_their_folders(tmp_path: Path) -> None:
    for language in ("de", "en"):
        write(tmp_path / "deep" / language / "x.txt", language.encode())
    urls = [tmp_path / "deep" / language / "*.txt" for language in ("en", "de")]
    assert texts(corpus(*urls)) == {"de/x.txt": "de", "en/x.txt": "en"}


def test_names_that_collide_across_file_systems_are_refused(tmp_path: Path, memory: MemoryFileSystem) -> None:
    memory.pipe_file("/corpus/x.txt", b"text")
    write(tmp_path / "x.txt", b"text")
    with pytest.raises(UserError, match=r"have the name 'x.txt': .*memory:///corpus/x.txt"):
        read(corpus(tmp_path / "*.txt", "memory://corpus/*.txt"))


def test_exclude_looks_below_the_pattern_and_not_above(tmp_path: Path) -> None:
    root = tmp_path / "test"
    for name in ("a.txt", "test/b.txt", "deep/test/c.txt", "deep/d.txt"):
        write(root / name, b"text")
    assert list(texts(corpus(root / "**", exclude=("*/test/*",)))) == ["a.txt", "deep/d.txt"]
    assert list(texts(corpus(root / "**", exclude=("a.txt", f"{root}/deep/*")))) == ["test/b.txt"]


def test_excluding_everything_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"text")
    with pytest.raises(UserError, match=r"exclude excludes all 1 files"):
        read(corpus(tmp_path / "*", exclude=("*",)))


def test_links_to_files_are_read_and_broken_ones_named(tmp_path: Path) -> None:
    target = write(tmp_path / "blobs" / "1", b"text")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "link.txt").symlink_to(target)
    assert texts(corpus(tmp_path / "corpus" / "*.txt")) == {"link.txt": "text"}
    target.unlink()
    with pytest.raises(UserError, match=r"link.txt is a link to a file that does not exist; "):
        read(corpus(tmp_path / "corpus" / "*.txt"))


def test_a_name_that_is_not_utf8_gives_an_id_that_is(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_bytes(b"text")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert texts(corpus(tmp_path / "*.txt")) == {"\\udcff.txt": "text"}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    compress = COMPRESS[suffix]
    write(tmp_path / f"a.jsonl{suffix}", compress(jsonl({"text": "one"})) + compress(jsonl({"text": "two"})))
    write(tmp_path / f"b.txt{suffix}", compress("größe\r\n".encode()))
    assert texts(corpus(tmp_path / "*.jsonl*", tmp_path / "*.txt*")) == {
        f"a.jsonl{suffix}:0": "one",
        f"a.jsonl{suffix}:1": "two",
        f"b.txt{suffix}": "größe\r\n",
    }


def test_a_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", b"not at all")
    with pytest.raises(UserError, match=r"cannot read .*/a\.parquet: .*Parquet magic bytes"):
        read(corpus(tmp_path / "*"))


def test_the_format_can_be_set(tmp_path: Path) -> None:
    write(tmp_path / "a.log", jsonl({"text": "one"}))
    assert texts(corpus(tmp_path / "*", format="jsonl")) == {"a.log:0": "one"}
    assert texts(corpus(tmp_path / "*", format="text")) == {"a.log": '{"text": "one"}\n'}


@pytest.mark.parametrize("pattern", ["none.txt", "*.txt", "no/such/**"])
def test_a_url_that_matches_nothing_is_named(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(UserError, match=r"no file matches .*" + pattern.replace("*", r"\*")):
        read(corpus(tmp_path / pattern))


def test_the_error_for_a_folder_names_the_pattern(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder; write .*/\*\* for all files"):
        read(corpus(tmp_path))


def test_a_missing_driver_is_named_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    # a missing driver, whatever is installed where the test runs
    monkeypatch.setitem(known_implementations, "az", {"class": "no_such.Driver", "err": "Install it"})
    with pytest.raises(UserError, match=r"az://bucket/\*: .*not installed: pip install 'alm-pipeline\[azure\]'"):
        read(corpus("az://bucket/*"))


def test_a_missing_driver_without_an_extra_has_the_message_of_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(known_implementations, "rare", {"class": "no_such.Driver", "err": "Get it"})
    with pytest.raises(UserError, match=r"rare://bucket/\*: .*not installed: .*Get it"):
        read(corpus("rare://bucket/*"))


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(UserError, match=r"nope://x: .*Protocol not known: nope"):
        read(corpus("nope://x"))


def test_remote_files(memory: MemoryFileSystem) -> None:
    memory.pipe_file("/bucket/deep/a.jsonl.gz", gzip.compress(jsonl({"text": "one"})))
    assert texts(corpus("memory://bucket/**/*.gz")) == {"deep/a.jsonl.gz:0": "one"}


class RefusingFileSystem(MemoryFileSystem):
    """Lists its files but refuses to read them, with its own error type, as botocore does."""

    protocol = "refusing"
    store: dict[str, Any] = {}  # noqa: RUF012  (MemoryFileSystem keeps its files on the class)

    class AccessDenied(Exception):
        pass

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("refusing://")))

    def _open(self, path: str, mode: str = "rb", *args: Any, **options: Any) -> Any:
        if mode == "rb":
            raise self.AccessDenied("Access Denied\nand more lines")
        return super()._open(path, mode, *args, **options)


def test_an_unreadable_file_is_named() -> None:
    fsspec.register_implementation("refusing", RefusingFileSystem, clobber=True)
    RefusingFileSystem().pipe_file("/bucket/a.txt", b"text")
    with pytest.raises(UserError, match=r"cannot read refusing:///bucket/a\.txt: Access Denied; ") as caught:
        read(corpus("refusing://bucket/*"))
    assert isinstance(caught.value.__cause__, RefusingFileSystem.AccessDenied)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "open" / "a.txt", b"text")
    closed = write(tmp_path / "closed" / "b.txt", b"text").parent
    closed.chmod(0)
    try:
        with pytest.raises(UserError, match=r"cannot list .*closed: Permission denied; make it readable"):
            read(corpus(tmp_path / "**"))
    finally:
        closed.chmod(0o700)
