"""The flat arrays of examples and of a batch, as the compiled loops take them."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alm_pipeline.objective.chunking.arrays import TeacherChunks
from storage.columns import flatten_lists

Ints = npt.NDArray[np.integer[Any]]


class Examples(NamedTuple):
    """E examples as flat arrays, and where each begins in them."""

    token_ids: npt.NDArray[np.int32]
    """[tokens] the student's"""
    token_offsets: npt.NDArray[np.int64]
    """[E + 1]"""
    learned: npt.NDArray[np.bool_]
    """[tokens] counts for the student's own likelihood; empty where all do"""
    chunks: TeacherChunks

    @classmethod
    def of(cls, rows: pa.Table) -> "Examples":
        """The arrays of `example_rows`."""
        (logprobs, offsets), *places = (flatten_lists(rows[name]) for name in ("logprobs", "starts", "ends"))
        counts = (rows[name].to_numpy() for name in ("aligned", "used"))
        chunks = TeacherChunks(offsets, *counts, logprobs, *(values for values, _ in places))  # type: ignore[call-arg]
        return cls(*flatten_lists(rows["token_ids"]), learned_column(rows, "learned"), chunks)


class TeacherTokens(NamedTuple):
    """What a teacher in memory needs of the same examples."""

    ids: npt.NDArray[np.int32]
    """[teacher tokens]"""
    offsets: npt.NDArray[np.int64]
    """[E + 1]"""
    teacher_ends: npt.NDArray[np.int32]
    """[aligned chunks, not merged] one past each one's last token, counted within its example"""
    student_ends: npt.NDArray[np.int32]
    single: npt.NDArray[np.bool_]
    """[aligned chunks] of one token on either side"""
    aligned_offsets: npt.NDArray[np.int64]
    """[E + 1] where each example's aligned chunks begin"""
    learned: npt.NDArray[np.bool_]
    """[teacher tokens] as `Examples.learned`"""

    @classmethod
    def of(cls, rows: pa.Table) -> "TeacherTokens":
        (teacher, offsets), (student, _), (single, _) = (
            flatten_lists(rows[name]) for name in ("aligned_teacher_ends", "aligned_student_ends", "single")
        )
        learned = learned_column(rows, "teacher_learned")
        return cls(*flatten_lists(rows["teacher_ids"]), teacher, student, single, offsets, learned)


class Group(NamedTuple):
    """The examples of a batch, in the order of rows."""

    examples: Ints
    """[E]"""
    rows: Ints
    """[E] ascending"""


class FlatBatch(NamedTuple):
    """The arrays of a batch, which `Batch` tells of; rows one after the other."""

    token_ids: Ints
    position_ids: Ints
    predicted: npt.NDArray[np.bool_]
    chunk_of_token: Ints
    last_token: Ints
    teacher_logprobs: npt.NDArray[np.float32]


def learned_column(rows: pa.Table, name: str) -> npt.NDArray[np.bool_]:
    return flatten_lists(rows[name])[0] if name in rows.column_names else np.zeros(0, np.bool_)
