"""What is hashed is what is read: a source that changes in between ends the stage, however and wherever."""

import functools
import http.server
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest

from alm_pipeline.config import CorpusConfig, FilesSource, HubSource
from alm_pipeline.corpus.files import versions
from alm_pipeline.corpus.sources import OpenSource, open_source, source_identity
from alm_pipeline.corpus.stage import examples_dataset, write_examples
from storage.errors import UserError
from storage.urls import list_files
from tests.alm_pipeline.corpus.files_of_kinds import parquet
from tests.alm_pipeline.corpus.helpers import corpus, corpus_of, jsonl, read

ROWS = [{"text": f"row {number:05d}: " + "x" * 100} for number in range(200)]
WHOLE = jsonl(*ROWS)
OTHER = WHOLE.replace(b"row", b"ROW")
"""as long as WHOLE"""


def in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(OTHER)


def in_place_with_its_old_time(path: Path) -> None:
    status = path.stat()
    in_place(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def by_renaming_a_file_of_the_same_time(path: Path) -> None:
    status = path.stat()
    new = path.with_name("new")
    new.write_bytes(OTHER)
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.replace(path)


def by_another_target_of_its_link(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(OTHER)
    path.unlink()
    path.symlink_to(new)


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(jsonl({"text": "one more"}))


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


CHANGES: dict[str, Callable[[Path], None]] = {
    function.__name__.replace("_", " "): function
    for function in (
        in_place,
        in_place_with_its_old_time,
        by_renaming_a_file_of_the_same_time,
        by_another_target_of_its_link,
        appended,
        cut_off,
        Path.unlink,
    )
}


@pytest.fixture(params=["just written", "old"])
def path(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus of one file; an old one's time stamps show any change, without hashing it again."""
    (tmp_path / "corpus").mkdir()
    path = tmp_path / "corpus" / "a.jsonl"
    path.write_bytes(WHOLE)
    if request.param == "old":
        monkeypatch.setattr(versions, "_COARSEST_TIME", -60)
    return path


def settings(path: Path) -> CorpusConfig:
    return corpus(path.parent / "*.jsonl", shard_bytes=4096, held_out=0)


def stored(root: Path) -> dict[str, Any]:
    return dict(list_files(str(root)))


@pytest.mark.bad_input
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_hashing_and_reading_ends_the_stage(tmp_path: Path, path: Path, change: str) -> None:
    dataset = examples_dataset(settings(path), str(tmp_path / "store"))
    (path.parent / "b.jsonl").write_bytes(WHOLE.replace(b"row", b"ro2"))
    dataset = examples_dataset(settings(path), str(tmp_path / "store"))
    CHANGES[change](path)
    with pytest.raises(UserError, match=r"source has changed since the run began \(a\.jsonl\); wait .* run the same"):
        write_examples(dataset, settings(path))
    assert not stored(tmp_path / "store")


def changing_after(monkeypatch: pytest.MonkeyPatch, rows: int, change: Callable[[], None]) -> None:
    """Do something while the stage reads, when it has read this number of rows."""
    read = OpenSource.rows

    def rows_and_change(self: OpenSource, columns: tuple[str, ...], dropped: Counter[str]) -> Iterator[Any]:
        for number, row in enumerate(read(self, columns, dropped)):
            if number == rows:
                change()
            yield row

    monkeypatch.setattr(OpenSource, "rows", rows_and_change)


@pytest.mark.bad_input
@pytest.mark.parametrize("row", [0, 100, 199])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_while_it_is_read_ends_the_stage(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch, change: str, row: int
) -> None:
    dataset = examples_dataset(settings(path), str(tmp_path / "store"))
    changing_after(monkeypatch, row, lambda: CHANGES[change](path))
    with pytest.raises(UserError, match=r"/a\.jsonl (has changed since|was there when) .*run the same command again"):
        write_examples(dataset, settings(path))
    assert dataset.manifest() is None
    assert_only_rows_of(dataset, WHOLE)


def assert_only_rows_of(dataset: Any, content: bytes) -> None:
    """The shards that were written have rows of this content, which their dataset is named for."""
    for name in stored(Path(dataset.root)):
        if name.endswith(".parquet"):
            written = pq.read_table(Path(dataset.root) / name)["text"].to_pylist()
            assert all(text.encode() in content for text in written)


@pytest.mark.parametrize(
    "touch", [lambda path: path.chmod(0o600), lambda path: os.link(path, path.with_name("backup"))]
)
def test_what_changes_no_content_is_no_change(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch, touch: Callable[[Path], None]
) -> None:
    dataset = examples_dataset(settings(path), str(tmp_path / "store"))
    changing_after(monkeypatch, 100, lambda: touch(path))
    assert write_examples(dataset, settings(path)).rows == len(ROWS)


def test_a_file_on_a_disk_is_hashed_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it is so new that its time stamps may not show a change."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(WHOLE)
    hashed = []
    content = versions._content
    monkeypatch.setattr(versions, "_content", lambda file, version: hashed.append(file.name) or content(file, version))
    monkeypatch.setattr(versions, "_COARSEST_TIME", -60)
    write_examples(examples_dataset(corpus(path), str(tmp_path / "store")), corpus(path))
    assert hashed == ["a.jsonl"]


@pytest.mark.bad_input
@pytest.mark.parametrize("change", ["in place with its old time", "unlink"])
def test_a_parquet_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Arrow's own error, if it has one, is not the cause."""
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet([{"text": os.urandom(50).hex()} for _ in range(2000)]))

    def destroy() -> None:
        if change == "unlink":
            path.unlink()
        else:
            path.write_bytes(b"PAR1" + os.urandom(path.stat().st_size - 4))

    dataset = examples_dataset(corpus(path, shard_bytes=4096), str(tmp_path / "store"))
    changing_after(monkeypatch, 300, destroy)
    with pytest.raises(UserError, match=r"/a\.parquet (has changed since|was there when)"):
        write_examples(dataset, corpus(path, shard_bytes=4096))


@pytest.mark.bad_input
def test_a_file_that_is_written_while_it_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(WHOLE)
    content = versions._content
    monkeypatch.setattr(versions, "_content", lambda file, version: (content(file, version), appended(path))[0])
    with pytest.raises(UserError, match=r"a\.jsonl changes while its content is hashed; wait until"):
        source_identity(FilesSource(urls=(str(path),)))


@pytest.mark.bad_input
@pytest.mark.parametrize("row", [None, 0, 100])
def test_a_folder_of_datasets_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: int | None) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(WHOLE)
    settings = corpus_of(HubSource(name=str(folder), streaming=False), shard_bytes=4096)
    dataset = examples_dataset(settings, str(tmp_path / "store"))
    if row is None:
        in_place(folder / "train.jsonl")
    else:
        changing_after(monkeypatch, row, lambda: in_place_with_its_old_time(folder / "train.jsonl"))
    with pytest.raises(UserError, match=r"train\.jsonl.*run the same command again"):
        write_examples(dataset, settings)


def test_datasets_keeps_no_rows_of_a_folder(tmp_path: Path) -> None:
    """Its cache knows a file by its time and size: with both as before, it would answer with the old rows."""
    (tmp_path / "train.jsonl").write_bytes(WHOLE)
    source = HubSource(name=str(tmp_path), streaming=False)
    first = [row for _, row in open_source(source).rows(("text",), Counter())]
    in_place_with_its_old_time(tmp_path / "train.jsonl")
    second = [row for _, row in open_source(source).rows(("text",), Counter())]
    assert first == ROWS
    assert [row["text"] for row in second] == [row["text"].replace("row", "ROW") for row in ROWS]


@dataclass
class Website:
    """A real HTTP server of one file, with the headers that a server of this kind sends."""

    validators: tuple[str, ...]
    content: bytes = WHOLE
    version: int = 1
    requests: Counter[str] = field(default_factory=Counter)

    def headers(self) -> dict[str, str]:
        known = {"ETag": f'"v{self.version}"', "Last-Modified": "Sun, 29 Nov 2026 09:00:00 GMT"}
        return {name: known[name] for name in self.validators}


class _Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, website: Website, *args: Any) -> None:
        self.website = website
        super().__init__(*args)

    def _answer(self, body: bool) -> None:
        site = self.website
        site.requests[self.command] += 1
        found = self.path.startswith("/a.")
        content = site.content if found else b""
        self.send_response(200 if found else 404)
        for name, value in {**site.headers(), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(params=[("ETag",), ("Last-Modified",), ()], ids=["etag", "time", "nothing"])
def website(request: pytest.FixtureRequest) -> Iterator[tuple[Website, str]]:
    website = Website(request.param)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, website)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield website, f"http://127.0.0.1:{server.server_port}/a.jsonl?sig=secret"
        server.shutdown()
        thread.join()
    fsspec.filesystem("http").clear_instance_cache()


