"""What an alignments dataset's records and manifest count: chunks, and bytes by who shows them.

The bytes of a visibility, such as `teacher_only_bytes`, are those of all examples with chunks; the five add up to their
texts. `teacher_only_bytes.system` are those of a role. Of them, `teacher_only_whole_bytes.system` are in the
`teacher_only_sections.system` messages that the other side leaves out as a whole.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from alm_pipeline.alignment.chunks import ShardChunks
from alm_pipeline.alignment.visibility import ShardVisibility, Visibility
from storage.schemas import ChunkKind

OTHER_ROLES = "other"
_MOST_ROLES = 32
"""of a shard that are counted by name: a corpus may have one for each author"""
_LONGEST_ROLE = 64


def alignment_counts(chunks: ShardChunks, shown: ShardVisibility) -> dict[str, int]:
    """Return what is counted of a shard's chunks and bytes."""
    of_bytes = visibility_counts(shown)
    return {
        "chunks": len(chunks.kinds),
        "paired": int(np.count_nonzero(chunks.kinds == ChunkKind.PAIRED)),
        "assistant": int(np.count_nonzero(chunks.assistant)),
        "unaligned_bytes": int(shown.bytes.sum()) - of_bytes["aligned_bytes"],
        **of_bytes,
    }


def visibility_counts(shown: ShardVisibility) -> dict[str, int]:
    """Return the bytes of a shard by visibility, and by visibility and role where there are any."""
    counts = {_bytes_name(visibility): int(shown.bytes[:, visibility].sum()) for visibility in Visibility}
    roles, places = shown.sections.names, shown.sections.places
    names = _counted_names(roles, np.bincount(places, shown.sections.bytes, len(roles)).tolist())
    by_role: Counter[str] = Counter()
    for visibility in Visibility:
        sections = np.flatnonzero(shown.bytes[:, visibility])
        sizes, whole = shown.bytes[sections, visibility], shown.whole(visibility)[sections]
        for what, values in {"bytes": sizes, "whole_bytes": sizes * whole, "sections": whole}.items():
            totals = np.bincount(places[sections], values, len(roles)).astype(np.int64).tolist()
            for name, total in zip(names, totals, strict=True):
                by_role[f"{visibility.name.lower()}_{what}.{name}"] += total
    return counts | {name: count for name, count in by_role.items() if count}


def _bytes_name(visibility: Visibility) -> str:
    return f"{visibility.name.lower()}_bytes"


def _counted_names(roles: list[str], sizes: list[float]) -> list[str]:
    """Return the name that each role is counted under: its own, or one for all that are rare or no names."""
    largest = sorted(range(len(roles)), key=lambda place: -sizes[place])[:_MOST_ROLES]
    named = {roles[place] for place in largest if len(roles[place]) <= _LONGEST_ROLE}
    return [role if role in named else OTHER_ROLES for role in roles]


@dataclass(frozen=True)
class RoleBytes:
    """The bytes of one visibility in the sections of one role."""

    role: str
    bytes: int
    whole_bytes: int
    """of sections that the other side leaves out as a whole; 0 for what both sides show"""
    whole_sections: int


def bytes_by_role(counts: Mapping[str, int]) -> dict[Visibility, list[RoleBytes]]:
    """Return the bytes by visibility and role that a record or manifest counts, most bytes first.

    Empty for a dataset of an earlier version, and for plain texts that both sides show as a whole.
    """
    found: dict[Visibility, list[RoleBytes]] = defaultdict(list)
    for visibility in Visibility:
        name = visibility.name.lower()
        prefix = f"{name}_bytes."
        for key, size in counts.items():
            if key.startswith(prefix):
                role = key.removeprefix(prefix)
                whole, sections = (counts.get(f"{name}_{what}.{role}", 0) for what in ("whole_bytes", "sections"))
                found[visibility].append(RoleBytes(role, size, whole, sections))
        found[visibility].sort(key=lambda item: (-item.bytes, item.role))
    return {visibility: items for visibility, items in found.items() if items}
