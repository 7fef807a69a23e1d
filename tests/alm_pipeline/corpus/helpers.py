"""Helpers of the corpus's tests."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from alm_pipeline.config import CorpusConfig, FilesSource, GeneratedSource, HubSource
from alm_pipeline.corpus import Document, read_documents


def corpus(*urls: Path | str, exclude: tuple[str, ...] = (), format: Any = "auto", **settings: Any) -> CorpusConfig:
    source = FilesSource(urls=tuple(map(str, urls)), exclude=exclude, format=format)
    return corpus_of(source, **settings)


def corpus_of(source: FilesSource | HubSource | GeneratedSource, **settings: Any) -> CorpusConfig:
    return CorpusConfig(name="test", source=source, **settings)


def read(config: CorpusConfig) -> tuple[list[Document], dict[str, int]]:
    dropped: Counter[str] = Counter()
    return list(read_documents(config, dropped)), dict(dropped)


def texts(config: CorpusConfig) -> dict[str, str | None]:
    return {document.id: document.text for document in read(config)[0]}


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
