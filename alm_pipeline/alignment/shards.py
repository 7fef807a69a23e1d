"""The alignment of a shard from the tables of both sides' tokens: its chunks, and who shows which of its bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from alm_pipeline.alignment.chunks import AssistantTurns, ShardChunks, ShardTokens, align
from alm_pipeline.alignment.sections import Sections, learned_sections
from alm_pipeline.alignment.settings import AlignmentSettings
from alm_pipeline.alignment.visibility import ShardVisibility
from storage.columns import flatten_filled, flatten_lists

COLUMNS = ("byte_lengths", "kinds", "turns", "roles", "turn_bytes", "uncovered_at", "uncovered_bytes", "dropped")
"""the columns of a side's tokens that are read to align them"""
ONE_SIDED = "one_sided_bytes"
"""why an example has no chunks of which one side alone shows some bytes (`corpus.one_sided: drop`)"""


@dataclass(frozen=True)
class AlignedShard:
    """A shard's alignment."""

    chunks: ShardChunks
    turns: AssistantTurns
    visibility: ShardVisibility
    """of the examples that have chunks; where one-sided bytes are refused, of all with tokens on both sides"""
    one_sided: npt.NDArray[np.bool_]
    """[N] the examples that were dropped since one side alone shows some of their bytes"""


def align_tables(teacher: pa.Table, student: pa.Table, settings: AlignmentSettings) -> AlignedShard:
    """Align the same examples of both sides, given as tables with the columns `COLUMNS`.

    Raises AssertionError if the sides have other roles or bytes.
    """
    of_teacher, of_student = shard_tokens(teacher), shard_tokens(student)
    _check_same_turns(teacher, student, ~(of_teacher.dropped | of_student.dropped))
    sections = Sections.of(teacher)
    turns = AssistantTurns(sections.offsets, learned_sections(sections, settings))
    aligned = _aligned(of_teacher, of_student, turns, sections)
    if settings.one_sided != "drop":
        return aligned
    one_sided = aligned.visibility.one_sided_examples()
    if not one_sided.any():
        return aligned
    kept = replace(of_teacher, dropped=of_teacher.dropped | one_sided)
    return replace(_aligned(kept, of_student, turns, sections), one_sided=one_sided)


def _aligned(teacher: ShardTokens, student: ShardTokens, turns: AssistantTurns, sections: Sections) -> AlignedShard:
    chunks = align(teacher, student, turns)
    visibility = ShardVisibility.of(teacher, student, sections, chunks)
    return AlignedShard(chunks, turns, visibility, np.zeros(len(teacher.dropped), np.bool_))


def _check_same_turns(teacher: pa.Table, student: pa.Table, aligned: npt.NDArray[np.bool_]) -> None:
    for name, what in (("roles", "roles"), ("turn_bytes", "sizes")):
        of_teacher, of_student = (table[name].filter(pa.array(aligned)) for table in (teacher, student))
        assert of_teacher.equals(of_student), f"the sides have different {what} for the same messages"


def shard_tokens(table: pa.Table) -> ShardTokens:
    """Return one side's tokens from a table that has the columns `COLUMNS`."""
    byte_lengths, offsets = flatten_lists(table["byte_lengths"])
    uncovered_at, uncovered_offsets = flatten_lists(table["uncovered_at"])
    return ShardTokens(
        offsets=offsets,
        byte_lengths=byte_lengths,
        kinds=flatten_lists(table["kinds"])[0],
        turns=flatten_filled(table["turns"], offsets, -1),
        uncovered_offsets=uncovered_offsets,
        uncovered_at=uncovered_at,
        uncovered_bytes=flatten_lists(table["uncovered_bytes"])[0],
        dropped=table["dropped"].is_valid().to_numpy(),
    )


def dropped_reasons(
    teacher: pa.ChunkedArray, student: pa.ChunkedArray, one_sided: npt.NDArray[np.bool_]
) -> list[str | None]:
    """Return for each example [N] why it has no chunks; None if it has them.

    `teacher` and `student` are the columns `dropped` of the tokens.
    """
    if teacher.null_count == len(teacher) and student.null_count == len(student) and not one_sided.any():
        return [None] * len(teacher)
    rows = zip(teacher.to_pylist(), student.to_pylist(), one_sided.tolist(), strict=True)
    return [_reason(*row) for row in rows]


def _reason(teacher: str | None, student: str | None, one_sided: bool) -> str | None:
    named = [f"{side}: {reason}" for side, reason in (("teacher", teacher), ("student", student)) if reason]
    return ", ".join(named) or (ONE_SIDED if one_sided else None)


def reasons_without_chunks(tables: Mapping[str, pa.Table]) -> list[str | None]:
    """Return for each example why it has no chunks; None if it has some, or an empty text.

    The tables of the sides have the columns `dropped` and `kinds`, that of the alignments has `kinds`.
    """
    counts = {
        name: pc.list_value_length(tables[name]["kinds"]).to_numpy() for name in ("teacher", "student", "alignments")
    }
    # whatever has tokens on both sides has chunks, unless that was refused
    is_one_sided = (counts["alignments"] == 0) & (counts["teacher"] > 0) & (counts["student"] > 0)
    return dropped_reasons(tables["teacher"]["dropped"], tables["student"]["dropped"], is_one_sided)
