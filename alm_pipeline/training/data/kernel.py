"""The compiled loops of `packing`. Imported inside the functions that run them: importing numba takes seconds."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from alm_pipeline.training.data.arrays import BatchArrays, BatchPlan, ExampleArrays

Ints = npt.NDArray[np.integer[Any]]

_MOST_ALONE = 1000
"""the most long examples that one run may contain: the run is searched again for each of them"""


@njit(cache=True, nogil=True)
def find_plan(lengths: Ints, start: int, alone: int, height: int, row_tokens: int, rows: Ints) -> tuple[int, int]:
    """Find the run of examples from `start` that fills a batch of `height` rows.

    Returns (end, -1), or (-1, long) if a long example comes before the end, or (-1, -1) if more examples still fit.
    Writes each example's row into `rows`, -1 for a long example. The first `alone` long examples are skipped.
    """
    room = np.full(height, row_tokens, np.int64)
    skipped = 0
    for example in range(start, len(lengths)):
        if lengths[example] > row_tokens:
            if skipped == alone:
                return -1, example
            skipped += 1
            rows[example - start] = -1
            if skipped == _MOST_ALONE:
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
def fill_batch(examples: ExampleArrays, plan: BatchPlan, width: int, batch: BatchArrays) -> None:
    """Fill the arrays of a batch with rows of `width` positions. `make_batch` allocates them."""
    chunks, all_learned = examples.chunks, len(examples.learned) == 0
    written, start = 0, 0
    for k in range(len(plan.examples)):
        example, row = plan.examples[k], plan.rows[k]
        if k == 0 or row != plan.rows[k - 1]:
            start = row * width
        first = examples.token_offsets[example]
        length = examples.token_offsets[example + 1] - first
        for token in range(length):
            batch.token_ids[start + token] = examples.token_ids[first + token]
            batch.position_ids[start + token] = token
            batch.predicted[start + token] = token > 0 and (all_learned or examples.learned[first + token])
        for chunk in range(chunks.offsets[example], chunks.offsets[example + 1]):
            batch.covered[start + chunks.student_starts[chunk] : start + chunks.student_ends[chunk]] = True
            batch.first_token[written] = start + chunks.student_starts[chunk]
            batch.last_token[written] = start + chunks.student_ends[chunk] - 1
            batch.starts_debiased[written] = chunks.starts_debiased[chunk]
            batch.ends_debiased[written] = chunks.ends_debiased[chunk]
            batch.teacher_logprobs[written] = chunks.logprobs[chunk]
            written += 1
        start += length


@njit(cache=True, nogil=True)
def interleave(shares: Ints, lags: Ints, order: Ints) -> None:
    """Write the source of each row into `order`, by the rule of `mixture`.

    `shares` ([sources]) are whole numbers; `lags` ([sources]), which is overwritten, has share · n − total · count for
    n rows before, so that a source lags behind by lag / total rows.
    """
    total = shares.sum()
    for row in range(len(order)):
        chosen, least = 0, np.int64(-1)
        for source in range(len(shares)):
            lags[source] += shares[source]
            if lags[source] > 0:
                # rows until it lags behind by a whole one
                left = (total - lags[source] + shares[source] - 1) // shares[source]
                if least < 0 or left < least:
                    chosen, least = source, left
        lags[chosen] -= total
        order[row] = chosen
