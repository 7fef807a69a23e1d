"""The flat arrays that the compiled loop reads chunks from and writes merged chunks to."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.columns import flatten_filled, flatten_lists
from storage.schemas import ChunkEnd, ChunkKind

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float32]
ALIGNED_COLUMNS = {
    "alignments": ("teacher_tokens", "student_tokens", "kinds", "ends"),
    "scores": ("logprobs", "boundary_logprobs"),
}
"""the columns that `AlignedScores.of` reads, by role"""


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

    @classmethod
    def of(cls, tables: Mapping[str, pa.Table], *, assistant_only: bool) -> "AlignedScores":
        """Return the arrays of tables that hold the columns ALIGNED_COLUMNS; `assistant_only` needs `assistant` too."""
        alignments, scores = tables["alignments"], tables["scores"]
        teacher, student, kinds, ends = (flatten_lists(alignments[name]) for name in ALIGNED_COLUMNS["alignments"])
        logprobs, boundary = (flatten_lists(scores[name]) for name in ALIGNED_COLUMNS["scores"])
        learned = np.zeros(0, np.bool_)
        if assistant_only:
            learned = flatten_filled(alignments["assistant"], teacher[1], fill=True)
        return cls(
            teacher[1], teacher[0], student[0], kinds[0], ends[0], learned, logprobs[1], logprobs[0], boundary[0]
        )

    def words_end(self) -> npt.NDArray[np.bool_]:
        """[chunks] whether the likelihood up to each chunk's end is the same for every tokenizer.

        It is at anchors, and after paired chunks.
        """
        ends: npt.NDArray[np.bool_] = (self.ends == ChunkEnd.ANCHOR) | (self.kinds == ChunkKind.PAIRED)
        return ends

    def without_chunks(self) -> "AlignedScores":
        """Return the same examples as if none of them were aligned."""
        none = {
            name: getattr(self, name)[:0] for name in ("teacher_tokens", "student_tokens", "kinds", "ends", "learned")
        }
        return self._replace(chunk_offsets=np.zeros_like(self.chunk_offsets), **none)


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
