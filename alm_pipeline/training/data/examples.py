"""The table that the objective is computed from: each example's student tokens and merged teacher chunks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from alm_pipeline.config import ObjectiveConfig
from alm_pipeline.corpus.stage import learns_completions, learns_marked
from alm_pipeline.objective.chunking.arrays import ALIGNED_COLUMNS, AlignedScores
from alm_pipeline.objective.chunking.ends import ChunkEnds, SideTokens
from alm_pipeline.objective.chunking.registry import chunks_of
from alm_pipeline.objective.prefix_arrays import ChunkTokens, PrefixTable, TopTokens
from alm_pipeline.objective.prefix_targets import prefix_targets
from alm_pipeline.scoring.finite import check_stored_scores
from alm_pipeline.training.data.arrays import CHUNK_COLUMNS, ExampleArrays, target_columns
from storage.columns import flatten_lists, list_array
from storage.dataset import Dataset, read_aligned
from storage.schemas import ChunkEnd, ChunkKind

COLUMNS = {"examples": ("split",), "student_tokens": ("token_ids",), **ALIGNED_COLUMNS}
_TEACHER = {"teacher_tokens": ("token_ids",)}
TOP_COLUMNS = {"alignments": ("byte_lengths",), "scores": ("top_ids", "top_logprobs"), **_TEACHER}
"""what targets of next tokens are made of, besides"""


def read_examples(
    datasets: Mapping[str, Dataset],
    shard: int,
    split: str,
    objective: ObjectiveConfig,
    ends: ChunkEnds | None = None,
    prefixes: PrefixTable | None = None,
    *,
    with_ids: bool = False,
) -> pa.Table:
    """Return the examples of one shard and split that have a chunk to learn from.

    `datasets` has the keys of COLUMNS. `ends` is where chunks may end, for chunkings that look at tokens. `prefixes`
    are those of both vocabularies, for terms that compare next tokens. Those chunkings and terms, and the ones that
    need the teacher in memory, also need the dataset `teacher_tokens`. `with_ids` adds the column `id`. Of prompts with
    completions, only the completions are learned, and where messages are marked, only answers. Raises ValueError if
    `ends` do not fit the chunking, or `prefixes` the terms, and UserError if a score is not finite.
    """
    if learns_only_answers(datasets["examples"], objective):
        objective = objective.model_copy(update={"assistant_only": True})
    tables = read_aligned(datasets, shard, _needed_columns(objective, ends))
    check_stored_scores(tables, datasets["scores"], shard)
    is_in_split = pc.equal(tables["examples"]["split"], split).to_numpy()
    return aligned_examples(tables, objective, ends, is_in_split, prefixes, with_ids=with_ids)


def learns_only_answers(examples: Dataset, objective: ObjectiveConfig) -> bool:
    """Whether not all of the examples is learned: completions or marked messages alone, or as the objective says."""
    return objective.assistant_only or learns_completions(examples) or learns_marked(examples)


def aligned_examples(
    tables: Mapping[str, pa.Table],
    objective: ObjectiveConfig,
    ends: ChunkEnds | None = None,
    selected: npt.NDArray[np.bool_] | None = None,
    prefixes: PrefixTable | None = None,
    *,
    with_ids: bool = False,
) -> pa.Table:
    """Return the examples of tables that hold the columns `COLUMNS`, as `read_examples` does.

    `selected` ([rows]) selects rows; None selects all.
    """
    aligned = AlignedScores.of(tables, assistant_only=objective.assistant_only)
    sides = _sides(tables, aligned)
    student = sides["student_tokens"]
    chunks = chunks_of(aligned, objective, sides.get("teacher_tokens"), student, ends)
    rows = example_rows(ExampleArrays(*student[:2], _learned(student, aligned), chunks))
    if objective.is_live:
        rows = _with_teacher_columns(rows, sides, aligned)
    if objective.needs_top:
        rows = _with_targets(rows, tables, sides, aligned, objective, prefixes)
    if objective.assistant_only:  # of a shard in which nothing is aligned, no chunk says so
        rows = with_learned(rows, is_live=objective.is_live)
    if with_ids:
        rows = rows.append_column("id", tables["examples"]["id"])
    has_chunks = np.diff(chunks.offsets) > 0
    return rows.take(np.flatnonzero(has_chunks if selected is None else has_chunks & selected))


def with_learned(rows: pa.Table, *, is_live: bool) -> pa.Table:
    """Return rows with the columns that mark the tokens that are learned: all, where they lack them."""
    for learned, ids in (("learned", "token_ids"), *([("teacher_learned", "teacher_ids")] if is_live else [])):
        if learned not in rows.column_names:
            values, offsets = flatten_lists(rows[ids])
            rows = rows.append_column(learned, list_array(np.ones(len(values), np.bool_), offsets, pa.bool_()))
    return rows


def _needed_columns(objective: ObjectiveConfig, ends: ChunkEnds | None) -> dict[str, tuple[str, ...]]:
    columns = COLUMNS | _TEACHER if ends or objective.is_live else dict(COLUMNS)
    if objective.needs_top:
        columns = {role: (*columns.get(role, ()), *TOP_COLUMNS.get(role, ())) for role in {**COLUMNS, **TOP_COLUMNS}}
    if objective.assistant_only:
        columns["alignments"] = (*columns["alignments"], "assistant")
    return columns


def _sides(tables: Mapping[str, pa.Table], aligned: AlignedScores) -> dict[str, SideTokens]:
    """Return the tokens of each side whose dataset was read."""
    counts = {"teacher_tokens": aligned.teacher_tokens, "student_tokens": aligned.student_tokens}
    return {
        name: SideTokens(*flatten_lists(tables[name]["token_ids"]), of_chunk, aligned.chunk_offsets)
        for name, of_chunk in counts.items()
        if name in tables
    }


def _is_aligned(aligned: AlignedScores) -> npt.NDArray[np.bool_]:
    """[chunks] whether each chunk is paired or compared, and to be learned."""
    is_aligned: npt.NDArray[np.bool_] = aligned.kinds != ChunkKind.UNPAIRED
    return is_aligned & aligned.learned if len(aligned.learned) else is_aligned


def _learned(side: SideTokens, aligned: AlignedScores) -> npt.NDArray[np.bool_]:
    """[tokens] whether each token is in a chunk that counts; empty if all tokens count."""
    if not len(aligned.learned):
        return np.zeros(0, np.bool_)
    learned = np.zeros(len(side.ids), np.bool_)
    counts = side.of_chunk
    # the chunks of an aligned example cover all its tokens, in order
    places = np.repeat(side.ends() - np.cumsum(counts), counts) + np.arange(counts.sum())
    learned[places] = np.repeat(_is_aligned(aligned), counts)
    return learned


def example_rows(examples: ExampleArrays) -> pa.Table:
    """Return one row per example: `token_ids`, the lists of its chunks (CHUNK_COLUMNS), and the counts of chunks that
    are `aligned` and `used`.

    If not all tokens count for the student's own likelihood, the column `learned` marks those that do.
    """
    chunks, tokens = examples.chunks, examples.token_offsets
    columns = {
        "token_ids": _column(examples.token_ids, tokens),
        **{name: _column(getattr(chunks, name), chunks.offsets) for name in CHUNK_COLUMNS},
        "aligned": pa.array(chunks.aligned),
        "used": pa.array(chunks.used),
    }
    if len(examples.learned):
        columns["learned"] = list_array(examples.learned, tokens, pa.bool_())
    return pa.table(columns)


def _with_teacher_columns(rows: pa.Table, sides: Mapping[str, SideTokens], aligned: AlignedScores) -> pa.Table:
    """Add the columns that `TeacherArrays` reads."""
    teacher, student = sides["teacher_tokens"], sides["student_tokens"]
    paired = _is_aligned(aligned)
    offsets = np.concatenate([[0], np.cumsum(paired)])[teacher.chunk_offsets]
    columns = {
        "teacher_ids": _column(teacher.ids, teacher.offsets),
        "aligned_teacher_ends": _column(_ends_within_example(teacher)[paired], offsets),
        "aligned_student_ends": _column(_ends_within_example(student)[paired], offsets),
        "aligned_teacher_counts": list_array(teacher.of_chunk[paired], offsets, pa.uint16()),
        "aligned_student_counts": list_array(student.of_chunk[paired], offsets, pa.uint16()),
    }
    if len(aligned.learned):
        columns["teacher_learned"] = list_array(_learned(teacher, aligned), teacher.offsets, pa.bool_())
    for name, column in columns.items():
        rows = rows.append_column(name, column)
    return rows


def _with_targets(
    rows: pa.Table,
    tables: Mapping[str, pa.Table],
    sides: Mapping[str, SideTokens],
    aligned: AlignedScores,
    objective: ObjectiveConfig,
    prefixes: PrefixTable | None,
) -> pa.Table:
    """Add the columns that `read_targets` reads."""
    if prefixes is None:
        raise ValueError("terms that compare next tokens need `prefixes`, which `prefix_table` returns")
    chunks = ChunkTokens(
        aligned.chunk_offsets,
        aligned.teacher_tokens,
        aligned.student_tokens,
        flatten_lists(tables["alignments"]["byte_lengths"])[0],
        aligned.kinds,
        _is_aligned(aligned),
        (aligned.ends & ChunkEnd.ANCHOR) == ChunkEnd.ANCHOR,
        *sides["teacher_tokens"][:2],
        *sides["student_tokens"][:2],
    )
    ids, logprobs = (flatten_lists(tables["scores"][name])[0] for name in TOP_COLUMNS["scores"])
    top = TopTokens(ids, logprobs, aligned.boundary_logprobs)
    targets = prefix_targets(chunks, top, prefixes, given_boundary=objective.given_boundary)
    for name, column in target_columns(targets).items():
        rows = rows.append_column(name, column)
    return rows


def _ends_within_example(side: SideTokens) -> npt.NDArray[np.int32]:
    """[chunks] one past each chunk's last token, counted within its example."""
    return (side.ends() - np.repeat(side.offsets[:-1], np.diff(side.chunk_offsets))).astype(np.int32)


def _column(values: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> pa.ListArray:
    return list_array(values, offsets, pa.from_numpy_dtype(values.dtype))
