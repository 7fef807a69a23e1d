"""The compiled comparison of tokens' spellings with the bytes of their texts, which nearly every text passes.

Importing numba takes seconds, so the function that runs this module imports it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Ints = npt.NDArray[np.integer[Any]]
Bytes = npt.NDArray[np.uint8]

_SPACE = np.uint8(32)
# unsigned: a signed index is checked for being negative at every access
_0, _1 = np.uintp(0), np.uintp(1)


@njit(cache=True, nogil=True)
def spell_texts(
    ids: Ints,
    offsets: Ints,
    vocabulary: Bytes,
    starts: Ints,
    text: Bytes,
    text_offsets: Ints,
    lengths: Ints,
    spelled: npt.NDArray[np.bool_],
) -> None:
    """Write each token's bytes to `lengths` [tokens], and whether an example's tokens spell its text to `spelled` [N].

    The spelling of id k is in `vocabulary` from starts[k] to starts[k + 1]; `text` holds the texts of the N examples,
    concatenated. If the tokens begin with a space that the text does not have (a dummy prefix), the first token's
    length is reduced by a byte.
    """
    for row in range(len(spelled)):
        first, end = offsets[row], offsets[row + 1]
        at, stop = np.uintp(text_offsets[row]), np.uintp(text_offsets[row + 1])
        own, own_lengths = ids[first:end], lengths[first:end]
        spelled[row] = _spells(own, vocabulary, starts, text, at, stop, own_lengths, _0)
        if not spelled[row] and first < end and own_lengths[0] > 0 and vocabulary[starts[own[0]]] == _SPACE:
            spelled[row] = _spells(own, vocabulary, starts, text, at, stop, own_lengths, _1)
            own_lengths[0] -= spelled[row]


@njit(nogil=True, forceinline=True)
def _spells(
    ids: Ints,
    vocabulary: Bytes,
    starts: Ints,
    text: Bytes,
    at: np.uintp,
    stop: np.uintp,
    lengths: Ints,
    prefix: np.uintp,
) -> bool:
    """Return whether the tokens, without the first `prefix` bytes, spell text[at:stop]. Writes all their lengths."""
    same = True
    for k in range(len(ids)):
        id_ = np.uintp(ids[k])
        place, end = np.uintp(starts[id_]), np.uintp(starts[id_ + _1])
        lengths[k] = end - place
        if k == 0:
            place += prefix
        if same and at + (end - place) <= stop:
            while place < end:
                same &= vocabulary[place] == text[at]
                place += _1
                at += _1
        else:
            same = False
    return same and at == stop
