"""Conversations: a chat template's text, and what each byte of it is: a message's content, or scaffold in some role.

A template is any Jinja program, so everything is found out by rendering: where the contents stand, by placeholders
(`tracing`); what the rest is, by a grammar learnt from short conversations (`scaffold`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from alm_pipeline.corpus.conversation import Conversation, contents
from alm_pipeline.tokenization.chat.grammar import Grammar, control_tokens, learn
from alm_pipeline.tokenization.chat.tracing import (
    Fragment,
    cut_at,
    known_markup,
    placeholders,
    split_parts,
    trace,
    whole_parts,
    with_placeholders,
)
from storage.errors import UserError
from storage.schemas import TokenKind

# Some templates write the day's date, and a rendering has to be the same on every day: in their place stands this one.
_FIXED_DATE = "{%- macro strftime_now(format) %}26 Jul 2024{% endmacro %}"


class TemplateRefused(UserError):
    """A chat template that takes others refuses this conversation: no system role, say, or two turns of one role."""


@dataclass(frozen=True)
class Rendering:
    """A rendered conversation in P spans, which tile the text's bytes in order; none is empty.

    Within a turn the order is start of turn, role, end of header, contents, end of turn; each but the contents comes
    at most once. What the template leaves out of a content is in no span.
    """

    text: str
    ends: npt.NDArray[np.int64]
    """[P] in bytes of the text"""
    kinds: npt.NDArray[np.uint8]
    """[P] TokenKind, `MIXED` excepted"""
    turns: npt.NDArray[np.int16]
    """[P] the message that the span belongs to; -1: none, as begin of text or a default system prompt"""
    content_starts: npt.NDArray[np.int64]
    """[P] of a content the byte of the joined contents that it begins with, in increasing order; -1 of others"""


# the template's own refusal, and what Python says to an expression that does not fit the messages
_REFUSALS = (TemplateError, TypeError, ValueError)


class ChatTemplate:
    """A tokenizer's chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer

    def render(self, conversation: Conversation) -> Rendering | None:
        """The conversation in the template, or None where the template changes a content in an untraceable way.

        Raises TemplateRefused when the template refuses the conversation, UserError when the tokenizer has none.
        """
        try:
            text = self._apply(conversation, contents(conversation))
        except _REFUSALS as error:
            roles = [message["role"] for message in conversation]
            raise TemplateRefused(
                f"{self.tokenizer.name_or_path}: its chat template refuses {roles}: {error}"
            ) from error
        fragments = self._trace(text, conversation)
        return None if fragments is None else self._rendering(text, conversation, fragments)

    def _apply(self, conversation: Conversation, contents: Sequence[str]) -> str:
        messages = [{**message, "content": content} for message, content in zip(conversation, contents, strict=True)]
        return str(self.tokenizer.apply_chat_template(messages, chat_template=self._source, tokenize=False))

    @cached_property
    def _source(self) -> str:
        if self.tokenizer.chat_template is None:
            raise UserError(
                f"{self.tokenizer.name_or_path}: the tokenizer has no chat template, and the corpus holds "
                "conversations: use an instruction-tuned model's tokenizer, or a corpus of texts (corpus.text)"
            )
        template = self.tokenizer.get_chat_template()
        return _FIXED_DATE + template if "strftime_now" in template else template

    def _trace(self, text: str, conversation: Conversation) -> list[Fragment] | None:
        """By placeholders for whole contents, then for what is between the tags that the template may look for."""
        shared = contents(conversation)
        whole = whole_parts(shared)
        split = split_parts(shared, self._markup)
        for parts in [whole] if split == whole else [whole, split]:
            marks = placeholders(len(parts), text, *shared)
            try:
                scaffold = self._apply(conversation, with_placeholders(shared, parts, marks))
            except _REFUSALS:  # the template looks into the contents
                continue
            fragments = trace(text, scaffold, shared, parts, marks)
            if fragments is not None:
                return fragments
        return None

    @cached_property
    def _markup(self) -> re.Pattern[str]:
        return known_markup(self._source)

    def _rendering(self, text: str, conversation: Conversation, fragments: list[Fragment]) -> Rendering:
        shared, roles = contents(conversation), [message["role"] for message in conversation]
        message_starts = [0, *accumulate(len(content.encode()) for content in shared)]
        spans: list[tuple[int, TokenKind, int, int]] = []  # end (characters), kind, turn, content start (bytes)
        at, turn = 0, -1
        for fragment in [*fragments, Fragment(len(text), len(text), len(roles), 0)]:
            labels = self._grammar.label(text[at : fragment.start], turn, fragment.message, roles)
            spans += [(at + label.end, label.kind, label.turn, -1) for label in labels]
            at, turn = fragment.end, fragment.message
            if turn < len(roles):
                before = len(shared[turn][: fragment.content_start].encode())
                spans.append((at, TokenKind.CONTENT, turn, message_starts[turn] + before))
        return _in_bytes(text, spans)

    @cached_property
    def _grammar(self) -> Grammar:
        added = ((token.content, token.special) for token in self.tokenizer.added_tokens_decoder.values())
        return learn(self._probe, control_tokens(added), self.tokenizer.bos_token)

    def _probe(self, roles: Sequence[str]) -> list[str] | None:
        marks = placeholders(len(roles), self._source)
        try:
            text = self._apply([{"role": role} for role in roles], marks)
        except _REFUSALS:
            return None
        pieces, shown = cut_at(text, marks) or ([], [])
        return pieces if len(shown) == len(marks) else None


def _in_bytes(text: str, spans: Sequence[tuple[int, TokenKind, int, int]]) -> Rendering:
    ends, kinds, turns, content_starts = zip(*spans, strict=True) if spans else ((),) * 4
    starts = (0, *ends[:-1])
    sizes = [len(text[start:end].encode()) for start, end in zip(starts, ends, strict=False)]
    return Rendering(
        text,
        np.cumsum(sizes, dtype=np.int64),
        np.array(kinds, np.uint8),
        np.array(turns, np.int16),
        np.array(content_starts, np.int64),
    )
