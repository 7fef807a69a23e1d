"""The flat arrays that the compiled loop reads chunks from and writes merged chunks to."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float32]


class AlignedScores(NamedTuple):
    """The alignments and the teacher's scores of N examples, in flat arrays with offsets."""

    chunk_offsets: npt.NDArray[np.int64]
    """[N + 1]"""
    teacher_tokens: Ints
    """[chunks] the number of tokens in each chunk; they add up to the example's tokens"""
    student_tokens: Ints
    kinds: npt.NDArray[np.uint8]
    """[chunks] ChunkKind"""
    ends: npt.NDArray[np.uint8]
    """[chunks] ChunkEnd"""
    learned: npt.NDArray[np.bool_]
    """[chunks] whether the chunk is to be learned; the others are context; empty if all are learned"""
    token_offsets: Ints
    """[N + 1] where each example's teacher tokens begin"""
    logprobs: Floats
    """[teacher tokens] NaN for each example's first token, which has no prediction, and finite for all others"""
    boundary_logprobs: Floats


class TeacherChunks(NamedTuple):
    """The chunks of N examples that count: the teacher's likelihood of each, and the student tokens in it.

    Debiased at both ends, a chunk is counted from an anchor that may lie before other chunks: they overlap.
    """

    offsets: npt.NDArray[np.int64]
    """[N + 1] where each example's chunks begin"""
    aligned: npt.NDArray[np.int32]
    """[N] the number of the example's chunks to be learned before merging, without unpaired ones"""
    used: npt.NDArray[np.int32]
    """[N] how many of them are part of a chunk that counts"""
    logprobs: Floats
    """[C] log-likelihoods, finite, debiased if configured"""
    student_starts: npt.NDArray[np.int32]
    """[C] the first student token of each chunk, counted within its example"""
    student_ends: npt.NDArray[np.int32]
    """[C] one past the last"""
    starts_debiased: npt.NDArray[np.bool_]
    """[C] whether the likelihood is divided by P(boundary) before the chunk"""
    ends_debiased: npt.NDArray[np.bool_]
    """[C] whether it is multiplied by P(boundary) after the chunk"""
