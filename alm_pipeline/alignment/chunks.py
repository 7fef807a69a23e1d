"""Aligned chunks: the stretches between byte positions at which both tokenizations have a token end.

A merge of two sorted integer arrays, done for a whole shard at once and never across examples. Tokens that cover no
byte (special and template tokens) stand in chunks of their own, so that the chunks tile both token sequences.

Nearly all tokens cover bytes, so the chunks of bytes are found in whole arrays (`closers`), and the few tokens
between them (`gaps`) by their index: what stands between two chunks of bytes, within an example, is at most a pair of
end tokens and one unpaired chunk.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.schemas import ChunkKind, TokenKind

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ShardTokens:
    """One side's tokens of a shard: flat arrays, and where each of the N examples begins.

    An example without tokens was dropped on that side.
    """

    offsets: Ints
    """[N + 1]"""
    byte_lengths: Ints
    """[tokens]"""
    kinds: npt.NDArray[np.uint8]
    """[tokens] TokenKind"""


@dataclass(frozen=True)
class ShardChunks:
    """The chunks of a shard; an example dropped on either side has none."""

    offsets: Ints
    """[N + 1]"""
    teacher_tokens: Ints
    """[chunks] tokens of the chunk on the teacher's side"""
    student_tokens: Ints
    byte_lengths: Ints
    kinds: npt.NDArray[np.uint8]
    """[chunks] ChunkKind"""


def align(teacher: ShardTokens, student: ShardTokens) -> ShardChunks:
    """The finest chunks of both tokenizations of a shard.

    Both sides must cover the same bytes of each example (AssertionError otherwise: encoding verifies it). A special
    token right behind content ends a turn or the text; it is paired where the other side has one at the same byte.
    """
    kept = (np.diff(teacher.offsets) > 0) & (np.diff(student.offsets) > 0)
    sides = [_Side.of(tokens, kept) for tokens in (teacher, student)]
    assert np.array_equal(sides[0].example_ends, sides[1].example_ends), "the sides cover different bytes"
    common_at = sides[0].ends_at() & sides[1].ends_at()
    return _tile(np.flatnonzero(common_at), [_Cut.of(side, common_at) for side in sides], sides[0].example_ends, kept)


@dataclass(frozen=True)
class _Side:
    """One side's tokens of the E kept examples, in bytes from the shard's start."""

    firsts: Ints
    """[E] the first token of each example"""
    lengths: npt.NDArray[np.integer]
    """[tokens]"""
    kinds: npt.NDArray[np.uint8]
    """[tokens]"""
    ends: Ints
    """[tokens] bytes up to each token's end"""
    example_ends: Ints
    """[E]"""

    @classmethod
    def of(cls, tokens: ShardTokens, kept: Bools) -> "_Side":
        counts = np.diff(tokens.offsets)
        mask = slice(None) if kept.all() else np.repeat(kept, counts)
        lengths, kinds = tokens.byte_lengths[mask], tokens.kinds[mask]
        ends = np.cumsum(lengths, dtype=np.int64)
        lasts = np.cumsum(counts[kept]) - 1
        return cls(lasts + 1 - counts[kept], lengths, kinds, ends, ends[lasts])

    def ends_at(self) -> Bools:
        """[bytes + 1] where a token ends, and the shard's start."""
        ends_at = np.zeros(1 + (self.ends[-1] if len(self.ends) else 0), dtype=bool)
        # a token without bytes ends where another does, or where its example begins
        ends_at[self.ends] = True
        ends_at[0] = True
        return ends_at


@dataclass(frozen=True)
class _Cut:
    """One side's tokens, cut at the C + 1 byte positions where both sides have a token end (or the shard begins)."""

    counts: Ints
    """[C] tokens of each chunk of bytes"""
    foreign: Ints
    """chunks of bytes with a token that is not content's alone"""
    gap_places: Ints
    """[gap tokens] where each stands: the chunks of bytes before it + the examples before its own"""
    gap_examples: Ints
    """[gap tokens]"""
    gap_ends: Bools
    """[gap tokens] the end tokens: special, and right behind content of the same example"""

    @classmethod
    def of(cls, side: _Side, common_at: Bools) -> "_Cut":
        covers, at_common = side.lengths > 0, common_at[side.ends]
        closers, gaps = np.flatnonzero(covers & at_common), np.flatnonzero(at_common & ~covers)
        chunks, examples = np.searchsorted(closers, gaps), np.searchsorted(side.firsts, gaps, side="right") - 1
        counts = np.diff(closers, prepend=-1) - np.bincount(chunks, minlength=len(closers))[: len(closers)]
        foreign = np.flatnonzero((side.kinds != TokenKind.CONTENT) & (covers | ~at_common))
        ends = (side.kinds[gaps] == TokenKind.SPECIAL) & covers[gaps - 1] & (gaps != side.firsts[examples])
        return cls(counts, np.searchsorted(closers, foreign), chunks + examples, examples, ends)


def _tile(cuts_at: Ints, cuts: list[_Cut], example_ends: Ints, kept: Bools) -> ShardChunks:
    """All chunks in order: those of bytes, and between them the gaps'."""
    paired = np.intersect1d(cuts[0].gap_places[cuts[0].gap_ends], cuts[1].gap_places[cuts[1].gap_ends])
    # at each place first the pair, then the rest
    keys = [2 * cut.gap_places + ~(cut.gap_ends & np.isin(cut.gap_places, paired)) for cut in cuts]
    gaps, first = np.unique(np.concatenate(keys), return_index=True)
    examples = np.concatenate([cut.gap_examples for cut in cuts])[first]
    before = gaps // 2 - examples
    tokens = [
        np.insert(cut.counts, before, np.bincount(np.searchsorted(gaps, key), minlength=len(gaps)))
        for cut, key in zip(cuts, keys, strict=True)
    ]
    kinds = np.full(len(cuts[0].counts), ChunkKind.CONTENT, dtype=np.uint8)
    for cut in cuts:
        # bytes in one chunk with a special token or template text: the likelihood is not the content's alone
        kinds[cut.foreign] = ChunkKind.UNPAIRED
    chunks_before = np.searchsorted(cuts_at[1:], example_ends, side="right")
    gaps_before = np.searchsorted(examples, np.arange(len(example_ends)), side="right")
    return ShardChunks(
        offsets=_offsets(chunks_before + gaps_before, kept),
        teacher_tokens=tokens[0],
        student_tokens=tokens[1],
        byte_lengths=np.insert(np.diff(cuts_at), before, 0),
        kinds=np.insert(kinds, before, np.where(gaps % 2, ChunkKind.UNPAIRED, ChunkKind.PAIRED)),
    )


def _offsets(ends: Ints, kept: Bools) -> Ints:
    """[N + 1] the chunks before each example, from those up to the end of each kept one."""
    per_example = np.zeros(len(kept), dtype=np.int64)
    per_example[kept] = np.diff(ends, prepend=0)
    return np.concatenate([[0], np.cumsum(per_example)])
