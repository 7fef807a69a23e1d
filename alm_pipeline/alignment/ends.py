"""What is known of the text at the end of each aligned chunk: whether a boundary follows, and whether it is exact."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alm_pipeline.alignment.chunks import Int32s, Int64s, ShardChunks, constant
from alm_pipeline.vocabulary.byte_view import ByteView
from alm_pipeline.vocabulary.token_edges import Edges, token_edges
from storage.columns import flatten_lists


class SideEdges(NamedTuple):
    """What is known of the tokens of both vocabularies: [V] TokenEdge each."""

    teacher: Edges
    student: Edges

    @classmethod
    def of(cls, teacher: ByteView, student: ByteView) -> "SideEdges":
        return cls(token_edges(teacher), token_edges(student))


@dataclass(frozen=True)
class SideIds:
    """One side's token ids of N examples, and what is known of its vocabulary."""

    ids: Int32s
    """[tokens]"""
    offsets: Int64s
    """[N + 1] where each example's tokens begin"""
    edges: Edges
    """[V] TokenEdge"""

    @classmethod
    def of(cls, tokens: pa.Table, edges: Edges) -> "SideIds":
        """Return the ids of a table that has the column `token_ids`."""
        return cls(*flatten_lists(tokens["token_ids"]), edges)


def chunk_ends(chunks: ShardChunks, teacher: SideIds, student: SideIds) -> npt.NDArray[np.uint8]:
    """[chunks] ChunkEnd of each chunk. An example's last chunk has no boundary after it.

    Raises AssertionError for an id that its vocabulary lacks.
    """
    from alm_pipeline.alignment.shard_kernels import EndSide, mark_ends  # imports numba, which takes seconds

    ends = np.zeros(len(chunks.kinds), np.uint8)
    left, right = (
        EndSide(
            constant(side.ids, np.int32),
            constant(side.offsets, np.int64),
            constant(of_chunk, np.int32),
            constant(side.edges, np.uint8),
        )
        for side, of_chunk in ((teacher, chunks.teacher_tokens), (student, chunks.student_tokens))
    )
    assert mark_ends(constant(chunks.offsets, np.int64), left, right, ends), "a token's id is not in its vocabulary"
    return ends
