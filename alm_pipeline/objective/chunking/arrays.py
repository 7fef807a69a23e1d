"""The flat arrays that chunks are merged from and into, as the compiled loop takes them."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float32]


class AlignedScores(NamedTuple):
    """The alignments and teacher's scores of N examples: flat arrays, and where each example begins in them."""

    chunk_offsets: npt.NDArray[np.int64]
    """[N + 1]"""
    teacher_tokens: Ints
    """[chunks] tokens of each chunk; they add up to the example's"""
    student_tokens: Ints
    kinds: npt.NDArray[np.uint8]
    """[chunks] ChunkKind"""
    token_offsets: Ints
    """[N + 1] where each example's teacher tokens begin"""
    logprobs: Floats
    """[teacher tokens] NaN: no prediction"""
    boundary_logprobs: Floats


class TeacherChunks(NamedTuple):
    """The chunks of N examples that count, as the teacher sees them, and which student tokens they hold."""

    offsets: npt.NDArray[np.int64]
    """[N + 1] where each example's chunks begin"""
    aligned: npt.NDArray[np.int32]
    """[N] the example's chunks before merging, without the unpaired"""
    used: npt.NDArray[np.int32]
    """[N] how many of those are in a chunk that counts"""
    logprobs: Floats
    """[C] log-likelihoods, debiased where asked"""
    student_starts: npt.NDArray[np.int32]
    """[C] the first student token of each chunk, counted within its example"""
    student_ends: npt.NDArray[np.int32]
    """[C] one past the last"""
