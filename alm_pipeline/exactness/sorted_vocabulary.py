"""A vocabulary sorted by bytes: all tokens that begin with given bytes are neighbors, found by two look-ups."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from alm_pipeline.vocabulary.byte_view import ByteView
from storage.errors import UserError

Ints = npt.NDArray[np.int64]
WHITE_SPACE = (b" ", b"\t", b"\n")
"""what a boundary token begins with, as `ByteView.starts_word` has it"""
_HIGHEST = 0xFF


class TokenRange(NamedTuple):
    """The places in a sorted vocabulary of the tokens that begin with some bytes."""

    start: int
    equal_end: int
    """tokens that are exactly these bytes come first; this is one past their last"""
    end: int


@dataclass(frozen=True)
class SortedVocabulary:
    """The tokens that cover bytes of a text, by their bytes, and the special tokens."""

    spellings: tuple[bytes, ...]
    """of all tokens by id, empty for those that cover no byte of a text"""
    order: Ints
    """[O] the ids of ordinary tokens, in the order of their bytes"""
    special: Ints
    """the ids of special tokens"""
    _sorted: list[bytes]
    _ranges: dict[bytes, TokenRange] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, view: ByteView, rows: int) -> "SortedVocabulary":
        """Sort the tokens that have one of `rows` rows. Raises UserError if no token covers the spaces of a text."""
        if view.drops_space or (view.starts_word & ~_begins_with_white_space(view)).any():
            raise UserError(
                "the tokenizer's tokens do not cover white space, so a text's probability can't be summed by bytes: "
                "only tokenizers whose tokens cover every byte can be audited"
            )
        size = min(rows, view.size)
        ordinary = [id_ for id_ in range(size) if not view.special[id_] and view.lengths[id_]]
        ordinary.sort(key=lambda id_: view.spelling[id_])
        spellings = tuple(b"" if view.special[id_] else view.spelling[id_] for id_ in range(size))
        special = np.flatnonzero(view.special[:size])
        return cls(spellings, np.array(ordinary, np.int64), special, [view.spelling[id_] for id_ in ordinary])

    def find(self, start: bytes) -> TokenRange:
        """Return the places of the tokens that begin with these bytes (at least one)."""
        if (found := self._ranges.get(start)) is None:
            first = bisect_left(self._sorted, start)
            after = _successor(start)
            end = len(self._sorted) if after is None else bisect_left(self._sorted, after, first)
            found = self._ranges[start] = TokenRange(first, bisect_right(self._sorted, start, first, end), end)
        return found

    def ids(self, places: range) -> list[int]:
        """Return the ids of the tokens at these places."""
        ids: list[int] = self.order[places.start : places.stop].tolist()
        return ids


def _begins_with_white_space(view: ByteView) -> npt.NDArray[np.bool_]:
    return np.array([text[:1] in WHITE_SPACE for text in view.spelling], np.bool_)


def _successor(text: bytes) -> bytes | None:
    """Return the least bytes greater than all that begin with `text`; None if there are none."""
    short = text.rstrip(bytes([_HIGHEST]))
    return short[:-1] + bytes([short[-1] + 1]) if short else None
