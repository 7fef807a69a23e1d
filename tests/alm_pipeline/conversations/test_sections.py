"""The sections of messages, and the text that both sides share."""

from typing import Any

import pytest

from alm_pipeline.conversations.sections import first_section, joined_text, sections, with_texts


def call(arguments: Any, **more: Any) -> dict[str, Any]:
    return {**more, "type": "function", "function": {"name": "Look", "arguments": arguments}}


CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": "So.",
        "thinking": "Hm.",
        "tool_calls": [call({"At": "É"}, id="Id"), call('{"a":1}')],
    },
    {"role": "tool", "content": None, "tool_call_id": "Id"},
    {"role": "assistant", "content": "It rains."},
]


def test_an_assistants_message_has_up_to_three_sections() -> None:
    assert [tuple(section) for section in sections(CHAT)] == [
        (0, "user", "Weather?"),
        (1, "reasoning", "Hm."),
        (1, "assistant", "So."),
        (1, "tool_calls", "LookAtÉLooka1"),
        (2, "tool", ""),
        (3, "assistant", "It rains."),
    ]
    assert [first_section(CHAT, message) for message in range(5)] == [0, 1, 4, 5, 6]
    assert joined_text(CHAT) == "Weather?Hm.So.LookAtÉLooka1It rains."


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ({"reasoning_content": "a", "thinking": "b"}, [("reasoning", "a"), ("assistant", "")]),
        ({"reasoning_content": "", "reasoning": None, "thinking": "b"}, [("reasoning", "b"), ("assistant", "")]),
        ({"tool_calls": [{"name": "go"}]}, [("assistant", ""), ("tool_calls", "go")]),
        ({"tool_calls": [{"name": "go", "arguments": [1]}, None]}, [("assistant", ""), ("tool_calls", "go[1]")]),
        ({"tool_calls": [call("no JSON"), call({})]}, [("assistant", ""), ("tool_calls", "Lookno JSONLook")]),
        ({"tool_calls": [], "thinking": 3}, [("assistant", "")]),
        ({"tool_calls": None}, [("assistant", "")]),
        ({"tool_calls": [{"function": {"name": 3}}]}, [("assistant", "")]),
    ],
)
def test_what_is_no_thought_or_call_is_no_section(message: dict[str, Any], found: list[tuple[str, str]]) -> None:
    assert [section[1:] for section in sections([{"role": "assistant", **message}])] == found


def test_only_an_assistant_thinks_and_calls() -> None:
    message = {"role": "user", "content": "Hi", "thinking": "Hm.", "tool_calls": [call({})]}
    assert [tuple(section) for section in sections([message])] == [(0, "user", "Hi")]


def test_texts_are_changed_and_ids_are_not() -> None:
    changed = with_texts(CHAT, str.lower)
    assert joined_text(changed) == joined_text(CHAT).lower()
    assert changed[1]["tool_calls"][0]["id"] == changed[2]["tool_call_id"] == "Id"
    assert CHAT[0]["content"] == "Weather?"
