"""Marks of messages: read from any of their keys, in any of their forms; other values drop the row by name."""

from pathlib import Path
from typing import Any

import pytest

from alm_pipeline.corpus.formats.marks import MARKS, learned_role
from tests.alm_pipeline.corpus.formats.test_messages import CHAT, TURNS, documents

KEYS = pytest.mark.parametrize("key", MARKS)


def learned(folder: Path, row: dict[str, Any], **settings: Any) -> list[bool]:
    (document,) = documents(folder, row, **settings)[0]
    assert document.messages
    assert not any(key in message for message in document.messages for key in MARKS[1:])
    return [learned_role(message, "some role") == "some role" for message in document.messages]


@KEYS
@pytest.mark.parametrize(("no", "yes"), [(0, 1), (False, True), (0.0, 1.0), ("0", "1"), ("false", "True")])
def test_a_message_is_learned_as_its_mark_says(tmp_path: Path, key: str, no: Any, yes: Any) -> None:
    messages = [CHAT[0], {**CHAT[1], key: no}, CHAT[0], {**CHAT[1], key: yes}, {**CHAT[0], key: None}]
    expected = [True, False, True, True, True]
    assert learned(tmp_path, {"messages": messages}) == expected
    turns = [TURNS[0], {**TURNS[1], key: no}, TURNS[0], {**TURNS[1], key: yes}, TURNS[0]]
    assert learned(tmp_path, {"conversations": turns}) == expected
    assert learned(tmp_path, {"prompt": messages[:1], "completion": messages[1:]}) == expected


@pytest.mark.bad_input
@KEYS
@pytest.mark.parametrize("value", [0.5, 2, -1, "maybe", [0], ""], ids=str)
def test_any_other_value_drops_the_row(tmp_path: Path, key: str, value: Any) -> None:
    good, bad = ({"messages": [CHAT[0], {**CHAT[1], key: mark}]} for mark in (1, value))
    found, dropped = documents(tmp_path, good, bad)
    assert len(found) == 1
    (reason,) = dropped
    assert reason.startswith(f"unknown_{key}")
    assert str(value) in reason or not str(value).isidentifier()


def test_what_is_no_mark_in_any_row_is_not_read(tmp_path: Path) -> None:
    (document,) = documents(tmp_path, {"messages": [CHAT[0], {**CHAT[1], "weight": 0.5}]})[0]
    assert document.messages
    assert learned_role(document.messages[1], "assistant") == "assistant"


def test_marks_can_be_named_or_left_out(tmp_path: Path) -> None:
    row = {"messages": [CHAT[0], {**CHAT[1], "weight": 0, "learn": 1}, {**CHAT[1], "learn": 0}]}
    assert learned(tmp_path, row) == [True, False, True]
    assert learned(tmp_path, row, marks="learn") == [True, True, False]
    assert learned(tmp_path, row, marks="") == [True, True, True]
