"""The form of a conversation that a chat template takes: which key holds reasoning, and how calls of tools are written.

One template takes the arguments of a call as a mapping and writes them as JSON or XML; another takes JSON text. Given
the other form it refuses, or writes quotes within quotes. So each template is tried with a call of placeholders.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, NamedTuple

from alm_pipeline.conversations.json_leaves import parsed_mapping
from alm_pipeline.conversations.sections import (
    ASSISTANT,
    REASONING_KEYS,
    TOOL_CALLS,
    Conversation,
    Messages,
    called_function,
    reasoning_of,
)

Render = Callable[[Messages], str | None]
"""Renders messages; None if the template refuses them."""

_KEY, _VALUE = "\ue000", "\ue001"
_KEYS_OF_TEMPLATES = (*REASONING_KEYS, "tool_plan")
_SHORT = re.compile(r"[A-Za-z0-9]{9}")


@dataclass(frozen=True)
class TemplateForm:
    """What a template takes."""

    arguments: Literal["mapping", "text"] | None = None
    """of calls; None if it takes both, or shows none"""
    needs_ids: bool = False
    """whether it refuses a call without an id"""
    short_ids: bool = False
    """whether it refuses an id that is not nine letters and digits"""
    reasoning: str | None = None
    """the key that it reads; None if it reads none"""
    parts: bool = False
    """whether it takes contents only as lists of parts"""

    def content(self, text: str) -> Any:
        """Return a content's text as the template takes it."""
        return [{"type": "text", "text": text}] if self.parts else text

    def messages(self, conversation: Conversation) -> Messages:
        """Return a conversation's messages in this form. Nothing else of them changes, except that null is empty."""
        ids = _Ids(self.needs_ids, self.short_ids)
        return [self._message(message, ids) for message in conversation]

    def _message(self, message: dict[str, Any], ids: "_Ids") -> dict[str, Any]:
        message = {**message, "content": self.content(message.get("content") or "")}
        if message["role"] == ASSISTANT:
            message |= self._reasoning(message)
        if isinstance(message.get("tool_calls"), list):
            message["tool_calls"] = [self._call(call, ids) for call in message["tool_calls"] if isinstance(call, dict)]
        answered = ids.answered(message.get("tool_call_id")) if message["role"] == "tool" else None
        return message if answered is None else {**message, "tool_call_id": answered}

    def _reasoning(self, message: dict[str, Any]) -> dict[str, Any]:
        text = reasoning_of(message)
        if not text or self.reasoning is None:
            return {}
        for key in REASONING_KEYS:
            message.pop(key, None)
        return {self.reasoning: text}

    def _call(self, call: dict[str, Any], ids: "_Ids") -> dict[str, Any]:
        function = dict(called_function(call))
        given = function.get("arguments")
        if self.arguments == "mapping" and isinstance(given, str):
            mapping = parsed_mapping(given)
            function["arguments"] = given if mapping is None else mapping
        elif self.arguments == "text" and given is not None and not isinstance(given, str):
            function["arguments"] = json.dumps(given, ensure_ascii=False)
        id_ = ids.called(call.get("id"))
        written = {**call, "function": function} if isinstance(call.get("function"), dict) else function
        return written if id_ is None else {**written, "id": id_}


class _Ids:
    """The ids of one conversation's calls: its own, or where the template wants others, numbers of nine digits."""

    def __init__(self, needed: bool, short: bool) -> None:
        self._needed, self._short = needed, short
        self._numbers: Iterator[int] = count(1)
        self._changed: dict[str, str] = {}
        self._open: list[str] = []

    def called(self, id_: Any) -> Any:
        wanted = self._needed if id_ is None else self._short and not _SHORT.fullmatch(str(id_))
        new = f"{next(self._numbers):09d}" if wanted else id_
        if wanted and id_ is not None:
            self._changed[str(id_)] = new
        elif wanted:
            self._open.append(new)
        return new

    def answered(self, id_: Any) -> Any:
        """Return the id of the call that a tool's result answers; None for the one that it names."""
        if id_ is None:
            return self._open.pop(0) if self._open else None
        return self._changed.get(str(id_))


def find_form(render: Render, source: str) -> TemplateForm:
    """Find the form that a template takes, by trying it."""
    reasoning = next((key for key in _KEYS_OF_TEMPLATES if re.search(rf"""[.'"]{key}\b""", source)), None)
    parts = not _shows(render, _VALUE) and _shows(render, [{"type": "text", "text": _VALUE}])
    if TOOL_CALLS not in source:
        return TemplateForm(reasoning=reasoning, parts=parts)
    empty: Any = [{"type": "text", "text": ""}] if parts else ""
    bare, long, short = (_Shown.of(render, id_, empty) for id_ in (None, "call_0123456789abcdef", "a00000001"))
    shown = next((shown for shown in (bare, long, short) if shown.accepted), bare)
    return TemplateForm(
        arguments=shown.form,
        needs_ids=not bare.accepted and shown.accepted,
        short_ids=not long.accepted and short.accepted,
        reasoning=reasoning,
        parts=parts,
    )


def _shows(render: Render, content: Any) -> bool:
    """Return whether a user's content is in what the template writes."""
    return _VALUE in (render([{"role": "user", "content": content}]) or "")


class _Shown(NamedTuple):
    """What a template writes for a call, given its arguments in each form; None where it refuses them."""

    mapping: str | None
    text: str | None

    @classmethod
    def of(cls, render: Render, id_: str | None, content: Any) -> "_Shown":
        return cls(_tried(render, {_KEY: _VALUE}, id_, content), _tried(render, _TEXT, id_, content))

    @property
    def accepted(self) -> bool:
        return self.mapping is not None or self.text is not None

    @property
    def form(self) -> Literal["mapping", "text"] | None:
        takes_mapping = bool(_WELL_WRITTEN.search(self.mapping or ""))
        if takes_mapping == (_TEXT in (self.text or "")):
            return None
        return "mapping" if takes_mapping else "text"


_TEXT = json.dumps({_KEY: _VALUE}, ensure_ascii=False)
_WELL_WRITTEN = re.compile(rf"(?:{_KEY}|\\ue000)(?!': '|\\\\).*?(?:{_VALUE}|\\ue001)", re.DOTALL)
"""neither as Python writes a dict, nor as JSON within JSON"""


def _tried(render: Render, arguments: Any, id_: str | None, content: Any) -> str | None:
    """Return what the template writes for a call beside this content and its result, or for the call alone."""
    call = {"type": "function", "function": {"name": "look", "arguments": arguments}}
    result = {"role": "tool", "name": "look", "content": "found"}
    if id_ is not None:
        call, result = {**call, "id": id_}, {**result, "tool_call_id": id_}
    asked = {"role": "user", "content": "Look."}
    messages = [asked, {"role": ASSISTANT, "content": content, "tool_calls": [call]}, result]
    rendered = render(messages)
    return render(messages[:-1]) if rendered is None else rendered
