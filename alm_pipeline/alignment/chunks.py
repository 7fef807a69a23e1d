"""Aligned chunks: the stretches between the byte positions at which tokens of both sides end.

An *end* of a side is a byte position that is not inside any of its tokens, nor inside a run of uncovered bytes. Such a
run consists of bytes that no token covers. It has ends as a token has, but is not counted among a chunk's tokens. A
chunk of bytes ends at each position that is an end of both sides, and nowhere else. Tokens without bytes inside it
belong to it. It is CONTENT if every token in it, on either side, is content and has bytes, and no byte is uncovered.
Otherwise it is UNPAIRED.

Tokens without bytes at an end of both sides, which templates write, form separate chunks between the chunks of bytes.
If both sides have a run of tokens of the same turn and role, the two runs form a PAIRED chunk; all tokens between two
pairs form one UNPAIRED chunk. Pairs do not cross. If the sides have their common roles in the same order, all of them
are paired, otherwise the nearest ones (see `kernel._next_pair`).

So the chunks of an example tile its text and both token sequences, in order. Swapping the sides swaps the chunks.
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
    """The tokens of one side of a shard: flat arrays, and where each of the N examples begins in them."""

    offsets: Int64s
    """[N + 1]"""
    byte_lengths: Int32s
    """[tokens]"""
    kinds: npt.NDArray[np.uint8]
    """[tokens] TokenKind"""
    turns: npt.NDArray[np.int16]
    """[tokens] the index of each token's message; -1 where it has none"""
    uncovered_offsets: Int64s
    """[N + 1] where each example's uncovered runs begin"""
    uncovered_at: Int32s
    """[runs] the index, within the example, of the token that follows each run; the number of tokens for a last run"""
    uncovered_bytes: Int32s
    """[runs] positive"""
    dropped: Bools
    """[N] whether the example was dropped on that side"""


@dataclass(frozen=True)
class AssistantTurns:
    """Which of each example's sections are the assistant's, of those that are to be learned."""

    offsets: Int64s
    """[N + 1] where each example's sections begin"""
    assistant: Bools
    """[sections]"""


@dataclass(frozen=True)
class ShardChunks:
    """The chunks of a shard. An example that was dropped on either side has none."""

    offsets: Int64s
    """[N + 1]"""
    teacher_tokens: Int32s
    """[chunks] number of tokens on the teacher's side"""
    student_tokens: Int32s
    byte_lengths: Int32s
    kinds: npt.NDArray[np.uint8]
    """[chunks] ChunkKind"""
    assistant: Bools
    """[chunks] whether the last token of either side belongs to an assistant's turn and is content, mixed, a transition
    or the turn's end: the assistant produces the words and the end, but not the header"""


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
    """Return the smallest chunks that both tokenizations of a shard have in common.

    Raises AssertionError, with the number of the example, if the sides cover different bytes, or a length, kind, turn
    or uncovered run is out of range.
    """
    from alm_pipeline.alignment import kernel  # imports numba, which takes seconds

    _check_lengths(teacher, student, turns)
    offsets = np.zeros(len(teacher.dropped) + 1, np.int64)
    # each chunk has at least one token or uncovered run; memory that is never written to is never allocated
    most = sum(len(side.byte_lengths) + len(side.uncovered_bytes) for side in (teacher, student))
    columns: list[Array] = [np.zeros(most, type_) for type_ in _CHUNK_TYPES]
    count = kernel.merge_shard(
        kernel.TokenColumns(*_columns(teacher)),
        kernel.TokenColumns(*_columns(student)),
        kernel.TurnColumns(constant(turns.offsets, np.int64), constant(turns.assistant, np.bool_)),
        constant(teacher.dropped | student.dropped, np.bool_),
        offsets,
        kernel.ChunkColumns(*columns),
    )
    assert count >= 0, _error_message(-1 - count, teacher, student)
    return ShardChunks(offsets, *(column[:count] for column in columns))


def _check_lengths(teacher: ShardTokens, student: ShardTokens, turns: AssistantTurns) -> None:
    """Assert that the arrays' lengths agree, since compiled code reads past the end of an array without an error."""
    examples = len(teacher.dropped)
    for side in (teacher, student):
        assert len(side.dropped) + 1 == len(side.offsets) == len(side.uncovered_offsets) == examples + 1
        assert len(side.byte_lengths) == len(side.kinds) == len(side.turns) == side.offsets[-1]
        assert len(side.uncovered_at) == len(side.uncovered_bytes) == side.uncovered_offsets[-1]
    assert len(turns.offsets) == examples + 1
    assert len(turns.assistant) == turns.offsets[-1]


def _columns(tokens: ShardTokens) -> Iterator[Array]:
    """Yield the columns of `kernel.TokenColumns`."""
    for name, type_ in _TOKEN_TYPES.items():
        yield constant(getattr(tokens, name), type_)


def constant(values: Array, type_: type[np.generic]) -> Array:
    """Return the array, copied only if necessary, and read-only, since the kernel is compiled for Arrow's arrays."""
    view = np.ascontiguousarray(values, type_).view()
    view.flags.writeable = False
    return view


def _error_message(example: int, teacher: ShardTokens, student: ShardTokens) -> str:
    teacher_bytes, student_bytes = (_covered_bytes(side, example) for side in (teacher, student))
    if teacher_bytes != student_bytes:
        return f"example {example}: the sides cover different bytes, {teacher_bytes} and {student_bytes}"
    return f"example {example}: a length, kind, turn or uncovered run is out of range"


def _covered_bytes(tokens: ShardTokens, example: int) -> int:
    token = slice(*tokens.offsets[example : example + 2])
    run = slice(*tokens.uncovered_offsets[example : example + 2])
    return int(tokens.byte_lengths[token].sum(dtype=np.int64) + tokens.uncovered_bytes[run].sum(dtype=np.int64))
