"""Which side shows each byte of the texts, counted by the role of the section that the byte is in.

Templates leave out messages, or trim them, and tokenizers remove white space; such bytes are *uncovered* on that side.
A byte that one side alone covers is *one-sided*: the models answer different prompts, and no chunk compares it.

Only few bytes are not aligned, so nothing is computed byte by byte: the texts of a shard are cut where sections, runs
of uncovered bytes and chunks that are not compared begin and end, and each piece between two cuts is counted whole.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Self, assert_never

import numpy as np
import numpy.typing as npt

from alm_pipeline.alignment.chunks import ShardChunks, ShardTokens, constant
from alm_pipeline.alignment.sections import Int64s, Sections
from storage.schemas import ChunkKind

Bools = npt.NDArray[np.bool_]


class Visibility(IntEnum):
    """Who shows a byte."""

    ALIGNED = 0
    """both sides, in a chunk that is compared"""
    UNCOMPARED = 1
    """both sides, in a chunk that can't be compared"""
    TEACHER_ONLY = 2
    STUDENT_ONLY = 3
    UNSEEN = 4
    """neither side"""


_LONG = 1 << 20
"""values that are worth numba's import; an alignment has loaded it before"""
ONE_SIDED = (Visibility.TEACHER_ONLY, Visibility.STUDENT_ONLY)


@dataclass(frozen=True)
class Spans:
    """Spans [K] of the shard's texts, concatenated: in order, without overlaps. Positions are bytes."""

    starts: Int64s
    ends: Int64s

    def contain(self, positions: Int64s) -> Bools:
        """Return whether each position [P] is in one of the spans."""
        if not len(self.starts):
            return np.zeros(len(positions), np.bool_)
        span = np.searchsorted(self.starts, positions, side="right") - 1
        inside: Bools = (span >= 0) & (positions < self.ends[span])
        return inside


@dataclass(frozen=True)
class ShardTexts:
    """The texts of a shard's N examples; one that was dropped on either side counts as empty."""

    aligned: Bools
    """[N] whether the example has tokens on both sides"""
    starts: Int64s
    """[N + 1] where each text begins, and the end of the last"""

    @classmethod
    def of(cls, teacher: ShardTokens, student: ShardTokens, sections: Sections) -> "ShardTexts":
        """Return the texts; of plain texts, the sizes are those of the teacher's tokens and of what they leave out."""
        aligned = ~(teacher.dropped | student.dropped)
        if len(sections.places):
            sizes = np.diff(np.concatenate([[0], np.cumsum(sections.bytes)])[sections.offsets])
        else:
            sizes = _stretch_sums(teacher.byte_lengths, teacher.offsets[:-1], teacher.offsets[1:])
            sizes += np.diff(np.concatenate([[0], np.cumsum(teacher.uncovered_bytes)])[teacher.uncovered_offsets])
        return cls(aligned, np.concatenate([[0], np.cumsum(np.where(aligned, sizes, 0))]))

    def uncovered(self, tokens: ShardTokens) -> Spans:
        """Return the bytes that one side does not show."""
        examples = np.repeat(np.arange(len(self.aligned)), np.diff(tokens.uncovered_offsets))
        runs = np.flatnonzero(self.aligned[examples])
        examples, sizes = examples[runs], tokens.uncovered_bytes[runs].astype(np.int64)
        at = tokens.offsets[examples] + tokens.uncovered_at[runs]
        before = np.cumsum(sizes) - sizes
        first_runs = np.searchsorted(examples, examples)
        covered = sums_within(tokens.byte_lengths, tokens.offsets, examples, at)
        starts = self.starts[examples] + covered + before - before[first_runs]
        return Spans(starts, starts + sizes)

    def uncompared(self, chunks: ShardChunks) -> Spans:
        """Return the bytes of the chunks that are not compared."""
        places = np.flatnonzero(chunks.kinds == ChunkKind.UNPAIRED)
        places = places[chunks.byte_lengths[places] > 0]
        examples = np.searchsorted(chunks.offsets, places, side="right") - 1
        starts = self.starts[examples] + sums_within(chunks.byte_lengths, chunks.offsets, examples, places)
        return Spans(starts, starts + chunks.byte_lengths[places])


def no_spans() -> Spans:
    """Return no spans."""
    return Spans(np.zeros(0, np.int64), np.zeros(0, np.int64))


def sums_within(values: npt.NDArray[Any], offsets: Int64s, examples: Int64s, places: Int64s) -> Int64s:
    """Return the sum of an example's values before each of some places [P] in the flat values, which ascend.

    `offsets` [N + 1] are where each example's values begin, and `examples` [P] those that the places are in.
    """
    if not len(places):
        return np.zeros(0, np.int64)
    first = np.searchsorted(examples, examples)
    is_first = first == np.arange(len(examples))
    stretches = _stretch_sums(values, np.where(is_first, offsets[examples], np.roll(places, 1)), places)
    sums = np.cumsum(stretches)
    within: Int64s = sums - sums[first] + stretches[first]
    return within


def _stretch_sums(values: npt.NDArray[Any], starts: Int64s, ends: Int64s) -> Int64s:
    """Return the sum of the values of each stretch [P]."""
    if len(values) < _LONG:
        sums = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
        between: Int64s = sums[ends] - sums[starts]
        return between
    from alm_pipeline.alignment.shard_kernels import sum_stretches  # imports numba, which takes seconds

    sums = np.zeros(len(starts), np.int64)
    sum_stretches(constant(values, np.int32), constant(starts, np.int64), constant(ends, np.int64), sums)
    return sums


