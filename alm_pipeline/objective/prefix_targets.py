"""The targets of the term `bpm`: the teacher's next-token distribution in the student's vocabulary.

A target belongs to each student token that begins where a teacher's token begins as well, so that both sides have read
the same text. The probabilities of the teacher's likeliest tokens go to student tokens by `prefix_table`. What can't be
placed is the *residual*, for all of the student's other tokens together: the tokens that are not among the likeliest,
and those without a prefix in the student's vocabulary.

The end of a token rules out some continuations, and tokenizers differ in which ones. At an anchor (`ChunkEnd`: the
end of a word) what follows has the same probability on both sides, given that a boundary token does. With
`given_boundary`, targets are therefore conditional on a boundary token, and there are none but at anchors. Then the
residual also has the open tokens, and each student token that they may add more than a hundredth to.
"""

import numpy as np

from alm_pipeline.objective.prefix_arrays import ChunkTokens, Ints, PrefixTable, PrefixTargets, SideTable, TopTokens

# one fixed type per array: numba would compile the loop again for every other combination
_CHUNKS = (np.int64, np.int32, np.int32, np.int32, np.uint8, np.bool_, np.bool_, np.int32, np.int64, np.int32, np.int64)


def prefix_targets(
    chunks: ChunkTokens, top: TopTokens, table: PrefixTable, *, given_boundary: bool = False
) -> PrefixTargets:
    """Return the targets of all examples. The first chunk of an example has none.

    Raises ValueError if the chunks of an example have other tokens than the example, or the scores other tokens.
    """
    from alm_pipeline.objective.prefix_kernel import write_targets  # numba takes seconds to import

    tokens = int(chunks.teacher_offsets[-1])
    ranks = len(top.ids) // tokens if tokens else 0
    if len(top.boundary_logprobs) != tokens or not len(top.ids) == len(top.logprobs) == ranks * tokens:
        raise ValueError("the scores are of other tokens than the chunks")
    _check_ids(table.teacher, top.ids, chunks.teacher_ids)
    _check_ids(table.student, chunks.student_ids)
    most = len(chunks.kinds)
    offsets = np.zeros(len(chunks.offsets), np.int64)
    places, sizes = np.empty(most, np.int32), np.empty(most, np.uint8)
    # memory that is never written to is never allocated
    room = PrefixTargets(offsets, places, sizes, np.empty(most * ranks, np.int32), np.empty(most * ranks, np.float32))
    read = ChunkTokens(*(np.ascontiguousarray(array, type_) for array, type_ in zip(chunks, _CHUNKS, strict=True)))
    logprobs, boundary = (np.ascontiguousarray(array, np.float32) for array in top[1:])
    scores = TopTokens(np.ascontiguousarray(top.ids, np.int32), logprobs, boundary)
    count, entries = write_targets(read, scores, ranks, table, given_boundary, room)
    if count < 0:
        raise ValueError(f"the chunks of example {entries} have other tokens than the example")
    return PrefixTargets(offsets, places[:count], sizes[:count], room.ids[:entries], room.probabilities[:entries])


def _check_ids(side: SideTable, *ids: Ints) -> None:
    """Raise ValueError for an id without an entry: compiled code reads past the end of an array without an error."""
    if any(len(some) and not 0 <= some.min() <= some.max() < len(side.prefix) for some in ids):
        raise ValueError(f"a token's id is not below {len(side.prefix)}, the size of its vocabulary")
