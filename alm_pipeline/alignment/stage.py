"""The stage TOKENS × TOKENS → ALIGNMENTS: one dataset for each pair of tokens datasets."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alm_pipeline.alignment.chunks import AssistantTurns, ShardChunks
from alm_pipeline.alignment.counts import alignment_counts
from alm_pipeline.alignment.ends import SideEdges, SideIds, chunk_ends
from alm_pipeline.alignment.one_sided import refuse_one_sided, require_aligned_conversations
from alm_pipeline.alignment.settings import AlignmentSettings
from alm_pipeline.alignment.shards import COLUMNS, align_tables, dropped_reasons
from alm_pipeline.runtime.progress import track
from storage.columns import list_array
from storage.dataset import Dataset, Manifest, read_aligned
from storage.errors import UserError
from storage.schemas import SCHEMAS, Kind

STAGE_VERSION = 5
_SHARDS_AT_ONCE = 2


def alignments_dataset(
    teacher: Dataset, student: Dataset, corpus: str, settings: AlignmentSettings | None = None
) -> Dataset:
    """Return the dataset of the alignments of two tokens datasets of a corpus, which need not be written yet."""
    identity = {
        "stage_version": STAGE_VERSION,
        "teacher_tokens": teacher.name,
        "student_tokens": student.name,
        **(settings or AlignmentSettings()).identity(),
    }
    return Dataset(
        teacher.root, Kind.ALIGNMENTS, f"{teacher.label}-to-{student.label.removeprefix(f'{corpus}-')}", identity
    )


def align_datasets(
    teacher: Dataset, student: Dataset, alignments: Dataset, edges: SideEdges, shards: Sequence[int] | None = None
) -> Manifest | None:
    """Align every shard that is not aligned yet, and write the manifest. `edges` are those of both tokenizers.

    With `shards`, only these are aligned, and only the same shards of both tokens datasets need to exist. No manifest
    is written then, and None is returned; a last call without `shards` writes it.

    Raises UserError if the two datasets are not tokens of the same examples, or are not written yet; if one side alone
    shows some bytes and the settings refuse that; and if no byte of any conversation is aligned.
    """
    if manifest := alignments.manifest():
        return manifest
    _check_same_examples(teacher, student)
    if (teacher.name, student.name) != (alignments.identity["teacher_tokens"], alignments.identity["student_tokens"]):
        raise UserError(f"{alignments.url}: holds alignments of tokens other than {teacher.name} and {student.name}")
    if shards is not None:
        _align_shards(teacher, student, alignments, edges, shards)
        return None
    count, student_count = (len(side.complete_manifest().shards) for side in (teacher, student))
    assert count == student_count, "two tokens datasets of the same examples have different numbers of shards"
    _align_shards(teacher, student, alignments, edges, range(count))
    records = alignments.required_records(range(count))
    require_aligned_conversations(records, teacher, student)
    return alignments.publish_manifest(records)


def _align_shards(
    teacher: Dataset, student: Dataset, alignments: Dataset, edges: SideEdges, shards: Sequence[int]
) -> None:
    sides = {"teacher": teacher, "student": student}
    if not (missing := alignments.missing(shards)):
        return
    records = (side.known_records(missing) for side in sides.values())
    tokens = [sum(record.counts["tokens"] for record in pair) for pair in zip(*records, strict=True)]
    # decoding, the merge and compression release the interpreter's lock
    with track("align", sum(tokens), "tokens") as advance, ThreadPoolExecutor(_SHARDS_AT_ONCE) as pool:
        for count, _ in zip(tokens, pool.map(partial(_align_shard, sides, alignments, edges), missing), strict=True):
            advance(count)


def _check_same_examples(teacher: Dataset, student: Dataset) -> None:
    # comparing the examples' ids would not be enough: the same ids can name other texts
    if teacher.identity["examples"] != student.identity["examples"]:
        raise UserError(
            f"{teacher.url} and {student.url} are tokens of different examples ({teacher.identity['examples']} and "
            f"{student.identity['examples']}): tokenize the same examples for both"
        )


def _align_shard(sides: dict[str, Dataset], alignments: Dataset, edges: SideEdges, shard: int) -> None:
    tables = read_aligned(sides, shard, dict.fromkeys(sides, (*COLUMNS, "token_ids")))
    settings = AlignmentSettings.of_identity(alignments.identity)
    aligned = align_tables(tables["teacher"], tables["student"], settings)
    if settings.one_sided == "refuse":
        refuse_one_sided(aligned, tables["teacher"]["id"], sides["teacher"], sides["student"])
    reasons = dropped_reasons(tables["teacher"]["dropped"], tables["student"]["dropped"], aligned.one_sided)
    ids = (SideIds.of(tables[side], side_edges) for side, side_edges in edges._asdict().items())
    ends = chunk_ends(aligned.chunks, *ids)
    alignments.write_shard(
        shard,
        {"id": tables["teacher"]["id"], **_columns(aligned.chunks, ends, aligned.turns)},
        counts=alignment_counts(aligned.chunks, aligned.visibility),
        dropped=Counter(reason for reason in reasons if reason),
    )


def _columns(chunks: ShardChunks, ends: npt.NDArray[np.uint8], turns: AssistantTurns) -> dict[str, pa.Array]:
    """Return the dataset's columns, which are named as the fields of `ShardChunks`, beside `ends`."""
    types = {field.name: field.type.value_type for field in SCHEMAS[Kind.ALIGNMENTS] if field.name != "id"}
    values = {**vars(chunks), "ends": ends}
    columns = {name: list_array(values[name], chunks.offsets, type_) for name, type_ in types.items()}
    if not turns.offsets[-1]:
        columns["assistant"] = list_array(chunks.assistant[:0], np.zeros_like(chunks.offsets), types["assistant"])
    return columns
