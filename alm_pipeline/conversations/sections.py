"""Conversations: lists of messages, their sections, and the text that both sides share.

A message of the assistant has up to three sections: what it thinks, what it answers, and the tools that it calls. Any
other message has one, its content. The shared text of a conversation is that of its sections, in this order; of a call
it is the name, and the keys and values of its arguments. What a chat template writes around and between them, such as
JSON's quotes, is that template's own: a token that covered both would belong to neither.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from alm_pipeline.conversations.json_leaves import Value, json_leaves, with_leaves

Messages = list[dict[str, Any]]
"""A conversation of this room's examples; each message has a `content`."""

Conversation = Sequence[dict[str, Any]]
"""Messages as chat templates expect them: `role`, `content`, and any other fields that a template uses."""

ASSISTANT = "assistant"
REASONING = "reasoning"
TOOL_CALLS = "tool_calls"
"""The roles of sections that are not a message's content; that of a content is its message's role."""

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""The keys of a message under which what the assistant thinks is found; the first that has text counts."""


class Section(NamedTuple):
    """A stretch of the shared text: one kind of content of one message."""

    message: int
    role: str
    text: str


class ToolCall(NamedTuple):
    """A call of a tool. Its shared text is the name, followed by the keys and values of its arguments."""

    name: str
    arguments: str
    """the row's own text, or the mapping as JSON"""
    id: str | None

    @property
    def text(self) -> str:
        """What both sides share; arguments that are not a JSON mapping count as a whole."""
        leaves = json_leaves(self.arguments)
        return self.name + (self.arguments if leaves is None else "".join(leaf.text for leaf in leaves))


def sections(conversation: Conversation) -> list[Section]:
    """Return the sections of all messages, in order. Each message has one for its content, if only an empty one."""
    return [section for index, message in enumerate(conversation) for section in _sections(index, message)]


def first_section(conversation: Conversation, message: int) -> int:
    """Return the number of sections before a message's first one."""
    return len(sections(conversation[:message]))


def _sections(index: int, message: dict[str, Any]) -> list[Section]:
    content = Section(index, message["role"], message.get("content") or "")
    if message["role"] != ASSISTANT:
        return [content]
    reasoning = reasoning_of(message)
    calls = "".join(call.text for call in tool_calls(message))
    before = [Section(index, REASONING, reasoning)] if reasoning else []
    after = [Section(index, TOOL_CALLS, calls)] if calls else []
    return [*before, content, *after]


def reasoning_of(message: Mapping[str, Any]) -> str:
    """Return what the assistant thinks in a message beside its content; empty if nothing."""
    return next((text for key in REASONING_KEYS if isinstance(text := message.get(key), str) and text), "")


def tool_calls(message: Mapping[str, Any]) -> list[ToolCall]:
    """Return the calls of tools in a message."""
    calls = message.get("tool_calls")
    return [_tool_call(call) for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []


def _tool_call(call: dict[str, Any]) -> ToolCall:
    function = called_function(call)
    name, id_ = function.get("name"), call.get("id")
    return ToolCall(
        name if isinstance(name, str) else "", _arguments_text(function), id_ if isinstance(id_, str) else None
    )


def called_function(call: dict[str, Any]) -> dict[str, Any]:
    """Return what holds a call's name and arguments: its `function`, or the call itself."""
    function = call.get("function")
    return function if isinstance(function, dict) else call


def _arguments_text(function: dict[str, Any]) -> str:
    arguments = function.get("arguments")
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def joined_text(conversation: Conversation) -> str:
    """Return the text that both sides share: that of all sections, concatenated."""
    return "".join(section.text for section in sections(conversation))


def text_bytes(conversation: Conversation) -> int:
    """Return the UTF-8 bytes of the shared text."""
    return len(joined_text(conversation).encode())


def with_texts(conversation: Conversation, change: Callable[[str], str]) -> Messages:
    """Return the conversation with the text of each section changed: contents, reasoning, and all strings in calls."""
    return [_with_texts(message, change) for message in conversation]


def _with_texts(message: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    changed: dict[str, Any] = {key: change(message[key]) for key in REASONING_KEYS if isinstance(message.get(key), str)}
    if isinstance(message.get("tool_calls"), list):
        changed["tool_calls"] = [_changed_call(call, change) for call in message["tool_calls"]]
    return {**message, "content": change(message.get("content") or ""), **changed}


def _changed_call(call: Any, change: Callable[[str], str]) -> Any:
    """Return a call with its name and arguments changed; its id stays that of its result."""
    if not isinstance(call, dict):
        return call

    def changed_leaf(value: Value) -> Value:
        return change(value) if isinstance(value, str) else value

    function = called_function(call)
    changed = {key: with_leaves(function[key], changed_leaf) for key in ("name", "arguments") if key in function}
    return {**call, **changed} if function is call else {**call, "function": {**function, **changed}}
