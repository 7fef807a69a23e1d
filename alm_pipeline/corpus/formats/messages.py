"""Conversations from the values of rows: OpenAI's messages, ShareGPT's turns, Alpaca's columns.

A conversation is a list, the same list as JSON text (as CSV holds it), or, as older `datasets` store it, a mapping of
lists. Whatever is in none of the forms raises RowDropped with the reason that the row is counted under.
"""

import json
import math
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

from alm_pipeline.corpus.conversation import joined_text
from alm_pipeline.corpus.files.errors import RowDropped
from alm_pipeline.corpus.files.rows import SourceRow

Messages = list[dict[str, Any]]
_MAX_DEPTH = 100
"""How deep the values of a message may be nested: every later stage reads them with a limited stack."""

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


def openai_messages(value: Any) -> Messages:
    """Return a conversation of messages with `role` and `content`; roles stay as they are."""
    messages = listed(value)
    if not all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages):
        raise RowDropped("not_text")
    return _checked([_with_text_content(message) for message in messages])


def sharegpt_messages(value: Any, system: Any = None) -> Messages:
    """Return a conversation of turns with `from` and `value`, or `role` and `content`, in the roles of templates.

    `system` is put in front of a conversation that does not begin with a system message.
    """
    messages = [_sharegpt_message(turn) for turn in listed(value)]
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


def optional_is_empty(value: Any) -> bool:
    """Return whether a row has nothing in a column that it may lack."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def listed(value: Any) -> list[Any]:
    """Return a list that is one, or JSON text, or a mapping of equally long lists. Raises RowDropped for the rest."""
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, dict) and value and all(isinstance(items, list) for items in value.values()):
        if len({len(items) for items in value.values()}) > 1:
            raise RowDropped("not_text")
        value = [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise RowDropped("not_text")
    return value


def _parsed(text: str) -> Any:
    try:
        return json.loads(text) if text.lstrip()[:1] in ("[", "{") else None
    except RecursionError as error:
        raise RowDropped("nested_too_deeply") from error
    except ValueError:
        return None


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
    if role == "call":
        return {"role": "assistant", "content": "", "tool_calls": _tool_calls(content)}
    return {"role": role, "content": _text_content(content)}


def _tool_calls(value: Any) -> list[dict[str, Any]]:
    """Return the calls that a `function_call` turn holds as JSON: one, or a list of them."""
    calls = _parsed(value) if isinstance(value, str) else value
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list) or not calls or not all(isinstance(call, dict) for call in calls):
        raise RowDropped("not_a_tool_call")
    functions = [call.get("function") if isinstance(call.get("function"), dict) else call for call in calls]
    if not all(isinstance(function.get("name"), str) and "arguments" in function for function in functions):
        raise RowDropped("not_a_tool_call")
    return [{"type": "function", "function": _function(function)} for function in functions]


def _function(function: dict[str, Any]) -> dict[str, Any]:
    arguments = function["arguments"]
    parsed = _parsed(arguments) if isinstance(arguments, str) else None
    return {"name": function["name"], "arguments": parsed if isinstance(parsed, dict) else arguments}


def _with_text_content(message: dict[str, Any]) -> dict[str, Any]:
    # in a message itself, a null key is one that it does not have
    present = {key: item for key, item in message.items() if item is not None}
    if "content" not in present and not present.get("tool_calls"):
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
    held: Messages = [_json_value(message) for message in messages]
    if not _is_finite([message.get("tool_calls") for message in messages]):
        raise RowDropped("not_finite")
    try:
        check_unicode(json.dumps(held, ensure_ascii=False, allow_nan=False))
    except ValueError as error:
        raise RowDropped("not_text") from error
    if not joined_text(held).strip():
        raise RowDropped("empty")
    return held


def _json_value(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON can hold it, without the keys of what it can't; None if it can't hold the value."""
    if depth > _MAX_DEPTH:
        raise RowDropped("nested_too_deeply")
    match value:
        case None | str() | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case date() | time():
            return value.isoformat()
        case Decimal() | timedelta() | UUID():
            return str(value)
        case dict():
            held = {str(key): _json_value(item, depth + 1) for key, item in value.items()}
            return {key: item for key, item in held.items() if item is not None or value.get(key) is None}
        case list():
            return [_json_value(item, depth + 1) for item in value]
    return None


def _is_finite(value: Any) -> bool:
    """Return whether a value holds no NaN or infinite number at any depth."""
    if isinstance(value, dict | list):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float | Decimal) or math.isfinite(value)


def check_unicode(text: str) -> None:
    """Raise RowDropped for a text that UTF-8 can't hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowDropped("invalid_utf8") from error
