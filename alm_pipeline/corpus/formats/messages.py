"""Conversations from the values of rows: OpenAI's messages, ShareGPT's turns, Alpaca's columns.

A conversation is a list, the same list as JSON text (as CSV holds it), or, as older `datasets` store it, a mapping of
lists. Whatever is in none of the forms raises RowDropped with the reason that the row is counted under.
"""

import json
from typing import Any, Literal

from alm_pipeline.conversations.sections import REASONING_KEYS, joined_text
from alm_pipeline.corpus.files.errors import RowDropped
from alm_pipeline.corpus.files.rows import SourceRow
from alm_pipeline.corpus.formats.marks import MARKS, with_mark
from alm_pipeline.corpus.formats.values import (
    check_unicode,
    is_finite,
    json_value,
    optional_is_empty,
    parsed_json,
)

Messages = list[dict[str, Any]]

SHAREGPT_ROLES: dict[str, Literal["system", "user", "assistant", "tool", "call"]] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "tool_response": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "function_call": "call",
    "tool_call": "call",
}
"""The role of each name that ShareGPT sets use; `call` is an assistant's message that calls tools, as JSON."""

_TEXT_PARTS = ("text", "input_text", "output_text")


def openai_messages(value: Any, mark: str | None = None) -> Messages:
    """Return a conversation of messages with `role` and `content`; roles stay as they are.

    `mark` is the key that says whether a message is learned (see `with_mark`); with None, messages are not marked.
    """
    messages = listed(value)
    if not all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages):
        raise RowDropped("not_text")
    return _checked(_marked([_with_text_content(message) for message in messages], mark))


def sharegpt_messages(value: Any, system: Any = None, mark: str | None = None) -> Messages:
    """Return a conversation of turns with `from` and `value`, or `role` and `content`, in the roles of templates.

    `system` is put in front of a conversation that does not begin with a system message. `mark` is that of
    `openai_messages`.
    """
    messages = _marked([_sharegpt_message(turn) for turn in listed(value)], mark)
    instructions = optional_text(system)
    if instructions.strip() and not (messages and messages[0]["role"] == "system"):
        messages.insert(0, {"role": "system", "content": instructions})
    return _checked(messages)


def alpaca_messages(row: SourceRow) -> Messages:
    """Return the conversation of `instruction`, `input` and `output`, after those of `system` and `history`."""
    query = "\n".join(part for key in ("instruction", "input") if (part := optional_text(row.get(key))).strip())
    answer = optional_text(row["output"])
    if not query or not answer.strip():
        raise RowDropped("empty")
    system = optional_text(row.get("system"))
    turns = [*_history(row.get("history")), (query, answer)]
    messages = [{"role": "system", "content": system}] if system.strip() else []
    for question, reply in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return _checked(messages)


def _marked(messages: Messages, mark: str | None) -> Messages:
    return messages if mark is None else [with_mark(message, mark) for message in messages]


def _history(value: Any) -> list[tuple[str, str]]:
    turns = [] if optional_is_empty(value) else listed(value)
    if not all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn) for turn in turns
    ):
        raise RowDropped("not_text")
    return [(question, reply) for question, reply in turns]


def optional_text(value: Any) -> str:
    """Return the text of a column that a row may lack; null and NaN, which is pandas' null, are empty."""
    if optional_is_empty(value):
        return ""
    if not isinstance(value, str):
        raise RowDropped("not_text")
    return value


def listed(value: Any) -> list[Any]:
    """Return a list that is one, or JSON text, or a mapping of equally long lists. Raises RowDropped for the rest."""
    if isinstance(value, str):
        value = parsed_json(value)
    if isinstance(value, dict) and value and all(isinstance(items, list) for items in value.values()):
        if len({len(items) for items in value.values()}) > 1:
            raise RowDropped("not_text")
        value = [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise RowDropped("not_text")
    return value


def conversation_form(value: Any) -> Literal["messages", "sharegpt"] | None:
    """Return the form that a value's first messages are of; None if it is not a conversation."""
    try:
        messages = [message for message in listed(value) if isinstance(message, dict)]
    except RowDropped:
        return None
    for message in messages:
        if isinstance(message.get("role"), str) and ("content" in message or message.get("tool_calls")):
            return "messages"
        if isinstance(message.get("from"), str) and "value" in message:
            return "sharegpt"
    return None


def _sharegpt_message(turn: Any) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise RowDropped("not_text")
    is_sharegpt = turn.get("from") is not None
    name = turn["from"] if is_sharegpt else turn.get("role")
    if not isinstance(name, str):
        raise RowDropped("not_text")
    role = SHAREGPT_ROLES.get(name.strip().lower())
    if role is None:
        raise RowDropped("unknown_role", name)
    if not is_sharegpt and role != "call":
        return _with_text_content({**turn, "role": role})
    content = turn.get("value" if is_sharegpt else "content")
    marks = {key: turn[key] for key in MARKS if turn.get(key) is not None}
    if role == "call":
        return {"role": "assistant", "content": "", "tool_calls": _tool_calls(content), **marks}
    return {"role": role, "content": _text_content(content), **marks}


def _tool_calls(value: Any) -> list[dict[str, Any]]:
    """Return the calls that a `function_call` turn holds as JSON: one, or a list of them."""
    calls = parsed_json(value) if isinstance(value, str) else value
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list) or not calls or not all(isinstance(call, dict) for call in calls):
        raise RowDropped("not_a_tool_call")
    functions = [call.get("function") if isinstance(call.get("function"), dict) else call for call in calls]
    if not all(isinstance(function.get("name"), str) and "arguments" in function for function in functions):
        raise RowDropped("not_a_tool_call")
    return [{"type": "function", "function": _function(function)} for function in functions]


def _function(function: dict[str, Any]) -> dict[str, Any]:
    arguments = function["arguments"]
    parsed = parsed_json(arguments) if isinstance(arguments, str) else None
    return {"name": function["name"], "arguments": parsed if isinstance(parsed, dict) else arguments}


def _with_text_content(message: dict[str, Any]) -> dict[str, Any]:
    # in a message itself, a null key is one that it does not have
    present = {key: item for key, item in message.items() if item is not None}
    if "content" not in present and not any(present.get(key) for key in ("tool_calls", *REASONING_KEYS)):
        raise RowDropped("not_text")
    return {**present, "content": _text_content(present.get("content", ""))}


def _text_content(content: Any) -> str:
    """Return a content's text; the texts of its parts are joined. Parts of other types are not texts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowDropped("not_text")
    return "".join(map(_part_text, content))


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise RowDropped("not_text")
    kind = part.get("type", "text")
    if isinstance(kind, str) and kind not in _TEXT_PARTS:
        raise RowDropped("content_part", kind)
    text = part.get("text")
    if not isinstance(text, str):
        raise RowDropped("not_text")
    return text


def _checked(messages: Messages) -> Messages:
    """Return the messages as JSON can hold them. Raises RowDropped if it can't, or if no message has text."""
    held: Messages = [json_value(message) for message in messages]
    if not is_finite([message.get("tool_calls") for message in messages]):
        raise RowDropped("not_finite")
    try:
        check_unicode(json.dumps(held, ensure_ascii=False, allow_nan=False))
    except ValueError as error:
        raise RowDropped("not_text") from error
    if not joined_text(held).strip():
        raise RowDropped("empty")
    return held
