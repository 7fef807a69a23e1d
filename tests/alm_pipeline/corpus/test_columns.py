"""The columns of any file, and which of them its texts or conversations are."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alm_pipeline.config import CorpusConfig, FilesSource
from alm_pipeline.corpus.columns import column_kinds, first_rows, proposed_settings
from alm_pipeline.first_lines import first_document
from storage.errors import UserError

CHAT = [{"role": "user", "content": "3+4?"}, {"role": "assistant", "content": "7"}]
ROWS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "a text": ({"id": 1, "text": "some words", "url": "https://host/a/long/name"}, {"text": "text"}),
    "another column": ({"id": "1", "content": "some words"}, {"text": "content"}),
    "a pair": ({"id": 1, "question": "3+4?", "answer": "7"}, {"text": "{question}\n{answer}"}),
    "another pair": ({"prompt": "3+4?", "response": "7"}, {"text": "{prompt}\n{response}"}),
    "a conversation": ({"text": "x", "chat": CHAT}, {"messages": "chat"}),
    "ShareGPT": (
        {"id": "x", "conversations": [{"from": "human", "value": "3+4?"}, {"from": "gpt", "value": "7"}]},
        {"messages": "conversations"},
    ),
    "a layout": ({"prompt": "3+4?", "completion": "7"}, {}),
    "numbers": ({"a": 1, "b": None, "c": [1, 2]}, {}),
}


def write(rows: list[dict[str, Any]], file: Path) -> str:
    match file.suffix:
        case ".jsonl":
            file.write_text("\n".join(map(json.dumps, rows)))
        case ".json":
            file.write_text(json.dumps(rows))
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
        case ".arrow":
            table = pa.Table.from_pylist(rows)
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
        case ".feather":
            table = pa.Table.from_pylist(rows)
            with pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
    return str(file)


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "arrow", "feather"])
@pytest.mark.parametrize(("row", "expected"), ROWS.values(), ids=ROWS)
def test_the_columns_of_a_file_are_proposed(
    row: dict[str, Any], expected: dict[str, str], ending: str, tmp_path: Path
) -> None:
    source = FilesSource(urls=(write([row] * 3, tmp_path / f"rows.{ending}"),))
    rows = first_rows(source)
    assert set(column_kinds(rows)) == set(row)
    assert proposed_settings(rows) == expected
    if expected:
        assert first_document(CorpusConfig.model_validate({"name": "x", "source": source, **expected}))


def test_texts_and_tables_have_columns_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words")
    assert proposed_settings(first_rows(FilesSource(urls=(str(tmp_path / "a.txt"),)))) == {"text": "text"}
    with (tmp_path / "b.csv").open("w") as file:
        csv.writer(file).writerows([["name", "story"], ["a", "a long story"]])
    assert proposed_settings(first_rows(FilesSource(urls=(str(tmp_path / "b.csv"),)))) == {"text": "story"}


@pytest.mark.bad_input
def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing"):
        first_rows(FilesSource(urls=(str(tmp_path / "nothing.jsonl"),)))
