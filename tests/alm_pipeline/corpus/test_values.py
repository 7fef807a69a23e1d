"""The values of rows: each is read on its own, Arrow's additions are taken off, and what JSON lacks costs no row."""

import json
from collections import Counter
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alm_pipeline.config import FilesSource, HubSource
from alm_pipeline.corpus.files.rows import ROWS_BEFORE_A_COLUMN
from alm_pipeline.corpus.sources import open_source
from storage.errors import UserError
from tests.alm_pipeline.corpus.helpers import corpus, corpus_of, jsonl, read, texts

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
ROW = st.dictionaries(st.sampled_from(["text", "id", "a", "ä\n", ""]), JSON, max_size=4)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_rows_of_any_mix_of_types_are_read_as_they_were_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name

    @settings(
        max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(st.lists(ROW, max_size=6), st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n"]))
    def written_and_read(rows: list[dict[str, Any]], ascii: bool, end: str) -> None:
        lines = [json.dumps(row, ensure_ascii=ascii) for row in rows]
        whole = f"[{','.join(lines)}]" if name == "a.json" else end.join(lines)
        path.write_bytes(whole.encode("utf-8", "surrogatepass"))
        dropped: Counter[str] = Counter()
        source = open_source(FilesSource(urls=(str(path),)))
        assert [row for _, row in source.rows((), dropped)] == rows
        assert not dropped

    written_and_read()


def test_the_first_row_is_not_the_schema(tmp_path: Path) -> None:
    rows = [
        {"n": 1},
        {"text": 5},
        {"text": ["list"]},
        {"text": "one", "x": {}},
        {"text": None, "x": 1},
        {"text": "two"},
    ]
    (tmp_path / "a.jsonl").write_bytes(jsonl(*rows))
    documents, dropped = read(corpus(tmp_path / "a.jsonl"))
    assert [document.text for document in documents] == ["one", "two"]
    assert dropped == {"missing_column": 1, "not_text": 3}


@pytest.mark.bad_input
def test_a_column_in_no_row_is_known_before_the_end_of_a_long_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"body": "x"}\n' * ROWS_BEFORE_A_COLUMN + b"garbage")
    dropped: Counter[str] = Counter()
    source = open_source(FilesSource(urls=(str(tmp_path / "a.jsonl"),)))
    with pytest.raises(UserError, match=r"a\.jsonl has no column 'text'; it has 'body'"):
        list(source.rows(("text",), dropped))
    assert not dropped


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    calls = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
    return {"chat": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": calls}]}


CALLS = [
    call("look", {"city": "Bern", "days": [{"n": 1}, {"m": "x"}]}),
    call("add", {"left": 1, "right": {"deep": 2}}),
    call("stop", {}),
]


def test_nulls_that_arrow_filled_in_are_taken_off_at_every_depth(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(CALLS)
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "a.jsonl").write_bytes(jsonl(*CALLS))
    for name in ("a.parquet", "a.arrow", "a.jsonl"):
        documents, dropped = read(corpus(tmp_path / name, messages="chat"))
        assert [document.messages for document in documents] == [row["chat"] for row in CALLS]
        assert not dropped


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_datasets_fills_in_no_nulls_either(tmp_path: Path, ending: str) -> None:
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(CALLS), tmp_path / "train.parquet")
    else:
        (tmp_path / "train.jsonl").write_bytes(jsonl(*CALLS[:2]))
    expected = [row["chat"] for row in (CALLS if ending == "parquet" else CALLS[:2])]
    documents, _ = read(corpus_of(HubSource(name=str(tmp_path)), messages="chat"))
    assert [document.messages for document in documents] == expected


def test_nulls_that_a_row_has_itself_stay(tmp_path: Path) -> None:
    row = call("look", {"city": None, "days": [None, {"n": None}]})
    (tmp_path / "a.jsonl").write_bytes(jsonl(row))
    (document,), _ = read(corpus(tmp_path / "a.jsonl", messages="chat"))
    assert document.messages == row["chat"]


def test_maps_are_objects(tmp_path: Path) -> None:
    kind = pa.list_(pa.struct({"role": pa.string(), "content": pa.string(), "tags": pa.map_(pa.string(), pa.int64())}))
    messages = [{"role": "user", "content": "x", "tags": [("a", 1), ("b", None)]}]
    messages.append({"role": "assistant", "content": "y", "tags": []})
    pq.write_table(pa.table({"chat": pa.array([messages], kind)}), tmp_path / "a.parquet")
    (document,), _ = read(corpus(tmp_path / "a.parquet", messages="chat"))
    assert document.messages is not None
    assert [message["tags"] for message in document.messages] == [{"a": 1, "b": None}, {}]


NOW = datetime(2024, 1, 1, 12, 30, 0, 5)
BESIDE: dict[str, tuple[Any, Any]] = {
    "datetime": (pa.scalar(NOW), "2024-01-01T12:30:00.000005"),
    "nanoseconds": (pa.scalar(NOW, pa.timestamp("ns")).cast(pa.int64()).cast(pa.timestamp("ns")), NOW.isoformat()),
    "time zone": (pa.scalar(NOW.replace(tzinfo=UTC)), "2024-01-01T12:30:00.000005+00:00"),
    "date": (pa.scalar(date(2024, 1, 1)), "2024-01-01"),
    "time": (pa.scalar(time(1, 2)), "01:02:00"),
    "nanoseconds of a day": (pa.scalar(1001, pa.time64("ns")), "00:00:00.000001"),
    "duration": (pa.scalar(timedelta(seconds=90)), "0:01:30"),
    "decimal": (pa.scalar(Decimal("1.50")), "1.50"),
    "bytes": (pa.scalar(b"\xff"), None),
    "NaN": (pa.scalar(float("nan")), None),
    "infinity": (pa.scalar(float("inf")), None),
    "null": (pa.scalar(None, pa.string()), None),
    "list of dates": (pa.scalar([date(2024, 1, 1), None]), ["2024-01-01", None]),
}
"""Values beside a message's content, and what is kept of them: None for nothing."""


@pytest.mark.parametrize("kind", BESIDE)
def test_a_conversation_is_kept_whatever_is_beside_its_contents(tmp_path: Path, kind: str) -> None:
    scalar, kept = BESIDE[kind]
    struct = pa.StructArray.from_arrays(
        [
            pa.array(["user"]),
            pa.array(["Hi"]),
            pa.array([scalar.as_py()], scalar.type)
            if kind not in ("nanoseconds", "nanoseconds of a day")
            else pa.repeat(scalar, 1),
        ],
        names=["role", "content", "beside"],
    )
    pq.write_table(pa.table({"chat": pa.ListArray.from_arrays([0, 1], struct)}), tmp_path / "a.parquet")
    documents, dropped = read(corpus(tmp_path / "a.parquet", messages="chat"))
    expected = {"role": "user", "content": "Hi", **({} if kept is None else {"beside": kept})}
    assert [document.messages for document in documents] == [[expected]]
    assert not dropped


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("column", "reason"),
    [
        pytest.param(pa.array([1, 2]), "not_text", id="integers"),
        pytest.param(pa.array([None, None], pa.string()), "not_text", id="nulls"),
        pytest.param(pa.array([NOW, NOW]), "not_text", id="times"),
        pytest.param(pa.array([["a"], ["b"]]), "not_text", id="lists"),
        pytest.param(pa.array([{"a": "x"}, {"a": "y"}]), "not_text", id="structs"),
        pytest.param(pa.array([2**62, 2**62], pa.timestamp("ms")), "value_out_of_range", id="year over 9999"),
        pytest.param(pa.array([b"\xff", b"\xfe"]), "invalid_utf8", id="bytes"),
        pytest.param(pa.array(["", " "]), "empty", id="blank"),
    ],
)
def test_columns_that_hold_no_text_are_counted(tmp_path: Path, column: pa.Array, reason: str) -> None:
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert read(corpus(tmp_path / "a.parquet")) == ([], {reason: 2})


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view()])
@pytest.mark.parametrize("dictionary", [False, True])
def test_columns_that_hold_text_in_any_way(tmp_path: Path, kind: pa.DataType, dictionary: bool) -> None:
    column = pa.array(["größe", "two"]).cast(pa.binary() if "binary" in str(kind) else pa.string()).cast(kind)
    table = pa.table({"text": column})
    if dictionary and "view" not in str(kind):
        table = pa.table({"text": column.dictionary_encode()})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        assert list(texts(corpus(tmp_path / name)).values()) == ["größe", "two"]


