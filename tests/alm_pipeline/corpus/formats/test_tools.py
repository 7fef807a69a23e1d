"""What rows bring for the chat template: in every form that sets have, from every kind of file, or a reason."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alm_pipeline.config import CorpusConfig
from alm_pipeline.corpus.documents import Document
from alm_pipeline.corpus.stage import corpus_identity
from storage.errors import UserError
from tests.alm_pipeline.corpus.formats.test_messages import CHAT, GOOD, TURNS, documents
from tests.alm_pipeline.corpus.helpers import corpus, read

LOOK: dict[str, Any] = {"name": "look", "description": "the weather", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": LOOK}
ADD = {"type": "function", "function": {"name": "add"}}


def arguments(folder: Path, *rows: dict[str, Any], **settings: Any) -> list[Any]:
    found, dropped = documents(folder, *rows, **settings)
    assert not dropped
    return [document.arguments for document in found]


@pytest.mark.parametrize(
    "value",
    [
        [TOOL],
        [LOOK],
        LOOK,
        [json.dumps(LOOK)],
        json.dumps([TOOL]),
        json.dumps(LOOK),
        [TOOL, None],
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_tools_of_every_form_are_functions(tmp_path: Path, value: Any) -> None:
    assert arguments(tmp_path, {"messages": CHAT, "tools": value}) == [{"tools": [TOOL]}]


@pytest.mark.parametrize("value", [None, "", [], "[]", "null", float("nan"), {}], ids=repr)
def test_no_tools_are_none(tmp_path: Path, value: Any) -> None:
    rows = [{"messages": CHAT, "tools": value}, {"messages": CHAT, "tools": [TOOL]}]
    assert arguments(tmp_path, *rows) == [None, {"tools": [TOOL]}]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("look", "not_tools"),
        (["look"], "not_tools"),
        ([5], "not_tools"),
        ([{}], "not_tools"),
        ([{"name": ""}], "not_tools"),
        ([{"type": "web_search"}], "not_tools"),
        ([{"type": "function", "function": "look"}], "not_tools"),
        (5, "not_tools"),
        ("[{", "not_tools"),
        ("[NaN]", "not_finite"),
        ([{"name": "look", "parameters": {"maximum": float("inf")}}], "not_finite"),
        ('[{"name": "\\ud800"}]', "invalid_utf8"),
        (json.loads("[" * 120 + "]" * 120), "nested_too_deeply"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_other_values_drop_their_row_with_a_reason(tmp_path: Path, value: Any, reason: str) -> None:
    rows = [{"messages": CHAT, "tools": [TOOL]}, {"messages": CHAT, "tools": value}]
    found, dropped = documents(tmp_path, *rows)
    assert (len(found), dropped) == (1, {reason: 1})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"enable_thinking": False}, {"enable_thinking": False}),
        ('{"enable_thinking": false}', {"enable_thinking": False}),
        ({"enable_thinking": False, "day": None}, {"enable_thinking": False}),
        ({"python_tools": ["def f(): …"]}, {"python_tools": ["def f(): …"]}),
        ({"tools": [LOOK]}, {"tools": [TOOL]}),
        ({"documents": [{"title": "t"}]}, {"documents": [{"title": "t"}]}),
        ({"tools": [], "documents": []}, None),
        (None, None),
        ({}, None),
        ("", None),
    ],
    ids=str,
)
def test_template_arguments_are_a_mapping(tmp_path: Path, value: Any, expected: Any) -> None:
    rows = [{"messages": CHAT, "chat_template_kwargs": {"x": 1}}, {"messages": CHAT, "chat_template_kwargs": value}]
    assert arguments(tmp_path, *rows) == [{"x": 1}, expected]


def test_the_column_of_tools_comes_before_those_among_the_arguments(tmp_path: Path) -> None:
    row = {"messages": CHAT, "tools": [LOOK], "chat_template_kwargs": {"tools": [ADD], "x": 1}}
    assert arguments(tmp_path, row) == [{"tools": [TOOL], "x": 1}]
    assert arguments(tmp_path, {**row, "tools": []}) == [{"tools": [ADD], "x": 1}]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("thinking", "not_template_arguments"),
        (["x"], "not_template_arguments"),
        (5, "not_template_arguments"),
        ({"messages": []}, "template_argument:messages"),
        ({"add_generation_prompt": True}, "template_argument:add_generation_prompt"),
        ({"max_length": 5}, "template_argument:max_length"),
        ({"two words": 5}, "template_argument"),
        ({"documents": ["text"]}, "template_argument:documents"),
        ({"tools": ["look"]}, "not_tools"),
        ('{"x": Infinity}', "not_finite"),
    ],
    ids=str,
)
def test_other_arguments_drop_their_row_with_a_reason(tmp_path: Path, value: Any, reason: str) -> None:
    rows = [{"messages": CHAT, "chat_template_kwargs": {"x": 1}}, {"messages": CHAT, "chat_template_kwargs": value}]
    found, dropped = documents(tmp_path, *rows)
    assert (len(found), dropped) == (1, {reason: 1})


ROWS: dict[str, dict[str, Any]] = {
    "messages": GOOD["messages"],
    "sharegpt": GOOD["sharegpt"],
    "alpaca": GOOD["alpaca"],
    "prompt_completion": {"prompt": CHAT[:1], "completion": CHAT[1:]},
}


@pytest.mark.parametrize("layout", ROWS)
def test_conversations_of_every_layout_have_them(tmp_path: Path, layout: str) -> None:
    row = {**ROWS[layout], "tools": [LOOK], "functions": [ADD], "options": {"x": 1}}
    assert arguments(tmp_path, row) == [{"tools": [TOOL]}]
    named = {"tools": "functions", "template_arguments": "options"}
    assert arguments(tmp_path, row, **named) == [{"tools": [ADD], "x": 1}]
    assert arguments(tmp_path, row, tools="") == [None]


def test_texts_have_none(tmp_path: Path) -> None:
    (document,) = documents(tmp_path, {**GOOD["text"], "tools": [LOOK]})[0]
    assert document.arguments is None


def parquet(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> list[Document]:
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    found, dropped = read(corpus(folder / "a.parquet", **settings))
    assert not dropped
    return found


def called(name: str, arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def chat(call: dict[str, Any]) -> list[dict[str, Any]]:
    return [CHAT[0], {"role": "assistant", "content": "", "tool_calls": [call]}]


CALLS = [called("look", {"city": "Bern", "at": {"day": "Monday"}}), called("add", {"left": 1, "at": {"hour": 2}})]
TOOLS = [
    {"name": "look", "parameters": {"properties": {"city": {"type": "string"}}}},
    {"name": "add", "parameters": {"properties": {"left": {"type": "number", "minimum": 0}}}},
]


def test_nulls_that_a_table_fills_in_are_taken_off_at_every_depth(tmp_path: Path) -> None:
    rows = [{"messages": chat(call), "tools": [tool]} for call, tool in zip(CALLS, TOOLS, strict=True)]
    table = parquet(tmp_path, rows)
    assert pa.Table.from_pylist(rows).to_pylist()[0]["tools"][0]["parameters"]["properties"]["left"] is None
    assert [document.messages and document.messages[1]["tool_calls"] for document in table] == [[c] for c in CALLS]
    assert [document.arguments and document.arguments["tools"][0]["function"] for document in table] == TOOLS


def test_a_null_in_json_is_the_rows_own(tmp_path: Path) -> None:
    text = '{"city": null}'
    (document,) = parquet(tmp_path, [{"messages": chat(called("look", text)), "tools": json.dumps([ADD])}])
    assert document.messages
    assert document.messages[1]["tool_calls"][0]["function"]["arguments"] == text
    call = called("look", {"city": None, "at": [None]})
    for value in (json.dumps(chat(call)), chat(call)):
        (document,) = documents(tmp_path, {"messages": value})[0]
        assert document.messages
        assert document.messages[1]["tool_calls"] == [call]
    turns = [*TURNS[:1], {"from": "function_call", "value": json.dumps({"name": "look", "arguments": {"city": None}})}]
    (document,) = documents(tmp_path, {"conversations": turns})[0]
    assert document.messages
    assert document.messages[1]["tool_calls"] == [called("look", {"city": None})]
    with_default = [{"name": "look", "parameters": {"default": None}}]
    for value in (json.dumps(with_default), with_default):
        row = {"messages": CHAT, "tools": value}
        assert arguments(tmp_path, row) == [{"tools": [{"type": "function", "function": with_default[0]}]}]


def test_a_message_with_reasoning_alone_is_one(tmp_path: Path) -> None:
    message = {"role": "assistant", "content": None, "reasoning_content": "Well."}
    (document,) = documents(tmp_path, {"messages": [CHAT[0], message]})[0]
    assert document.messages
    assert document.messages[1] == {**message, "content": ""}


def identity(config: CorpusConfig, folder: Path) -> Any:
    return corpus_identity(config, str(folder / "store"))["config"]


def test_they_are_part_of_the_identity_only_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": CHAT, "tools": []}))
    assert {"tools", "template_arguments", "marks"} & identity(corpus(path), tmp_path).keys() == set()
    assert identity(corpus(path, tools="tools"), tmp_path)["tools"] == "tools"
    path.write_text(json.dumps({"messages": CHAT, "tools": [LOOK], "chat_template_kwargs": {"x": 1}}))
    found = identity(corpus(path), tmp_path)
    assert (found["tools"], found["template_arguments"]) == ("tools", "chat_template_kwargs")
    assert found == identity(corpus(path, tools="tools", template_arguments="chat_template_kwargs"), tmp_path)
    assert identity(corpus(path, tools=""), tmp_path)["tools"] == ""


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("late", "setting"),
    [
        ({"messages": CHAT, "tools": [LOOK]}, "tools"),
        ({"messages": CHAT, "chat_template_kwargs": {"x": 1}}, "template_arguments"),
        ({"messages": [CHAT[0], {**CHAT[1], "weight": 0}]}, "marks"),
    ],
)
def test_what_only_later_rows_have_is_not_left_out_silently(tmp_path: Path, late: Any, setting: str) -> None:
    rows = [*[GOOD["messages"]] * 150, late]
    with pytest.raises(UserError, match=f"a.jsonl:150 of the corpus has .* set corpus.{setting} to "):
        documents(tmp_path, *rows)
    assert len(documents(tmp_path, *rows, **{setting: ""})[0]) == 151


@pytest.mark.bad_input
def test_a_named_column_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no column 'functions'"):
        documents(tmp_path, GOOD["messages"], tools="functions")
    with pytest.raises(UserError, match=r"corpus\.tools: only conversations have it, and corpus test is read as texts"):
        documents(tmp_path, GOOD["text"], tools="functions")
    with pytest.raises(ValueError, match="layout: text reads no conversations; leave out tools"):
        documents(tmp_path, GOOD["text"], layout="text", tools="functions")
