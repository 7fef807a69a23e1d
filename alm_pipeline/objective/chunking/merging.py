"""Merges neighboring chunks, by the teacher's scores or up to ends that are looked up from tokens."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from alm_pipeline.config import Debias
from alm_pipeline.objective.chunking.arrays import AlignedScores, TeacherChunks
from storage.errors import UserError

_TYPES = (np.int64, np.int32, np.int32, np.uint8, np.uint8, np.bool_, np.int64, np.float32, np.float32)
"""the types of the arrays of `AlignedScores`"""
_CHUNK_TYPES = (np.float32, np.int32, np.int32, np.bool_, np.bool_)
"""the types of the arrays of chunks of `TeacherChunks`"""
FARTHEST_ANCHOR = 16
"""teacher tokens: a stretch of many more has a likelihood near 0, from which nothing is learned"""


def merged_chunks(
    scores: AlignedScores,
    *,
    debias: Debias,
    gamma: float | None = None,
    closes: npt.NDArray[np.bool_] | None = None,
) -> TeacherChunks:
    """Merge the chunks of each example, and return those that count.

    With γ, a chunk is merged with its successors until the teacher's probability of a boundary token after it
    exceeds γ: group(k) = #{j < k : P_boundary(j) > γ}. With `closes` ([chunks]) it is merged until a chunk closes the
    group; with both, a group of more than `FARTHEST_ANCHOR` teacher tokens is closed by γ as well. With neither, no
    chunk is merged. A group that never closes is kept, and an unpaired chunk ends the group before it. Unpaired chunks
    do not count.

    The first token of a sequence has no prediction, on either side. A paired chunk with such a token (both sides' begin
    of text) does not count, and the group begins after it. A content chunk with such a token takes its group along: a
    group that began after it could begin inside a word.

    A likelihood is the product of the token's probabilities. With `debias` "end" it is multiplied by P(boundary) after
    the group's last token. With "both" it is counted from an anchor at or before the group's start, and divided by
    P(boundary) there: with A_k = log p(tokens ≤ k) and D_k = A_k + log P(boundary after k) it is D_j − D_i. Anchors
    are the chunk ends of `ChunkEnd.ANCHOR`, and what follows a paired or unpaired chunk: a template ends there, so that
    both sides have a token end, and D is A. A group without an anchor before it does not count. Where the last one, or
    the text's beginning, is more than `FARTHEST_ANCHOR` teacher tokens away (a script without white space, a long run
    of digits), or lies in what is not learned, the group is counted from its own start, as with "end".

    Raises ValueError if the chunks of an example have different teacher tokens from its scores, and UserError if a
    chunk's likelihood is not finite.
    """
    from alm_pipeline.objective.chunking.kernel import MergingRule, merge_shard  # numba takes seconds to import

    most, examples = len(scores.kinds), len(scores.chunk_offsets) - 1
    columns: list[npt.NDArray[Any]] = [np.empty(most, type_) for type_ in _CHUNK_TYPES]
    aligned, used = np.zeros((2, examples), np.int32)
    room = TeacherChunks(np.zeros(examples + 1, np.int64), aligned, used, *columns)
    threshold = math.inf if gamma is None else -math.inf if gamma <= 0 else math.log(gamma)
    closing = np.zeros(0, np.bool_) if closes is None else np.ascontiguousarray(closes, np.bool_)
    alone = gamma is None and closes is None
    rule = MergingRule(threshold, alone, closing, debias != "none", debias == "both", FARTHEST_ANCHOR)
    # one fixed type per array: numba would compile the loop again for every other combination
    arrays: list[Any] = [np.ascontiguousarray(array, type_) for array, type_ in zip(scores, _TYPES, strict=True)]
    count = merge_shard(AlignedScores(*arrays), rule, room)
    if count < 0:
        raise ValueError(f"the chunks of example {-1 - count} have different teacher tokens from its scores")
    chunks = TeacherChunks(*room[:3], *(column[:count] for column in columns))
    _check_likelihoods(chunks.logprobs, chunks.offsets)
    # rounding: no probability is above 1
    return chunks._replace(logprobs=np.minimum(chunks.logprobs, np.float32(0)))


def _check_likelihoods(logprobs: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64]) -> None:
    if len(wrong := np.flatnonzero(~np.isfinite(logprobs))):
        example = int(np.searchsorted(offsets, wrong[0], side="right")) - 1
        raise UserError(
            f"the teacher's log-likelihood of a chunk of example {example} (from 0) is {logprobs[wrong[0]]}: if it is "
            "-inf, its vocabulary has no boundary token, so set objective.debias to none; otherwise its scores are "
            "damaged, so delete them and score again"
        )
