"""Encoding of a record batch to ids and the bytes that each token covers, verified example by example."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding
from transformers import PreTrainedTokenizerFast

from alm_pipeline.tokenization.byte_view import ByteView, byte_view
from alm_pipeline.tokenization.chat import Conversation, Rendering, TemplateRefused, render
from storage.errors import UserError
from storage.schemas import TokenKind


class Dropped(StrEnum):
    """Why an example has no tokens."""

    NOT_ROUND_TRIP = "tokens_spell_other_bytes"
    """the tokenizer changes the text: a normalizer, or a token that swallows white space"""
    TEMPLATE_CHANGES_CONTENT = "template_changes_content"
    TEMPLATE_REFUSES = "template_refuses"
    OVER_CONTEXT = "over_context"


@dataclass(frozen=True)
class EncodedExample:
    """One example's tokens; the byte lengths add up to the example's text."""

    token_ids: npt.NDArray[np.int32]
    byte_lengths: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.uint8]


class ByteEncoder:
    """Encodes texts and conversations with a tokenizer, and knows the bytes that each token covers.

    The encoder takes the tokenizer over: truncation and padding that were saved with it are switched off, since they
    would cut texts, or let an example's tokens depend on its neighbours.
    Raises UserError, when made, for a tokenizer whose bytes are not known exactly.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_tokens: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.view: ByteView = byte_view(tokenizer.backend_tokenizer)
        self.max_tokens = max_tokens
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()

    def encode(self, texts: Sequence[str]) -> list[EncodedExample | Dropped]:
        """Plain texts, with the special tokens that the tokenizer adds; special tokens' literals are just text."""
        backend = self.tokenizer.backend_tokenizer
        backend.encode_special_tokens = True
        encodings = backend.encode_batch_fast(list(texts), add_special_tokens=True)
        return [self._text(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]

    def encode_conversations(self, conversations: Sequence[Conversation]) -> list[EncodedExample | Dropped]:
        """Conversations rendered with the tokenizer's chat template; only the messages' contents count as bytes."""
        renderings = [self._render(conversation) for conversation in conversations]
        backend = self.tokenizer.backend_tokenizer
        backend.encode_special_tokens = False
        texts = [rendering.text if isinstance(rendering, Rendering) else "" for rendering in renderings]
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [
            self._conversation(rendering, encoding) if isinstance(rendering, Rendering) else rendering
            for rendering, encoding in zip(renderings, encodings, strict=True)
        ]

    def _render(self, conversation: Conversation) -> Rendering | Dropped:
        try:
            return render(self.tokenizer, conversation) or Dropped.TEMPLATE_CHANGES_CONTENT
        except TemplateRefused:
            return Dropped.TEMPLATE_REFUSES

    def _text(self, text: str, encoding: Encoding) -> EncodedExample | Dropped:
        ids = np.array(encoding.ids, dtype=np.int32)
        special = self.view.special[ids]
        lengths = np.where(special, 0, self.view.lengths[ids]).astype(np.int32)
        spelled, content = self.view.spell(ids[~special]), text.encode()
        if spelled == b" " + content:  # a dummy prefix: its space is not the text's
            lengths[np.flatnonzero(lengths)[0]] -= 1
        elif spelled != content:
            return Dropped.NOT_ROUND_TRIP
        kinds = np.where(special, TokenKind.SPECIAL, TokenKind.CONTENT).astype(np.uint8)
        return self._checked(EncodedExample(ids, lengths, kinds))

    def _conversation(self, rendering: Rendering, encoding: Encoding) -> EncodedExample | Dropped:
        ids = np.array(encoding.ids, dtype=np.int32)
        lengths = self._rendered_lengths(ids, rendering.text.encode())
        if lengths is None:
            return Dropped.NOT_ROUND_TRIP
        ends = np.cumsum(lengths)
        covered = rendering.content_before[ends] - rendering.content_before[ends - lengths]
        special = self.view.special[ids]
        kinds = np.select(
            [(covered > 0) & (covered == lengths) & ~special, covered > 0, special],
            [TokenKind.CONTENT, TokenKind.MIXED, TokenKind.SPECIAL],
            TokenKind.TEMPLATE,
        )
        return self._checked(EncodedExample(ids, covered.astype(np.int32), kinds.astype(np.uint8)))

    def _rendered_lengths(self, ids: npt.NDArray[np.int32], text: bytes) -> npt.NDArray[np.int32] | None:
        """[tokens] bytes of the rendered text that each token covers; None where the tokens spell another text.

        A tokenizer with a dummy prefix puts its space before each stretch of text between special tokens.
        """
        lengths = self.view.lengths[ids]
        if self.view.spell(ids) == text:
            return lengths
        special = self.view.special[ids]
        starts = np.flatnonzero(~special & np.append(True, special[:-1]))
        starts = starts[[self.view.spelling[id_].startswith(b" ") for id_ in ids[starts]]]
        pieces = [self.view.spell(part) for part in np.split(ids, starts)]
        spaced = b"".join(b"( ?)" + re.escape(piece[1:]) for piece in pieces[1:])
        match = re.fullmatch(re.escape(pieces[0]) + spaced, text)
        if match is None:
            return None
        lengths[starts] -= np.array([not group for group in match.groups()], dtype=np.int32)
        return lengths

    def _checked(self, example: EncodedExample) -> EncodedExample | Dropped:
        too_long = self.max_tokens is not None and len(example.token_ids) > self.max_tokens
        return Dropped.OVER_CONTEXT if too_long else example


def check_vocabulary(view: ByteView, embedding_rows: int, model: str) -> None:
    """Raises UserError when a token has no row in the model's embedding."""
    if view.size > embedding_rows:
        raise UserError(
            f"{model}: the tokenizer's highest id is {view.size - 1}, the model's embedding has {embedding_rows} rows: "
            "this is not the model's tokenizer, or the model was saved without its resized embedding"
        )
