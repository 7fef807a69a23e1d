"""The stage TOKENS × TOKENS → ALIGNMENTS: one dataset for each pair of tokens datasets."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alm_pipeline.alignment.chunks import AssistantTurns, ShardChunks, ShardTokens, align
from alm_pipeline.corpus.conversation import ASSISTANT, REASONING, TOOL_CALLS
from alm_pipeline.runtime.progress import track
from storage.columns import flatten_filled, flatten_lists, list_array
from storage.dataset import Dataset, Manifest, read_aligned
from storage.errors import UserError
from storage.schemas import COMPLETION, SCHEMAS, ChunkKind, Kind

STAGE_VERSION = 3
_COLUMNS = ("byte_lengths", "kinds", "turns", "roles", "uncovered_at", "uncovered_bytes", "dropped")
_SHARDS_AT_ONCE = 2


def alignments_dataset(teacher: Dataset, student: Dataset, corpus: str) -> Dataset:
    """Return the dataset of the alignments of two tokens datasets of a corpus, which need not be written yet."""
    identity = {
        "stage_version": STAGE_VERSION,
        "teacher_tokens": teacher.name,
        "student_tokens": student.name,
    }
    return Dataset(
        teacher.root, Kind.ALIGNMENTS, f"{teacher.label}-to-{student.label.removeprefix(f'{corpus}-')}", identity
    )


def align_datasets(
    teacher: Dataset, student: Dataset, alignments: Dataset, shards: Sequence[int] | None = None
) -> Manifest | None:
    """Align every shard that is not aligned yet, and write the manifest.

    With `shards`, only these are aligned, and only the same shards of both tokens datasets need to exist. No manifest
    is written then, and None is returned; a last call without `shards` writes it.

    Raises UserError if the two datasets are not tokens of the same examples, or are not written yet.
    """
    if manifest := alignments.manifest():
        return manifest
    _check_same_examples(teacher, student)
    if (teacher.name, student.name) != (alignments.identity["teacher_tokens"], alignments.identity["student_tokens"]):
        raise UserError(f"{alignments.url}: holds alignments of tokens other than {teacher.name} and {student.name}")
    if shards is not None:
        _align_shards(teacher, student, alignments, shards)
        return None
    count, student_count = (len(side.complete_manifest().shards) for side in (teacher, student))
    assert count == student_count, "two tokens datasets of the same examples have different numbers of shards"
    _align_shards(teacher, student, alignments, range(count))
    return alignments.finish(count)


def _align_shards(teacher: Dataset, student: Dataset, alignments: Dataset, shards: Sequence[int]) -> None:
    sides = {"teacher": teacher, "student": student}
    if not (missing := alignments.missing(shards)):
        return
    records = (side.required_records(missing) for side in sides.values())
    tokens = [sum(record.counts["tokens"] for record in pair) for pair in zip(*records, strict=True)]
    # decoding, the merge and compression release the interpreter's lock
    with track("align", sum(tokens), "tokens") as advance, ThreadPoolExecutor(_SHARDS_AT_ONCE) as pool:
        for count, _ in zip(tokens, pool.map(partial(_align_shard, sides, alignments), missing), strict=True):
            advance(count)


def _check_same_examples(teacher: Dataset, student: Dataset) -> None:
    # comparing the examples' ids would not be enough: the same ids can name other texts
    if teacher.identity["examples"] != student.identity["examples"]:
        raise UserError(
            f"{teacher.url} and {student.url} are tokens of different examples ({teacher.identity['examples']} and "
            f"{student.identity['examples']}): tokenize the same examples for both"
        )


def _align_shard(sides: dict[str, Dataset], alignments: Dataset, shard: int) -> None:
    tables = read_aligned(sides, shard, dict.fromkeys(sides, _COLUMNS))
    teacher, student = (_shard_tokens(tables[name]) for name in sides)
    dropped = teacher.dropped | student.dropped
    _check_same_roles(tables["teacher"], tables["student"], ~dropped)
    turns = _assistant_turns(tables["teacher"])
    chunks = align(teacher, student, turns)
    unaligned = int(dropped.sum())
    alignments.write_shard(
        shard,
        {"id": tables["teacher"]["id"], **_columns(chunks, turns)},
        counts=_counts(chunks),
        dropped={"without_tokens_on_a_side": unaligned} if unaligned else {},
    )


def _check_same_roles(teacher: pa.Table, student: pa.Table, aligned: npt.NDArray[np.bool_]) -> None:
    teacher_roles, student_roles = (table["roles"].filter(pa.array(aligned)) for table in (teacher, student))
    assert teacher_roles.equals(student_roles), "the sides have different roles for the same messages"


def _shard_tokens(table: pa.Table) -> ShardTokens:
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


def _assistant_turns(table: pa.Table) -> AssistantTurns:
    roles, offsets = flatten_lists(table["roles"])
    return AssistantTurns(offsets, np.isin(roles, [ASSISTANT, COMPLETION, REASONING, TOOL_CALLS]))


def _counts(chunks: ShardChunks) -> dict[str, int]:
    content = chunks.kinds == ChunkKind.CONTENT
    aligned_bytes, all_bytes = (
        int(lengths.sum(dtype=np.int64)) for lengths in (chunks.byte_lengths[content], chunks.byte_lengths)
    )
    return {
        "chunks": len(chunks.kinds),
        "paired": int((chunks.kinds == ChunkKind.PAIRED).sum()),
        "assistant": int(chunks.assistant.sum()),
        "aligned_bytes": aligned_bytes,
        "unaligned_bytes": all_bytes - aligned_bytes,
    }


def _columns(chunks: ShardChunks, turns: AssistantTurns) -> dict[str, pa.Array]:
    """Return the dataset's columns, which are named as the fields of `ShardChunks`."""
    types = {field.name: field.type.value_type for field in SCHEMAS[Kind.ALIGNMENTS] if field.name != "id"}
    columns = {name: list_array(getattr(chunks, name), chunks.offsets, type_) for name, type_ in types.items()}
    if not turns.offsets[-1]:
        columns["assistant"] = list_array(chunks.assistant[:0], np.zeros_like(chunks.offsets), types["assistant"])
    return columns
