"""The tokenization bias of token pairs (arXiv 2503.20083, appendix F), which decides where chunks may end.

Some texts are excluded after the teacher's token but not after the student's. The share of the excluding tokens among
all tokens of the corpus is the bias toward the teacher; the bias toward the student is the reverse. A pair that
excludes the same texts on both sides has no bias.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from alm_pipeline.objective.chunking.cover_sets import Covers, CoverSets, Extensions
from alm_pipeline.runtime.progress import track

if TYPE_CHECKING:  # importing it takes a second
    from transformers import PreTrainedTokenizerFast

Ints = npt.NDArray[np.integer[Any]]
_PAIRS_AT_ONCE = 4096
_SPACE_BIAS = 1.0
"""of pairs with a token of only white space: most tokens begin with one, so the bias is high and slow to compute"""


class Pairs(NamedTuple):
    """[P] unique pairs of tokens, sorted by the teacher's and then the student's id."""

    teacher_ids: npt.NDArray[np.int32]
    student_ids: npt.NDArray[np.int32]

    @classmethod
    def of(cls, teacher_ids: Ints, student_ids: Ints) -> "Pairs":
        """Return the unique pairs among these."""
        return cls.of_keys(np.unique(_keys(teacher_ids, student_ids)))

    @classmethod
    def of_keys(cls, keys: npt.NDArray[np.int64]) -> "Pairs":
        return cls((keys >> 32).astype(np.int32), (keys & 0xFFFFFFFF).astype(np.int32))

    @property
    def keys(self) -> npt.NDArray[np.int64]:
        """[P] one number per pair, ascending."""
        return _keys(*self)


class PairBiases(NamedTuple):
    """The biases of P pairs, sorted by the teacher's and then the student's id."""

    teacher_ids: npt.NDArray[np.int32]
    student_ids: npt.NDArray[np.int32]
    towards_teacher: npt.NDArray[np.float32]
    """[P] the probability of the tokens by which only the teacher's side excludes a text"""
    towards_student: npt.NDArray[np.float32]

    def at_most(self, gamma: float, teacher_ids_C: Ints, student_ids_C: Ints) -> npt.NDArray[np.bool_]:
        """[C] whether each of these pairs has a bias of at most γ in both directions; False for unknown pairs."""
        if not len(self.teacher_ids):
            return np.zeros(len(teacher_ids_C), dtype=bool)
        known_keys, keys_C = _keys(self.teacher_ids, self.student_ids), _keys(teacher_ids_C, student_ids_C)
        places_C = np.minimum(np.searchsorted(known_keys, keys_C), len(known_keys) - 1)
        within = np.maximum(self.towards_teacher, self.towards_student) <= np.float32(gamma)
        within_C: npt.NDArray[np.bool_] = (known_keys[places_C] == keys_C) & within[places_C]
        return within_C


def _keys(teacher_ids: Ints, student_ids: Ints) -> npt.NDArray[np.int64]:
    return np.asarray(teacher_ids, np.int64) << 32 | np.asarray(student_ids, np.int64)


def pair_biases(
    teacher_tokenizer: "PreTrainedTokenizerFast",
    student_tokenizer: "PreTrainedTokenizerFast",
    teacher_counts: Ints,
    student_counts: Ints,
    pairs: Pairs,
) -> PairBiases:
    """Return the bias of each pair in both directions.

    The counts, [highest id + 1 or fewer], are how often each token occurs; its share of them is its probability.
    """
    teacher = _BiasSide(teacher_tokenizer.backend_tokenizer, teacher_counts)
    student = _BiasSide(student_tokenizer.backend_tokenizer, student_counts)
    space = teacher.space[pairs.teacher_ids] | student.space[pairs.student_ids]
    towards = np.full((2, len(space)), _SPACE_BIAS, np.float32)
    compared = Pairs(pairs.teacher_ids[~space], pairs.student_ids[~space])
    extensions = Extensions()
    covers = [
        _PairCovers.of(side, ids, extensions, name)
        for side, ids, name in zip((teacher, student), compared, ("teacher", "student"), strict=True)
    ]
    towards[0, ~space] = _one_sided(covers[0], covers[1], extensions)
    towards[1, ~space] = _one_sided(covers[1], covers[0], extensions)
    return PairBiases(*pairs, *towards)


