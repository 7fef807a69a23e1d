"""Conversations in a chat template, and what each byte is: a message's content, or a part of the template's own text.

A template can be any Jinja program, so both are found by rendering. Placeholders show where the contents are
(`tracing`), and a grammar learned from short conversations explains the rest (`grammar`).
"""

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateSyntaxError

from alm_pipeline.config.template import DATE_ARGUMENT
from alm_pipeline.conversations.sections import TOOL_CALLS, Conversation, Messages
from alm_pipeline.tokenization.chat.dialogue import CallMarks, Dialogue
from alm_pipeline.tokenization.chat.forms import TemplateForm, find_form
from alm_pipeline.tokenization.chat.gaps import Gaps
from alm_pipeline.tokenization.chat.grammar import Grammar, control_tokens, learn_grammar
from alm_pipeline.tokenization.chat.tracing import (
    ContentPart,
    Trace,
    cut_at,
    marks_of,
    placeholders,
    split_parts,
    template_tags,
    trace,
    whole_parts,
)
from alm_pipeline.tokenization.templates.baking import date_macro
from alm_pipeline.tokenization.templates.choice import TOOL_USE, rendered_template
from storage.errors import UserError, cause, user_error
from storage.schemas import TokenKind

if TYPE_CHECKING:  # importing it takes a second
    from transformers import PreTrainedTokenizerFast

# Replaces the current date, which some templates write: a rendering has to be the same on every day.
_FIXED_DATE = date_macro()


class TemplateRefused(UserError):
    """A chat template refuses this conversation, for example its system role, or two turns of the same role."""


@dataclass(frozen=True)
class RenderedConversation:
    """A rendered conversation in P spans, which tile the text's bytes in order. No span is empty.

    Within a message the order is start of turn, role, end of header, contents and transitions, end of turn. Each except
    the contents and transitions occurs at most once. What the template omits from a section is in no span.
    """

    text: str
    ends: npt.NDArray[np.int64]
    """[P] the end of each span in bytes of the text"""
    kinds: npt.NDArray[np.uint8]
    """[P] TokenKind, except `MIXED`"""
    turns: npt.NDArray[np.int16]
    """[P] the section that each span belongs to; -1 for none, as for begin of text or a default system prompt"""
    content_starts: npt.NDArray[np.int64]
    """[P] for a content, its first byte in the shared text, in increasing order; otherwise -1"""


def apply_template(
    tokenizer: "PreTrainedTokenizerFast",
    messages: Sequence[Mapping[str, Any]],
    *,
    source: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    begins_answer: bool | None = None,
) -> str:
    """Return the messages in `source`, or in the tokenizer's template with the beginning of an answer.

    `arguments` are what the template gets beside the messages. `begins_answer`: whether the beginning of an answer
    follows, in `source` too.

    A template is a program: it may raise what it wants, divide by zero or recurse for ever. Raises TemplateRefused for
    any such error, and UserError if the template is not valid Jinja, which no conversation changes.
    """
    name = tokenizer.name_or_path
    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=source,
                tokenize=False,
                add_generation_prompt=source is None if begins_answer is None else begins_answer,
                **(arguments or {}),
            )
        )
    except TemplateSyntaxError as error:
        raise UserError(
            f"{name}: its chat template is not valid Jinja (line {error.lineno}: {error.message}): fix "
            "chat_template.jinja, or chat_template in tokenizer_config.json"
        ) from error
    except Exception as error:
        roles = [message["role"] for message in messages]
        raise TemplateRefused(f"{name}: its chat template refuses {roles}: {cause(error)}") from error


class _Span(NamedTuple):
    """A stretch of the rendered text, in characters."""

    end: int
    kind: TokenKind
    turn: int
    """its section"""
    content_start: int
    """its first character in the shared text; -1 for none"""


