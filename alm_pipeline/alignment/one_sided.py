"""Errors about conversations of which the sides show different things."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from alm_pipeline.alignment.shards import AlignedShard
from alm_pipeline.alignment.visibility import Visibility
from storage.dataset import Dataset, ShardRecord
from storage.errors import UserError
from storage.printed.inert import one_line

GIVE_A_TEMPLATE = (
    "give that side a chat template that shows them (teacher_template, student.template, or their arguments)"
)
_ONLY = {Visibility.TEACHER_ONLY: "only the teacher's", Visibility.STUDENT_ONLY: "only the student's"}


def refuse_one_sided(shard: AlignedShard, ids: pa.ChunkedArray, teacher: Dataset, student: Dataset) -> None:
    """Raise UserError if one side alone shows some bytes of an example; it names the first such example."""
    examples = np.flatnonzero(shard.visibility.one_sided_examples())
    if not len(examples):
        return
    first = int(examples[0])
    parts = [f"{_ONLY[kind]} tokens show {text}" for kind in _ONLY if (text := _bytes_of(shard, first, kind))]
    more = f", and {len(examples) - 1:,} others of its shard are alike" if len(examples) > 1 else ""
    raise UserError(
        f"example {one_line(ids[first].as_py())}: {'; '.join(parts)} ({teacher.url} and {student.url}{more}): "
        f"{GIVE_A_TEMPLATE}, or set corpus.one_sided to drop or keep"
    )


def _bytes_of(shard: AlignedShard, example: int, kind: Visibility) -> str:
    """Return the bytes of an example that one side alone shows, by role; '' if there are none."""
    shown = shard.visibility
    own = slice(*shown.sections.offsets[example : example + 2].tolist())
    sizes: dict[str, int] = {}
    for place, size in zip(shown.sections.places[own].tolist(), shown.bytes[own, kind].tolist(), strict=True):
        role = shown.sections.names[place]
        sizes[role] = sizes.get(role, 0) + size
    return ", ".join(
        f"{size:,} byte{'s' * (size > 1)} of the role {one_line(role)}" for role, size in sizes.items() if size
    )


def require_aligned_conversations(records: Sequence[ShardRecord], teacher: Dataset, student: Dataset) -> None:
    """Raise UserError if no byte of the conversations is aligned, though they have some.

    Where the sides have no bytes in common, nothing can be learned, and scoring would be in vain.
    """
    counts = [record.counts for record in records]
    total = {name: sum(count.get(f"{name}_bytes", 0) for count in counts) for name in ("teacher_only", "student_only")}
    if any(count["aligned_bytes"] or count.get("uncompared_bytes") for count in counts) or not any(total.values()):
        return
    raise UserError(
        f"{teacher.url} and {student.url} have no bytes in common ({total['teacher_only']:,} are shown by the "
        f"teacher's tokens alone, {total['student_only']:,} by the student's), so nothing can be aligned: "
        f"{GIVE_A_TEMPLATE.replace('that side', 'the side that lacks them')}, or check the roles of the corpus"
    )
