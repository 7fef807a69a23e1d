"""Counts the substrings of words, exactly: integers, the same for every order and grouping of the texts.

A substring's score is the number of bytes that it covers in the texts: how often it occurs, times its length.

Shapes: P places of a buffer, K different substrings.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
_KEY_BYTES = 8


class Substrings(NamedTuple):
    """The substrings with the highest scores, in descending order; of equal ones, in the order of their bytes."""

    spellings: list[bytes]
    scores: Ints
    """[K] bytes of the texts that each covers"""

    def most(self, count: int) -> "Substrings":
        """Return the first `count` of them."""
        return Substrings(self.spellings[:count], self.scores[:count])


def score_substrings(words: Mapping[bytes, int], longest: int, most: int) -> Substrings:
    """Return the `most` substrings of 1 to `longest` (at most 16) bytes with the highest scores.

    A substring that occurs once is left out, unless it is a single byte.
    """
    parts = [part for part in _counted(words, longest) if len(part[1])]
    spellings = [spelling for part, _ in parts for spelling in part]
    scores = np.concatenate([np.zeros(0, np.int64), *(part for _, part in parts)])
    if len(scores) > most:
        # ties at the threshold are kept here, and decided below: a partition's order differs between machines
        kept = np.flatnonzero(scores >= np.partition(scores, len(scores) - most)[len(scores) - most])
        spellings, scores = [spellings[k] for k in kept.tolist()], scores[kept]
    order = sorted(range(len(scores)), key=lambda k: (-scores[k], spellings[k]))[:most]
    return Substrings([spellings[k] for k in order], scores[order])


def _counted(words: Mapping[bytes, int], longest: int) -> Iterator[tuple[list[bytes], Ints]]:
    """Yield the substrings of each length, with their scores."""
    letters = np.frombuffer(b"".join(words), np.uint8)
    sizes = np.fromiter(map(len, words), np.int64, len(words))
    left = np.repeat(np.cumsum(sizes), sizes) - np.arange(len(letters))
    counts = np.repeat(np.fromiter(words.values(), np.int64, len(words)), sizes)
    for length in range(1, longest + 1):
        places = np.flatnonzero(left >= length)
        if not len(places):
            return
        spellings, totals = _grouped(letters, places, counts[places], length)
        kept = np.flatnonzero((totals > 1) | (length == 1))
        yield [spellings[k].tobytes() for k in kept.tolist()], totals[kept] * length


def _grouped(letters: Bytes, places: Ints, counts: Ints, length: int) -> tuple[Bytes, Ints]:
    """Return the different substrings of this length at the places, [K, length], and the sum of their counts [K]."""
    windows = np.lib.stride_tricks.sliding_window_view(letters, length)[places]
    keys = [_as_numbers(windows[:, at : at + _KEY_BYTES]) for at in range(0, length, _KEY_BYTES)]
    order = np.lexsort(keys[::-1])
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = np.any([key[order[1:]] != key[order[:-1]] for key in keys], axis=0)
    firsts = np.flatnonzero(is_first)
    return windows[order[firsts]], np.add.reduceat(counts[order], firsts)


def _as_numbers(windows: Bytes) -> npt.NDArray[np.uint64]:
    """[P] the bytes [P, up to 8] as numbers, in the order of the bytes."""
    numbers = np.zeros(len(windows), np.uint64)
    for column in windows.T:
        numbers = numbers << np.uint64(8) | column.astype(np.uint64)
    return numbers
