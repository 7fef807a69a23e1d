"""From what a model wrote in its chat template to the message that the template writes so: reasoning, content, calls.

Each template marks thoughts and calls in its own way, so the marks are found by rendering a message with placeholders.
A reading counts only if the template renders it to exactly the characters that were written; the other side can then
render the same message in its own template. What can't be read otherwise is content.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from alm_pipeline.conversations.sections import ASSISTANT, joined_text
from alm_pipeline.rollouts.prompts import Prompt
from alm_pipeline.tokenization.chat.template import ChatTemplate, TemplateRefused

_MARKS = ("\ue0f0", "\ue0f1", "\ue0f2")
"""characters that no template writes"""
Message = dict[str, Any]


class _Around(NamedTuple):
    """What a template writes before and after something."""

    before: str
    after: str


@dataclass(frozen=True)
class AnswerReader:
    """Reads what was written after a prompt, in a template."""

    template: ChatTemplate
    prompt: Prompt
    prompt_text: str
    """the prompt as the model got it"""

    def read(self, written: str, end: str) -> Message | None:
        """Return the message; None if the template would write none of its readings so.

        `written` comes after the prompt, and `end` is the token that ends the turn; empty for a text that was cut.
        """
        for message in self._readings(written):
            if self._rendered(message).startswith(self.prompt_text + written + end):
                return message
        return None

    def _readings(self, written: str) -> Iterator[Message]:
        for reasoning, rest in self._split_reasoning(written):
            thoughts = {"reasoning_content": reasoning} if reasoning else {}
            for content, calls in self._split_calls(rest):
                called = {"tool_calls": calls} if calls else {}
                yield {"role": ASSISTANT, "content": content, **thoughts, **called}

    def _rendered(self, message: Message) -> str:
        """Return the conversation with this answer; empty if the template refuses it or changes a text."""
        try:
            rendering = self.template.render([*(self.prompt.messages or []), message], self.prompt.arguments)
        except TemplateRefused:
            return ""
        return "" if rendering is None else rendering.text

    def _written_for(self, message: Message) -> str:
        """Return what the template writes after the prompt for this message; empty if it changes the prompt."""
        text = self._rendered(message)
        return text[len(self.prompt_text) :] if text.startswith(self.prompt_text) else ""

    def _split_reasoning(self, written: str) -> Iterator[tuple[str, str]]:
        """Yield the possible pairs of reasoning and what follows it."""
        around = self._around_reasoning
        if around and written.startswith(around.before) and around.after in written:
            reasoning, _, rest = written.removeprefix(around.before).partition(around.after)
            yield reasoning, rest
        yield "", written

    @cached_property
    def _around_reasoning(self) -> _Around | None:
        thoughts, content, _ = _MARKS
        text = self._written_for({"role": ASSISTANT, "content": content, "reasoning_content": thoughts})
        before, found, rest = text.partition(thoughts)
        between, found_content, _ = rest.partition(content)
        return _Around(before, between) if found and found_content and between else None

    def _split_calls(self, written: str) -> Iterator[tuple[str, list[Message]]]:
        """Yield the possible pairs of content and calls."""
        around = self._around_call
        if around and around.before in written:
            content, *parts = written.split(around.before)
            calls = [_call(part, around.after) for part in parts]
            if all(calls):
                found = [call for call in calls if call]
                yield content, found
                yield content.rstrip("\n"), found
        yield written, []

    @cached_property
    def _around_call(self) -> _Around | None:
        """What begins and ends a call that is written as a JSON object; None if the template writes none."""
        name, key, value = _MARKS
        call = {"type": "function", "function": {"name": name, "arguments": {key: value}}}
        text = self._written_for({"role": ASSISTANT, "content": "", "tool_calls": [call]})
        start = text.rfind("{", 0, text.find(name))
        if start < 0 or not (before := text[:start].strip()):
            return None
        try:
            _, end = json.JSONDecoder().raw_decode(text, start)
        except ValueError:
            return None
        ending = self._written_for({"role": ASSISTANT, "content": name}).partition(name)[2]
        return _Around(before, text[end:].removesuffix(ending).strip())


def _call(part: str, after: str) -> Message | None:
    """Return the call that is all of a part; None if it is not one."""
    try:
        found, end = json.JSONDecoder().raw_decode(part.lstrip())
    except ValueError:
        return None
    if not isinstance(found, dict) or part.lstrip()[end:].strip() != after:
        return None
    arguments = found.get("arguments", found.get("parameters"))
    if not isinstance(found.get("name"), str) or not isinstance(arguments, dict):
        return None
    return {"type": "function", "function": {"name": found["name"], "arguments": arguments}}


def is_empty(message: Message) -> bool:
    """Return whether nothing is said, thought or called in a message."""
    return not joined_text([message]).strip()
