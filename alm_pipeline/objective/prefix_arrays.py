"""The flat arrays that the compiled loop reads the targets of `bpm` from and writes them to."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


class SideTable(NamedTuple):
    """One side's tokens, by id."""

    prefix: npt.NDArray[np.int32]
    """the other side's longest token that is a byte prefix of it, or its counterpart if it is special; −1: none"""
    lengths: npt.NDArray[np.int32]
    """of the spellings in bytes"""
    boundary: Bools
    """whether the token begins with white space or is special"""


class PrefixTable(NamedTuple):
    """What the targets of a pair of vocabularies are made with (`prefix_table`)."""

    teacher: SideTable
    student: SideTable
    open_tokens: Bools
    """[teacher tokens] whether a longer student token has this one as its longest prefix"""


class ChunkTokens(NamedTuple):
    """The chunks of N examples, and their tokens on both sides, in flat arrays with offsets."""

    offsets: Ints
    """[N + 1] where each example's chunks begin"""
    teacher_tokens: Ints
    """[chunks] the number of tokens"""
    student_tokens: Ints
    byte_lengths: Ints
    kinds: npt.NDArray[np.uint8]
    """[chunks] ChunkKind"""
    learned: Bools
    """[chunks]"""
    anchored: Bools
    """[chunks] whether the chunk ends at an anchor (`ChunkEnd`)"""
    teacher_ids: Ints
    teacher_offsets: Ints
    student_ids: Ints
    student_offsets: Ints


class TopTokens(NamedTuple):
    """The R likeliest tokens after each of the teacher's tokens."""

    ids: Ints
    """[teacher tokens · R]"""
    logprobs: Floats
    boundary_logprobs: Floats
    """[teacher tokens]"""


class PrefixTargets(NamedTuple):
    """The targets of N examples, in flat arrays."""

    offsets: npt.NDArray[np.int64]
    """[N + 1] where each example's targets begin"""
    tokens: npt.NDArray[np.int32]
    """[targets] the student's token that the target is of, counted within its example; never the first"""
    sizes: npt.NDArray[np.uint8]
    """[targets] the number of student tokens in each"""
    ids: npt.NDArray[np.int32]
    """[entries] different tokens within a target"""
    probabilities: Floats
    """[entries] those of a target add up to at most 1; the rest is the residual"""
