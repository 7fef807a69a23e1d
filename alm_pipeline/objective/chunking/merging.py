"""Merges neighboring chunks, by the teacher's scores or up to ends that are looked up from tokens."""

import math

import numpy as np
import numpy.typing as npt

from alm_pipeline.objective.chunking.arrays import AlignedScores, TeacherChunks
from storage.errors import UserError

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
    before it. Unpaired chunks do not count.

    The first token of a sequence has no prediction, on either side. A paired chunk with such a token (both sides' begin
    of text) does not count, and the group begins after it. A content chunk with such a token takes its group along: a
    group that began after it could begin inside a word.

    Raises ValueError if the chunks of an example have different teacher tokens from its scores, and UserError if a
    chunk's likelihood is not finite.
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
    _check_likelihoods(room.logprobs[:count], room.offsets)
    return room._replace(logprobs=room.logprobs[:count], student_starts=starts[:count], student_ends=ends[:count])


def _check_likelihoods(logprobs: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64]) -> None:
    if len(wrong := np.flatnonzero(~np.isfinite(logprobs))):
        example = int(np.searchsorted(offsets, wrong[0], side="right")) - 1
        raise UserError(
            f"the teacher's log-likelihood of a chunk of example {example} (from 0) is {logprobs[wrong[0]]}: if it is "
            "-inf, its vocabulary has no boundary token, so set objective.debias to false; otherwise its scores are "
            "damaged, so delete them and score again"
        )
