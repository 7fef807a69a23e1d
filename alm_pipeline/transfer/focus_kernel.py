"""The compiled loop of `focus`: similarities by an inverted index, and their sparsemax, row by row.

Importing numba takes seconds, so only the function that runs the loop imports this module. The compiled code is kept
on disk until this file changes.
"""

import numpy as np
from numba import njit

from alm_pipeline.transfer.sparse_rows import Floats, Ints, SparseRows


@njit(cache=True, nogil=True)
def sparse_means(queries: SparseRows, index: SparseRows, tokens: int) -> tuple[Ints, Ints, Floats]:
    """Return rows of tokens and weights, one per query row of columns; `index` has the tokens of each column."""
    count = len(queries.starts) - 1
    starts = np.zeros(count + 1, np.int64)
    ids, weights = np.empty(64 * count + tokens, np.int64), np.empty(64 * count + tokens, np.float64)
    similarity = np.zeros(tokens, np.float64)
    touched = np.empty(tokens, np.int64)
    for row in range(count):
        touched_count = 0
        for term in range(queries.starts[row], queries.starts[row + 1]):
            column = queries.ids[term]
            for at in range(index.starts[column], index.starts[column + 1]):
                token = index.ids[at]
                if similarity[token] == 0.0:
                    touched[touched_count] = token
                    touched_count += 1
                similarity[token] += queries.weights[term] * index.weights[at]
        near = touched[:touched_count]
        end = starts[row]
        if end + touched_count > len(ids):
            ids = np.concatenate((ids, np.empty(len(ids) + tokens, np.int64)))
            weights = np.concatenate((weights, np.empty(len(weights) + tokens, np.float64)))
        if touched_count:
            threshold = sparsemax_threshold(similarity[near])
            for token in np.sort(near):
                if similarity[token] > threshold:
                    ids[end], weights[end] = token, similarity[token] - threshold
                    end += 1
        similarity[near] = 0.0
        starts[row + 1] = end
    return starts, ids[: starts[-1]], weights[: starts[-1]]


@njit(cache=True, nogil=True)
def sparsemax_threshold(values: Floats) -> float:
    """τ with Σ max(value − τ, 0) = 1 (algorithm 1 of 1602.02068)."""
    total, threshold = 0.0, 0.0
    for rank, value in enumerate(-np.sort(-values)):
        total += value
        if 1 + (rank + 1) * value <= total:
            break
        threshold = (total - 1) / (rank + 1)
    return threshold
