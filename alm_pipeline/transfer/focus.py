"""FOCUS: a new token as a sparse mean of the shared tokens that are most like it (Dobler and de Melo 2023, 2305.14481).

The weights are the sparsemax (Martins and Astudillo 2016, 1602.02068) of the similarities in an auxiliary space. There
it is fastText, trained on text in the new tokens. Here nobody has to have text, and the auxiliary space is the half
of fastText that needs none: a token is the bag of its spelling's n-grams of 3 to 6 bytes, marks at both ends counted,
each weighted by how rare it is among all tokens (log(1 + T / t) for an n-gram in t of T tokens); similarity is the
cosine. So ` Running` is a mean of ` running`, ` Run`, ` Runner`, …: what it shares is spelling, not meaning. Only
shared tokens with an n-gram in common take part.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from alm_pipeline.transfer.sparse_rows import Floats, Rows

LENGTHS = range(3, 7)
_BEGIN, _END = b"\x02", b"\x03"


def focus(new: Sequence[bytes], shared: Sequence[bytes]) -> Rows:
    """For each new token the shared ones that make it up, with weights that sum to 1; none where none is like it."""
    from alm_pipeline.transfer.focus_kernel import sparse_means  # imports numba, which takes seconds

    bags = [_ngrams(token) for token in (*new, *shared)]
    columns, rarity = _columns(bags)
    rows = _unit_rows(bags, columns, rarity)
    split = rows.starts[len(new)]
    asked = Rows(rows.starts[: len(new) + 1], rows.ids[:split], rows.weights[:split])
    known = Rows(rows.starts[len(new) :] - split, rows.ids[split:], rows.weights[split:])
    return Rows(*sparse_means(asked, _transposed(known, len(columns)), len(shared)))


def _ngrams(token: bytes) -> set[bytes]:
    marked = _BEGIN + token + _END
    return {marked[at : at + length] for length in LENGTHS for at in range(len(marked) - length + 1)}


def _columns(bags: Sequence[set[bytes]]) -> tuple[dict[bytes, int], Floats]:
    tokens_of = Counter(gram for bag in bags for gram in bag)
    # sorted: sums go in one order whatever this process's hashes
    columns = {gram: column for column, gram in enumerate(sorted(tokens_of))}
    return columns, np.log1p(len(bags) / np.array([tokens_of[gram] for gram in columns], np.float64))


def _unit_rows(bags: Sequence[set[bytes]], columns: dict[bytes, int], rarity: Floats) -> Rows:
    """The bags as vectors of length 1."""
    sizes = np.fromiter(map(len, bags), np.int64, len(bags))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    ids = np.fromiter(
        (column for bag in bags for column in sorted(map(columns.__getitem__, bag))), np.int64, starts[-1]
    )
    owners = np.repeat(np.arange(len(bags)), sizes)
    squares = np.bincount(owners, rarity[ids] ** 2, len(bags))
    return Rows(starts, ids, rarity[ids] / np.sqrt(squares)[owners])


def _transposed(rows: Rows, columns: int) -> Rows:
    owners = np.repeat(np.arange(len(rows.starts) - 1), np.diff(rows.starts))
    order = np.argsort(rows.ids, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows.ids, minlength=columns))])
    return Rows(starts, owners[order], rows.weights[order])
