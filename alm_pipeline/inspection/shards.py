"""A shard of alignments with everything that it was made from, as flat arrays.

Positions are bytes of the shard's texts, one after the other. An example that was dropped on a side has no chunks;
its tokens on the other side are left out here.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.columns import flatten_filled, flatten_lists
from storage.dataset import Dataset, open_dataset, read_aligned
from storage.errors import UserError
from storage.schemas import Kind
from storage.urls import join_url

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

SIDES = ("teacher", "student")
_TOKENS = ("token_ids", "byte_lengths", "kinds", "turns", "roles", "uncovered_at", "uncovered_bytes")
_COLUMNS = {
    "examples": ("text",),
    "teacher": _TOKENS,
    "student": _TOKENS,
    "alignments": ("teacher_tokens", "student_tokens", "byte_lengths", "kinds", "assistant"),
}


@dataclass(frozen=True)
class Texts:
    """The texts of E examples."""

    ids: pa.Array
    content: Bytes
    """all texts, one after the other"""
    offsets: Ints
    """[E + 1]"""

    @classmethod
    def of(cls, examples: pa.Table) -> "Texts":
        texts = examples["text"].cast(pa.large_string()).combine_chunks()
        offsets = np.frombuffer(texts.buffers()[1] or bytes(8), np.int64)[texts.offset :][: len(texts) + 1]
        content = np.frombuffer(texts.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
        return cls(examples["id"].combine_chunks(), content, offsets - offsets[0])


@dataclass(frozen=True)
class Chunks:
    """The C chunks of E examples."""

    examples: Ints
    """[C] the example of each"""
    starts: Ints
    lengths: Ints
    """[C] bytes"""
    kinds: npt.NDArray[np.uint8]
    """[C] ChunkKind"""
    assistant: npt.NDArray[np.bool_]
    tokens: dict[str, Ints]
    """[C] tokens of the chunk by side"""

    @classmethod
    def of(cls, alignments: pa.Table, texts: Texts) -> "Chunks":
        lengths, offsets = flatten_lists(alignments["byte_lengths"])
        return cls(
            examples=np.repeat(np.arange(alignments.num_rows), np.diff(offsets)),
            starts=_starts(lengths, lengths, offsets, texts.offsets),
            lengths=lengths.astype(np.int64),
            kinds=flatten_lists(alignments["kinds"])[0],
            assistant=flatten_filled(alignments["assistant"], offsets, fill=False).astype(np.bool_),
            tokens={side: flatten_lists(alignments[f"{side}_tokens"])[0].astype(np.int64) for side in SIDES},
        )

    def edges(self, side: str) -> Ints:
        """[C + 1] the side's tokens before each chunk, and of all."""
        return np.concatenate([[0], np.cumsum(self.tokens[side])])


@dataclass(frozen=True)
class Tokens:
    """The tokens of one side, of the examples that have chunks."""

    ids: npt.NDArray[np.int32]
    starts: Ints
    lengths: Ints
    """bytes; uncovered ones may stand between two tokens"""
    kinds: npt.NDArray[np.uint8]
    """TokenKind"""
    turns: npt.NDArray[np.int16]

    @classmethod
    def of(cls, tokens: pa.Table, texts: Texts, chunks: Chunks) -> "Tokens":
        lengths, offsets = flatten_lists(tokens["byte_lengths"])
        starts = _starts(lengths, lengths + _uncovered_before(tokens, offsets), offsets, texts.offsets)
        kept = np.isin(np.arange(tokens.num_rows), chunks.examples)
        mask = slice(None) if kept.all() else np.repeat(kept, np.diff(offsets))
        ids, kinds = (flatten_lists(tokens[name])[0][mask] for name in ("token_ids", "kinds"))
        turns = flatten_filled(tokens["turns"], offsets, -1)[mask]
        return cls(ids, starts[mask], lengths[mask].astype(np.int64), kinds, turns)


@dataclass(frozen=True)
class Shard:
    """A shard, or one example of it, with both sides."""

    texts: Texts
    chunks: Chunks
    sides: dict[str, Tokens]
    tables: dict[str, pa.Table]

    def turns(self) -> npt.NDArray[np.int16]:
        """[C] the turn of each chunk's first token, the teacher's where it has one; -1: none."""
        turns = np.full(len(self.chunks.starts), -1, np.int16)
        for side in reversed(SIDES):
            some = self.chunks.tokens[side] > 0
            turns[some] = self.sides[side].turns[self.chunks.edges(side)[:-1][some]]
        return turns


def _starts(lengths: Ints, advances: Ints, offsets: Ints, text_offsets: Ints) -> Ints:
    """Where each span starts, from its bytes and from those by which it moves its example's position forward."""
    ends = np.cumsum(advances, dtype=np.int64)
    before = np.concatenate([[0], ends])[offsets[:-1]]
    starts: Ints = ends - lengths + np.repeat(text_offsets[:-1] - before, np.diff(offsets))
    return starts


def _uncovered_before(tokens: pa.Table, offsets: Ints) -> Ints:
    """[tokens] bytes that no token covers right before each."""
    at, runs = flatten_lists(tokens["uncovered_at"])
    examples = np.repeat(np.arange(tokens.num_rows), np.diff(runs))
    inside = at < np.diff(offsets)[examples]  # those behind an example's last token stand before none
    before = np.zeros(offsets[-1], np.int64)
    np.add.at(before, (at + offsets[examples])[inside], flatten_lists(tokens["uncovered_bytes"])[0][inside])
    return before


def related(url: str) -> dict[str, Dataset]:
    """The alignments at the URL, and the datasets that it was made from. Raises UserError when it holds others."""
    alignments = open_dataset(url)
    if alignments.kind != Kind.ALIGNMENTS:
        raise UserError(f"{url}: holds {alignments.kind}, not alignments")
    teacher, student = (
        open_dataset(join_url(alignments.root, Kind.TOKENS, alignments.identity[f"{side}_tokens"])) for side in SIDES
    )
    examples = open_dataset(join_url(alignments.root, Kind.EXAMPLES, teacher.identity["examples"]))
    return {"examples": examples, "teacher": teacher, "student": student, "alignments": alignments}


def read_tables(url: str, shard: int, example: str | None) -> dict[str, pa.Table]:
    """A shard of the alignments and of what they were made from; of one example where its id is given.

    Raises UserError when the shard or the example is not there.
    """
    datasets = related(url)
    shards = len(datasets["alignments"].complete_manifest().shards)
    if not 0 <= shard < shards:
        raise UserError(f"{url}: there is no shard {shard}; it has {shards}, from 0")
    tables = read_aligned(datasets, shard, _COLUMNS)
    if example is None:
        return tables
    row = tables["examples"]["id"].index(example).as_py()
    if row < 0:
        ids = tables["examples"]["id"]
        held = f"it has {ids[0]} to {ids[-1]}" if len(ids) else "it is empty"
        raise UserError(f"{url}: shard {shard} has no example {example}; {held}")
    return {name: table.slice(row, 1) for name, table in tables.items()}


def read_shard(url: str, shard: int, example: str | None = None) -> Shard:
    """A shard of the alignments at the URL, or one of its examples. Raises UserError as `read_tables`."""
    tables = read_tables(url, shard, example)
    texts = Texts.of(tables["examples"])
    chunks = Chunks.of(tables["alignments"], texts)
    return Shard(texts, chunks, {side: Tokens.of(tables[side], texts, chunks) for side in SIDES}, tables)
