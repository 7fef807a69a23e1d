"""Chunkings that look at the tokens at the end of a chunk to decide whether a merged chunk may end there.

The chunkings by the teacher's boundary probability and by white space look at no token: see `registry`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from storage.schemas import ChunkKind

if TYPE_CHECKING:  # it imports transformers, which processes that only read the caches do not need
    from alm_pipeline.objective.chunking.pair_bias import PairBiases

Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]


class SideTokens(NamedTuple):
    """One side's tokens of N examples, and the number of tokens in each chunk, in flat arrays with offsets."""

    ids: npt.NDArray[np.int32]
    """[tokens]"""
    offsets: npt.NDArray[np.int64]
    """[N + 1] where each example's tokens begin"""
    of_chunk: Ints
    """[chunks] the number of tokens in each chunk"""
    chunk_offsets: npt.NDArray[np.int64]
    """[N + 1] where each example's chunks begin"""

    def ends(self) -> npt.NDArray[np.int64]:
        """[chunks] one past the index of each chunk's last token in `ids`."""
        ends = np.cumsum(self.of_chunk, dtype=np.int64)
        before = np.concatenate([[0], ends])[self.chunk_offsets[:-1]]
        ends += np.repeat(self.offsets[:-1] - before, np.diff(self.chunk_offsets))
        return ends

    def last(self) -> npt.NDArray[np.int32]:
        """[chunks] the id of each chunk's last token; any id for a chunk without tokens."""
        return self.ids[self.ends() - 1] if len(self.ids) else self.ids


class ChunkEnds(Protocol):
    """Decides where merged chunks may end."""

    def closes(self, teacher: SideTokens, student: SideTokens, kinds: npt.NDArray[np.uint8]) -> Bools:
        """[chunks] whether each chunk may be the last of a merged one. `kinds` are ChunkKind."""


@dataclass(frozen=True)
class PairBiasEnds:
    """Chunks end where the pair of last tokens has a bias of at most γ in both directions, and at paired chunks."""

    biases: "PairBiases"
    gamma: float

    def closes(self, teacher: SideTokens, student: SideTokens, kinds: npt.NDArray[np.uint8]) -> Bools:
        unbiased = self.biases.at_most(self.gamma, teacher.last(), student.last())
        closes: Bools = unbiased | (kinds == ChunkKind.PAIRED)
        return closes
