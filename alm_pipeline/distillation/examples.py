"""What the objective needs of each example: the student's tokens and the teacher's merged chunks, as a table."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from alm_pipeline.config import ObjectiveConfig
from alm_pipeline.objective.merging import AlignedScores, TeacherChunks, merged_chunks
from storage.columns import flatten_lists, list_array
from storage.dataset import Dataset, read_aligned

COLUMNS = {
    "examples": ("split",),
    "student_tokens": ("token_ids",),
    "alignments": ("teacher_tokens", "student_tokens", "kinds"),
    "scores": ("logprobs", "boundary_logprobs"),
}


class Examples(NamedTuple):
    """E examples as flat arrays, and where each begins in them."""

    token_ids: npt.NDArray[np.int32]
    """[tokens] the student's"""
    token_offsets: npt.NDArray[np.int64]
    """[E + 1]"""
    chunks: TeacherChunks

    @classmethod
    def of(cls, rows: pa.Table) -> "Examples":
        """The arrays of `example_rows`."""
        (logprobs, offsets), *places = (flatten_lists(rows[name]) for name in ("logprobs", "starts", "ends"))
        return cls(
            *flatten_lists(rows["token_ids"]), TeacherChunks(offsets, logprobs, *(values for values, _ in places))
        )


def read_examples(datasets: Mapping[str, Dataset], shard: int, split: str, objective: ObjectiveConfig) -> pa.Table:
    """The examples of one shard and split that have a chunk to learn from. `datasets` has the keys of COLUMNS."""
    tables = read_aligned(datasets, shard, COLUMNS)
    chunks = _merge(tables["alignments"], tables["scores"], objective)
    ids, token_offsets = flatten_lists(tables["student_tokens"]["token_ids"])
    rows = example_rows(Examples(ids, token_offsets, chunks))
    chosen = pc.equal(tables["examples"]["split"], split).to_numpy()
    return rows.take(np.flatnonzero(chosen & (np.diff(chunks.offsets) > 0)))


def _merge(alignments: pa.Table, scores: pa.Table, objective: ObjectiveConfig) -> TeacherChunks:
    teacher, student, kinds = (flatten_lists(alignments[name]) for name in COLUMNS["alignments"])
    logprobs, boundary = (flatten_lists(scores[name]) for name in COLUMNS["scores"])
    aligned = AlignedScores(teacher[1], teacher[0], student[0], kinds[0], logprobs[1], logprobs[0], boundary[0])
    gamma = objective.gamma if objective.chunking == "boundary" else None
    return merged_chunks(aligned, gamma=gamma, debias=objective.debias)


def example_rows(examples: Examples) -> pa.Table:
    """A row an example: `token_ids`, and its chunks' `logprobs`, `starts` and `ends`."""
    chunks = examples.chunks

    def column(values: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> pa.ListArray:
        return list_array(values, offsets, pa.from_numpy_dtype(values.dtype))

    return pa.table(
        {
            "token_ids": column(examples.token_ids, examples.token_offsets),
            "logprobs": column(chunks.logprobs, chunks.offsets),
            "starts": column(chunks.student_starts, chunks.offsets),
            "ends": column(chunks.student_ends, chunks.offsets),
        }
    )
