"""Aligned chunks: the stretches between byte positions at which both tokenizations have an end.

An *end* of a side is a byte position that is inside none of its tokens, and inside no run of uncovered bytes (bytes of
the text that no token covers: such a run counts as a token would, but not among a chunk's tokens). A chunk of bytes
ends at each position that is an end of both sides, and nowhere else. Tokens without bytes inside it belong to it. It
is CONTENT where every token in it, of either side, is content and has bytes, and no byte is uncovered; else UNPAIRED.

Tokens without bytes at an end of both sides, the scaffold of templates, stand in chunks of their own between those of
bytes. Where both sides have a run of tokens of the same turn and role, the two are a PAIRED chunk; all tokens between
two pairs are one UNPAIRED chunk. Pairs do not cross: where the sides have their common roles in the same order, all of
them pair, otherwise the nearest (`kernel._next_pair` says which).

So the chunks of an example tile its text and both token sequences, in order, and those of the swapped sides are the
swapped chunks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ShardTokens:
    """One side's tokens of a shard: flat arrays, and where each of the N examples begins in them."""

    offsets: Int64s
    """[N + 1]"""
    byte_lengths: Int32s
    """[tokens]"""
    kinds: npt.NDArray[np.uint8]
    """[tokens] TokenKind"""
    turns: npt.NDArray[np.int16]
    """[tokens] the message of each token; -1: none"""
    uncovered_offsets: Int64s
    """[N + 1] where each example's uncovered runs begin"""
    uncovered_at: Int32s
    """[runs] the token, counted within the example, before which each stands; the number of tokens: behind the last"""
    uncovered_bytes: Int32s
    """[runs] more than none"""
    dropped: Bools
    """[N] the example was dropped on that side"""


@dataclass(frozen=True)
class AssistantTurns:
    """Which of each example's messages are an assistant's."""

    offsets: Int64s
    """[N + 1] where each example's messages begin"""
    assistant: Bools
    """[messages]"""


@dataclass(frozen=True)
class ShardChunks:
    """The chunks of a shard; an example dropped on either side has none."""

    offsets: Int64s
    """[N + 1]"""
    teacher_tokens: Int32s
    """[chunks] tokens of the chunk on the teacher's side"""
    student_tokens: Int32s
    byte_lengths: Int32s
    kinds: npt.NDArray[np.uint8]
    """[chunks] ChunkKind"""
    assistant: Bools
    """[chunks] the last token of either side is of an assistant's turn, and its content, mixed, or its end: the words
    and the end are the assistant's, the header is not"""


_TOKEN_TYPES: dict[str, type[np.generic]] = {
    "offsets": np.int64,
    "byte_lengths": np.int32,
    "kinds": np.uint8,
    "turns": np.int16,
    "uncovered_offsets": np.int64,
    "uncovered_at": np.int32,
    "uncovered_bytes": np.int32,
}
_CHUNK_TYPES = (np.int32, np.int32, np.int32, np.uint8, np.bool_)


def align(teacher: ShardTokens, student: ShardTokens, turns: AssistantTurns) -> ShardChunks:
    """The finest chunks of both tokenizations of a shard.

    AssertionError, with the number of the example, where the sides cover different bytes, or a length, kind, turn or
    uncovered run is out of range.
    """
    from alm_pipeline.alignment import kernel  # imports numba, which takes seconds

    _check_lengths(teacher, student, turns)
    offsets = np.zeros(len(teacher.dropped) + 1, np.int64)
    # each chunk has a token or uncovered bytes of its own; memory that is not written to is not taken
    most = sum(len(side.byte_lengths) + len(side.uncovered_bytes) for side in (teacher, student))
    columns: list[Array] = [np.zeros(most, type_) for type_ in _CHUNK_TYPES]
    count = kernel.merge_shard(
        kernel.Side(*_columns(teacher)),
        kernel.Side(*_columns(student)),
        kernel.Turns(_constant(turns.offsets, np.int64), _constant(turns.assistant, np.bool_)),
        _constant(teacher.dropped | student.dropped, np.bool_),
        offsets,
        kernel.Chunks(*columns),
    )
    assert count >= 0, _complaint(-1 - count, teacher, student)
    return ShardChunks(offsets, *(column[:count] for column in columns))


def _check_lengths(teacher: ShardTokens, student: ShardTokens, turns: AssistantTurns) -> None:
    """Compiled code reads past the end of an array without a word."""
    examples = len(teacher.dropped)
    for side in (teacher, student):
        assert len(side.dropped) + 1 == len(side.offsets) == len(side.uncovered_offsets) == examples + 1
        assert len(side.byte_lengths) == len(side.kinds) == len(side.turns) == side.offsets[-1]
        assert len(side.uncovered_at) == len(side.uncovered_bytes) == side.uncovered_offsets[-1]
    assert len(turns.offsets) == examples + 1
    assert len(turns.assistant) == turns.offsets[-1]


def _columns(tokens: ShardTokens) -> Iterator[Array]:
    """The columns of `kernel.Side`."""
    for name, type_ in _TOKEN_TYPES.items():
        yield _constant(getattr(tokens, name), type_)


def _constant(values: Array, type_: type[np.generic]) -> Array:
    """The array, copied only where it must be; read-only as Arrow's are, for which alone the kernel is compiled."""
    view = np.ascontiguousarray(values, type_).view()
    view.flags.writeable = False
    return view


def _complaint(example: int, teacher: ShardTokens, student: ShardTokens) -> str:
    covered = [_covered(side, example) for side in (teacher, student)]
    if covered[0] != covered[1]:
        return f"example {example}: the sides cover different bytes, {covered[0]} and {covered[1]}"
    return f"example {example}: a length, kind, turn or uncovered run is out of range"


def _covered(tokens: ShardTokens, example: int) -> int:
    token = slice(*tokens.offsets[example : example + 2])
    run = slice(*tokens.uncovered_offsets[example : example + 2])
    return int(tokens.byte_lengths[token].sum(dtype=np.int64) + tokens.uncovered_bytes[run].sum(dtype=np.int64))
