"""The first lines of a run: what a template makes of the first row, of every kind of source that is here."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alm_pipeline.config import CorpusConfig, FilesSource
from alm_pipeline.first_lines import first_document, template_lines
from storage.errors import UserError

ROWS = [{"question": "3+4?", "answer": 7}, {"question": "5+5?", "answer": 10}]


def corpus(file: Path, text: str = "Q: {question}\nA: {answer}") -> CorpusConfig:
    return CorpusConfig(name="sums", source=FilesSource(urls=(str(file),)), text=text)


def test_a_template_is_shown_with_the_first_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "b.parquet")
    for file in sorted(tmp_path.iterdir()):
        assert template_lines(corpus(file)) == [
            'the text "Q: {question}\\nA: {answer}" of the first row is:',
            "  Q: 3+4?⏎A: 7",
        ]


def test_a_long_text_is_cut(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "word " * 1000}))
    (_, text) = template_lines(corpus(tmp_path / "a.jsonl", "{text}"))
    assert len(text) < 250
    assert text.endswith(" …")


def test_a_column_is_not_shown(tmp_path: Path) -> None:
    assert template_lines(corpus(tmp_path / "nothing.jsonl", "question")) == []


@pytest.mark.bad_input
def test_what_cannot_be_read_is_left_to_the_stage_that_reads_all_of_it(tmp_path: Path) -> None:
    assert template_lines(corpus(tmp_path / "nothing.jsonl")) == []
    (tmp_path / "a.jsonl").write_text(json.dumps({"other": "x"}))
    assert template_lines(corpus(tmp_path / "a.jsonl")) == []


@pytest.mark.bad_input
def test_a_corpus_without_a_document_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join([json.dumps({"text": " "})] * 2))
    with pytest.raises(UserError, match=r"corpus sums: has no text or conversation \(2 empty\)"):
        first_document(corpus(tmp_path / "a.jsonl", "text"))
