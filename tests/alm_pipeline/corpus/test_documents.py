"""Rows to documents: columns, templates, conversations, and each reason to drop a row."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import UserError
from tests.alm_pipeline.corpus.helpers import corpus, jsonl, read, texts

GOOD = {"text": "good"}


def write_lines(folder: Path, data: bytes) -> Path:
    path = folder / "a.jsonl"
    path.write_bytes(data)
    return path


def write_parquet(folder: Path, table: pa.Table, **options: Any) -> Path:
    path = folder / "a.parquet"
    pq.write_table(table, path, **options)
    return path


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": ', "invalid_json"),
        (b'["text"]', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b"1" * 10_000, "invalid_json"),
        (b'{"text": "\xff"}', "invalid_utf8"),
        (b'{"text": "\\ud800"}', "invalid_utf8"),
        (b'{"text": 5}', "not_text"),
        (b'{"text": null}', "not_text"),
        (b'{"text": " \\n\\u00a0"}', "empty"),
        (b'{"text": ""}', "empty"),
        (b'{"other": "x"}', "missing_column"),
    ],
)
def test_a_bad_line_is_counted_and_the_ids_of_the_others_stay(tmp_path: Path, line: bytes, reason: str) -> None:
    config = corpus(write_lines(tmp_path, jsonl(GOOD) + line + b"\n" + jsonl(GOOD)))
    documents, dropped = read(config)
    assert [document.id for document in documents] == ["a.jsonl:0", "a.jsonl:2"]
    assert dropped == {reason: 1}


def test_blank_lines_are_not_rows(tmp_path: Path) -> None:
    documents, dropped = read(corpus(write_lines(tmp_path, b"\n" + jsonl(GOOD) + b" \r\n\n" + jsonl(GOOD) + b"\n")))
    assert [document.id for document in documents] == ["a.jsonl:0", "a.jsonl:1"]
    assert not dropped


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbftext")
    write_lines(tmp_path, b"\xef\xbb\xbf" + jsonl(GOOD))
    assert texts(corpus(tmp_path / "*.jsonl", tmp_path / "*.txt")) == {"a.jsonl:0": "good", "b.txt": "text"}


def test_a_last_line_without_its_end_and_an_empty_file(tmp_path: Path) -> None:
    write_lines(tmp_path, jsonl(GOOD).rstrip())
    (tmp_path / "b.jsonl").write_bytes(b"")
    assert texts(corpus(tmp_path / "*")) == {"a.jsonl:0": "good"}


@pytest.mark.parametrize("array", [b'[\n{"text": "x"},\n{"text": "y"}\n]\n', b'[{"text": "x"}]'])
def test_the_error_for_a_json_array_names_the_fix(tmp_path: Path, array: bytes) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl contains one JSON array.*jq"):
        read(corpus(write_lines(tmp_path, array)))


def test_bad_text_files_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "b.txt").write_bytes(b" \n")
    assert read(corpus(tmp_path / "*")) == ([], {"invalid_utf8": 1, "empty": 1})


def test_parquet_rows_across_row_groups(tmp_path: Path) -> None:
    table = pa.table({"text": [f"row {i}" for i in range(700)], "other": list(range(700))})
    found = texts(corpus(write_parquet(tmp_path, table, row_group_size=300)))
    assert found == {f"a.parquet:{i}": f"row {i}" for i in range(700)}


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_strings_of_any_kind(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"text": pa.array(["größe", None, " "], pa.string()).cast(kind)})
    documents, dropped = read(corpus(write_parquet(tmp_path, table)))
    assert [document.text for document in documents] == ["größe"]
    assert dropped == {"not_text": 1, "empty": 1}


@pytest.mark.parametrize("kind", [pa.binary(), pa.string()])
def test_parquet_bytes_that_are_not_utf8(tmp_path: Path, kind: pa.DataType) -> None:
    broken = pa.Array.from_buffers(kind, 3, pa.array([b"a", b"\xff", b"c"]).buffers())
    documents, dropped = read(corpus(write_parquet(tmp_path, pa.table({"text": broken}))))
    assert [(document.id, document.text) for document in documents] == [("a.parquet:0", "a"), ("a.parquet:2", "c")]
    assert dropped == {"invalid_utf8": 1}


@pytest.mark.parametrize(
    "settings", [{"text": "body"}, {"text": "{title}: {body}"}, {"messages": "body"}, {"id": "body"}]
)
def test_a_missing_column_names_file_column_and_existing_columns(tmp_path: Path, settings: dict[str, str]) -> None:
    message = r"/a\.{} has no column .*'body'; it has 'title', 'text'\. Set corpus\.text"
    rows = [{"title": "t", "text": "x"}]
    for path in (write_lines(tmp_path, jsonl(*rows)), write_parquet(tmp_path, pa.Table.from_pylist(rows))):
        with pytest.raises(UserError, match=message.format(path.suffix[1:])):
            read(corpus(path, **settings))


def test_a_text_file_has_one_column(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"text")
    assert texts(corpus(tmp_path / "a.txt", text="# {text}")) == {"a.txt": "# text"}
    with pytest.raises(UserError, match=r"a\.txt, a text file, has no column 'body'; it has 'text'"):
        read(corpus(tmp_path / "a.txt", text="body"))


def test_a_template_joins_columns(tmp_path: Path) -> None:
    rows = [{"q": "1+1", "a.b": 2}, {"q": "x", "a.b": None}, {"q": "y", "a.b": [1]}, {"q": "z"}]
    documents, dropped = read(corpus(write_lines(tmp_path, jsonl(*rows)), text="Q: {q}\n{{A}}: {a.b}!"))
    assert [document.text for document in documents] == ["Q: 1+1\n{A}: 2!"]
    assert dropped == {"not_text": 2, "missing_column": 1}


@pytest.mark.parametrize("template", ["{", "{}", "{a!r}", "{a:>5}", "{{a}}"])
def test_bad_templates_are_refused(tmp_path: Path, template: str) -> None:
    with pytest.raises(UserError, match=r"^corpus\.text "):
        read(corpus(write_lines(tmp_path, jsonl({"a": "x"})), text=template))


def test_ids_from_a_column(tmp_path: Path) -> None:
    rows = [{**GOOD, "id": 7}, {**GOOD, "id": "b"}, {**GOOD, "id": None}, {**GOOD, "id": "\ud800"}, GOOD]
    documents, dropped = read(corpus(write_lines(tmp_path, jsonl(*rows)), id="id"))
    assert [document.id for document in documents] == ["7", "b"]
    assert dropped == {"missing_id": 1, "invalid_utf8": 1, "missing_column": 1}


NOT_FINITE = ("NaN", "Infinity", "-Infinity", "1e999")


@pytest.mark.bad_input
@pytest.mark.parametrize("number", NOT_FINITE)
@pytest.mark.parametrize(
    ("row", "settings", "reason"),
    [
        pytest.param('{"text": "x", "id": NUMBER}', {"id": "id"}, "missing_id", id="id"),
        pytest.param('{"text": NUMBER}', {}, "not_text", id="text"),
        pytest.param('{"n": NUMBER}', {"text": "number {n}"}, "not_text", id="template"),
        pytest.param('{"chat": NUMBER}', {"messages": "chat"}, "not_text", id="conversation"),
        pytest.param('{"chat": [{"role": "user", "content": NUMBER}]}', {"messages": "chat"}, "not_text", id="content"),
        pytest.param(
            '{"chat": [{"role": "assistant", "content": "hi", "tool_calls": [{"arguments": {"x": [NUMBER]}}]}]}',
            {"messages": "chat"},
            "not_finite",
            id="call",
        ),
    ],
)
def test_a_number_that_is_not_finite_is_counted(
    tmp_path: Path, number: str, row: str, settings: dict[str, str], reason: str
) -> None:
    path = write_lines(tmp_path, f"{row.replace('NUMBER', number)}\n".encode())
    assert read(corpus(path, **settings)) == ([], {reason: 1})


@pytest.mark.parametrize("number", NOT_FINITE)
def test_one_that_no_template_reads_costs_no_conversation(tmp_path: Path, number: str) -> None:
    path = write_lines(tmp_path, f'{{"chat": [{{"role": "user", "content": "hi", "score": {number}}}]}}\n'.encode())
    (document,), dropped = read(corpus(path, messages="chat"))
    assert (document.messages, dropped) == ([USER], {})


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("text", "not_text"),
        ([USER, "text"], "not_text"),
        ([{"role": "user"}], "not_text"),
        ([{"role": "user", "content": None}], "not_text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "content_part:image"),
        ([{"role": 1, "content": "x"}], "not_text"),
        ([], "empty"),
        ([{"role": "user", "content": " "}], "empty"),
        ([{"role": "user", "content": "\ud800"}], "invalid_utf8"),
        ([{**USER, "name": "\ud800"}], "invalid_utf8"),
    ],
)
def test_bad_conversations_are_counted(tmp_path: Path, messages: Any, reason: str) -> None:
    config = corpus(write_lines(tmp_path, jsonl({"chat": messages})), messages="chat")
    assert read(config) == ([], {reason: 1})


def test_conversations_keep_other_fields_of_their_messages(tmp_path: Path) -> None:
    messages = [USER, {"role": "assistant", "content": "yes", "name": "bot"}]
    rows = [{"chat": messages}]
    for path in (write_lines(tmp_path, jsonl(*rows)), write_parquet(tmp_path, pa.Table.from_pylist(rows))):
        (document,), dropped = read(corpus(path, messages="chat"))
        assert document.messages == messages
        assert document.text is None
        assert not dropped