def test_a_file_of_a_website_is_read_by_its_path(website: tuple[Website, str], tmp_path: Path) -> None:
    settings = corpus(website[1])
    assert write_examples(examples_dataset(settings, str(tmp_path)), settings).rows == len(ROWS)


@pytest.mark.bad_input
@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>", b"\n <HTML lang='en'>log in</HTML>"])
@pytest.mark.parametrize("path", ["a.jsonl", "a.txt", "a.md", "a.csv"])
def test_a_page_of_a_website_is_no_corpus(website: tuple[Website, str], path: str, page: bytes) -> None:
    """As after a login that has expired, or at GitHub's `/blob/`; a page that is meant to be one is read."""
    site, url = website
    site.content = page
    with pytest.raises(UserError, match=rf"/{path}\S* is an HTML page, read as .*: the page of a login"):
        _ = read(corpus(url.replace("a.jsonl", path)))
    assert len(read(corpus(url.replace("a.jsonl", "a.html"), format="text"))[0]) == 1


@pytest.mark.bad_input
@pytest.mark.parametrize("row", [None, 0, 199])
def test_a_file_of_a_website_that_changes(
    website: tuple[Website, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: int | None
) -> None:
    site, url = website
    settings = corpus(url, shard_bytes=4096)
    dataset = examples_dataset(settings, str(tmp_path))

    def change() -> None:
        site.content, site.version = OTHER, 2

    if row is None:
        change()
    else:
        changing_after(monkeypatch, row, change)
    with pytest.raises(UserError, match=r"a\.jsonl.*(run the same command again|run it again)"):
        write_examples(dataset, settings)
    assert dataset.manifest() is None


@pytest.mark.bad_input
@pytest.mark.parametrize("row", [None, 0, 100, 199])
@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_a_file_in_a_bucket_that_changes(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: int | None, change: str
) -> None:
    url = f"{s3_root}/a.jsonl"
    with fsspec.open(url, "wb") as file:
        file.write(WHOLE)
    settings = corpus(f"{s3_root}/*.jsonl", shard_bytes=4096, held_out=0)
    dataset = examples_dataset(settings, str(tmp_path))

    def change_it() -> None:
        fs, path = fsspec.url_to_fs(url)
        fs.pipe_file(path, OTHER) if change == "replaced" else fs.rm(path)

    if row is None:
        change_it()
    else:
        changing_after(monkeypatch, row, change_it)
    with pytest.raises(UserError, match=r"a\.jsonl|no file matches"):
        write_examples(dataset, settings)
    assert dataset.manifest() is None
    assert_only_rows_of(dataset, WHOLE)
