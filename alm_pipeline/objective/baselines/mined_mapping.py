"""Which teacher token stands for each student token in MinED: the one whose spelling is fewest edits away.

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

_QUERIES_A_TASK = 500

Longs = npt.NDArray[np.int64]


def mined_mapping(teacher_view: ByteView, student_view: ByteView, specials: Mapping[int, int] | None = None) -> Longs:
    """[V] the teacher id for each student id, −1 where there is none (Wan et al. 2024, arXiv 2401.10491).

    An ordinary token takes the ordinary teacher token of the least Levenshtein distance between their bytes, the same
    bytes first, the lowest id of several. A special token takes what `specials` (student id → teacher id) says,
    otherwise the special teacher token of the same literal, otherwise none. An id without a token has none.
    """
    teacher = tokens_by_spelling(teacher_view)
    ordinary = ~student_view.special & (student_view.lengths > 0)
    mapping = np.array([teacher.get(spelling, -1) for spelling in student_view.spelling], np.int64)
    mapping[~ordinary] = -1
    unmatched = np.flatnonzero((mapping < 0) & ordinary)
    if len(unmatched) and teacher:
        mapping[unmatched] = _nearest(teacher_view, np.sort(list(teacher.values())), student_view, unmatched)
    same = _special_ids(teacher_view)
    for special in np.flatnonzero(student_view.special).tolist():
        mapping[special] = (specials or {}).get(special, same.get(student_view.spelling[special], -1))
    return mapping


def _special_ids(view: ByteView) -> dict[bytes, int]:
    """The lowest id of each literal."""
    ids = np.flatnonzero(view.special & (view.lengths > 0))[::-1]
    return {view.spelling[id_]: id_ for id_ in ids.tolist()}


def _nearest(teacher_view: ByteView, teacher_ids: Longs, student_view: ByteView, student_ids: Longs) -> Longs:
    """The nearest teacher token of each student token, on a thread for each core that this process may use."""
    from alm_pipeline.objective.baselines.mined_kernel import find_nearest  # numba takes seconds to import

    queries, strings = _strings(student_view, student_ids), _strings(teacher_view, teacher_ids)
    found = np.empty(len(student_ids), np.int64)

    def find(first: int) -> None:
        find_nearest(queries, strings, first, min(first + _QUERIES_A_TASK, len(found)), found)

    with ThreadPoolExecutor(threads_at_once()) as pool:
        list(pool.map(find, range(0, len(found), _QUERIES_A_TASK)))
    return found[np.argsort(queries.ids)]


def _strings(view: ByteView, ids: Longs) -> "Strings":
    """The spellings of ascending ids, for the search."""
    from alm_pipeline.objective.baselines.mined_kernel import Strings, sign

    ids = ids[np.argsort(view.lengths[ids], kind="stable")]
    lengths = view.lengths[ids].astype(np.int64)
    letters = np.frombuffer(b"".join(view.spelling[id_] for id_ in ids.tolist()), np.uint8)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    once, twice = np.empty((2, len(ids)), np.uint64)
    sign(letters, starts, once, twice)
    return Strings(letters, starts, ids, np.searchsorted(lengths, np.arange(lengths.max() + 2)), once, twice)
