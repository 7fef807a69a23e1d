"""The stage TOKENS × TOKENS → ALIGNMENTS: one dataset a pair of tokens datasets."""

import numpy as np
import pyarrow as pa

from alm_pipeline.alignment.chunks import ShardChunks, ShardTokens, align
from alm_pipeline.progress import track
from storage.columns import flatten_lists, list_array
from storage.dataset import Dataset, Manifest, read_aligned
from storage.errors import UserError
from storage.schemas import ChunkKind, Kind

STAGE_VERSION = 1
_COLUMNS = ("byte_lengths", "kinds")


def alignments_dataset(teacher: Dataset, student: Dataset, corpus: str) -> Dataset:
    """The alignments of two tokens datasets of a corpus, whether or not they are written yet."""
    identity = {
        "stage_version": STAGE_VERSION,
        "teacher_tokens": teacher.name,
        "student_tokens": student.name,
    }
    return Dataset(
        teacher.root, Kind.ALIGNMENTS, f"{teacher.label}-to-{student.label.removeprefix(f'{corpus}-')}", identity
    )


def align_datasets(teacher: Dataset, student: Dataset, alignments: Dataset) -> Manifest:
    """Align every shard that is not aligned yet.

    Raises UserError when the two are not tokens of the same examples.
    """
    if manifest := alignments.manifest():
        return manifest
    _check_same_examples(teacher, student)
    sides = {"teacher": teacher, "student": student}
    records = list(zip(*(side.complete_manifest().shards for side in sides.values()), strict=True))
    total = sum(record.counts["tokens"] for pair in records for record in pair)
    with track("align", total, "tokens") as advance:
        for shard, pair in enumerate(records):
            if not alignments.record(shard):
                _align_shard(sides, alignments, shard)
            advance(sum(record.counts["tokens"] for record in pair))
    return alignments.finish(len(records))


def _check_same_examples(teacher: Dataset, student: Dataset) -> None:
    # equal ids would not show it: the same ids can name other texts
    if teacher.identity["examples"] != student.identity["examples"]:
        raise UserError(
            f"{teacher.url} and {student.url} are tokens of other examples ({teacher.identity['examples']} and "
            f"{student.identity['examples']}): tokenize the same examples for both"
        )


def _align_shard(sides: dict[str, Dataset], alignments: Dataset, shard: int) -> None:
    tables = read_aligned(sides, shard, dict.fromkeys(sides, _COLUMNS))
    teacher, student = (_shard_tokens(tables[name]) for name in sides)
    chunks = align(teacher, student)
    content = chunks.byte_lengths[chunks.kinds == ChunkKind.CONTENT]
    unaligned = int(((np.diff(teacher.offsets) == 0) | (np.diff(student.offsets) == 0)).sum())
    alignments.write_shard(
        shard,
        {"id": tables["teacher"]["id"], **_columns(chunks)},
        counts={"chunks": len(chunks.kinds), "aligned_bytes": int(content.sum())},
        dropped={"without_tokens_on_a_side": unaligned} if unaligned else {},
    )


def _shard_tokens(table: pa.Table) -> ShardTokens:
    lengths, offsets = flatten_lists(table["byte_lengths"])
    kinds, _ = flatten_lists(table["kinds"])
    return ShardTokens(offsets, lengths, kinds)


def _columns(chunks: ShardChunks) -> dict[str, pa.Array]:
    return {
        "teacher_tokens": list_array(chunks.teacher_tokens, chunks.offsets, pa.int32()),
        "student_tokens": list_array(chunks.student_tokens, chunks.offsets, pa.int32()),
        "byte_lengths": list_array(chunks.byte_lengths, chunks.offsets, pa.int32()),
        "kinds": list_array(chunks.kinds, chunks.offsets, pa.uint8()),
    }
