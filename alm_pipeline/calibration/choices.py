"""The tokens of prompts with choices.

A prompt and a choice are encoded as one text, as lm_eval does: white space at the end of the prompt belongs to the
choice, and what comes after the prompt's own tokens is the choice's. Where a token covers the end of the prompt and the
beginning of a choice, lm_eval's rule would score a text that nobody wrote. Here the choices of such a question are
scored from the last token on that the prompt has in common with all of them: then every choice's log-probability
includes that of the same end of the prompt, which the softmax over the choices removes.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from alm_pipeline.calibration.questions import Question
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.scoring.windows import WindowRow
from alm_pipeline.tokenization.spans import token_spans
from alm_pipeline.vocabulary.byte_view import ByteView

OVER_CONTEXT = "over_context"
NO_TOKEN = "choice_without_a_token"
NO_PREDICTION = "no_token_before_the_choices"


@dataclass(frozen=True)
class EncodedChoice:
    """A prompt with a choice, in tokens."""

    ids: tuple[int, ...]
    scored: int
    """the number of tokens at the end that are the choice's, at least 1"""
    bytes: int
    """that these tokens cover"""

    def row(self) -> WindowRow:
        """Return the row that scores the choice."""
        context = len(self.ids) - self.scored
        return WindowRow(0, np.array(self.ids, np.int32), context, context)


@dataclass(frozen=True)
class EncodedQuestion:
    """A question's choices in tokens, or the reason why it can't be scored."""

    choices: tuple[EncodedChoice, ...] = ()
    dropped: str | None = None
    straddled: bool = False
    """whether a token covers the end of the prompt and the beginning of a choice"""


@dataclass(frozen=True)
class ChoiceEncoder:
    """Encodes questions for a model."""

    encode: Callable[[str], Sequence[int]]
    """the ids of a text, without special tokens around it"""
    view: ByteView
    before: Sequence[int]
    """the ids that the tokenizer puts before every text"""
    first: int | None
    """the id that stands before choices without a prompt, where `before` is empty; None if there is none"""
    context_length: int | None
    """the most tokens that the model reads"""

    @classmethod
    def of(cls, tokenizer: LoadedTokenizer, context_length: int | None) -> "ChoiceEncoder":
        """Return the encoder of a model with this tokenizer."""
        fast: Any = tokenizer.fast
        first = fast.eos_token_id if fast.bos_token_id is None else fast.bos_token_id
        backend = tokenizer.encoding_backend

        def encode(text: str) -> Sequence[int]:
            ids: list[int] = backend.encode(text, add_special_tokens=False).ids
            return ids

        return cls(encode, tokenizer.view, tokenizer.frame[0], first, context_length)

    def question(self, question: Question) -> EncodedQuestion:
        """Encode a question's choices, or say why it is left out."""
        prompt = question.prompt.rstrip()
        texts = [question.prompt[len(prompt) :] + choice for choice in question.choices]
        context, wholes = self._ids(prompt), [self._ids(prompt + text) for text in texts]
        shared = _common([context, *wholes])
        if any(len(whole) == shared for whole in wholes):
            return EncodedQuestion(dropped=NO_TOKEN)
        if not shared and self.first is None:
            return EncodedQuestion(dropped=NO_PREDICTION)
        lead = [] if shared or self.first is None else [self.first]
        tail = self._bytes_after(prompt, context, shared)
        choices = tuple(
            EncodedChoice((*lead, *whole), len(whole) - shared, tail + len(text.encode()))
            for whole, text in zip(wholes, texts, strict=True)
        )
        if self.context_length and max(len(choice.ids) for choice in choices) > self.context_length:
            return EncodedQuestion(dropped=OVER_CONTEXT)
        return EncodedQuestion(choices, straddled=shared < len(context))

    def _ids(self, text: str) -> list[int]:
        return [*self.before, *(self.encode(text) if text else ())]

    def _bytes_after(self, prompt: str, context: Sequence[int], shared: int) -> int:
        """Return the number of the prompt's bytes that its first `shared` tokens do not cover."""
        if shared == len(context):
            return 0
        ids = np.array(context[len(self.before) :], np.int32)
        spans = token_spans(self.view, ids, np.isin(ids, list(self.view.added)), prompt.encode())
        lengths = np.diff(spans.ends, prepend=0) if spans else self.view.lengths[ids]
        return int(lengths[max(0, shared - len(self.before)) :].sum())


def _common(rows: Sequence[Sequence[int]]) -> int:
    """Return the number of ids with which all rows begin."""
    return sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, zip(*rows, strict=False)))


def tokens_hash(questions: Sequence[EncodedQuestion]) -> str:
    """Return a hash of all that a model reads, and of what is scored of it."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(f"{question.dropped} {len(question.choices)}\n".encode())
        for choice in question.choices:
            digest.update(f"{choice.scored} {choice.bytes} {choice.ids}\n".encode())
    return digest.hexdigest()
