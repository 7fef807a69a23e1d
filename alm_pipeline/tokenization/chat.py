"""Conversations: a chat template's text, and where the messages' contents stand in it.

A template is any Jinja program, so where the contents are is found by rendering the conversation twice: once with
placeholders, which shows the scaffold, and once as it is, which must be the scaffold with the contents in place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from storage.errors import UserError

Conversation = Sequence[dict[str, Any]]

# Some templates write the day's date, and a rendering has to be the same on every day: in their place stands this one.
_FIXED_DATE = "{%- macro strftime_now(format) %}26 Jul 2024{% endmacro %}"


class TemplateRefused(UserError):
    """A chat template that takes others refuses this conversation: no system role, say, or two turns of one role."""


@dataclass(frozen=True)
class Rendering:
    """A rendered conversation; `content_before[b]` counts the content bytes before byte b of the text."""

    text: str
    content_before: npt.NDArray[np.int64]


def joined_contents(conversation: Conversation) -> str:
    """The text that both sides share: the messages' contents, one after the other."""
    return "".join(message["content"] for message in conversation)


def render(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> Rendering | None:
    """The conversation in the tokenizer's chat template, or None where the template changes a content.

    Raises TemplateRefused when the template refuses the conversation, UserError when the tokenizer has no template.
    """
    try:
        text = _apply(tokenizer, conversation)
    except _REFUSALS as error:
        roles = [message["role"] for message in conversation]
        raise TemplateRefused(f"{tokenizer.name_or_path}: its chat template refuses {roles}: {error}") from error
    scaffold = _scaffold(tokenizer, conversation)
    contents = [message["content"] for message in conversation]
    if scaffold is None or text != _fill(scaffold, contents):
        return None
    return Rendering(text, _content_before(scaffold, contents))


# the template's own refusal, and what Python says to an expression that does not fit the messages
_REFUSALS = (TemplateError, TypeError, ValueError)


def _apply(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> str:
    template = _template(tokenizer)
    return str(tokenizer.apply_chat_template(list(conversation), chat_template=template, tokenize=False))


def _template(tokenizer: PreTrainedTokenizerFast) -> str:
    if tokenizer.chat_template is None:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template, and the corpus holds conversations: "
            "use an instruction-tuned model's tokenizer, or a corpus of texts (corpus.text)"
        )
    template = tokenizer.get_chat_template()
    return _FIXED_DATE + template if "strftime_now" in template else template


def _scaffold(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> list[str] | None:
    """The template's text before, between and after the contents; None where a content does not appear once."""
    marks = [f"\ue000{index}\ue001" for index in range(len(conversation))]
    placeholders = [{**message, "content": mark} for message, mark in zip(conversation, marks, strict=True)]
    try:
        rest, pieces = _apply(tokenizer, placeholders), []
    except _REFUSALS:  # the template looks into the contents
        return None
    for mark in marks:
        if rest.count(mark) != 1:
            return None
        piece, rest = rest.split(mark)
        pieces.append(piece)
    return [*pieces, rest]


def _fill(scaffold: list[str], contents: list[str]) -> str:
    return scaffold[0] + "".join(map("".join, zip(contents, scaffold[1:], strict=True)))


def _content_before(scaffold: list[str], contents: list[str]) -> npt.NDArray[np.int64]:
    parts = [scaffold[0], *(part for pair in zip(contents, scaffold[1:], strict=True) for part in pair)]
    # scaffold and contents take turns
    is_content = np.repeat(np.arange(len(parts)) % 2, [len(part.encode()) for part in parts])
    return np.concatenate([[0], np.cumsum(is_content)])
