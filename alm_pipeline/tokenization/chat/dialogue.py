"""A conversation as one template gets it, and the same with placeholders for its parts."""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

from alm_pipeline.conversations.json_leaves import (
    Equal,
    Leaf,
    Spelling,
    Value,
    escapes,
    json_leaves,
    spellings,
    with_leaves,
)
from alm_pipeline.conversations.sections import (
    REASONING,
    TOOL_CALLS,
    Conversation,
    Messages,
    Section,
    ToolCall,
    called_function,
    sections,
    tool_calls,
)
from alm_pipeline.tokenization.chat.forms import TemplateForm
from alm_pipeline.tokenization.chat.tracing import ContentPart, with_placeholders


class CallMarks(IntEnum):
    """Which parts of calls are replaced by placeholders; a template that inspects values may allow fewer."""

    NONE = 0
    STRINGS = 1
    ALL = 2


@dataclass(frozen=True)
class Dialogue:
    """A conversation, and its messages in a template's form."""

    conversation: Conversation
    form: TemplateForm

    @cached_property
    def messages(self) -> Messages:
        return self.form.messages(self.conversation)

    @cached_property
    def sections(self) -> list[Section]:
        return sections(self.conversation)

    @cached_property
    def texts(self) -> list[str]:
        """[sections]"""
        return [section.text for section in self.sections]

    @cached_property
    def section_starts(self) -> list[int]:
        """[sections + 1] the first character of each section in the shared text, and the end of the last"""
        return [0, *accumulate(map(len, self.texts))]

    @cached_property
    def roles(self) -> list[str]:
        """[messages]"""
        return [message["role"] for message in self.conversation]

    @cached_property
    def ids(self) -> list[str]:
        """What identifies the calls: a template may write it, and it is in no section."""
        calls = [call for message in self.messages for call in tool_calls(message)]
        answers = [message.get("tool_call_id") for message in self.messages]
        return [id_ for id_ in [*(call.id for call in calls), *answers] if isinstance(id_, str) and id_]

    @cached_property
    def has_calls(self) -> bool:
        return any(section.role == TOOL_CALLS for section in self.sections)

    def own_sections(self, message: int) -> range:
        """Return the sections of a message."""
        return self._ranges[message]

    @cached_property
    def _ranges(self) -> list[range]:
        sizes = Counter(section.message for section in self.sections)
        ends = accumulate(sizes[message] for message in range(len(self.conversation)))
        return [range(end - sizes[message], end) for message, end in enumerate(ends)]

    def call_parts(self, kind: CallMarks) -> list[ContentPart]:
        """Return the parts of all calls: names, keys and values, or arguments as they are in the template's form."""
        return [part for call in self._calls(kind) for part in (*call.name, *call.arguments)]

    def with_marks(self, parts: Sequence[ContentPart], marks: Sequence[str], kind: CallMarks) -> Messages:
        """Return the messages with each part replaced by its mark: a number's by a number."""
        pairs = list(zip(parts, marks, strict=True))
        in_texts = [pair for pair in pairs if not pair[0].spellings]
        texts = with_placeholders(self.texts, [part for part, _ in in_texts], [mark for _, mark in in_texts])
        marked = [dict(message) for message in self.messages]
        for section, text in zip(self.sections, texts, strict=True):
            if section.role == REASONING and self.form.reasoning:
                marked[section.message][self.form.reasoning] = text
            elif section.role not in (REASONING, TOOL_CALLS) and section.text:
                marked[section.message]["content"] = self.form.content(text)
        in_calls = iter([mark for part, mark in pairs if part.spellings])
        for message in {call.message for call in self._calls(kind)}:
            marked[message]["tool_calls"] = copy.deepcopy(marked[message]["tool_calls"])
        for call in self._calls(kind):
            call.mark(marked[call.message]["tool_calls"][call.number], in_calls, kind)
        return marked

    @cached_property
    def _calls_by_kind(self) -> "dict[CallMarks, list[_Call]]":
        return {}

    def _calls(self, kind: CallMarks) -> "list[_Call]":
        if kind not in self._calls_by_kind:
            self._calls_by_kind[kind] = list(self._found_calls(kind))
        return self._calls_by_kind[kind]

    def _found_calls(self, kind: CallMarks) -> "Iterator[_Call]":
        for index, section in enumerate(self.sections):
            if section.role != TOOL_CALLS or kind == CallMarks.NONE:
                continue
            start = 0
            written = self.messages[section.message]["tool_calls"]
            for number, call in enumerate(tool_calls(self.conversation[section.message])):
                given = called_function(written[number]).get("arguments")
                yield _call(section.message, number, index, start, call, given, kind)
                start += len(call.text)


class _Call(NamedTuple):
    """The parts of a call."""

    message: int
    number: int
    """of the message's calls"""
    name: tuple[ContentPart, ...]
    """none or one"""
    arguments: tuple[ContentPart, ...]

    def mark(self, written: dict[str, Any], marks: Iterator[str], kind: CallMarks) -> None:
        """Replace the parts in the call as the template gets it."""

        def replaced(value: Value) -> Any:
            if not _is_marked(value, kind):
                return value
            return next(marks) if isinstance(value, str) else int(next(marks))

        function = called_function(written)
        if self.name:
            function["name"] = next(marks)
        if self.arguments:
            function["arguments"] = with_leaves(function["arguments"], replaced)


def _call(message: int, number: int, section: int, start: int, call: ToolCall, written: Any, kind: CallMarks) -> _Call:
    name = [_part(section, start, Leaf(0, call.name, call.name))] if call.name else []
    start += len(call.name)
    leaves = json_leaves(call.arguments)
    if isinstance(written, str):
        return _Call(message, number, tuple(name), tuple(_whole_arguments(section, start, written, leaves)))
    parts: list[ContentPart] = []
    for leaf in leaves or ():
        if _is_marked(leaf.value, kind):
            parts.append(_part(section, start, leaf))
        start += len(leaf.text)
    return _Call(message, number, tuple(name), tuple(parts))


def _whole_arguments(section: int, start: int, written: str, leaves: Sequence[Leaf] | None) -> Iterator[ContentPart]:
    """Yield the part for arguments that the template gets as text."""
    if not written:
        return
    if leaves is None:
        yield _part(section, start, Leaf(0, written, written))
        return
    at = [0, *accumulate(len(leaf.text) for leaf in leaves)]
    equal = [Equal(leaf.start, place, len(leaf.text)) for leaf, place in zip(leaves, at, strict=False)]
    text = "".join(leaf.text for leaf in leaves)
    others = (Spelling(spelling.text, ()) for spelling in escapes(written))
    yield ContentPart(section, start, text, (Spelling(written, tuple(equal)), *others))


def _part(section: int, start: int, leaf: Leaf) -> ContentPart:
    return ContentPart(section, start, leaf.text, tuple(spellings(leaf)), is_number=not isinstance(leaf.value, str))


def _is_marked(value: Value, kind: CallMarks) -> bool:
    return bool(value) if isinstance(value, str) else kind == CallMarks.ALL