class _BiasSide:
    """A tokenizer and the probabilities of its tokens."""

    def __init__(self, tokenizer: Tokenizer, counts: Ints) -> None:
        size = max([*tokenizer.get_vocab(with_added_tokens=True).values()]) + 1
        padded = np.zeros(max(size, len(counts)), np.float64)
        padded[: len(counts)] = counts
        self.probabilities = padded / max(padded.sum(), 1)
        self.cover_sets = CoverSets(tokenizer, padded > 0)
        spellings = self.cover_sets.view.spelling
        self.space = np.array([not spelling.decode(errors="replace").strip() for spelling in spellings])


class _PairCovers(NamedTuple):
    """The cover sets of one side of P pairs."""

    side: _BiasSide
    ids: npt.NDArray[np.int32]
    """[P]"""
    covers: Covers
    """the cover sets of the unique tokens"""
    which: npt.NDArray[np.int64]
    """[P] the index in `covers` of each pair's token"""

    @classmethod
    def of(cls, side: _BiasSide, ids: npt.NDArray[np.int32], extensions: Extensions, name: str) -> "_PairCovers":
        unique, which = np.unique(ids, return_inverse=True)
        with track(f"cover sets of the {name}", len(unique), "tokens") as advance:
            covers = side.cover_sets.of(unique.tolist(), extensions, advance)
        return cls(side, ids, covers, which)

    def entries(self, first: int, last: int) -> tuple[Ints, Ints, Ints]:
        """Return (pair, extension, excluding token) for a range of pairs; pairs are counted from the first in it."""
        starts = self.covers.offsets[self.which[first:last]]
        counts = self.covers.offsets[self.which[first:last] + 1] - starts
        pairs = np.repeat(np.arange(len(counts)), counts)
        places = np.arange(len(pairs)) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
        return pairs, self.covers.extensions[places], self.covers.tokens[places]


def _one_sided(side: _PairCovers, other: _PairCovers, extensions: Extensions) -> npt.NDArray[np.float64]:
    """[P] the probability of the tokens of one side that exclude what the other side does not exclude."""
    bias = np.zeros(len(side.ids))
    for first in range(0, len(bias), _PAIRS_AT_ONCE):
        last = min(first + _PAIRS_AT_ONCE, len(bias))
        pairs, excluded, tokens = side.entries(first, last)
        other_pairs, other_excluded, _ = other.entries(first, last)
        alone = ~np.isin(_keys(pairs, excluded), _keys(other_pairs, other_excluded))
        pairs, excluded, tokens = pairs[alone], excluded[alone], tokens[alone]
        alone = ~_covered_by_others(other, other.ids[first:last][pairs], excluded, extensions)
        weights = side.side.probabilities[tokens[alone]]
        bias[first:last] = np.bincount(pairs[alone], weights, minlength=last - first)
    return bias


def _covered_by_others(other: _PairCovers, ids: Ints, excluded: Ints, extensions: Extensions) -> npt.NDArray[np.bool_]:
    """Whether each of these extensions is excluded after its token by a token that does not occur."""
    keys, which = np.unique(_keys(ids, excluded), return_inverse=True)

    def unique_pairs() -> Iterator[tuple[int, bytes]]:
        for key in keys.tolist():
            yield key >> 32, extensions.texts[key & 0xFFFFFFFF]

    covered_pairs = other.side.cover_sets.covered_by_others(unique_pairs())
    covered_keys = [id_ << 32 | extensions.number(text) for id_, text in covered_pairs]
    covered: npt.NDArray[np.bool_] = np.isin(keys, np.array(covered_keys, np.int64))[which]
    return covered
