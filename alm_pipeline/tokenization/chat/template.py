"""Conversations in a chat template, and what each byte is: a message's content, or a part of the template's own text.

A template can be any Jinja program, so both are found by rendering. Placeholders show where the contents are
(`tracing`), and a grammar learned from short conversations explains the rest (`grammar`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerFast

from alm_pipeline.config.template import DATE_ARGUMENT
from alm_pipeline.corpus.conversation import Conversation, contents
from alm_pipeline.tokenization.chat.grammar import Grammar, control_tokens, learn_grammar
from alm_pipeline.tokenization.chat.tracing import (
    ContentFragment,
    cut_at,
    placeholders,
    split_parts,
    template_tags,
    trace,
    whole_parts,
    with_placeholders,
)
from alm_pipeline.tokenization.templates.baking import date_macro
from storage.errors import UserError, cause, user_error
from storage.schemas import TokenKind

# Replaces the current date, which some templates write: a rendering has to be the same on every day.
_FIXED_DATE = date_macro()


class TemplateRefused(UserError):
    """A chat template refuses this conversation, for example its system role, or two turns of the same role."""


@dataclass(frozen=True)
class RenderedConversation:
    """A rendered conversation in P spans, which tile the text's bytes in order. No span is empty.

    Within a turn the order is start of turn, role, end of header, contents, end of turn. Each except the contents
    occurs at most once. What the template omits from a content is in no span.
    """

    text: str
    ends: npt.NDArray[np.int64]
    """[P] the end of each span in bytes of the text"""
    kinds: npt.NDArray[np.uint8]
    """[P] TokenKind, except `MIXED`"""
    turns: npt.NDArray[np.int16]
    """[P] the message that each span belongs to; -1 for none, as for begin of text or a default system prompt"""
    content_starts: npt.NDArray[np.int64]
    """[P] for a content, its first byte in the joined contents, in increasing order; otherwise -1"""


def apply_template(
    tokenizer: PreTrainedTokenizerFast,
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


class ChatTemplate:
    """A tokenizer's chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer

    def render(
        self, conversation: Conversation, arguments: Mapping[str, Any] | None = None
    ) -> RenderedConversation | None:
        """Render the conversation. Returns None if the template changes a content in a way that can't be traced.

        `arguments` are what the template gets beside the messages, such as `tools`. Raises TemplateRefused if the
        template refuses the conversation, and UserError if the tokenizer has no template that can be used.
        """
        text = self._apply(conversation, contents(conversation), arguments)
        fragments = self._trace(text, conversation, arguments)
        return None if fragments is None else self._rendering(text, conversation, fragments)

    def prompt(self, conversation: Conversation, arguments: Mapping[str, Any] | None = None) -> str:
        """Return the conversation with the beginning of an answer, as a model continues it. Raises as `render` does."""
        return apply_template(
            self.tokenizer, conversation, source=self._source, arguments=arguments, begins_answer=True
        )

    def _apply(
        self, conversation: Conversation, contents: Sequence[str], arguments: Mapping[str, Any] | None = None
    ) -> str:
        messages = [{**message, "content": content} for message, content in zip(conversation, contents, strict=True)]
        return apply_template(self.tokenizer, messages, source=self._source, arguments=arguments)

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

    def _trace(
        self, text: str, conversation: Conversation, arguments: Mapping[str, Any] | None
    ) -> list[ContentFragment] | None:
        """Trace placeholders for whole contents, then for the parts between tags that the template may look for."""
        texts = contents(conversation)
        whole = whole_parts(texts)
        split = split_parts(texts, self._markup)
        for parts in [whole] if split == whole else [whole, split]:
            marks = placeholders(len(parts), text, *texts)
            try:
                scaffold = self._apply(conversation, with_placeholders(texts, parts, marks), arguments)
            except TemplateRefused:  # the template reads the contents
                continue
            fragments = trace(text, scaffold, texts, parts, marks)
            if fragments is not None:
                return fragments
        return None

    @cached_property
    def _markup(self) -> re.Pattern[str]:
        return template_tags(self._source)

    def _rendering(
        self, text: str, conversation: Conversation, fragments: list[ContentFragment]
    ) -> RenderedConversation:
        texts, roles = contents(conversation), [message["role"] for message in conversation]
        message_starts = [0, *accumulate(len(content.encode()) for content in texts)]
        spans: list[tuple[int, TokenKind, int, int]] = []  # end (characters), kind, turn, content start (bytes)
        end, turn = 0, -1
        for fragment in [*fragments, ContentFragment(len(text), len(text), len(roles), 0)]:
            labels = self._grammar.label(text[end : fragment.start], turn, fragment.message, roles)
            spans += [(end + label.end, label.kind, label.turn, -1) for label in labels]
            end, turn = fragment.end, fragment.message
            if turn < len(roles):
                bytes_before = len(texts[turn][: fragment.content_start].encode())
                spans.append((end, TokenKind.CONTENT, turn, message_starts[turn] + bytes_before))
        return _in_bytes(text, spans)

    @cached_property
    def _grammar(self) -> Grammar:
        added = ((token.content, token.special) for token in self.tokenizer.added_tokens_decoder.values())
        return learn_grammar(self._probe, control_tokens(added), self.tokenizer.bos_token)

    def _probe(self, roles: Sequence[str]) -> list[str] | None:
        marks = placeholders(len(roles), self._source)
        try:
            text = self._apply([{"role": role} for role in roles], marks)
        except TemplateRefused:
            return None
        pieces, shown = cut_at(text, marks) or ([], [])
        return pieces if len(shown) == len(marks) else None


def _in_bytes(text: str, spans: Sequence[tuple[int, TokenKind, int, int]]) -> RenderedConversation:
    ends, kinds, turns, content_starts = zip(*spans, strict=True) if spans else ((),) * 4
    starts = (0, *ends[:-1])
    sizes = [len(text[start:end].encode()) for start, end in zip(starts, ends, strict=False)]
    return RenderedConversation(
        text,
        np.cumsum(sizes, dtype=np.int64),
        np.array(kinds, np.uint8),
        np.array(turns, np.int16),
        np.array(content_starts, np.int64),
    )
