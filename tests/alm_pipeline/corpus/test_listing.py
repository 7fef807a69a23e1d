"""Which files a URL takes: kinds by the path's ending, mixed folders, special files, links."""

import errno
import os
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from alm_pipeline.config import FilesSource
from alm_pipeline.corpus.files.kinds import ARCHIVE_ENDINGS, COMPRESSION_ENDINGS, kind_of
from alm_pipeline.corpus.files.listing import list_files
from alm_pipeline.corpus.sources import open_source
from alm_pipeline.corpus.stage import examples_dataset, write_examples
from storage.errors import UserError
from tests.alm_pipeline.corpus.files_of_kinds import ROWS, TEXTS, WRITE
from tests.alm_pipeline.corpus.helpers import corpus, jsonl, read

ROW = jsonl({"text": "row"})


def fill(folder: Path, *names: str) -> Path:
    """Write files with a row each, JSONL whatever their names say."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(ROW)
    return folder


def listed(*urls: Path | str, exclude: tuple[str, ...] = (), format: str = "auto") -> tuple[list[str], dict[str, int]]:
    source = FilesSource.model_validate({"urls": tuple(map(str, urls)), "exclude": exclude, "format": format})
    listing = list_files(source)
    return [file.name for file in listing.files], dict(listing.left_out)


@pytest.mark.parametrize("compression", ["", *COMPRESSION_ENDINGS])
def test_a_compressions_ending_does_not_change_the_kind(compression: str) -> None:
    assert kind_of(f"folder.csv/A.JSONL{compression}").format == "jsonl"
    assert kind_of(f"a.tar{compression}").role == "archive"
    assert kind_of(f"README.md{compression}").role == "documentation"
    assert kind_of(f"a{compression}").role == kind_of(f".jsonl{compression}").role == "unknown"


COMPANIONS = (
    ("README.md", "files of documentation"),
    ("LICENSE", "files of documentation"),
    ("CITATION.cff", "files of documentation"),
    ("dataset_infos.json", "files of metadata"),
    ("cache-0123456789abcdef.arrow", "files of metadata"),
    ("cache-0123456789abcdef_00000_of_00004.arrow", "files of metadata"),
    (".gitattributes", "hidden files"),
    (".cache/a.jsonl", "hidden files"),
    ("sub/.hidden.parquet", "hidden files"),
    ("__MACOSX/a.jsonl", "hidden files"),
    (".part-0.parquet.crc", "hidden files"),
    ("_SUCCESS", "files without a known ending"),
    ("Makefile", "files without a known ending"),
    ("checksums.sha256", "files of unknown kind .sha256"),
    ("plot.PNG", "files of unknown kind .png"),
    ("load.py", "files of unknown kind .py"),
    ("raw.zip", "archive files .zip"),
    ("raw.tar.gz", "archive files .tar"),
    ("notes.txt", "text files beside data"),
    ("a.\x1b[31m", "files without a known ending"),
)
"""Files beside data that are none, and how each is counted."""


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "reason"), [pytest.param(*pair, id=pair[0].encode("unicode_escape").decode()) for pair in COMPANIONS]
)
def test_what_is_beside_data_is_left_out_and_counted(tmp_path: Path, name: str, reason: str) -> None:
    fill(tmp_path, "data/train-00000-of-00001.jsonl", name)
    assert listed(tmp_path / "**") == (["data/train-00000-of-00001.jsonl"], {reason: 1})


def test_a_folder_of_the_hub(tmp_path: Path) -> None:
    """All of them at once, in the manifest and not only in the listing."""
    fill(tmp_path, *(name for name, _ in COMPANIONS))
    (tmp_path / "data").mkdir()
    for split in ("test", "train"):
        (tmp_path / "data" / f"{split}-0.parquet").write_bytes(WRITE["parquet"][1](ROWS))
    documents, dropped = read(corpus(tmp_path / "**"))
    assert [document.text for document in documents] == TEXTS * 2
    assert dropped == Counter(reason for _, reason in COMPANIONS)
    manifest = write_examples(
        examples_dataset(corpus(tmp_path / "**"), str(tmp_path / "store")), corpus(tmp_path / "**")
    )
    assert manifest.dropped == dropped


def test_all_data_formats_of_a_folder_are_read(tmp_path: Path) -> None:
    data = [format for format in WRITE if format != "text"]
    for format in data:
        (tmp_path / f"{format}{WRITE[format][0]}").write_bytes(WRITE[format][1](ROWS))
    assert [document.text for document in read(corpus(tmp_path / "*"))[0]] == TEXTS * len(data)


def test_texts_are_the_corpus_where_there_are_no_data_files(tmp_path: Path) -> None:
    fill(tmp_path, "a.txt", "b.md", "README.md")
    assert listed(tmp_path / "**") == (["README.md", "a.txt", "b.md"], {})
    fill(tmp_path, "c.png")
    left_out = {"files of documentation": 1, "files of unknown kind .png": 1}
    assert listed(tmp_path / "**") == (["a.txt", "b.md"], left_out)


def test_every_url_takes_its_own_kinds(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl", "b.txt", "c.log")
    assert listed(tmp_path / "*.jsonl", tmp_path / "*.txt") == (["a.jsonl", "b.txt"], {})
    assert listed(tmp_path / "*", format="text") == (["a.jsonl", "b.txt", "c.log"], {})
    assert listed(tmp_path / "*", exclude=("*.jsonl",)) == (["b.txt"], {"files of unknown kind .log": 1})


def test_hidden_files_are_read_where_they_are_named(tmp_path: Path) -> None:
    fill(tmp_path / ".home", ".cache/a.jsonl", "b.jsonl")
    assert listed(tmp_path / ".home" / "*") == (["b.jsonl"], {})
    assert listed(tmp_path / ".home" / ".cache" / "*") == (["a.jsonl"], {})
    assert listed(tmp_path / ".home" / ".*" / "*")[0] == [".cache/a.jsonl"]
    assert listed(tmp_path / ".home" / ".cache" / "a.jsonl")[0] == ["a.jsonl"]


def test_a_folder_with_many_endings_is_counted_in_a_few_reasons(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl", *(f"b.x{number}" for number in range(50)))
    _, left_out = listed(tmp_path / "*")
    assert len(left_out) == 21
    assert sum(left_out.values()) == left_out["files of other unknown kinds"] + 20 == 50


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        *[pytest.param(f"a{end}", rf"is an archive \({end}\); unpack it", id=end) for end in ARCHIVE_ENDINGS],
        pytest.param("a.tar.zst", r"is an archive \(.tar\); unpack it", id=".tar.zst"),
        *[
            pytest.param(f"a{end}", rf"has an unknown ending \({end}\); set corpus.source.format", id=end)
            for end in (".log", ".jsonlx", ".br", ".xlsx", ".pdf")
        ],
        pytest.param("a.jsonl.br", r"has an unknown ending \(.br\)", id=".jsonl.br"),
        pytest.param("a.csv~", "has no known ending; set corpus.source.format", id="backup"),
        pytest.param("a", "has no known ending; set corpus.source.format", id="none"),
        pytest.param("a.gz", "has no known ending; set corpus.source.format", id="only compressed"),
    ],
)
def test_a_file_of_an_unknown_kind_is_refused_by_name(tmp_path: Path, name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"/{name} {sentence}"):
        listed(fill(tmp_path, name) / name)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        pytest.param(
            ["a.log", "b.log", "README.md"], r"\(files of unknown kind .log: 2, .*documentation: 1\)", id="logs"
        ),
        pytest.param(["a.zip", "b.zip"], r"\(archive files .zip: 2\); unpack archives; set", id="archives"),
        pytest.param([".a.jsonl"], r"\(hidden files: 1\)", id="hidden"),
        pytest.param(["LICENSE"], r"\(files of documentation: 1\)", id="only a license"),
    ],
)
def test_a_pattern_without_a_known_kind_is_refused(tmp_path: Path, names: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=rf"/\*\* matches no file of a known kind {sentence}"):
        listed(fill(tmp_path, *names) / "**")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "others",
    [
        ("a.jsonl", "a.jsonl.gz"),
        ("a.parquet", "a.JSONL"),
        ("d/a.csv", "d/a.tsv"),
        ("İ.json", "İ.jsonl"),  # longer in lower case
        ("a.txt", "a.txt.gz"),
        ("a.md.xz", "a.md.zst"),
    ],
)
def test_content_under_two_endings_would_count_twice(tmp_path: Path, others: tuple[str, str]) -> None:
    other = "b.txt" if kind_of(others[0]).role == "text" else "b.jsonl"
    fill(tmp_path, *others, other)
    with pytest.raises(UserError, match=r"the same name with two endings.*exclude one with corpus.source.exclude"):
        listed(tmp_path / "**")
    assert len(listed(*(tmp_path / name for name in others))[0]) == 2
    assert listed(tmp_path / "**", exclude=(others[0],))[0] == sorted([others[1], other])


def test_texts_of_one_name_may_be_two_documents(tmp_path: Path) -> None:
    assert listed(fill(tmp_path, "a.txt", "a.md", "b.txt.gz") / "*")[0] == ["a.md", "a.txt", "b.txt.gz"]
    fill(tmp_path, "b.txt", "c.jsonl")
    assert listed(tmp_path / "*") == (["c.jsonl"], {"text files beside data": 4})


PATHS_OF_URLS = {
    "https://host/a.jsonl?sig=x.csv": "jsonl",
    "https://host/a.jsonl.gz?X-Amz-Signature=a/b&x=.txt#top": "jsonl",
    "https://host/get?file=a.jsonl": None,
    "https://host/a.csv#a.jsonl": "csv",
    "s3://bucket/a.parquet?versionId=x.txt": "parquet",
    "zip://b/a.tsv::/no/such.zip": "tsv",
}


@pytest.mark.parametrize("url", PATHS_OF_URLS)
def test_the_kind_of_a_url_is_that_of_its_path(url: str) -> None:
    from alm_pipeline.corpus.files.listing import _Match
    from storage.urls import open_filesystem

    if url.startswith("zip"):
        fs, path = MemoryFileSystem(), "b/a.tsv"
    else:
        fs, path = open_filesystem(url)
    assert _Match(fs, path, "", "", linked_folder=False).kind.format == PATHS_OF_URLS[url]


def test_a_question_mark_is_a_pattern_in_a_bucket_and_a_character_on_a_disk(
    memory: MemoryFileSystem, tmp_path: Path
) -> None:
    for name in ("a1.jsonl", "a2.jsonl"):
        memory.pipe_file(f"/bucket/{name}", ROW)
    assert listed("memory://bucket/a?.jsonl")[0] == ["a1.jsonl", "a2.jsonl"]
    fill(tmp_path, "b?x=1.jsonl", "c[1].jsonl", "d[1]/e.jsonl")
    assert listed(tmp_path / "b?x=1.jsonl")[0] == ["b?x=1.jsonl"]
    assert listed(tmp_path / "c[1].jsonl")[0] == ["c[1].jsonl"]
    assert listed(tmp_path / "d[1]" / "e.jsonl")[0] == ["e.jsonl"]
    with pytest.raises(UserError, match=r"a `\[` in a name is written `\[\[\]`"):
        listed(tmp_path / "d[1]" / "*")
    assert listed(tmp_path / "d[[]1]" / "*")[0] == ["d[1]/e.jsonl"]


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


SPECIAL = {
    "a FIFO": _fifo,
    "a socket": _socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to a file that does not exist": lambda path: path.symlink_to("nowhere"),
    "a link that leads to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("in_pattern", [False, True], ids=["by name", "in a pattern"])
@pytest.mark.parametrize("what", SPECIAL)
def test_special_files_are_refused_by_name(tmp_path: Path, what: str, in_pattern: bool) -> None:
    SPECIAL[what](fill(tmp_path, "b.jsonl") / "a.jsonl")
    with pytest.raises(UserError, match=rf"/a\.jsonl is {what}.*; name a file, or exclude it"):
        listed(tmp_path / ("*" if in_pattern else "a.jsonl"))
    assert listed(tmp_path / "*", exclude=("a.jsonl",)) == (["b.jsonl"], {})


@pytest.mark.bad_input
@pytest.mark.parametrize("what", SPECIAL)
def test_special_files_beside_data_are_counted(tmp_path: Path, what: str) -> None:
    SPECIAL[what](fill(tmp_path, "b.jsonl") / "a")
    names, left_out = listed(tmp_path / "*")
    (reason,) = left_out
    assert names == ["b.jsonl"]
    assert reason.startswith(f"files that are {what}")


@pytest.mark.bad_input
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
@pytest.mark.parametrize("format", ["auto", "text", "jsonl"])
def test_devices_do_not_hang(device: str, format: str) -> None:
    with pytest.raises(UserError, match=rf"^{device} is a device and not a file; name a file"):
        listed(device, format=format)


@pytest.mark.bad_input
@pytest.mark.parametrize("what", SPECIAL)
@pytest.mark.parametrize("protocol", ["zip", "tar"])
def test_special_files_are_no_archives(tmp_path: Path, protocol: str, what: str) -> None:
    SPECIAL[what](tmp_path / "a")
    with pytest.raises(UserError, match=rf"^{protocol}://b\.jsonl::.*: .*/a is {what}.*; name an archive"):
        listed(f"{protocol}://b.jsonl::{tmp_path}/a")


@pytest.mark.bad_input
@pytest.mark.parametrize("url", ["", " \n"])
def test_an_empty_url_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"corpus\.source\.urls contains an empty URL"):
        listed(url)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.EIO, OSError), (errno.ESTALE, UserError), (errno.ELOOP, UserError), (errno.EACCES, UserError)],
)
def test_a_folder_that_fails_to_be_listed_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    """As on a network disk that is away for a moment: fsspec leaves such a folder out. Callers try EIO again."""
    fill(tmp_path, "a.jsonl", "sub/b.jsonl")
    scandir = os.scandir

    def failing(path: str) -> Any:
        if str(path).endswith("/sub"):
            raise OSError(code, os.strerror(code), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(kind) as caught:
        listed(tmp_path / "**")
    message = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert "cannot list " in message
    assert os.strerror(code) in message
    assert listed(tmp_path / "*.jsonl")[0] == ["a.jsonl"]


@pytest.mark.bad_input
def test_a_folder_named_as_a_file(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl/part-0", "b.jsonl")
    with pytest.raises(UserError, match=r"a\.jsonl is a folder; write .*a\.jsonl/\*\* for all"):
        listed(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"a\.jsonl is a folder; write .*a\.jsonl/\*\* for all"):
        listed(tmp_path / "*.jsonl")
    fill(tmp_path, "a.jsonl/part-0.jsonl")
    assert listed(tmp_path / "**")[0] == ["a.jsonl/part-0.jsonl", "b.jsonl"]


def test_links(tmp_path: Path) -> None:
    """A file is read once, by whatever links it is reached; a linked folder is not searched, and that is said."""
    fill(tmp_path / "corpus", "a.jsonl", "sub/b.jsonl")
    (tmp_path / "corpus" / "link.jsonl").symlink_to("a.jsonl")
    (tmp_path / "corpus" / "loop").symlink_to(".")
    assert listed(tmp_path / "corpus" / "**") == (
        ["a.jsonl", "sub/b.jsonl"],
        {"linked folders": 1, "files that are links to others": 1},
    )
    (tmp_path / "other").symlink_to("corpus")
    assert listed(tmp_path / "other" / "*.jsonl", tmp_path / "corpus" / "*.jsonl")[0] == ["a.jsonl"]


@pytest.mark.bad_input
def test_files_of_the_storage_are_not_a_corpus(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl")
    store = tmp_path / "store"
    fill(tmp_path, "b.parquet")
    write_examples(examples_dataset(corpus(tmp_path / "*.jsonl"), str(store)), corpus(tmp_path / "*.jsonl"))
    with pytest.raises(
        UserError, match=r"store/examples/test-.* is a file of the storage .*store, and not of a corpus"
    ):
        examples_dataset(corpus(tmp_path / "**" / "*.parquet"), str(store))
    with pytest.raises(UserError, match=r"store/examples/test-.*exclude"):
        examples_dataset(corpus(tmp_path / "**"), str(store))
    (tmp_path / "b.parquet").unlink()
    assert examples_dataset(corpus(tmp_path / "**", exclude=("store/*",)), str(store)).manifest()


@pytest.mark.bad_input
@pytest.mark.parametrize("cache", ["simplecache", "filecache", "blockcache"])
def test_a_cache_of_fsspec_is_refused(memory: MemoryFileSystem, cache: str) -> None:
    memory.pipe_file("/bucket/a.jsonl", ROW)
    with pytest.raises(UserError, match=rf"goes through fsspec's cache.*write it without {cache}::"):
        open_source(FilesSource(urls=(f"{cache}::memory://bucket/a.jsonl",)))
