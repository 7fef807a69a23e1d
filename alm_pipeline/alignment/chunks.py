"""Aligned chunks: the stretches between byte positions at which both tokenizations have a token end.

A merge of two sorted integer arrays, done for a whole shard at once and never across examples. Tokens that cover no
byte (special and template tokens) stand in chunks of their own, so that the chunks tile both token sequences.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.schemas import ChunkKind, TokenKind

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Around content chunk g, in the order of the text: what trails the previous example (its end token if both sides have
# one, then the rest), what leads to chunk g within the example (likewise), and the chunk itself.
_SLOTS = 5
_END, _TRAILING, _TURN_END, _LEADING, _CONTENT = range(_SLOTS)


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

    Both sides must cover the same bytes of each example (AssertionError otherwise: encoding verifies it).
    """
    kept = (np.diff(teacher.offsets) > 0) & (np.diff(student.offsets) > 0)
    sides = [_Side.of(tokens, kept) for tokens in (teacher, student)]
    assert np.array_equal(sides[0].example_ends, sides[1].example_ends), "the sides cover different bytes"
    common_at = sides[0].ends_at & sides[1].ends_at
    # the example of each content chunk; one more entry, of no example, for what trails the last chunk
    chunk_example = np.append(np.searchsorted(sides[0].example_ends, np.flatnonzero(common_at)), -1)
    keys = [side.slots(common_at, chunk_example) for side in sides]
    _unpair_one_sided(keys)
    return _collect(keys, sides, chunk_example, kept)


@dataclass(frozen=True)
class _Side:
    """One side's tokens of the kept examples, in bytes from the shard's start."""

    example: Ints
    lengths: Ints
    kinds: npt.NDArray[np.uint8]
    ends: Ints
    example_ends: Ints
    ends_at: Bools

    @classmethod
    def of(cls, tokens: ShardTokens, kept: Bools) -> "_Side":
        counts = np.diff(tokens.offsets)
        mask = np.repeat(kept, counts)
        lengths, kinds = tokens.byte_lengths[mask].astype(np.int64), tokens.kinds[mask]
        ends = np.cumsum(lengths)
        last_token = np.cumsum(counts[kept]) - 1
        ends_at = np.zeros((ends[-1] if len(ends) else 0) + 1, dtype=bool)
        ends_at[ends[lengths > 0]] = True
        example = np.repeat(np.arange(kept.sum()), counts[kept])
        return cls(example, lengths, kinds, ends, ends[last_token], ends_at)

    def slots(self, common_at: Bools, chunk_example: Ints) -> Ints:
        """[tokens] where each token stands: _SLOTS × a content chunk + a slot."""
        covers, at_common = self.lengths > 0, common_at[self.ends]
        at_gap = ~covers & (at_common | (self.ends == 0))
        # the content chunk that holds the token's last byte; of a token without bytes, the next one
        chunk: Ints = np.cumsum(common_at)[self.ends] - (covers & at_common)
        ends_turn = at_gap & self._follows_content() & (self.kinds == TokenKind.SPECIAL)
        leads = self.example == chunk_example[chunk]
        slot = np.where(leads, np.where(ends_turn, _TURN_END, _LEADING), np.where(ends_turn, _END, _TRAILING))
        return _SLOTS * chunk + np.where(at_gap, slot, _CONTENT)

    def _follows_content(self) -> Bools:
        follows = np.zeros(len(self.lengths), dtype=bool)
        follows[1:] = (self.lengths[:-1] > 0) & (self.example[1:] == self.example[:-1])
        return follows


def _unpair_one_sided(keys: list[Ints]) -> None:
    """An end token that only one side has is no pair: it joins the tokens that follow it."""
    ends = [np.unique(key[np.isin(key % _SLOTS, (_END, _TURN_END))]) for key in keys]
    for key in keys:
        alone = np.isin(key, np.setxor1d(ends[0], ends[1], assume_unique=True))
        key[alone] += 1


def _collect(keys: list[Ints], sides: list[_Side], chunk_example: Ints, kept: Bools) -> ShardChunks:
    used = np.zeros(_SLOTS * len(chunk_example), dtype=bool)
    for key in keys:
        used[key] = True
    present, position = np.flatnonzero(used), np.cumsum(used) - 1
    index = [position[key] for key in keys]
    counts = [np.bincount(side, minlength=len(present)) for side in index]
    lengths = np.bincount(index[0], weights=sides[0].lengths, minlength=len(present)).astype(np.int64)
    slot, chunk = present % _SLOTS, present // _SLOTS
    trails = slot <= _TRAILING
    example = chunk_example[chunk - trails]
    per_example = np.zeros(len(kept), dtype=np.int64)
    per_example[kept] = np.bincount(example, minlength=int(kept.sum()))
    return ShardChunks(
        offsets=np.concatenate([[0], np.cumsum(per_example)]),
        teacher_tokens=counts[0],
        student_tokens=counts[1],
        byte_lengths=lengths,
        kinds=_kinds(slot, index, sides),
    )


def _kinds(slot: Ints, index: list[Ints], sides: list[_Side]) -> npt.NDArray[np.uint8]:
    kinds = np.full(len(slot), ChunkKind.UNPAIRED, dtype=np.uint8)
    kinds[slot == _CONTENT] = ChunkKind.CONTENT
    kinds[(slot == _END) | (slot == _TURN_END)] = ChunkKind.PAIRED
    for where, side in zip(index, sides, strict=True):
        # a content chunk that holds template text on one side says something about the template too
        foreign = np.isin(side.kinds, (TokenKind.MIXED, TokenKind.TEMPLATE))
        kinds[np.unique(where[foreign])] = ChunkKind.UNPAIRED
    return kinds
