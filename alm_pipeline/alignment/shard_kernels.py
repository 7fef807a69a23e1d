"""Compiled loops over a shard's chunks and stretches, which take a fraction of NumPy's time.

Importing numba takes seconds, so the functions that run this module import it. The compiled code is kept on disk until
this file changes.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from alm_pipeline.vocabulary.token_edges import TokenEdge
from storage.schemas import ChunkEnd

Ints = npt.NDArray[np.integer[Any]]

# literals: the compiled code on disk contains these numbers, and only a change of this file compiles it again
_STARTS, _LOOSE, _PARTIAL = 1, 2, 4
assert (_STARTS, _LOOSE, _PARTIAL) == (TokenEdge.BOUNDARY, TokenEdge.LOOSE_END, TokenEdge.PARTIAL_END)
_BOUNDARY, _EXACT = 1, 2
assert (_BOUNDARY, _EXACT) == (ChunkEnd.BOUNDARY, ChunkEnd.EXACT)


@njit(cache=True, nogil=True)
def sum_stretches(values: Ints, starts: Ints, ends: Ints, sums: Ints) -> None:
    """Write the sum of the values of each stretch, from `starts` to `ends` [P]; all are in range."""
    for k in range(len(starts)):
        total = np.int64(0)
        for value in values[starts[k] : ends[k]]:
            total += value
        sums[k] = total


class EndSide(NamedTuple):
    """One side's tokens of N examples, and the number of tokens in each chunk."""

    ids: Ints
    """[tokens]"""
    offsets: Ints
    """[N + 1] where each example's tokens begin"""
    of_chunk: Ints
    """[chunks]"""
    edges: npt.NDArray[np.uint8]
    """[V] TokenEdge"""


@njit(cache=True, nogil=True)
def mark_ends(chunk_offsets: Ints, teacher: EndSide, student: EndSide, ends: npt.NDArray[np.uint8]) -> bool:
    """Write ChunkEnd of each chunk. Returns False if an id is not in its vocabulary, or a chunk not in its tokens."""
    for example in range(len(chunk_offsets) - 1):
        t, t_end = teacher.offsets[example], teacher.offsets[example + 1]
        s, s_end = student.offsets[example], student.offsets[example + 1]
        for chunk in range(chunk_offsets[example], chunk_offsets[example + 1]):
            t, s = t + teacher.of_chunk[chunk], s + student.of_chunk[chunk]
            if t > t_end or s > s_end:
                return False
            t_before, t_after = _edges_at(teacher, t, example)
            s_before, s_after = _edges_at(student, s, example)
            if t_before < 0 or s_before < 0 or t_after < 0 or s_after < 0:
                return False
            loose = (t_before | s_before) & _LOOSE or t_before & s_before & _PARTIAL
            ends[chunk] = (_BOUNDARY if t_after & s_after & _STARTS else 0) | (0 if loose else _EXACT)
    return True


@njit(cache=True, nogil=True)
def _edges_at(side: EndSide, token: int, example: int) -> tuple[np.int64, np.int64]:
    """Return the edges of the tokens before and after a place, 0 where there is none; −1 for an id out of range."""
    before = after = np.int64(0)
    if token > side.offsets[example]:
        id_ = side.ids[token - 1]
        before = np.int64(side.edges[id_]) if 0 <= id_ < len(side.edges) else np.int64(-1)
    if token < side.offsets[example + 1]:
        id_ = side.ids[token]
        after = np.int64(side.edges[id_]) if 0 <= id_ < len(side.edges) else np.int64(-1)
    return before, after
