"""The flat arrays of examples and of a batch, in the form that the compiled loops take."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alm_pipeline.objective.chunking.arrays import TeacherChunks
from alm_pipeline.objective.prefix_arrays import PrefixTargets
from storage.columns import flatten_lists, list_array

Ints = npt.NDArray[np.integer[Any]]
CHUNK_COLUMNS = TeacherChunks._fields[3:]
"""the lists of an example's chunks, in a table made by `example_rows`"""


class ExampleArrays(NamedTuple):
    """E examples as flat arrays, with the offset at which each example begins."""

    token_ids: npt.NDArray[np.int32]
    """[tokens] the student's tokens"""
    token_offsets: npt.NDArray[np.int64]
    """[E + 1]"""
    learned: npt.NDArray[np.bool_]
    """[tokens] whether the token counts for the student's own likelihood; empty if all tokens count"""
    chunks: TeacherChunks

    @classmethod
    def of(cls, rows: pa.Table) -> "ExampleArrays":
        """Return the arrays of a table made by `example_rows`."""
        lists = [flatten_lists(rows[name]) for name in CHUNK_COLUMNS]
        counts = (rows[name].to_numpy() for name in ("aligned", "used"))
        chunks = TeacherChunks(lists[0][1], *counts, *(values for values, _ in lists))
        return cls(*flatten_lists(rows["token_ids"]), learned_column(rows, "learned"), chunks)


class TeacherArrays(NamedTuple):
    """The same examples as a teacher in memory needs them."""

    ids: npt.NDArray[np.int32]
    """[teacher tokens]"""
    offsets: npt.NDArray[np.int64]
    """[E + 1]"""
    teacher_ends: npt.NDArray[np.int32]
    """[aligned chunks, not merged] one past the chunk's last token, counted within its example"""
    student_ends: npt.NDArray[np.int32]
    teacher_counts: npt.NDArray[np.uint16]
    """[aligned chunks] the chunk's tokens"""
    student_counts: npt.NDArray[np.uint16]
    aligned_offsets: npt.NDArray[np.int64]
    """[E + 1] where each example's aligned chunks begin"""
    learned: npt.NDArray[np.bool_]
    """[teacher tokens] like `ExampleArrays.learned`"""

    @classmethod
    def of(cls, rows: pa.Table) -> "TeacherArrays":
        (teacher_ends, offsets), (student_ends, _), (teacher_counts, _), (student_counts, _) = (
            flatten_lists(rows[f"aligned_{name}"])
            for name in ("teacher_ends", "student_ends", "teacher_counts", "student_counts")
        )
        columns = (teacher_ends, student_ends, teacher_counts, student_counts)
        return cls(*flatten_lists(rows["teacher_ids"]), *columns, offsets, learned_column(rows, "teacher_learned"))


def target_columns(targets: PrefixTargets) -> dict[str, pa.ListArray]:
    """Return the columns that `read_targets` reads: 5 bytes per target, and 8 for each of its tokens."""
    entries = np.concatenate([[0], np.cumsum(targets.sizes, dtype=np.int64)])[targets.offsets]
    return {
        "target_tokens": list_array(targets.tokens, targets.offsets, pa.int32()),
        "target_sizes": list_array(targets.sizes, targets.offsets, pa.uint8()),
        "target_ids": list_array(targets.ids, entries, pa.int32()),
        "target_probabilities": list_array(targets.probabilities, entries, pa.float32()),
    }


def read_targets(rows: pa.Table) -> PrefixTargets:
    """Return the targets of a table with the columns `target_columns`."""
    (tokens, offsets), *others = (
        flatten_lists(rows[f"target_{name}"]) for name in ("tokens", "sizes", "ids", "probabilities")
    )
    return PrefixTargets(offsets, tokens, *(values for values, _ in others))


class BatchPlan(NamedTuple):
    """The examples of a batch and the row that each goes into, ordered by row."""

    examples: Ints
    """[E]"""
    rows: Ints
    """[E] in ascending order"""


class BatchArrays(NamedTuple):
    """The arrays of a batch, documented at `PackedBatch`, with the rows concatenated."""

    token_ids: Ints
    position_ids: Ints
    predicted: npt.NDArray[np.bool_]
    covered: npt.NDArray[np.bool_]
    first_token: Ints
    last_token: Ints
    starts_debiased: npt.NDArray[np.bool_]
    ends_debiased: npt.NDArray[np.bool_]
    teacher_logprobs: npt.NDArray[np.float32]


def learned_column(rows: pa.Table, name: str) -> npt.NDArray[np.bool_]:
    return flatten_lists(rows[name])[0] if name in rows.column_names else np.zeros(0, np.bool_)
