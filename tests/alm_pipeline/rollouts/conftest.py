"""A tiny teacher and student that write, and examples of texts and of conversations."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from alm_pipeline.config import AlmConfig, CorpusConfig, FilesSource, ScoreConfig, StudentConfig
from alm_pipeline.pipeline import Pipeline
from storage.dataset import Dataset
from tests import writers


class WritingPair(NamedTuple):
    teacher: str
    student: str


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> WritingPair:
    return WritingPair(*writers.trained_pair(tmp_path_factory.mktemp("writers")))


def config_of(pair: WritingPair, file: Path) -> AlmConfig:
    source = FilesSource(urls=(str(file),))
    corpus = CorpusConfig(name=file.stem, source=source, held_out=0.2, max_bytes=300, shard_bytes=1024)
    score = ScoreConfig(dtype="float32")
    return AlmConfig(corpus=corpus, teacher=pair.teacher, student=StudentConfig(model=pair.student), score=score)


def examples_of(pair: WritingPair, folder: Path, name: str, rows: list[dict[str, Any]]) -> Dataset:
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    pipeline = Pipeline(config_of(pair, file), str(folder / "root"))
    pipeline.shard()
    return pipeline.examples


@pytest.fixture(scope="session")
def texts(pair: WritingPair, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rows = [{"text": text} for text in writers.sentences(80, 3)]
    return examples_of(pair, tmp_path_factory.mktemp("texts"), "texts", rows)


@pytest.fixture(scope="session")
def talks(pair: WritingPair, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rows = [{"messages": chat} for chat in writers.chats(80, 4)]
    return examples_of(pair, tmp_path_factory.mktemp("talks"), "talks", rows)
