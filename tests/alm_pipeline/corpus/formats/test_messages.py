"""Rows of every layout to conversations and texts, and each kind of damage to its reason."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alm_pipeline.corpus.documents import Document
from alm_pipeline.corpus.formats.messages import SHAREGPT_ROLES
from tests.alm_pipeline.corpus.helpers import corpus, jsonl, read

USER, ANSWER = {"role": "user", "content": "How much?"}, {"role": "assistant", "content": "2."}
CHAT = [USER, ANSWER]
TURNS = [{"from": "human", "value": "How much?"}, {"from": "gpt", "value": "2."}]
GOOD: dict[str, dict[str, Any]] = {
    "text": {"text": "good"},
    "messages": {"messages": CHAT},
    "sharegpt": {"conversations": TURNS},
    "alpaca": {"instruction": "How much?", "input": "", "output": "2."},
    "prompt_completion": {"prompt": "How much?", "completion": " 2."},
}
"""For each layout, a row of it."""


def documents(folder: Path, *rows: dict[str, Any], **settings: Any) -> tuple[list[Document], dict[str, int]]:
    path = folder / "a.jsonl"
    path.write_bytes(jsonl(*rows))
    return read(corpus(path, **settings))


def messages(folder: Path, row: dict[str, Any], **settings: Any) -> Any:
    found, dropped = documents(folder, row, **settings)
    assert not dropped
    return found[0].messages


def image(**more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}, **more}]}, ANSWER]


DEEP = "[" * 200 + "]" * 200
DAMAGES: list[tuple[str, dict[str, Any], str]] = [
    *[(layout, {}, "missing_column") for layout in GOOD],
    ("text", {"text": None}, "not_text"),
    ("text", {"text": 5}, "not_text"),
    ("text", {"text": []}, "not_text"),
    ("text", {"text": " "}, "empty"),
    # messages
    *[("messages", {"messages": value}, "not_text") for value in (None, 5, "x", {}, {"role": "user"}, [None], ["x"])],
    ("messages", {"messages": []}, "empty"),
    ("messages", {"messages": [{"role": "user", "content": "\n"}]}, "empty"),
    ("messages", {"messages": [{"role": "user"}]}, "not_text"),
    ("messages", {"messages": [{"role": "user", "content": 5}]}, "not_text"),
    ("messages", {"messages": [{"role": 5, "content": "x"}]}, "not_text"),
    ("messages", {"messages": [{"content": "x"}]}, "not_text"),
    ("messages", {"messages": TURNS}, "not_text"),
    ("messages", {"messages": [CHAT]}, "not_text"),
    ("messages", {"messages": "[{"}, "not_text"),
    ("messages", {"messages": '[{"role": "user"'}, "not_text"),
    ("messages", {"messages": {"role": ["user"], "content": ["x", "y"]}}, "not_text"),
    ("messages", {"messages": image()}, "content_part:image_url"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "content_part:input_audio"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "a b"}]}]}, "content_part"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "not_text"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "not_text"),
    ("messages", {"messages": [{"role": "user", "content": [[]]}]}, "not_text"),
    ("messages", {"messages": [{"role": "user", "content": "x", "more": json.loads(DEEP)}]}, "nested_too_deeply"),
    # ShareGPT
    *[("sharegpt", {"conversations": value}, "not_text") for value in (None, 5, "x", {}, [None], [TURNS])],
    ("sharegpt", {"conversations": []}, "empty"),
    ("sharegpt", {"conversations": [{"from": "human", "value": ""}]}, "empty"),
    ("sharegpt", {"conversations": [{"from": "human"}]}, "not_text"),
    ("sharegpt", {"conversations": [{"from": "human", "value": None}]}, "not_text"),
    ("sharegpt", {"conversations": [{"from": "human", "value": 5}]}, "not_text"),
    ("sharegpt", {"conversations": [{"from": 5, "value": "x"}]}, "not_text"),
    ("sharegpt", {"conversations": [{"value": "x"}]}, "not_text"),
    ("sharegpt", {"conversations": [{"from": "moderator", "value": "x"}]}, "unknown_role:moderator"),
    ("sharegpt", {"conversations": [{"role": "critic", "content": "x"}]}, "unknown_role:critic"),
    ("sharegpt", {"conversations": [{"from": "an unusual role", "value": "x"}]}, "unknown_role"),
    ("sharegpt", {"conversations": [*TURNS, {"from": "function_call", "value": "now"}]}, "not_a_tool_call"),
    ("sharegpt", {"conversations": [*TURNS, {"from": "function_call", "value": '{"name": 1}'}]}, "not_a_tool_call"),
    ("sharegpt", {"conversations": [*TURNS, {"from": "function_call", "value": "[]"}]}, "not_a_tool_call"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "\ud800"}]}, "invalid_utf8"),
    ("sharegpt", {"conversations": TURNS, "system": 5}, "not_text"),
    # Alpaca
    ("alpaca", {"instruction": "x"}, "missing_column"),
    ("alpaca", {"output": "x"}, "missing_column"),
    ("alpaca", {"instruction": None, "output": "x"}, "empty"),
    ("alpaca", {"instruction": "x", "output": None}, "empty"),
    ("alpaca", {"instruction": "x", "output": " "}, "empty"),
    ("alpaca", {"instruction": 5, "output": "x"}, "not_text"),
    ("alpaca", {"instruction": "x", "output": 5}, "not_text"),
    ("alpaca", {"instruction": "x", "output": "y", "input": []}, "not_text"),
    ("alpaca", {"instruction": "x", "output": "y", "system": 5}, "not_text"),
    ("alpaca", {"instruction": "x", "output": "y", "history": 5}, "not_text"),
    ("alpaca", {"instruction": "x", "output": "y", "history": [["only a question"]]}, "not_text"),
    ("alpaca", {"instruction": "x", "output": "y", "history": [["question", None]]}, "not_text"),
    ("alpaca", {"instruction": "\ud800", "output": "y"}, "invalid_utf8"),
    # prompts with completions
    ("prompt_completion", {"prompt": "x"}, "missing_column"),
    ("prompt_completion", {"completion": "x"}, "missing_column"),
    ("prompt_completion", {"prompt": None, "completion": "x"}, "not_text"),
    ("prompt_completion", {"prompt": "x", "completion": None}, "not_text"),
    ("prompt_completion", {"prompt": "x", "completion": 5}, "not_text"),
    ("prompt_completion", {"prompt": "x", "completion": ""}, "empty"),
    ("prompt_completion", {"prompt": "x", "completion": [ANSWER]}, "not_text"),
    ("prompt_completion", {"prompt": [USER], "completion": "x"}, "not_text"),
    ("prompt_completion", {"prompt": [USER], "completion": []}, "empty"),
    ("prompt_completion", {"prompt": [USER], "completion": [ANSWER]}, "another_kind_of_prompt"),
    ("prompt_completion", {"prompt": "\ud800", "completion": "x"}, "invalid_utf8"),
]


@pytest.mark.bad_input
@pytest.mark.parametrize(("layout", "row", "reason"), DAMAGES)
def test_a_damaged_row_is_counted_by_reason(tmp_path: Path, layout: str, row: dict[str, Any], reason: str) -> None:
    found, dropped = documents(tmp_path, GOOD[layout], row, GOOD[layout], layout=layout)
    assert [document.id for document in found] == ["a.jsonl:0", "a.jsonl:2"]
    assert dropped == {reason: 1}


def test_every_layout_has_each_kind_of_damage() -> None:
    kinds = {"missing_column", "not_text", "empty"}
    assert {layout for layout, _, _ in DAMAGES} == set(GOOD)
    for layout in GOOD:
        assert kinds <= {reason for damaged, _, reason in DAMAGES if damaged == layout}, layout


@pytest.mark.bad_input
def test_any_number_of_unknown_roles_is_a_few_reasons(tmp_path: Path) -> None:
    rows = [{"conversations": [{"from": f"user{k}", "value": "x"}]} for k in range(50)]
    _, dropped = documents(tmp_path, *rows, layout="sharegpt")
    assert dropped == {**{f"unknown_role:user{k}": 1 for k in range(20)}, "unknown_role": 30}


@pytest.mark.parametrize("name", SHAREGPT_ROLES)
def test_names_of_sharegpt_become_roles(tmp_path: Path, name: str) -> None:
    call = {"name": "add", "arguments": {"left": 1}}
    turn = {"from": name.title(), "value": json.dumps(call) if SHAREGPT_ROLES[name] == "call" else "1"}
    last = messages(tmp_path, {"conversations": [*TURNS, turn]})[-1]
    if SHAREGPT_ROLES[name] == "call":
        calls = [{"type": "function", "function": call}]
        assert last == {"role": "assistant", "content": "", "tool_calls": calls}
    else:
        assert last == {"role": SHAREGPT_ROLES[name], "content": "1"}


def test_sharegpt_of_several_calls_a_system_column_and_mixed_turns(tmp_path: Path) -> None:
    calls = [{"name": "add", "arguments": '{"left": 1}'}, {"function": {"name": "now", "arguments": "today"}}]
    turns = [TURNS[0], {"from": "function_call", "value": json.dumps(calls)}, {**ANSWER, "role": "gpt"}]
    assert messages(tmp_path, {"conversations": turns, "system": "Be brief."}) == [
        {"role": "system", "content": "Be brief."},
        USER,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "add", "arguments": {"left": 1}}},
                {"type": "function", "function": {"name": "now", "arguments": "today"}},
            ],
        },
        ANSWER,
    ]
    own = [{"from": "system", "value": "Be long."}, *TURNS]
    assert messages(tmp_path, {"conversations": own, "system": "Be brief."})[0]["content"] == "Be long."


def test_the_text_parts_of_a_content_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "How "}, "much", {"type": "input_text", "text": "?"}, {"text": ""}]
    assert messages(tmp_path, {"messages": [{"role": "user", "content": parts}, ANSWER]}) == CHAT
    assert messages(tmp_path, {"conversations": [{"from": "human", "value": parts}, TURNS[1]]}) == CHAT


@pytest.mark.parametrize(
    ("row", "conversation"),
    [
        ({"instruction": "How much?", "output": "2."}, CHAT),
        ({"instruction": "How much?", "input": None, "output": "2.", "system": None, "history": None}, CHAT),
        ({"instruction": "How much?", "input": float("nan"), "output": "2."}, CHAT),
        ({"instruction": "", "input": "How much?", "output": "2."}, CHAT),
        ({"instruction": "Add.", "input": "1+1", "output": "2."}, [{"role": "user", "content": "Add.\n1+1"}, ANSWER]),
        (
            {"instruction": "How much?", "output": "2.", "system": "Be brief.", "history": [["Hi", "Ho"]]},
            [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Ho"},
                *CHAT,
            ],
        ),
    ],
)
def test_alpaca_rows_are_conversations(tmp_path: Path, row: dict[str, Any], conversation: list[Any]) -> None:
    assert messages(tmp_path, row) == conversation


@pytest.mark.parametrize(
    ("prompt", "completion", "text", "chat", "completion_at"),
    [
        ("Größe?", " 2.", "Größe? 2.", None, 8),
        ("", "2.", "2.", None, 0),
        ([USER], [ANSWER], None, CHAT, 1),
        ([USER], ANSWER, None, CHAT, 1),
        ([USER, ANSWER, USER], [ANSWER], None, [*CHAT, *CHAT], 3),
        ([], [ANSWER], None, [ANSWER], 0),
    ],
)
def test_a_completion_begins_after_its_prompt(
    tmp_path: Path, prompt: Any, completion: Any, text: str | None, chat: Any, completion_at: int
) -> None:
    (document,), dropped = documents(tmp_path, {"prompt": prompt, "completion": completion})
    assert (document.text, document.messages, document.completion_at) == (text, chat, completion_at)
    assert not dropped


def write_csv(rows: list[dict[str, Any]], path: Path) -> Path:
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, fieldnames=list(rows[0]))
    writer.writeheader()
    for row in rows:
        held = {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}
        writer.writerow(held)
    path.write_text(sink.getvalue(), newline="")
    return path


def write_parquet(rows: list[dict[str, Any]], path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_jsonl(rows: list[dict[str, Any]], path: Path) -> Path:
    path.write_bytes(jsonl(*rows))
    return path


WRITE: dict[str, Callable[[list[dict[str, Any]], Path], Path]] = {
    "csv": write_csv,
    "parquet": write_parquet,
    "jsonl": write_jsonl,
}


@pytest.mark.parametrize("carrier", WRITE)
@pytest.mark.parametrize("layout", GOOD)
def test_each_layout_is_the_same_in_each_carrier(tmp_path: Path, layout: str, carrier: str) -> None:
    rows = [GOOD[layout]] * 3
    expected, _ = documents(tmp_path, *rows)
    found, dropped = read(corpus(WRITE[carrier](rows, tmp_path / f"b.{carrier}")))
    assert not dropped
    assert [(d.text, d.messages, d.completion_at) for d in found] == [
        (d.text, d.messages, d.completion_at) for d in expected
    ]


@pytest.mark.bad_input
@pytest.mark.parametrize("carrier", WRITE)
@pytest.mark.parametrize("layout", GOOD)
def test_an_empty_value_is_counted_in_each_carrier(tmp_path: Path, layout: str, carrier: str) -> None:
    last = list(GOOD[layout])[-1]
    empty = {**GOOD[layout], last: [] if isinstance(GOOD[layout][last], list) else ""}
    found, dropped = read(corpus(WRITE[carrier]([GOOD[layout], empty], tmp_path / f"b.{carrier}")))
    assert len(found) == 1
    assert dropped == {"empty": 1}


def test_older_datasets_hold_conversations_as_mappings_of_lists(tmp_path: Path) -> None:
    row = {"conversations": {"from": ["human", "gpt"], "value": ["How much?", "2."]}}
    assert messages(tmp_path, row) == CHAT
    path = write_parquet([row], tmp_path / "b.parquet")
    assert read(corpus(path))[0][0].messages == CHAT
