"""Merges neighboring chunks, by the teacher's scores or up to ends that are looked up from tokens."""

import math

import numpy as np
import numpy.typing as npt

from alm_pipeline.objective.chunking.arrays import AlignedScores, TeacherChunks

_TYPES = (np.int64, np.int32, np.int32, np.uint8, np.int64, np.float32, np.float32)
"""the types of the arrays of `AlignedScores`"""


def merged_chunks(
    scores: AlignedScores,
    *,
    debias: bool,
    gamma: float | None = None,
    closes: npt.NDArray[np.bool_] | None = None,
) -> TeacherChunks:
    """Merge the chunks of each example, and return those that count.

    With γ, a chunk is merged with its successors until the teacher's probability of a boundary token after it
    exceeds γ: group(k) = #{j < k : P_boundary(j) > γ}. With `closes` ([chunks]) it is merged until a chunk closes the
    group. With neither, no chunk is merged. A group that never closes is kept, and an unpaired chunk ends the group
    before it. Unpaired chunks do not count, nor do chunks with a token that has no prediction: NaN on the teacher's
    side, the first token of the sequence on the student's. Raises ValueError if the chunks of an example have
    different teacher tokens from its scores.
    """
    from alm_pipeline.objective.chunking.kernel import merge_shard  # numba takes seconds to import

    most, examples = len(scores.kinds), len(scores.chunk_offsets) - 1
    starts, ends = np.empty((2, most), np.int32)
    aligned, used = np.zeros((2, examples), np.int32)
    room = TeacherChunks(np.zeros(examples + 1, np.int64), aligned, used, np.empty(most, np.float32), starts, ends)
    threshold = -math.inf if gamma is None or gamma <= 0 else math.log(gamma)
    closing = np.zeros(0, np.bool_) if closes is None else np.ascontiguousarray(closes, np.bool_)
    # one fixed type per array: numba would compile the loop again for every other combination
    arrays = [np.ascontiguousarray(array, type_) for array, type_ in zip(scores, _TYPES, strict=True)]
    count = merge_shard(AlignedScores(*arrays), threshold, gamma is None, closing, debias, room)
    if count < 0:
        raise ValueError(f"the chunks of example {-1 - count} have different teacher tokens from its scores")
    return room._replace(logprobs=room.logprobs[:count], student_starts=starts[:count], student_ends=ends[:count])
