"""What is read of a corpus: all of a small one, the first rows of a spread sample of the files of others."""

import json
from pathlib import Path

import pytest

from alm_pipeline.config import CorpusConfig, FilesSource
from alm_pipeline.preflight import corpus_sample
from alm_pipeline.preflight.corpus_sample import MOST_FILES, read_sample


def corpus_of(folder: Path, **settings: object) -> CorpusConfig:
    return CorpusConfig.model_validate(
        {"name": "texts", "source": FilesSource(urls=(f"{folder}/**",)), "held_out": 0.5} | settings
    )


def write(file: Path, rows: int, column: str = "text", size: int = 40) -> None:
    file.write_text("".join(json.dumps({column: f"{file.stem} {row} " + "x" * size}) + "\n" for row in range(rows)))


def test_a_small_corpus_is_read_as_the_run_reads_it(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", 30)
    sample = read_sample(corpus_of(tmp_path, sample=0.5, max_examples=20))
    assert sample.is_whole
    assert (sample.files, sample.files_read) == (2, 2)
    assert len(sample.examples) == 20
    assert {example.split for example in sample.examples} == {"train", "held_out"}


def test_of_large_files_the_first_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_sample, "_SMALL_BYTES", 1000)
    for name in "abc":
        write(tmp_path / f"{name}.jsonl", 500)
    sample = read_sample(corpus_of(tmp_path, sample=0.01))
    assert not sample.is_whole
    assert len(sample.examples) == 60, "what is sampled out says nothing about rows that were not read"
    assert sample.rows == 60


def test_of_many_files_a_spread_sample_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_sample, "_SMALL_BYTES", 1000)
    for number in range(3 * MOST_FILES):
        write(tmp_path / f"{number:04}.jsonl", 2)
    sample = read_sample(corpus_of(tmp_path))
    assert (sample.files, sample.files_read) == (3 * MOST_FILES, MOST_FILES)
    assert sample.examples[0].id.startswith("0000")
    assert sample.examples[-1].id.startswith("0189")


@pytest.mark.bad_input
def test_a_file_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", 3)
    write(tmp_path / "b.jsonl", 3, column="body")
    (tmp_path / "c.parquet").write_bytes(b"nothing")
    write(tmp_path / "d.jsonl", 3)
    sample = read_sample(corpus_of(tmp_path))
    assert [error for problem in sample.problems for error in ("b.jsonl", "c.parquet") if error in str(problem)] == [
        "b.jsonl",
        "c.parquet",
    ]
    assert len(sample.examples) == 6


def test_a_column_that_comes_later_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is legal, so the first rows alone don't decide: the reader gives up at its own limit."""
    monkeypatch.setattr(corpus_sample, "_SMALL_BYTES", 1000)
    rows = [{"other": "x" * 40}] * 300 + [{"text": f"Text {k}."} for k in range(300)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sample = read_sample(corpus_of(tmp_path))
    assert sample.problems == []
    assert sample.rows == 301
    assert len(sample.examples) == 1
