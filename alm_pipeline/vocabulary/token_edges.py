"""What a token's edges say about the text beside it: whether white space begins it, and whether a word surely ends it.

Where a boundary token follows a token, the tokens before are those that any longer text with the same beginning has,
unless white space stands before (how a run of it is cut depends on what follows) or a token of the vocabulary goes on
across such a place: with Qwen's tokenizers `.` and the line end after it are one token, with GPT-2's never.
"""

from enum import IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt

from alm_pipeline.vocabulary.byte_view import ByteView

Edges = npt.NDArray[np.uint8]
_Keys = npt.NDArray[np.uint32]
_WHITE_SPACE = [character.encode() for character in map(chr, range(0x3001)) if character.isspace()]
_LONGEST = 4
"""of a character in UTF-8"""


class TokenEdge(IntFlag):
    """What is known of a token's edges."""

    BOUNDARY = 1
    """It begins with white space, or is special: it is one of the boundary tokens."""
    LOOSE_END = 2
    """It ends in white space, or in a character after which a token of its vocabulary has white space."""
    PARTIAL_END = 4
    """It ends within a character: the other side's token has to tell how the character ends."""


def token_edges(view: ByteView) -> Edges:
    """[V] TokenEdge of each token of a vocabulary."""
    ends = view.starts[1:]
    last = _characters_before(view.letters, ends, np.minimum(view.lengths, _LONGEST))
    loose = np.isin(last, np.union1d(_keys(_WHITE_SPACE), _before_white_space(view)))
    ordinary = ~view.special & (view.lengths > 0)
    edges = view.boundary(view.size) * np.uint8(TokenEdge.BOUNDARY)
    edges[ordinary & loose] |= np.uint8(TokenEdge.LOOSE_END)
    edges[ordinary & (last == 0)] |= np.uint8(TokenEdge.PARTIAL_END)
    return edges


def _before_white_space(view: ByteView) -> _Keys:
    """Return the characters that stand before white space inside an ordinary token."""
    places = np.flatnonzero(np.isin(view.letters, np.frombuffer(b" \t\n", np.uint8)))
    tokens = np.searchsorted(view.starts, places, side="right") - 1
    inside = places - view.starts[tokens]
    kept = (inside > 0) & ~view.special[tokens]
    characters = _characters_before(view.letters, places[kept], np.minimum(inside[kept], _LONGEST))
    return np.setdiff1d(characters, np.append(_keys(_WHITE_SPACE), np.uint32(0)))


def _characters_before(
    letters: npt.NDArray[np.uint8], places: npt.NDArray[np.int64], known: npt.NDArray[np.integer[Any]]
) -> _Keys:
    """[places] the key of the character that ends before each place; 0 if the `known` bytes before hold no whole one.

    A character's key is its bytes in UTF-8 as one number, plus 1.
    """
    keys, value = np.zeros(len(places), np.uint32), np.zeros(len(places), np.uint32)
    found = known <= 0
    for length in range(1, _LONGEST + 1):
        there = ~found & (known >= length)
        byte = np.zeros(len(places), np.uint32)
        byte[there] = letters[places[there] - length]
        value |= byte << np.uint32(8 * (length - 1))
        leads = there & (_bytes_of_character(byte) == length)
        keys[leads] = value[leads] + 1
        # anything but a continuation byte ends the search
        found |= ~there | (byte & 0xC0 != 0x80)
    return keys


def _bytes_of_character(lead: _Keys) -> npt.NDArray[np.int64]:
    """Return the length of the character that begins with each byte; 0 for a byte that begins none."""
    return np.select([lead < 0x80, lead < 0xC0, lead < 0xE0, lead < 0xF0, lead < 0xF8], [1, 0, 2, 3, 4], 0)


def _keys(characters: list[bytes]) -> _Keys:
    return np.array([int.from_bytes(character, "big") + 1 for character in characters], np.uint32)
