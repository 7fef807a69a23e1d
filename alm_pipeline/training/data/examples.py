"""What the objective needs of each example: the student's tokens and the teacher's merged chunks, as a table."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from alm_pipeline.config import ObjectiveConfig
from alm_pipeline.objective.chunking.arrays import AlignedScores
from alm_pipeline.objective.chunking.ends import ChunkEnds, SideTokens
from alm_pipeline.objective.chunking.registry import chunks_of
from alm_pipeline.training.data.arrays import Examples
from storage.columns import flatten_filled, flatten_lists, list_array
from storage.dataset import Dataset, read_aligned
from storage.schemas import ChunkKind

COLUMNS = {
    "examples": ("split",),
    "student_tokens": ("token_ids",),
    "alignments": ("teacher_tokens", "student_tokens", "kinds"),
    "scores": ("logprobs", "boundary_logprobs"),
}
_TEACHER = {"teacher_tokens": ("token_ids",)}


def read_examples(
    datasets: Mapping[str, Dataset],
    shard: int,
    split: str,
    objective: ObjectiveConfig,
    ends: ChunkEnds | None = None,
    *,
    with_ids: bool = False,
) -> pa.Table:
    """The examples of one shard and split that have a chunk to learn from. `datasets` has the keys of COLUMNS.

    The column `id` is there where asked for. `ends` is where chunks may end, for chunkings that look at tokens; those,
    and terms that need the teacher in memory, need the dataset `teacher_tokens` too. Raises ValueError where `ends` do
    not fit the chunking.
    """
    tables = read_aligned(datasets, shard, _wanted(objective, ends))
    is_in_split = pc.equal(tables["examples"]["split"], split).to_numpy()
    return aligned_examples(tables, objective, ends, is_in_split, with_ids=with_ids)


def aligned_examples(
    tables: Mapping[str, pa.Table],
    objective: ObjectiveConfig,
    ends: ChunkEnds | None = None,
    chosen: npt.NDArray[np.bool_] | None = None,
    *,
    with_ids: bool = False,
) -> pa.Table:
    """The examples of tables that hold the columns `COLUMNS`, as `read_examples` returns them.

    `chosen` ([rows]) selects rows; all by default.
    """
    aligned = _aligned(tables, objective)
    sides = _sides(tables, aligned)
    student = sides["student_tokens"]
    chunks = chunks_of(aligned, objective, sides.get("teacher_tokens"), student, ends)
    rows = example_rows(Examples(*student[:2], _learned(student, aligned.kinds, objective), chunks))
    if objective.is_live:
        rows = _with_teacher(rows, sides, aligned.kinds, objective)
    if with_ids:
        rows = rows.append_column("id", tables["examples"]["id"])
    has_chunks = np.diff(chunks.offsets) > 0
    return rows.take(np.flatnonzero(has_chunks if chosen is None else has_chunks & chosen))


def _wanted(objective: ObjectiveConfig, ends: ChunkEnds | None) -> dict[str, tuple[str, ...]]:
    wanted = COLUMNS | _TEACHER if ends or objective.is_live else dict(COLUMNS)
    if objective.assistant_only:
        wanted["alignments"] = (*COLUMNS["alignments"], "assistant")
    return wanted


def _aligned(tables: Mapping[str, pa.Table], objective: ObjectiveConfig) -> AlignedScores:
    """What is not to be learned is as if it had no counterpart."""
    teacher, student, kinds = (flatten_lists(tables["alignments"][name]) for name in COLUMNS["alignments"])
    logprobs, boundary = (flatten_lists(tables["scores"][name]) for name in COLUMNS["scores"])
    counted = kinds[0]
    if objective.assistant_only:
        assistant = flatten_filled(tables["alignments"]["assistant"], teacher[1], fill=True)
        counted = np.where(assistant, counted, np.uint8(ChunkKind.UNPAIRED))
    return AlignedScores(teacher[1], teacher[0], student[0], counted, logprobs[1], logprobs[0], boundary[0])


def _sides(tables: Mapping[str, pa.Table], aligned: AlignedScores) -> dict[str, SideTokens]:
    """Of the tokens that were read."""
    counts = {"teacher_tokens": aligned.teacher_tokens, "student_tokens": aligned.student_tokens}
    return {
        name: SideTokens(*flatten_lists(tables[name]["token_ids"]), of_chunk, aligned.chunk_offsets)
        for name, of_chunk in counts.items()
        if name in tables
    }


def _learned(side: SideTokens, kinds: npt.NDArray[np.uint8], objective: ObjectiveConfig) -> npt.NDArray[np.bool_]:
    """[tokens] those of chunks that count, where not all tokens do; empty otherwise."""
    if not objective.assistant_only:
        return np.zeros(0, np.bool_)
    learned = np.zeros(len(side.ids), np.bool_)
    counts = side.of_chunk
    # every token of an aligned example is in a chunk, one after the other
    places = np.repeat(side.ends() - np.cumsum(counts), counts) + np.arange(counts.sum())
    learned[places] = np.repeat(kinds != ChunkKind.UNPAIRED, counts)
    return learned


def example_rows(examples: Examples) -> pa.Table:
    """A row an example: `token_ids`; its chunks' `logprobs`, `starts` and `ends`; how many are `aligned` and `used`.

    Where not all tokens count for the student's own likelihood, `learned` says which.
    """
    chunks, tokens = examples.chunks, examples.token_offsets
    columns = {
        "token_ids": _column(examples.token_ids, tokens),
        "logprobs": _column(chunks.logprobs, chunks.offsets),
        "starts": _column(chunks.student_starts, chunks.offsets),
        "ends": _column(chunks.student_ends, chunks.offsets),
        "aligned": pa.array(chunks.aligned),
        "used": pa.array(chunks.used),
    }
    if len(examples.learned):
        columns["learned"] = list_array(examples.learned, tokens, pa.bool_())
    return pa.table(columns)


def _with_teacher(
    rows: pa.Table, sides: Mapping[str, SideTokens], kinds: npt.NDArray[np.uint8], objective: ObjectiveConfig
) -> pa.Table:
    """With the columns that `TeacherTokens` reads."""
    teacher, student = sides["teacher_tokens"], sides["student_tokens"]
    paired = kinds != ChunkKind.UNPAIRED
    offsets = np.concatenate([[0], np.cumsum(paired)])[teacher.chunk_offsets]
    columns = {
        "teacher_ids": _column(teacher.ids, teacher.offsets),
        "aligned_teacher_ends": _column(_within_example(teacher)[paired], offsets),
        "aligned_student_ends": _column(_within_example(student)[paired], offsets),
        "single": list_array(((teacher.of_chunk == 1) & (student.of_chunk == 1))[paired], offsets, pa.bool_()),
    }
    if objective.assistant_only:
        columns["teacher_learned"] = list_array(_learned(teacher, kinds, objective), teacher.offsets, pa.bool_())
    for name, column in columns.items():
        rows = rows.append_column(name, column)
    return rows


def _within_example(side: SideTokens) -> npt.NDArray[np.int32]:
    """[chunks] one past each chunk's last token, counted within its example."""
    return (side.ends() - np.repeat(side.offsets[:-1], np.diff(side.chunk_offsets))).astype(np.int32)


def _column(values: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> pa.ListArray:
    return list_array(values, offsets, pa.from_numpy_dtype(values.dtype))