class ChatTemplate:
    """A tokenizer's chat template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self.tokenizer = tokenizer
        # with placeholders, most conversations with the same number of messages are the same
        self._scaffold = lru_cache(maxsize=1024)(self._rendered_json)

    def render(
        self, conversation: Conversation, arguments: Mapping[str, Any] | None = None
    ) -> RenderedConversation | None:
        """Render the conversation. Returns None if the template changes a text in a way that can't be traced.

        `arguments` are what the template gets beside the messages, such as `tools` or `enable_thinking`. Raises
        TemplateRefused if the template refuses the conversation, and UserError if the tokenizer has no template that
        can be used.
        """
        if (other := self._of(arguments)) is not self:
            return other.render(conversation, arguments)
        dialogue = Dialogue(conversation, self.form)
        text = self._apply(dialogue.messages, arguments)
        trace = self._trace(text, dialogue, arguments)
        return None if trace is None else _in_bytes(text, list(self._spans(text, dialogue, trace)), dialogue)

    def prompt(self, conversation: Conversation, arguments: Mapping[str, Any] | None = None) -> str:
        """Return the conversation with the beginning of an answer, as a model continues it. Raises as `render` does."""
        if (other := self._of(arguments)) is not self:
            return other.prompt(conversation, arguments)
        messages = Dialogue(conversation, self.form).messages
        return apply_template(self.tokenizer, messages, source=self._source, arguments=arguments, begins_answer=True)

    def _of(self, arguments: Mapping[str, Any] | None) -> "ChatTemplate":
        """Return the template that is used with these arguments: of a tokenizer with several, another one for tools."""
        source = rendered_template(self.tokenizer.chat_template, arguments)
        return self._for_tools if source != rendered_template(self.tokenizer.chat_template) else self

    @cached_property
    def _for_tools(self) -> "ChatTemplate":
        tokenizer, templates = copy.copy(self.tokenizer), cast(Mapping[str, str], self.tokenizer.chat_template)
        tokenizer.chat_template = templates[TOOL_USE]
        return ChatTemplate(tokenizer)

    def _apply(self, messages: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any] | None = None) -> str:
        return apply_template(self.tokenizer, messages, source=self._source, arguments=arguments)

    def _rendered_json(self, given: str) -> str:
        messages, arguments = json.loads(given)
        return self._apply(messages, arguments)

    @cached_property
    def form(self) -> TemplateForm:
        """What the template takes."""

        def render(messages: Messages) -> str | None:
            try:
                return self._apply(messages)
            except TemplateRefused:
                return None

        return find_form(render, self._source)

    @cached_property
    def _source(self) -> str:
        if self.tokenizer.chat_template is None:
            raise UserError(
                f"{self.tokenizer.name_or_path}: the tokenizer has no chat template, and the corpus holds "
                "conversations: use an instruction-tuned model's tokenizer, or a corpus of texts (corpus.text)"
            )
        with user_error(
            f"{self.tokenizer.name_or_path}: none of its chat templates can be chosen", "name one of them `default`"
        ):
            template = self.tokenizer.get_chat_template()
        return f"{_FIXED_DATE}\n{template}" if DATE_ARGUMENT in template else template

    def _trace(self, text: str, dialogue: Dialogue, arguments: Mapping[str, Any] | None) -> Trace | None:
        """Trace placeholders for whole texts, then for the parts between tags that the template may look for.

        In calls, placeholders replace all keys and values; if that fails, only strings; and then nothing.
        """
        texts = ["" if section.role == TOOL_CALLS else section.text for section in dialogue.sections]
        whole = whole_parts(texts)
        split = split_parts(texts, self._markup)
        kinds = [CallMarks.ALL, CallMarks.STRINGS, CallMarks.NONE] if dialogue.has_calls else [CallMarks.NONE]
        for kind in kinds:
            for parts in [whole] if split == whole else [whole, split]:
                found = self._traced(text, dialogue, arguments, parts, kind)
                if found is not None:
                    return found
        return None

    def _traced(
        self,
        text: str,
        dialogue: Dialogue,
        arguments: Mapping[str, Any] | None,
        text_parts: list[ContentPart],
        kind: CallMarks,
    ) -> Trace | None:
        parts = sorted([*text_parts, *dialogue.call_parts(kind)], key=lambda part: part[:2])
        marks = marks_of(parts, text, *dialogue.texts)
        messages = dialogue.with_marks(parts, marks, kind)
        try:
            scaffold = self._scaffold(json.dumps([messages, arguments], ensure_ascii=False))
        except TemplateRefused:  # the template reads the texts
            return None
        return trace(text, scaffold, dialogue.texts, parts, marks)

    @cached_property
    def _markup(self) -> re.Pattern[str]:
        return template_tags(self._source)

    def _spans(self, text: str, dialogue: Dialogue, trace: Trace) -> Iterator[_Span]:
        """Yield the spans of the rendered text, in order."""
        end, section = 0, -1
        gaps = Gaps(text, dialogue, trace, self._grammar.control_ends)
        for number, fragment in enumerate([*trace.fragments, None]):
            start = fragment.start if fragment else len(text)
            messages = gaps.messages(number)
            for label in gaps.labels(number, self._grammar.label(text[end:start], *messages, dialogue.roles)):
                yield _Span(end + label.end, label.kind, label.turn, -1)
            if fragment:
                end, section = fragment.end, fragment.section
                yield _Span(end, TokenKind.CONTENT, section, dialogue.section_starts[section] + fragment.content_start)

    @cached_property
    def _grammar(self) -> Grammar:
        added = ((token.content, token.special) for token in self.tokenizer.added_tokens_decoder.values())
        return learn_grammar(self._probe, control_tokens(added), self.tokenizer.bos_token)

    def _probe(self, roles: Sequence[str]) -> list[str] | None:
        marks = placeholders(len(roles), self._source)
        try:
            text = self._apply(
                [{"role": role, "content": self.form.content(mark)} for role, mark in zip(roles, marks, strict=True)]
            )
        except TemplateRefused:
            return None
        pieces, shown = cut_at(text, marks)
        return pieces if shown == list(range(len(marks))) else None


def _in_bytes(text: str, spans: Sequence[_Span], dialogue: Dialogue) -> RenderedConversation:
    ends, kinds, turns, content_starts = zip(*spans, strict=True) if spans else ((),) * 4
    starts = (0, *ends[:-1])
    sizes = [len(text[start:end].encode()) for start, end in zip(starts, ends, strict=False)]
    return RenderedConversation(
        text,
        np.cumsum(sizes, dtype=np.int64),
        np.array(kinds, np.uint8),
        np.array(turns, np.int16),
        np.array(_bytes_before("".join(dialogue.texts), content_starts), np.int64),
    )


def _bytes_before(text: str, positions: Iterable[int]) -> list[int]:
    """Return the bytes before each of these increasing positions; -1 for -1."""
    at = size = 0
    sizes = []
    for position in positions:
        if position >= 0:
            size += len(text[at:position].encode())
            at = position
        sizes.append(size if position >= 0 else -1)
    return sizes
