"""The compiled search of `mined_mapping`: the nearest of many short byte strings, by Levenshtein distance.

The search is exact. It compares a query with the strings of its own length, then with those of one byte more or less,
and so on until the difference in length alone exceeds the best distance so far. It skips most strings by a lower bound
that it computes from their *signatures*. For the others it computes the distance by bit-parallel columns (Myers 1999),
with one machine word per column.

Importing numba takes seconds, so only the function that runs the search imports this module. The compiled code is kept
on disk until this file changes.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Bytes = npt.NDArray[np.uint8]
Longs = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_WORD = 64
_ONE = np.uint64(1)


class Strings(NamedTuple):
    """Byte strings, sorted by length and then by id: the search meets the lowest id of equally near ones first."""

    letters: Bytes
    """all strings, concatenated"""
    starts: Longs
    """[K + 1] where each string begins"""
    ids: Longs
    """[K]"""
    of_length: Longs
    """[longest + 2] the index of the first string of each length"""
    once: Words
    """[K] one bit for each of 64 classes of bytes: the string contains the class at least once"""
    twice: Words
    """[K] the same for at least twice"""


@njit(cache=True, nogil=True)
def sign(letters: Bytes, starts: Longs, once: Words, twice: Words) -> None:
    """Write the signatures of strings to `once` and `twice`."""
    for k in range(len(starts) - 1):
        once[k] = twice[k] = 0
        for place in range(starts[k], starts[k + 1]):
            bit = _ONE << np.uint64(_class(letters[place]))
            twice[k] |= once[k] & bit
            once[k] |= bit


@njit(cache=True, nogil=True)
def _class(letter: int) -> int:
    """The class of a byte: one per letter of either case, six for the rest of ASCII, 32 for other bytes of UTF-8."""
    if letter >= 0xC0:
        return 32 + (letter & 15)
    if letter >= 0x80:
        return 48 + (letter & 15)
    if ord("a") <= letter | 32 <= ord("z"):
        return letter & 31
    return 0 if letter == ord(" ") else 27 + letter % 5


@njit(cache=True, nogil=True)
def _repeats(pattern: Bytes) -> tuple[np.uint64, int]:
    """The classes that a string contains more than twice, and the total of their occurrences beyond two."""
    counts, classes, beyond = np.zeros(64, np.int64), np.uint64(0), 0
    for letter in pattern:
        counts[_class(letter)] += 1
        if counts[_class(letter)] > 2:
            classes |= _ONE << np.uint64(_class(letter))
            beyond += 1
    return classes, beyond


@njit(cache=True, nogil=True)
def find_nearest(queries: Strings, strings: Strings, first: int, end: int, nearest: Longs) -> None:
    """Write the id of the nearest string to each query from `first` to `end`; the lowest id if several are nearest."""
    masks, columns = np.zeros(256, np.uint64), np.empty((2, len(strings.of_length)), np.int64)
    longest = len(strings.of_length) - 2
    for query in range(first, end):
        pattern = queries.letters[queries.starts[query] : queries.starts[query + 1]]
        once, twice = queries.once[query], queries.twice[query]
        repeated, beyond = _repeats(pattern)
        _set_masks(masks, pattern, True)
        best, best_id = np.int64(2**62), np.int64(-1)
        for step in range(2 * max(len(pattern), longest) + 1):
            # the query's length, then one less, one more, two less, ...
            difference = (step + 1) // 2
            if difference > best:
                break
            length = len(pattern) + (difference if step % 2 == 0 else -difference)
            if 0 <= length <= longest:
                for k in range(strings.of_length[length], strings.of_length[length + 1]):
                    # each byte that the two do not share is an edit; of a class repeated on both sides, all may be
                    # shared
                    shared = _count(once & strings.once[k]) + _count(twice & strings.twice[k])
                    shared += beyond if repeated & strings.twice[k] else 0
                    bound = max(difference, max(length, len(pattern)) - shared)
                    if bound < best or (bound == best and strings.ids[k] < best_id):
                        text = strings.letters[strings.starts[k] : strings.starts[k + 1]]
                        distance = _distance(masks, pattern, text, best, columns)
                        if distance < best or (distance == best and strings.ids[k] < best_id):
                            best, best_id = distance, strings.ids[k]
        _set_masks(masks, pattern, False)
        nearest[query] = best_id


@njit(cache=True, nogil=True, inline="always")
def _count(word: np.uint64) -> Any:
    """The number of bits that are set."""
    word = word - ((word >> _ONE) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(cache=True, nogil=True)
def _set_masks(masks: Words, pattern: Bytes, present: bool) -> None:
    """Write the places of each of the pattern's bytes to `masks`, or clear them again."""
    for place in range(min(len(pattern), _WORD)):
        masks[pattern[place]] = (masks[pattern[place]] | (_ONE << np.uint64(place))) if present else np.uint64(0)


@njit(cache=True, nogil=True)
def _distance(masks: Words, pattern: Bytes, text: Bytes, enough: Any, columns: Longs) -> Any:
    """The Levenshtein distance, or any number above `enough` if the distance is above it."""
    if len(pattern) > _WORD:
        return _distance_by_cells(pattern, text, columns)
    last = _ONE << np.uint64(len(pattern) - 1)
    up, down, score = ~np.uint64(0), np.uint64(0), np.int64(len(pattern))
    for place in range(len(text)):
        equal = masks[text[place]]
        straight = equal | down
        diagonal = (((equal & up) + up) ^ up) | equal
        rises, falls = down | ~(diagonal | up), up & diagonal
        if rises & last:
            score += 1
        elif falls & last:
            score -= 1
        # each remaining byte lowers the score by one at most
        if score - (len(text) - 1 - place) > enough:
            return enough + 1
        rises, falls = (rises << _ONE) | _ONE, falls << _ONE
        up, down = falls | ~(straight | rises), rises & straight
    return score


@njit(cache=True, nogil=True)
def _distance_by_cells(pattern: Bytes, text: Bytes, columns: Longs) -> Any:
    """Return the Levenshtein distance by the textbook's table, two columns of which are kept at a time."""
    before, after = columns[0], columns[1]
    for place in range(len(text) + 1):
        before[place] = place
    for row in range(len(pattern)):
        after[0] = row + 1
        for place in range(len(text)):
            changed = before[place] + (pattern[row] != text[place])
            after[place + 1] = min(changed, before[place + 1] + 1, after[place] + 1)
        before, after = after, before
    return before[len(text)]