@dataclass(frozen=True)
class ShardVisibility:
    """The bytes of a shard by section and visibility. A plain text is a section of the role `text`."""

    sections: Sections
    bytes: Int64s
    """[S, Visibility]; they add up to the bytes of the section, or to 0 if its example is not aligned"""

    @classmethod
    def of(cls, teacher: ShardTokens, student: ShardTokens, sections: Sections, chunks: ShardChunks | None) -> Self:
        """Count the bytes of a shard. `sections` are those of its conversations; of plain texts there are none.

        Without chunks, all bytes that both sides show count as aligned. Raises AssertionError if the sections do not
        tile the texts.
        """
        texts = ShardTexts.of(teacher, student, sections)
        if not len(sections.places):
            sections = Sections.of_texts(np.diff(texts.starts))
        if chunks:
            assert texts.starts[-1] == chunks.byte_lengths.sum(dtype=np.int64), (
                "the turns have other sizes than the texts"
            )
        sizes = np.where(texts.aligned[sections.examples], sections.bytes, 0)
        uncompared = texts.uncompared(chunks) if chunks else no_spans()
        spans = texts.uncovered(teacher), texts.uncovered(student), uncompared
        return cls(sections, bytes_by_visibility(sizes, int(texts.starts[-1]), *spans))

    def whole(self, visibility: Visibility) -> Bools:
        """Return the sections [S] that have bytes of this visibility, and no byte that the side left out shows."""
        shown: tuple[Visibility, ...]
        match visibility:
            case Visibility.TEACHER_ONLY:
                shown = (Visibility.ALIGNED, Visibility.UNCOMPARED, Visibility.STUDENT_ONLY)
            case Visibility.STUDENT_ONLY:
                shown = (Visibility.ALIGNED, Visibility.UNCOMPARED, Visibility.TEACHER_ONLY)
            case Visibility.UNSEEN:
                shown = (Visibility.ALIGNED, Visibility.UNCOMPARED, *ONE_SIDED)
            case Visibility.ALIGNED | Visibility.UNCOMPARED:
                return np.zeros(len(self.bytes), np.bool_)
            case _:
                assert_never(visibility)
        none: Bools = (self.bytes[:, visibility] > 0) & (self.bytes[:, shown].sum(1) == 0)
        return none

    def one_sided_examples(self) -> Bools:
        """Return the examples [N] of which one side alone shows some bytes."""
        sections = np.flatnonzero(self.bytes[:, ONE_SIDED].sum(1))
        examples = np.zeros(len(self.sections.offsets) - 1, np.bool_)
        examples[self.sections.examples[sections]] = True
        return examples


def bytes_by_visibility(
    sizes: Int64s, total: int, not_by_teacher: Spans, not_by_student: Spans, uncompared: Spans
) -> Int64s:
    """Return the bytes of each visibility [S, Visibility] in stretches of these sizes [S], which tile `total` bytes."""
    ends = np.cumsum(sizes, dtype=np.int64)
    assert total == (ends[-1] if len(ends) else 0), "the turns have other sizes than the texts"
    spans = (not_by_teacher, not_by_student, uncompared)
    edges = [edge for span in spans for edge in (span.starts, span.ends)]
    cuts = np.sort(np.concatenate([[0], ends, *edges]), kind="stable")  # merges what is sorted
    starts, lengths = cuts[:-1], np.diff(cuts)
    starts, lengths = starts[lengths > 0], lengths[lengths > 0]
    kinds = _visibility(*(span.contain(starts) for span in spans))
    places = np.searchsorted(ends, starts, side="right") * len(Visibility) + kinds
    counts = np.bincount(places, lengths, len(sizes) * len(Visibility))  # exact, below 2**53 bytes
    return counts.astype(np.int64).reshape(len(sizes), len(Visibility))


def _visibility(not_by_teacher: Bools, not_by_student: Bools, uncompared: Bools) -> Int64s:
    kinds = np.where(uncompared, Visibility.UNCOMPARED, Visibility.ALIGNED).astype(np.int64)
    kinds[not_by_teacher] = Visibility.STUDENT_ONLY
    kinds[not_by_student] = Visibility.TEACHER_ONLY
    kinds[not_by_teacher & not_by_student] = Visibility.UNSEEN
    return kinds


SEEN_BY = ("both", "teacher", "student", "neither", "partly")
"""Who sees a chunk's bytes; `partly`: one side, or neither, only a part of them."""
_WHOLLY_SEEN = {"teacher": Visibility.TEACHER_ONLY, "student": Visibility.STUDENT_ONLY, "neither": Visibility.UNSEEN}


def seen_by(counts: Int64s) -> npt.NDArray[np.object_]:
    """Return who sees each chunk [C], of SEEN_BY, by its counts [C, Visibility] of bytes; None where it has none."""
    sizes = counts.sum(1)
    seen = np.full(len(sizes), "partly", object)
    seen[counts[:, [Visibility.ALIGNED, Visibility.UNCOMPARED]].sum(1) == sizes] = "both"
    for name, kind in _WHOLLY_SEEN.items():
        seen[counts[:, kind] == sizes] = name
    seen[sizes == 0] = None
    return seen
