"""The compiled loop of `merged_chunks`: one pass over the chunks and the teacher's scores.

Importing numba takes seconds, so only the function that runs the loop imports this module. The compiled code is kept
on disk until this file changes.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from alm_pipeline.objective.chunking.arrays import AlignedScores, TeacherChunks
from storage.schemas import ChunkEnd, ChunkKind

Bools = npt.NDArray[np.bool_]

# literals: the compiled code on disk contains these numbers, and only a change of this file compiles it again
_CONTENT, _PAIRED, _UNPAIRED, _ANCHOR = 0, 1, 2, 3
assert (_CONTENT, _PAIRED, _UNPAIRED) == (ChunkKind.CONTENT, ChunkKind.PAIRED, ChunkKind.UNPAIRED)
assert _ANCHOR == ChunkEnd.ANCHOR


class MergingRule(NamedTuple):
    """How chunks are merged and debiased."""

    threshold: float
    """the log-probability of a boundary above which a group closes, with `closes` after `farthest` tokens"""
    alone: bool
    """every chunk closes its group"""
    closes: Bools
    """[chunks] the chunks that close their group; empty for the two rules above"""
    debias_ends: bool
    anchored: bool
    """chunks are debiased at both ends"""
    farthest: int
    """the most teacher tokens between an anchor and the group that is counted from it, and the most that a group waits
    for one of `closes`"""


class _Anchor(NamedTuple):
    """A place that likelihoods are counted from."""

    student: int | np.int64
    """the student token after it, counted within its example; −1: there is none"""
    token: int | np.int64
    """the teacher token after it"""
    likelihood: float
    """log-likelihood from here on, so far"""
    debiased: bool
    """divided by P(boundary) here"""


@njit(cache=True, nogil=True)
def merge_shard(scores: AlignedScores, rule: MergingRule, merged: TeacherChunks) -> int:
    """Write the chunks that count to `merged`, as `merged_chunks` describes them.

    Returns the number of chunks written, or -1 - k if the teacher tokens of example k's chunks do not match its scores.
    """
    written, none = 0, _Anchor(np.int64(-1), np.int64(-1), 0.0, False)
    all_learned = len(scores.learned) == 0
    for example in range(len(scores.chunk_offsets) - 1):
        first_chunk, end_chunk = scores.chunk_offsets[example], scores.chunk_offsets[example + 1]
        first, end = scores.token_offsets[example], scores.token_offsets[example + 1]
        token, student = np.int64(first), np.int64(0)
        is_open, grouped, predicted, was_learned, opened = False, 0, True, True, token
        start = anchor = none
        for chunk in range(first_chunk, end_chunk):
            kind, learned = scores.kinds[chunk], all_learned or scores.learned[chunk]
            stop, student_stop = token + scores.teacher_tokens[chunk], student + scores.student_tokens[chunk]
            if not token <= stop <= end:
                return -1 - example
            # a side's first token has no prediction
            lacks_prediction = token == first < stop or student == 0 < student_stop
            is_aligned = learned and kind != _UNPAIRED
            merged.aligned[example] += is_aligned
            # what is not learned must not be counted along: the words before a completion that begins within a word
            if learned and not was_learned and anchor.student != student:
                anchor = _Anchor(student, token, 0.0, False)
            was_learned = learned
            counts = is_aligned and not (lacks_prediction and kind == _PAIRED)
            if counts and not is_open:
                # both sides surely have a token end here: after a paired chunk too
                here = _Anchor(student, token, 0.0, False)
                is_open, grouped, predicted, opened = True, 0, True, token
                if not rule.anchored:
                    start = here
                elif anchor.student < 0:
                    start, predicted = here, token - first > rule.farthest
                else:
                    start = here if token - anchor.token > rule.farthest else anchor
            likelihood = np.float64(0)
            for k in range(token, stop):
                likelihood += scores.logprobs[k]
            boundary = np.float64(scores.boundary_logprobs[max(stop - 1, first)])
            start = _Anchor(start.student, start.token, start.likelihood + likelihood, start.debiased)
            anchor = _Anchor(anchor.student, anchor.token, anchor.likelihood + likelihood, anchor.debiased)
            if counts:
                grouped += 1
                predicted = predicted and not lacks_prediction
                is_last = (
                    chunk + 1 == end_chunk
                    or scores.kinds[chunk + 1] == _UNPAIRED
                    or not (all_learned or scores.learned[chunk + 1])
                )
                closes = len(rule.closes) > 0 and rule.closes[chunk]
                waits = len(rule.closes) > 0 and stop - opened <= rule.farthest
                by_rule = closes or rule.alone or (boundary > rule.threshold and not waits)
                if is_last or by_rule:
                    debiased = rule.debias_ends and not (rule.anchored and kind == _PAIRED)
                    if predicted:
                        merged.logprobs[written] = start.likelihood + boundary if debiased else start.likelihood
                        merged.student_starts[written], merged.student_ends[written] = start.student, student_stop
                        merged.starts_debiased[written], merged.ends_debiased[written] = start.debiased, debiased
                        merged.used[example] += grouped
                        written += 1
                    is_open = False
            if kind != _CONTENT:
                # a token end of both sides, since the template ends there
                anchor = _Anchor(student_stop, stop, 0.0, False)
            elif scores.ends[chunk] == _ANCHOR:
                anchor = _Anchor(student_stop, stop, -boundary, True)
            elif lacks_prediction:
                anchor = none
            token, student = stop, student_stop
        if token != end and first_chunk < end_chunk:
            return -1 - example
        merged.offsets[example + 1] = written
    return written
