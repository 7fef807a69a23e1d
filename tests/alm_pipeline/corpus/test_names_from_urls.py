"""Ids, splits and fingerprints come from a URL's path: a new password or signature changes none of them."""

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest

from alm_pipeline.config import CorpusConfig, FilesSource
from alm_pipeline.corpus.examples import iter_examples
from alm_pipeline.corpus.stage import examples_dataset
from alm_pipeline.recipes.overrides import _name
from storage.errors import UserError
from storage.printed.records import traceback_text
from storage.printed.secrets import naming_path, naming_query


class _Files(BaseHTTPRequestHandler):
    """Any path is a file; `/download` is another one for each `id`."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self.wfile.write(self._answer())

    def _answer(self) -> bytes:
        url = urlsplit(self.path)
        if status := re.fullmatch(r"/status/(\d+)/.*", url.path):
            self.send_response(int(status[1]))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return b""
        what = parse_qs(url.query).get("id", ["0"])[0] if "download" in url.path else url.path
        content = "\n".join(json.dumps({"text": f"text {k} of {what}"}) for k in range(30)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep the log of tests quiet."""


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def corpus(*urls: str) -> CorpusConfig:
    return CorpusConfig(name="mine", source=FilesSource(urls=urls, format="jsonl"), held_out=0.3)


def written(config: CorpusConfig) -> list[tuple[str, str]]:
    return [(example.id, example.split) for example in iter_examples(config, Counter())]


@pytest.mark.parametrize(
    "other",
    [
        "http://{}/a/b.jsonl",
        "http://{}/a/b.jsonl?sig=2/3&se=1",
        "http://me:word@{}/a/b.jsonl?sig=x.y",
        "http://you@{}/a/b.jsonl#part=1",
        "http://you:p@ss@{}/a/b.jsonl?x#y",
    ],
)
def test_another_signature_gives_the_same_examples(host: str, other: str) -> None:
    first, second = corpus(f"http://{host}/a/b.jsonl?sig=1"), corpus(other.format(host))
    assert written(first) == written(second)
    assert written(first)[0][0] == "b.jsonl:0"
    assert examples_dataset(first, "memory://x").name == examples_dataset(second, "memory://x").name


def test_names_in_two_folders_have_no_password_and_no_query(host: str) -> None:
    urls = [f"http://u:{k}@{host}/{folder}/x.jsonl?s={k}" for k, folder in enumerate("ab")]
    ids = {id_ for id_, _ in written(corpus(*urls))}
    assert {id_.partition(":")[0] for id_ in ids} == {"a/x.jsonl", "b/x.jsonl"}


def test_files_that_only_a_query_tells_apart_have_names_of_their_own(host: str) -> None:
    def urls(signature: int) -> list[str]:
        return [
            f"http://u:{signature}@{host}/download?id={k}&sig={signature}{k}&expires=1{signature}" for k in range(3)
        ]

    names = {id_.partition(":")[0] for id_, _ in written(corpus(*urls(1)))}
    assert len(names) == 3
    assert all(name.startswith("download?") and len(name) == 17 for name in names)
    assert written(corpus(*urls(1))) == written(corpus(*urls(2)))
    assert len({examples_dataset(corpus(url), "memory://x").name for url in urls(1)}) == 3
    assert written(corpus(urls(1)[0]))[0][0] == "download:0"


@pytest.mark.bad_input
def test_one_file_by_two_signatures_is_refused(host: str) -> None:
    with pytest.raises(UserError, match=r"have the name 'a.jsonl'.*rename one") as raised:
        written(corpus(f"http://{host}/a.jsonl?sig=hunter2", f"http://{host}/a.jsonl?sig=hunter3"))
    assert "hunter" not in str(raised.value)


REFUSALS = {
    "http://{}/status/401/a.jsonl": "cannot list .*: 401, .*check the URL, its credentials and permissions",
    "http://{}/status/403/a.jsonl": "cannot list .*: 403, .*check the URL, its credentials and permissions",
    "http://{}/status/403/*.jsonl": "cannot list .*: 403, .*check the URL, its credentials and permissions",
    "http://{}/status/404/a.jsonl": "no file matches",
    "http://{}/status/404/*.jsonl": "no file matches",
    "http://{}/status/503/a.jsonl": r"503, (.*\n)+cannot list http://\*\*\*@",
    "http://127.0.0.1:9/a.jsonl": r"Cannot connect to host (.*\n)+cannot list http://\*\*\*@",
    "http://[::1/a.jsonl": "cannot list .*: Invalid IPv6 URL",
    "http:/{}/a.jsonl": "http:/ has one slash: write http://",
}


@pytest.mark.bad_input
@pytest.mark.parametrize("url", REFUSALS)
def test_what_an_http_server_answers_is_the_cause(host: str, url: str) -> None:
    signed = url.format(host).replace("//127", "//me:hunter2@127") + "?sig=hunter3"
    with pytest.raises((UserError, aiohttp.ClientError)) as raised:  # a server that is away keeps its error's type
        written(corpus(signed))
    printed = traceback_text(raised.value)
    assert re.search(REFUSALS[url], printed)
    assert "hunter" not in printed


@pytest.mark.parametrize(
    ("path", "name", "has_choice"),
    [
        ("https://u:p@h/a/b.jsonl?x=1#y", "https://h/a/b.jsonl", True),
        ("https://u:p/w@h/a?sig=1", "https://h/a", False),
        ("https://h/a?X-Amz-Signature=1&X-Amz-Date=2&AWSAccessKeyId=3&Expires=4", "https://h/a", False),
        ("https://h/a?sv=1&se=2&sr=3&sp=4&sig=5&skoid=6", "https://h/a", False),
        ("https://h/a?GoogleAccessId=1&Expires=2&Signature=3", "https://h/a", False),
        ("https://h/a?files=b.jsonl", "https://h/a", True),
        ("bucket/a?b.jsonl", "bucket/a?b.jsonl", True),
        ("bucket/a.jsonl?versionId=abc.d_e", "bucket/a.jsonl", True),
    ],
)
def test_what_names_a_file_in_a_url(path: str, name: str, has_choice: bool) -> None:
    assert naming_path(path) == name
    assert bool(naming_query(path)) == has_choice


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://u:hunter@h/data/my texts.jsonl.gz?sig=hunter/2", "my-texts"),
        ("https://h/data?token=hunter", "data"),
        ("https://hunter@h?sig=1", "h"),
        ("/home/me/what?.jsonl", "what"),
        ("s3://bucket/folder/*.parquet", "folder"),
    ],
)
def test_a_corpus_is_named_by_its_path(url: str, name: str) -> None:
    assert _name(url) == name


@pytest.mark.bad_input
def test_names_that_are_not_utf8_are_read_and_their_ids_are_distinct(tmp_path: Path) -> None:
    names = [b"\xff.jsonl", rb"\udcff.jsonl", rb"\\udcff.jsonl", b"\\\xff.jsonl", rb"\xff.jsonl", rb"a\b.jsonl"]
    for name in names:
        (tmp_path / name.decode("utf-8", "surrogateescape")).write_text('{"text": "one"}\n')
    ids = [id_.removesuffix(".jsonl:0") for id_, _ in written(corpus(f"{tmp_path}/*"))]
    assert sorted(ids) == sorted({r"\udcff", r"\\udcff", r"\\\\udcff", r"\\\udcff", r"\xff", r"a\b"})
