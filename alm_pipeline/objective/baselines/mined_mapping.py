"""MinED's teacher token for each student token: the one whose spelling has the smallest edit distance.

Shapes: V student tokens.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from alm_pipeline.runtime.threads import threads_at_once
from alm_pipeline.vocabulary.byte_view import ByteView, tokens_by_spelling

if TYPE_CHECKING:
    from alm_pipeline.objective.baselines.mined_kernel import Strings

_QUERIES_PER_TASK = 500

Longs = npt.NDArray[np.int64]


def same_bytes_mapping(
    teacher_view: ByteView, student_view: ByteView, specials: Mapping[int, int] | None = None
) -> Longs:
    """[V] the teacher id of the same bytes for each student id, the lowest of several; −1 if there is none.

    Special tokens are mapped as `mined_mapping` does.
    """
    teacher = tokens_by_spelling(teacher_view)
    ordinary = ~student_view.special & (student_view.lengths > 0)
    mapping = np.array([teacher.get(spelling, -1) for spelling in student_view.spelling], np.int64)
    mapping[~ordinary] = -1
    same = _special_ids(teacher_view)
    for special in np.flatnonzero(student_view.special).tolist():
        mapping[special] = (specials or {}).get(special, same.get(student_view.spelling[special], -1))
    return mapping


def mined_mapping(teacher_view: ByteView, student_view: ByteView, specials: Mapping[int, int] | None = None) -> Longs:
    """[V] the teacher id for each student id, −1 if it has none (Wan et al. 2024, arXiv 2401.10491).

    An ordinary token gets the ordinary teacher token with the smallest Levenshtein distance between their bytes; of
    several the one with the lowest id. A special token gets its teacher id in `specials` (student id → teacher id), or
    else the special teacher token of the same literal, or else none. An id without a token has none.
    """
    teacher_ids = np.sort(list(tokens_by_spelling(teacher_view).values()))
    mapping = same_bytes_mapping(teacher_view, student_view, specials)
    unmatched = np.flatnonzero((mapping < 0) & ~student_view.special & (student_view.lengths > 0))
    if len(unmatched) and len(teacher_ids):
        mapping[unmatched] = _nearest(teacher_view, teacher_ids, student_view, unmatched)
    return mapping


def _special_ids(view: ByteView) -> dict[bytes, int]:
    """Return the lowest id of each literal."""
    ids = np.flatnonzero(view.special & (view.lengths > 0))[::-1]
    return {view.spelling[id_]: id_ for id_ in ids.tolist()}


def _nearest(teacher_view: ByteView, teacher_ids: Longs, student_view: ByteView, student_ids: Longs) -> Longs:
    """Return the nearest teacher token of each student token; uses one thread per core of this process."""
    from alm_pipeline.objective.baselines.mined_kernel import find_nearest  # numba takes seconds to import

    queries, strings = _strings(student_view, student_ids), _strings(teacher_view, teacher_ids)
    nearest = np.empty(len(student_ids), np.int64)

    def find(first: int) -> None:
        find_nearest(queries, strings, first, min(first + _QUERIES_PER_TASK, len(nearest)), nearest)

    with ThreadPoolExecutor(threads_at_once()) as pool:
        list(pool.map(find, range(0, len(nearest), _QUERIES_PER_TASK)))
    return nearest[np.argsort(queries.ids)]


def _strings(view: ByteView, ids: Longs) -> "Strings":
    """Return the spellings of ascending ids, in the order that the search needs."""
    from alm_pipeline.objective.baselines.mined_kernel import Strings, sign

    ids = ids[np.argsort(view.lengths[ids], kind="stable")]
    lengths = view.lengths[ids].astype(np.int64)
    letters = np.frombuffer(b"".join(view.spelling[id_] for id_ in ids.tolist()), np.uint8)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    once, twice = np.empty((2, len(ids)), np.uint64)
    sign(letters, starts, once, twice)
    return Strings(letters, starts, ids, np.searchsorted(lengths, np.arange(lengths.max() + 2)), once, twice)
