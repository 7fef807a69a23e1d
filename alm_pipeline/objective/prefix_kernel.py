"""The compiled loop of `prefix_targets`. Imported by the function that runs it: importing numba takes seconds."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from alm_pipeline.objective.prefix_arrays import ChunkTokens, PrefixTable, PrefixTargets, TopTokens
from storage.schemas import ChunkKind

Longs = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
LEAST_PROBABILITY = 1e-3
"""of a student token in a target: less goes to the residual, which saves a fifth of the space"""
MOST_DOUBTFUL = 0.01
"""of a student token's probability: the share that open tokens may add to it"""
_UNPAIRED, _CONTENT = int(ChunkKind.UNPAIRED), int(ChunkKind.CONTENT)


class Doubts(NamedTuple):
    """The probabilities of open tokens at one place, by token; those of other places are left as they were."""

    teacher_place: Longs
    teacher: Doubles
    student_place: Longs
    """of the longest prefixes"""
    student: Doubles


@njit(cache=True, nogil=True)
def write_targets(
    chunks: ChunkTokens,
    top: TopTokens,
    ranks: int,
    table: PrefixTable,
    given_boundary: bool,
    room: PrefixTargets,
) -> tuple[int, int]:
    """Write the targets of all examples; returns the number of targets and of their entries.

    Or (−1, example) if the chunks of an example have other tokens than the example.
    """
    doubts = Doubts(*_stamps(len(table.teacher.prefix)), *_stamps(len(table.student.prefix)))
    written, entry = 0, 0
    for example in range(len(chunks.offsets) - 1):
        first_t, first_s = chunks.teacher_offsets[example], chunks.student_offsets[example]
        t, s = first_t, first_s
        for chunk in range(chunks.offsets[example], chunks.offsets[example + 1]):
            end_t, end_s = t + chunks.teacher_tokens[chunk], s + chunks.student_tokens[chunk]
            if end_t > chunks.teacher_offsets[example + 1] or end_s > chunks.student_offsets[example + 1]:
                return -1, example
            starts = chunk > chunks.offsets[example] and t > first_t and s > first_s and end_t > t and end_s > s
            if starts and _is_compared(chunks, chunk, t, end_t, s, end_s, table, given_boundary):
                size = _fill(top, t - 1, ranks, table, given_boundary, doubts, room, entry)
                if size:
                    room.tokens[written], room.sizes[written] = s - first_s, size
                    written += 1
                    entry += size
            t, s = end_t, end_s
        room.offsets[example + 1] = written
    return written, entry


@njit(cache=True, nogil=True)
def _is_compared(
    chunks: ChunkTokens,
    chunk: int,
    t: int,
    end_t: int,
    s: int,
    end_s: int,
    table: PrefixTable,
    given_boundary: bool,
) -> bool:
    """Whether both sides have read the same text before the chunk, and what follows may be compared."""
    if not chunks.learned[chunk] or chunks.kinds[chunk] == _UNPAIRED:
        return False
    before = chunk - 1
    if given_boundary and not chunks.anchored[before]:
        return False
    if chunks.kinds[before] == _UNPAIRED and (chunks.teacher_tokens[before] == 0 or chunks.student_tokens[before] == 0):
        return False
    teacher, student = table.teacher, table.student
    if chunks.kinds[chunk] == _CONTENT:
        # a token that covers other bytes than it spells: with a space that the text lacks, or unknown
        spelled_t, spelled_s = 0, 0
        for place in range(t, end_t):
            spelled_t += teacher.lengths[chunks.teacher_ids[place]]
        for place in range(s, end_s):
            spelled_s += student.lengths[chunks.student_ids[place]]
        if spelled_t != chunks.byte_lengths[chunk] or spelled_s != chunks.byte_lengths[chunk]:
            return False
    return True


@njit(cache=True, nogil=True)
def _stamps(size: int) -> tuple[Longs, Doubles]:
    return np.full(size, -1, np.int64), np.zeros(size, np.float64)


@njit(cache=True, nogil=True)
def _fill(
    top: TopTokens,
    place: int,
    ranks: int,
    table: PrefixTable,
    given_boundary: bool,
    doubts: Doubts,
    room: PrefixTargets,
    entry: int,
) -> int:
    """Write the entries of the target after a teacher's token; returns their number."""
    teacher, student, open_tokens = table
    given = np.float64(top.boundary_logprobs[place]) if given_boundary else 0.0
    size, total = 0, 0.0
    for rank in range(place * ranks, (place + 1) * ranks):
        id_ = top.ids[rank]
        prefix = teacher.prefix[id_]
        if given_boundary and not teacher.boundary[id_]:
            continue
        probability = math.exp(np.float64(top.logprobs[rank]) - given)
        if given_boundary and open_tokens[id_]:
            _doubt(doubts, place, id_, prefix, probability)
        elif prefix >= 0 and not (given_boundary and not student.boundary[prefix]):
            found = entry
            while found < entry + size and room.ids[found] != prefix:
                found += 1
            if found == entry + size:
                room.ids[found], room.probabilities[found] = prefix, 0.0
                size += 1
            room.probabilities[found] += np.float32(probability)
            total += probability
    kept = entry
    for found in range(entry, entry + size):
        id_, probability = room.ids[found], np.float64(room.probabilities[found])
        if probability >= LEAST_PROBABILITY and _doubtful(doubts, place, id_, table) <= MOST_DOUBTFUL * probability:
            room.ids[kept] = id_
            # the scores are rounded, so that a sum may exceed 1
            room.probabilities[kept] = probability / max(1.0, total)
            kept += 1
    return kept - entry


@njit(cache=True, nogil=True)
def _doubt(doubts: Doubts, place: int, id_: int, prefix: int, probability: float) -> None:
    """Note the probability of an open token of the teacher."""
    doubts.teacher_place[id_], doubts.teacher[id_] = place, probability
    if prefix >= 0:
        before = doubts.student[prefix] if doubts.student_place[prefix] == place else 0.0
        doubts.student_place[prefix], doubts.student[prefix] = place, before + probability


@njit(cache=True, nogil=True)
def _doubtful(doubts: Doubts, place: int, id_: int, table: PrefixTable) -> float:
    """The probability of the open tokens that a student token may have a part of."""
    total = doubts.student[id_] if doubts.student_place[id_] == place else 0.0
    longest = table.student.prefix[id_]
    if longest >= 0 and doubts.teacher_place[longest] == place and table.teacher.prefix[longest] != id_:
        total += doubts.teacher[longest]
    return total
