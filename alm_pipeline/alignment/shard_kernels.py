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
    # arrays of their own: a field of a tuple is fetched anew for every chunk
    t_ids, t_edges, t_of_chunk = teacher.ids, teacher.edges, teacher.of_chunk
    s_ids, s_edges, s_of_chunk = student.ids, student.edges, student.of_chunk
    for example in range(len(chunk_offsets) - 1):
        t = t_start = teacher.offsets[example]
        s = s_start = student.offsets[example]
        t_end, s_end = teacher.offsets[example + 1], student.offsets[example + 1]
        for chunk in range(np.uintp(chunk_offsets[example]), np.uintp(chunk_offsets[example + 1])):
            t, s = t + t_of_chunk[chunk], s + s_of_chunk[chunk]
            if t > t_end or s > s_end:
                return False
            t_before, s_before = (
                _edge(t_ids, t_edges, t - 1, t_start, t_end),
                _edge(s_ids, s_edges, s - 1, s_start, s_end),
            )
            t_after, s_after = _edge(t_ids, t_edges, t, t_start, t_end), _edge(s_ids, s_edges, s, s_start, s_end)
            if t_before < 0 or s_before < 0 or t_after < 0 or s_after < 0:
                return False
            loose = (t_before | s_before) & _LOOSE or t_before & s_before & _PARTIAL
            ends[chunk] = (_BOUNDARY if t_after & s_after & _STARTS else 0) | (0 if loose else _EXACT)
    return True


# inlined: a call would count the references of both arrays, which takes thirty times as long as the rest
@njit(nogil=True, forceinline=True)
def _edge(ids: Ints, edges: npt.NDArray[np.uint8], token: int, start: int, end: int) -> np.int64:
    """Return the edges of a token, 0 if it is not between `start` and `end`; −1 for an id out of range."""
    if token < start or token >= end:
        return np.int64(0)
    id_ = np.uintp(ids[np.uintp(token)])  # a negative id is out of range as well
    return np.int64(edges[id_]) if id_ < np.uintp(len(edges)) else np.int64(-1)
