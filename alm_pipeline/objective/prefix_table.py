"""Which student token a teacher's token begins with, for a pair of vocabularies: the table of the term `bpm`.

Byte-prefix marginalization (arXiv 2607.22334): where both sides have a token end, the probability of a teacher's token
goes to the longest student token that is a byte prefix of it. This is exact if each text that the teacher begins with
its token begins with that student token. It isn't where the student has a longer token that the teacher spells by
several, the first of them this one (`Hel` and `lo` for `Hello`): such a token of the teacher is *open*, and its
probability can't be divided among the student's tokens.

Shapes: V teacher tokens, W student tokens.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from alm_pipeline.objective.prefix_arrays import PrefixTable, SideTable
from alm_pipeline.vocabulary.byte_view import ByteView, tokens_by_spelling
from storage.errors import UserError

Int32s = npt.NDArray[np.int32]


def prefix_table(
    teacher_view: ByteView, student_view: ByteView, specials: Mapping[int, int], student_rows: int | None = None
) -> PrefixTable:
    """Return the table of two vocabularies. `specials` is the student's counterpart of a teacher's special token.

    The student's ids from `student_rows` on have no row in its head, and no probability. Raises UserError if a side's
    tokens do not cover white space.
    """
    for side, view in (("teacher", teacher_view), ("student", student_view)):
        check_white_space(view, side)
    rows = student_view.size if student_rows is None else min(student_rows, student_view.size)
    has_row_W = np.arange(student_view.size) < rows
    prefix_V = _longest_prefixes(teacher_view, tokens_by_spelling(student_view, has_row_W))
    prefix_W = _longest_prefixes(student_view, tokens_by_spelling(teacher_view))
    prefix_W[~has_row_W] = -1
    is_longer_W = (prefix_W >= 0) & (student_view.lengths > teacher_view.lengths[prefix_W])
    open_V = np.zeros(teacher_view.size, np.bool_)
    open_V[prefix_W[is_longer_W]] = True
    for teacher_id, student_id in specials.items():
        if student_id < rows:
            prefix_V[teacher_id], prefix_W[student_id] = student_id, teacher_id
    return PrefixTable(_side_table(teacher_view, prefix_V), _side_table(student_view, prefix_W), open_V)


def check_white_space(view: ByteView, side: str) -> None:
    """Raise UserError if no token covers the white space between words: then no bytes say what follows a word."""
    if view.drops_space:
        raise UserError(
            f"objective.terms: bpm compares tokens by their bytes, and no token of the {side}'s tokenizer covers the "
            "white space between words: leave bpm out, or use another tokenizer"
        )


def _side_table(view: ByteView, prefix: Int32s) -> SideTable:
    return SideTable(prefix, view.lengths.astype(np.int32), view.boundary(view.size))


def _longest_prefixes(view: ByteView, others: Mapping[bytes, int]) -> Int32s:
    """Return the id of the longest of the other spellings that each ordinary token begins with; −1: none."""
    longest = max(map(len, others), default=0)
    prefixes = np.full(view.size, -1, np.int32)
    for id_ in np.flatnonzero(~view.special & (view.lengths > 0)).tolist():
        text = view.spelling[id_]
        lengths = range(min(len(text), longest), 0, -1)
        prefixes[id_] = next((others[text[:length]] for length in lengths if text[:length] in others), -1)
    return prefixes
