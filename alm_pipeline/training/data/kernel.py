"""The compiled loops behind `packing`: imported by the functions that run them, since importing numba takes seconds."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from alm_pipeline.training.data.arrays import Examples, FlatBatch, Group

Ints = npt.NDArray[np.integer[Any]]

_MOST_ALONE = 1000
"""long examples within a batch's run: what they stand in is searched again for each of them"""


@njit(cache=True, nogil=True)
def find_group(lengths: Ints, start: int, alone: int, height: int, row_tokens: int, rows: Ints) -> tuple[int, int]:
    """(end, -1) of the run from `start` on, (-1, long) where a long example comes before its end, else (-1, -1).

    Writes the row of each example of the run, -1 for a long one. `alone` long examples are passed over.
    """
    room = np.full(height, row_tokens, np.int64)
    passed = 0
    for example in range(start, len(lengths)):
        if lengths[example] > row_tokens:
            if passed == alone:
                return -1, example
            passed += 1
            rows[example - start] = -1
            if passed == _MOST_ALONE:
                return example + 1, -1
            continue
        row = 0
        while row < height and room[row] < lengths[example]:
            row += 1
        if row == height:
            return example, -1
        room[row] -= lengths[example]
        rows[example - start] = row
    return -1, -1


@njit(cache=True, nogil=True)
def fill_batch(examples: Examples, group: Group, width: int, batch: FlatBatch) -> None:
    """Write a batch of rows of `width` positions into its arrays, which are as `make_batch` makes them."""
    chunks, all_learned = examples.chunks, len(examples.learned) == 0
    written, at = 0, 0
    for k in range(len(group.examples)):
        example, row = group.examples[k], group.rows[k]
        if k == 0 or row != group.rows[k - 1]:
            at = row * width
        first = examples.token_offsets[example]
        length = examples.token_offsets[example + 1] - first
        for token in range(length):
            batch.token_ids[at + token] = examples.token_ids[first + token]
            batch.position_ids[at + token] = token
            batch.predicted[at + token] = token > 0 and (all_learned or examples.learned[first + token])
        for chunk in range(chunks.offsets[example], chunks.offsets[example + 1]):
            for token in range(chunks.student_starts[chunk], chunks.student_ends[chunk]):
                batch.chunk_of_token[at + token] = written
            batch.last_token[written] = at + chunks.student_ends[chunk] - 1
            batch.teacher_logprobs[written] = chunks.logprobs[chunk]
            written += 1
        at += length
