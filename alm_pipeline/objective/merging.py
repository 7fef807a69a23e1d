"""Coarser chunkings: which neighbouring chunks are merged, from the teacher's scores alone."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.schemas import ChunkKind

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TeacherChunks:
    """The chunks of one example that count, as the teacher sees them, and which student tokens they hold."""

    logprobs: Floats
    """[C] log-likelihoods, debiased where asked"""
    student_starts: Ints
    """[C] the first student token of each chunk"""
    student_ends: Ints
    """[C] one past the last"""


def merged_chunks(
    teacher_tokens: Ints,
    student_tokens: Ints,
    kinds: npt.NDArray[np.uint8],
    logprobs: Floats,
    boundary_logprobs: Floats,
    *,
    gamma: float | None,
    debias: bool,
) -> TeacherChunks:
    """The chunks of one example after merging.

    With γ, a chunk is merged with its successors until the teacher's probability of a boundary token after it
    exceeds γ: group(k) = #{j < k : P_boundary(j) > γ}. A group that never closes is kept; an unpaired chunk ends the
    group before it. Without γ (None) no chunk is merged. Left out are unpaired chunks, and chunks with a token that has
    no prediction: NaN on the teacher's side, the first of the sequence on the student's.
    """
    teacher_ends, student_ends = np.cumsum(teacher_tokens), np.cumsum(student_tokens)
    compared = kinds != ChunkKind.UNPAIRED
    closes = ~compared
    closes |= True if gamma is None else _exceeds(boundary_logprobs, teacher_ends, gamma)
    # an unpaired chunk is a group of its own
    closes[:-1] |= ~compared[1:]
    last = np.flatnonzero(np.append(closes[:-1], True)) if len(closes) else np.zeros(0, np.int64)
    first = np.concatenate([[0], last[:-1] + 1]) if len(last) else last
    teacher_starts = (teacher_ends - teacher_tokens)[first]
    student_starts = (student_ends - student_tokens)[first]
    likelihood = np.add.reduceat(_padded(logprobs).astype(np.float64), teacher_starts)
    if debias:
        likelihood = likelihood + _padded(boundary_logprobs)[np.maximum(teacher_ends[last] - 1, 0)]
    counts = compared[last] & np.isfinite(likelihood) & (student_starts > 0)
    return TeacherChunks(likelihood[counts].astype(np.float32), student_starts[counts], student_ends[last][counts])


def _exceeds(boundary_logprobs: Floats, teacher_ends: Ints, gamma: float) -> npt.NDArray[np.bool_]:
    return np.exp(_padded(boundary_logprobs)[np.maximum(teacher_ends - 1, 0)]) > gamma


def _padded(values: Floats) -> Floats:
    """With a zero behind: an unpaired chunk without teacher tokens may begin past the last one."""
    return np.append(values, np.float32(0))
