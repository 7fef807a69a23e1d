"""Chunkings that look at the tokens beside a chunk's end: where a chunk of the finest alignment may end.

The chunking by the teacher's boundary probability needs no token and is in `merging`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from storage.schemas import ChunkKind

if TYPE_CHECKING:  # it imports transformers, which readers of the caches do without
    from alm_pipeline.objective.chunking.pair_bias import PairBiases

Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]


class SideTokens(NamedTuple):
    """One side's tokens of N examples, and how many each chunk holds; flat arrays."""

    ids: npt.NDArray[np.int32]
    """[tokens]"""
    offsets: npt.NDArray[np.int64]
    """[N + 1] where each example's tokens begin"""
    of_chunk: Ints
    """[chunks]"""
    chunk_offsets: npt.NDArray[np.int64]
    """[N + 1] where each example's chunks begin"""

    def ends(self) -> npt.NDArray[np.int64]:
        """[chunks] one past each chunk's last token, among `ids`."""
        ends = np.cumsum(self.of_chunk, dtype=np.int64)
        before = np.concatenate([[0], ends])[self.chunk_offsets[:-1]]
        ends += np.repeat(self.offsets[:-1] - before, np.diff(self.chunk_offsets))
        return ends

    def last(self) -> npt.NDArray[np.int32]:
        """[chunks] each chunk's last token; of a chunk without tokens any."""
        return self.ids[self.ends() - 1] if len(self.ids) else self.ids


class ChunkEnds(Protocol):
    """Says where chunks may end."""

    def closes(self, teacher: SideTokens, student: SideTokens, kinds: npt.NDArray[np.uint8]) -> Bools:
        """[chunks] the chunk may be the last of a merged one. `kinds` are ChunkKind."""


@dataclass(frozen=True)
class SpaceEnds:
    """Chunks end where on both sides a token follows that begins with white space, or is special; and at paired ones.

    The last chunk of an example may say anything: it ends whatever is open.
    """

    teacher_boundary_V: Bools
    """of `ByteView.boundary`"""
    student_boundary_V: Bools

    def closes(self, teacher: SideTokens, student: SideTokens, kinds: npt.NDArray[np.uint8]) -> Bools:
        both = self.teacher_boundary_V[_following(teacher)] & self.student_boundary_V[_following(student)]
        closing: Bools = both | (kinds == ChunkKind.PAIRED)
        return closing


@dataclass(frozen=True)
class PairBiasEnds:
    """Chunks end where the pair of last tokens has a bias of at most γ in both directions; and at paired ones."""

    biases: "PairBiases"
    gamma: float

    def closes(self, teacher: SideTokens, student: SideTokens, kinds: npt.NDArray[np.uint8]) -> Bools:
        unbiased = self.biases.at_most(self.gamma, teacher.last(), student.last())
        closing: Bools = unbiased | (kinds == ChunkKind.PAIRED)
        return closing


def _following(side: SideTokens) -> npt.NDArray[np.int32]:
    """[chunks] the id behind each chunk; behind the last of all its own last."""
    return side.ids[np.minimum(side.ends(), len(side.ids) - 1)] if len(side.ids) else side.ids
