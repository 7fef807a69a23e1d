"""Cuts texts to a number of the student's tokens, so that a context that may be too short for `max_bytes` is used.

The places are those of `cutting`, but a blank line, a line or a sentence that ends in the last eighth of the window is
taken before a better kind of place further up: a piece then uses at least seven eighths of the context. A piece's own
tokens are counted, since a cut can make more tokens of the same bytes. Each window is encoded once, and each piece
once, so the time is linear in the length of the text.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from alm_pipeline.conversations.sections import Conversation
from alm_pipeline.corpus.cutting import MIN_PIECE_BYTES, cut_place, sentence_place
from alm_pipeline.corpus.formats.tools import Arguments
from storage.errors import UserError

_BYTES_PER_TOKEN = 4.0
"""what a text's first window assumes; later windows go by the one before"""


class TokenLengths(Protocol):
    """Counts a tokenizer's tokens, as the stage that makes the tokens dataset does."""

    @property
    def frame(self) -> int:
        """The number of special tokens around every text."""

    def token_ends(self, text: str) -> npt.NDArray[np.int64]:
        """Return where each token of a text ends, in bytes, in order and without the special tokens around it."""

    def conversation_tokens(self, conversation: Conversation, arguments: Arguments | None = None) -> int:
        """Return the number of tokens of the rendered conversation; 0 if it can't be encoded for another reason."""

    def check_unchanged(self) -> None:
        """Raise UserError if the tokenizer's files were changed since it was loaded."""


@dataclass(frozen=True)
class CountedPiece:
    """A piece of a text, and its number of tokens with the special tokens around it."""

    text: str
    tokens: int


@dataclass(frozen=True)
class TokenLimit:
    """At most `context` of the student's tokens per example, including the special tokens around it.

    The constructor raises UserError if these leave no room for a text.
    """

    context: int
    lengths: TokenLengths

    def __post_init__(self) -> None:
        if self.room < MIN_PIECE_BYTES:
            raise UserError(
                f"student.model: its context of {self.context} tokens leaves {self.room} for a text, after "
                f"{self.lengths.frame} special tokens around it, and at least {MIN_PIECE_BYTES} are needed: choose a "
                "model with a longer context"
            )

    @property
    def room(self) -> int:
        """The most tokens of a text by itself."""
        return self.context - self.lengths.frame

    def fits(self, conversation: Conversation, arguments: Arguments | None = None) -> bool:
        """Return whether a conversation fits the context, as far as it can be encoded."""
        return self.lengths.conversation_tokens(conversation, arguments) <= self.context

    def cut_text(self, text: str, max_bytes: int | None = None) -> list[CountedPiece]:
        """Return pieces that concatenate to `text`, each within the context and at most `max_bytes` bytes of UTF-8.

        None is empty. `max_bytes` is at least 16. A piece is white space only if it fits into no other piece.
        """
        data = text.encode()
        max_bytes = len(data) if max_bytes is None else max_bytes
        cutter = _TextCutter(data, max_bytes, self)
        pieces: list[CountedPiece] = []
        for piece in cutter.pieces():
            joined = cutter.piece(pieces[-1].text + piece.text) if pieces and piece.text.isspace() else None
            if joined and joined.tokens <= self.context and len(joined.text.encode()) <= max_bytes:
                pieces[-1] = joined
            else:
                pieces.append(piece)
        return pieces


class _TextCutter:
    def __init__(self, data: bytes, max_bytes: int, limit: TokenLimit) -> None:
        self._data, self._max_bytes, self._limit = data, max_bytes, limit
        self._bytes_per_token = _BYTES_PER_TOKEN

    def piece(self, text: str) -> CountedPiece:
        return CountedPiece(text, len(self._limit.lengths.token_ends(text)) + self._limit.lengths.frame)

    def pieces(self) -> list[CountedPiece]:
        start, found = 0, []
        while start < len(self._data):
            piece = self._piece_at(start)
            found.append(piece)
            start += len(piece.text.encode())
        return found

    def _piece_at(self, start: int) -> CountedPiece:
        """Return the piece that begins at `start`."""
        size, ends = self._window(start)
        rest = len(self._data) - start
        if rest <= MIN_PIECE_BYTES or (size == rest and len(ends) <= self._limit.room):
            return CountedPiece(self._data[start:].decode(), len(ends) + self._limit.lengths.frame)
        if len(ends) > self._limit.room:
            size = int(ends[self._limit.room - 1])
        # at least a quarter of a piece remains, so that no text ends in a scrap
        size = max(MIN_PIECE_BYTES, min(size, rest - size // 4))
        piece = self._ending_in(start, size)
        while piece.tokens > self._limit.context and len(piece.text.encode()) > MIN_PIECE_BYTES:
            piece = self._ending_in(start, len(piece.text.encode()) * 15 // 16)
        return piece

    def _window(self, start: int) -> tuple[int, npt.NDArray[np.int64]]:
        """Return the bytes of a window that begins at `start`, and its token ends.

        It has more tokens than fit, or `max_bytes` bytes, or is the rest of the text.
        """
        most = min(self._max_bytes, len(self._data) - start)
        size = min(most, int(self._limit.room * self._bytes_per_token * 1.25) + MIN_PIECE_BYTES)
        while True:
            # a character that the window cuts in two is left out
            window = self._data[start : start + size].decode(errors="ignore")
            ends = self._limit.lengths.token_ends(window)
            if len(ends) > self._limit.room or size == most:
                self._bytes_per_token = size / max(1, len(ends))
                return size, ends
            size = min(most, 2 * size)

    def _ending_in(self, start: int, size: int) -> CountedPiece:
        """Return the piece that ends at the best place in the second half of `size` bytes from `start`."""
        late, high = start + size * 7 // 8, start + size
        end = sentence_place(self._data, late, high) or cut_place(self._data, start, start + size // 2, high)
        return self.piece(self._data[start:end].decode())
