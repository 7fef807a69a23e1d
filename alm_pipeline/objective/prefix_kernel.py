"""The compiled loop of `prefix_targets`. Imported by the function that runs it: importing numba takes seconds."""

import math

import numpy as np
import numpy.typing as npt
from numba import njit

from alm_pipeline.objective.prefix_arrays import ChunkTokens, PrefixTable, PrefixTargets, TopTokens
from storage.schemas import ChunkKind

Longs = npt.NDArray[np.int64]
LEAST_PROBABILITY = 1e-5
"""of a student token in a target: less goes to the residual, which takes no space and changes no gradient by more"""
_UNPAIRED, _CONTENT = int(ChunkKind.UNPAIRED), int(ChunkKind.CONTENT)


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
    opened, blocked = np.full(len(table.teacher.prefix), -1, np.int64), np.full(len(table.student.prefix), -1, np.int64)
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
                size = _fill(top, t - 1, ranks, table, given_boundary, opened, blocked, room, entry)
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
    if not given_boundary:
        return True
    if teacher.ends_in_space[chunks.teacher_ids[t - 1]] or student.ends_in_space[chunks.student_ids[s - 1]]:
        return False
    return bool(teacher.boundary[chunks.teacher_ids[t]] and student.boundary[chunks.student_ids[s]])


@njit(cache=True, nogil=True)
def _fill(
    top: TopTokens,
    place: int,
    ranks: int,
    table: PrefixTable,
    given_boundary: bool,
    opened: Longs,
    blocked: Longs,
    room: PrefixTargets,
    entry: int,
) -> int:
    """Write the entries of the target after a teacher's token; returns their number."""
    teacher, student, open_tokens = table
    for rank in range(place * ranks, (place + 1) * ranks):
        id_ = top.ids[rank]
        if open_tokens[id_]:
            opened[id_] = place
            if teacher.prefix[id_] >= 0:
                blocked[teacher.prefix[id_]] = place
    size, total = 0, 0.0
    for rank in range(place * ranks, (place + 1) * ranks):
        id_ = top.ids[rank]
        prefix = teacher.prefix[id_]
        if open_tokens[id_] or prefix < 0 or blocked[prefix] == place:
            continue
        if student.prefix[prefix] >= 0 and opened[student.prefix[prefix]] == place:
            continue
        logprob = np.float64(top.logprobs[rank])
        if given_boundary:
            if not (teacher.boundary[id_] and student.boundary[prefix]):
                continue
            logprob -= top.boundary_logprobs[place]
        probability = math.exp(logprob)
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
        if room.probabilities[found] >= LEAST_PROBABILITY:
            room.ids[kept] = room.ids[found]
            # the scores are rounded, so that a sum may exceed 1
            room.probabilities[kept] = room.probabilities[found] / np.float32(max(1.0, total))
            kept += 1
    return kept - entry
