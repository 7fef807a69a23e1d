"""Datasets of alignments written from plain Python rows, without tokenizers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pyarrow as pa

from storage.dataset import Dataset
from storage.schemas import SCHEMAS, ChunkKind, Kind, TokenKind

SIDES = ("teacher", "student")


@dataclass
class Side:
    """The tokens of one side of an example: (id, start, end) in bytes. Bytes between two tokens are uncovered."""

    tokens: list[tuple[int, int, int]] = field(default_factory=list)
    kinds: list[int] | None = None
    turns: list[int] | None = None
    dropped: str | None = None


@dataclass
class Chunk:
    teacher: int
    student: int
    bytes: int
    kind: ChunkKind = ChunkKind.CONTENT
    assistant: bool = False


@dataclass
class Row:
    id: str
    text: str
    teacher: Side
    student: Side
    chunks: list[Chunk]
    roles: list[str] = field(default_factory=list)


def write(root: Path, shards: Sequence[Sequence[Row]]) -> Dataset:
    """Write the alignments and the datasets they were made from."""
    examples = Dataset(str(root), Kind.EXAMPLES, "tiny", {"of": "test"})
    sides = {
        side: Dataset(str(root), Kind.TOKENS, f"tiny-{side}", {"examples": examples.name, "side": side})
        for side in SIDES
    }
    identity = {f"{side}_tokens": dataset.name for side, dataset in sides.items()}
    alignments = Dataset(str(root), Kind.ALIGNMENTS, "tiny-teacher-to-student", identity)
    for number, rows in enumerate(shards):
        plain = [{"id": row.id, "split": "train", "text": row.text, "messages": None} for row in rows]
        _publish(examples, number, plain)
        for side, dataset in sides.items():
            _publish(dataset, number, [_token_row(row, getattr(row, side)) for row in rows])
        _publish(alignments, number, [_chunk_row(row) for row in rows])
    for dataset in (examples, *sides.values(), alignments):
        dataset.finish(len(shards))
    return alignments


def _publish(dataset: Dataset, shard: int, rows: list[dict[str, object]]) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMAS[dataset.kind])
    dataset.write_shard(shard, {name: table[name] for name in table.column_names}, {})


def _token_row(row: Row, side: Side) -> dict[str, object]:
    ends = [0, *(end for _, _, end in side.tokens)]
    starts = [*(start for _, start, _ in side.tokens), 0 if side.dropped else len(row.text.encode())]
    runs = [(k, start - end) for k, (start, end) in enumerate(zip(starts, ends, strict=True)) if start > end]
    return {
        "id": row.id,
        "token_ids": [id_ for id_, _, _ in side.tokens],
        "byte_lengths": [end - start for _, start, end in side.tokens],
        "kinds": side.kinds or [TokenKind.CONTENT] * len(side.tokens),
        "turns": side.turns or [],
        "roles": row.roles,
        "turn_bytes": [len(row.text.encode()), *[0] * (len(row.roles) - 1)] if row.roles else [],
        "uncovered_at": [at for at, _ in runs],
        "uncovered_bytes": [size for _, size in runs],
        "dropped": side.dropped,
    }


def _chunk_row(row: Row) -> dict[str, object]:
    return {
        "id": row.id,
        "teacher_tokens": [chunk.teacher for chunk in row.chunks],
        "student_tokens": [chunk.student for chunk in row.chunks],
        "byte_lengths": [chunk.bytes for chunk in row.chunks],
        "kinds": [chunk.kind for chunk in row.chunks],
        "ends": [0] * len(row.chunks),
        "assistant": [chunk.assistant for chunk in row.chunks] if any(chunk.assistant for chunk in row.chunks) else [],
    }


ALPHABET = "aé Ж東かカ한ก🙂1.\n\u0301अعא\ufe0f❤z"


def random_row(random: Random, id_: str, size: int) -> Row:
    """Return random text in random tokens and chunks, with uncovered runs and tokens without bytes."""
    text = "".join(random.choice(ALPHABET) for _ in range(random.randrange(size)))
    row = Row(id_, text, Side(), Side(), [])
    if random.random() < 0.2:
        random.choice([row.teacher, row.student]).dropped = random.choice(["too_long", "changed"])
    end, total = 0, len(text.encode())
    if row.teacher.dropped or row.student.dropped:
        for side in (row.teacher, row.student):
            if not side.dropped:
                side.tokens = [(1, 0, total)]
        return row
    while end < total or random.random() < 0.5:
        start, end = end, min(total, end + random.randrange(9))
        counts = [_random_tokens(random, side, start, end) for side in (row.teacher, row.student)]
        kind = (
            random.choice(list(ChunkKind)) if start == end else random.choice([ChunkKind.CONTENT, ChunkKind.UNPAIRED])
        )
        row.chunks.append(Chunk(counts[0], counts[1], end - start, kind, random.random() < 0.5))
    return row


def _random_tokens(random: Random, side: Side, start: int, end: int) -> int:
    """Add tokens within these bytes, some of which remain uncovered. Returns their number."""
    cuts = sorted(random.randint(start, end) for _ in range(random.randrange(4)))
    edges = [start, *cuts] if random.random() < 0.8 else cuts
    spans = list(zip(edges, edges[1:] if edges else [], strict=False))
    if edges and random.random() < 0.8:
        spans.append((edges[-1], end))
    side.tokens += [(random.randrange(30), *span) for span in spans]
    return len(spans)
