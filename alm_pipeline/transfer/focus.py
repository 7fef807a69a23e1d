"""FOCUS: a new token as a sparse mean of the most similar shared tokens (Dobler and de Melo 2023, 2305.14481).

The weights are the sparsemax (Martins and Astudillo 2016, 1602.02068) of the similarities in an auxiliary space. In the
paper this space is fastText, trained on text in the new tokens. Here it is the half of fastText that needs no text: a
token is the bag of its spelling's n-grams of 3 to 6 bytes, including marks at both ends. Each n-gram is weighted by its
rarity among all tokens (log(1 + T / t) for an n-gram in t of T tokens), and similarity is the cosine. So ` Running` is
a mean of ` running`, ` Run`, ` Runner`, …: they share spelling, not necessarily meaning. Only shared tokens with a
common n-gram take part.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from alm_pipeline.transfer.sparse_rows import Floats, SparseRows

LENGTHS = range(3, 7)
_BEGIN, _END = b"\x02", b"\x03"


def focus(new: Sequence[bytes], shared: Sequence[bytes]) -> SparseRows:
    """Return the shared tokens that make up each new token, with weights that sum to 1; none if none is similar."""
    from alm_pipeline.transfer.focus_kernel import sparse_means  # imports numba, which takes seconds

    bags = [_ngrams(token) for token in (*new, *shared)]
    columns, rarity = _columns(bags)
    rows = _unit_rows(bags, columns, rarity)
    split = rows.starts[len(new)]
    queries = SparseRows(rows.starts[: len(new) + 1], rows.ids[:split], rows.weights[:split])
    known = SparseRows(rows.starts[len(new) :] - split, rows.ids[split:], rows.weights[split:])
    return SparseRows(*sparse_means(queries, _transposed(known, len(columns)), len(shared)))


def _ngrams(token: bytes) -> set[bytes]:
    marked = _BEGIN + token + _END
    return {marked[at : at + length] for length in LENGTHS for at in range(len(marked) - length + 1)}


def _columns(bags: Sequence[set[bytes]]) -> tuple[dict[bytes, int], Floats]:
    tokens_of = Counter(gram for bag in bags for gram in bag)
    # sorted, so that the order of sums does not depend on this process's hashes
    columns = {gram: column for column, gram in enumerate(sorted(tokens_of))}
    return columns, np.log1p(len(bags) / np.array([tokens_of[gram] for gram in columns], np.float64))


def _unit_rows(bags: Sequence[set[bytes]], columns: dict[bytes, int], rarity: Floats) -> SparseRows:
    """Return the bags as vectors of length 1."""
    sizes = np.fromiter(map(len, bags), np.int64, len(bags))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    ids = np.fromiter(
        (column for bag in bags for column in sorted(map(columns.__getitem__, bag))), np.int64, starts[-1]
    )
    owners = np.repeat(np.arange(len(bags)), sizes)
    squares = np.bincount(owners, rarity[ids] ** 2, len(bags))
    return SparseRows(starts, ids, rarity[ids] / np.sqrt(squares)[owners])


def _transposed(rows: SparseRows, columns: int) -> SparseRows:
    owners = np.repeat(np.arange(len(rows.starts) - 1), np.diff(rows.starts))
    order = np.argsort(rows.ids, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows.ids, minlength=columns))])
    return SparseRows(starts, owners[order], rows.weights[order])
