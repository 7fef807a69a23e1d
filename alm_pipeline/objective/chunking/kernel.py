"""The compiled loop of `merged_chunks`: one pass over the chunks and the teacher's scores.

Importing numba takes seconds, so only the function that runs the loop imports this module. The compiled code is kept
on disk until this file changes.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from alm_pipeline.objective.chunking.arrays import AlignedScores, TeacherChunks
from storage.schemas import ChunkKind

Bools = npt.NDArray[np.bool_]

# literals: the compiled code on disk contains these numbers, and only a change of this file compiles it again
_PAIRED, _UNPAIRED = 1, 2
assert (_PAIRED, _UNPAIRED) == (ChunkKind.PAIRED, ChunkKind.UNPAIRED)


@njit(cache=True, nogil=True)
def merge_shard(
    scores: AlignedScores, threshold: float, alone: bool, closes: Bools, debias: bool, merged: TeacherChunks
) -> int:
    """Write the chunks that count to `merged`.

    A group of chunks closes where `closes` is true. If `closes` is empty, every chunk closes its group with `alone`,
    and otherwise each chunk whose boundary score exceeds `threshold`. Groups and single chunks without a likelihood are
    those of `merged_chunks`. Returns the number of chunks written, or -1 - k if the teacher tokens of example k's
    chunks do not match its scores.
    """
    written = 0
    for example in range(len(scores.chunk_offsets) - 1):
        first_chunk, end_chunk = scores.chunk_offsets[example], scores.chunk_offsets[example + 1]
        first, end = scores.token_offsets[example], scores.token_offsets[example + 1]
        token, student, start, grouped = first, np.int64(0), np.int64(-1), 0  # start -1: no group is open
        likelihood, predicted = np.float64(0), True
        for chunk in range(first_chunk, end_chunk):
            stop, student_stop = token + scores.teacher_tokens[chunk], student + scores.student_tokens[chunk]
            if not token <= stop <= end:
                return -1 - example
            # a side's first token has no prediction
            lacks_prediction = token == first < stop or student == 0 < student_stop
            merged.aligned[example] += scores.kinds[chunk] != _UNPAIRED
            # both sides surely have a token end after a paired chunk, so a group may begin there
            if scores.kinds[chunk] != _UNPAIRED and not (lacks_prediction and scores.kinds[chunk] == _PAIRED):
                if start < 0:
                    start, likelihood, grouped, predicted = student, np.float64(0), 0, True
                grouped += 1
                predicted = predicted and not lacks_prediction
                for k in range(token, stop):
                    likelihood += scores.logprobs[k]
                boundary = scores.boundary_logprobs[max(stop - 1, first)]
                is_last = chunk + 1 == end_chunk or scores.kinds[chunk + 1] == _UNPAIRED
                if is_last or (closes[chunk] if len(closes) else alone or boundary > threshold):
                    if debias:
                        likelihood += boundary
                    if predicted:
                        merged.logprobs[written] = likelihood
                        merged.student_starts[written], merged.student_ends[written] = start, student_stop
                        merged.used[example] += grouped
                        written += 1
                    start = np.int64(-1)
            token, student = stop, student_stop
        if token != end and first_chunk < end_chunk:
            return -1 - example
        merged.offsets[example + 1] = written
    return written