@pytest.mark.bad_input
def test_files_with_other_columns_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"n": ["x"], "text": pa.array(["b"]).dictionary_encode()}), tmp_path / "b.parquet")
    assert list(texts(corpus(tmp_path / "*")).values()) == ["a", "b"]
    pq.write_table(pa.table({"body": ["c"]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match=r"/c\.parquet has no column 'text'; it has 'body'"):
        read(corpus(tmp_path / "*"))


@pytest.mark.bad_input
def test_a_column_twice_in_a_table(tmp_path: Path) -> None:
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet has the column 'text' twice; rename one"):
        read(corpus(tmp_path / "a.parquet"))


@pytest.mark.bad_input
@pytest.mark.parametrize("depth", [150, 900, 5000])
def test_messages_that_are_nested_too_deeply(tmp_path: Path, depth: int) -> None:
    message = '{"role": "user", "content": "x", "more": ' + "[" * depth + "]" * depth + "}"
    (tmp_path / "a.jsonl").write_text('{"chat": [' + message + "]}\n")
    documents, dropped = read(corpus(tmp_path / "a.jsonl", messages="chat"))
    assert documents == []
    assert sum(dropped.values()) == 1
    assert set(dropped) <= {"nested_too_deeply", "invalid_json"}


@pytest.mark.bad_input
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_not_text(tmp_path: Path, number: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"q": "x", "n": ' + number + '}\n{"q": "y", "n": 1.5}\n')
    documents, dropped = read(corpus(tmp_path / "a.jsonl", text="{q} {n}"))
    assert [document.text for document in documents] == ["y 1.5"]
    assert dropped == {"not_text": 1}
