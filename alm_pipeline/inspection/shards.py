"""A shard of alignments with the examples and tokens that it was made from, as flat arrays.

Positions are bytes of the shard's texts, concatenated. An example that was dropped on a side has no chunks, and its
tokens on the other side are omitted here.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alm_pipeline.alignment.shards import shard_tokens
from alm_pipeline.alignment.visibility import ShardTexts, Spans, bytes_by_visibility
from storage.columns import flatten_filled, flatten_lists
from storage.dataset import Dataset, open_dataset, read_aligned
from storage.errors import UserError
from storage.schemas import ChunkKind, Kind
from storage.urls import join_url

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

SIDES = ("teacher", "student")
_TOKENS = ("token_ids", "byte_lengths", "kinds", "turns", "roles", "uncovered_at", "uncovered_bytes", "dropped")
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
    """all texts, concatenated"""
    offsets: Ints
    """[E + 1] where each text begins in `content`"""

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
    """[C] the index of each chunk's example"""
    starts: Ints
    lengths: Ints
    """[C] bytes"""
    kinds: npt.NDArray[np.uint8]
    """[C] ChunkKind"""
    assistant: npt.NDArray[np.bool_]
    tokens: dict[str, Ints]
    """[C] each chunk's number of tokens, by side"""

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
        """Return the number of the side's tokens before each chunk, and of all [C + 1]."""
        return np.concatenate([[0], np.cumsum(self.tokens[side])])


@dataclass(frozen=True)
class Tokens:
    """The tokens of one side, for the examples that have chunks."""

    ids: npt.NDArray[np.int32]
    starts: Ints
    lengths: Ints
    """in bytes; there may be uncovered bytes between two tokens"""
    kinds: npt.NDArray[np.uint8]
    """TokenKind"""
    turns: npt.NDArray[np.int16]

    @classmethod
    def of(cls, tokens: pa.Table, texts: Texts, chunks: Chunks) -> "Tokens":
        lengths, offsets = flatten_lists(tokens["byte_lengths"])
        starts = _starts(lengths, lengths + _uncovered_before(tokens, offsets), offsets, texts.offsets)
        has_chunks = np.isin(np.arange(tokens.num_rows), chunks.examples)
        mask = slice(None) if has_chunks.all() else np.repeat(has_chunks, np.diff(offsets))
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
        """Return the turn [C] of each chunk's first token on the teacher's side, or else the student's; -1 for none."""
        turns = np.full(len(self.chunks.starts), -1, np.int16)
        for side in reversed(SIDES):
            has_tokens = self.chunks.tokens[side] > 0
            turns[has_tokens] = self.sides[side].turns[self.chunks.edges(side)[:-1][has_tokens]]
        return turns

    def visibility(self) -> Ints:
        """Return the bytes of each chunk [C, Visibility] by who shows them."""
        chunks, has_chunks = self.chunks, np.isin(np.arange(len(self.texts.ids)), self.chunks.examples)
        sizes = np.where(has_chunks, np.diff(self.texts.offsets), 0)
        texts = ShardTexts(has_chunks, np.concatenate([[0], np.cumsum(sizes)]))
        ends = np.cumsum(chunks.lengths)
        is_unpaired = (chunks.kinds == ChunkKind.UNPAIRED) & (chunks.lengths > 0)
        uncompared = Spans((ends - chunks.lengths)[is_unpaired], ends[is_unpaired])
        teacher, student = (texts.uncovered(shard_tokens(self.tables[side])) for side in SIDES)
        return bytes_by_visibility(chunks.lengths, int(texts.starts[-1]), teacher, student, uncompared)


def _starts(lengths: Ints, advances: Ints, offsets: Ints, text_offsets: Ints) -> Ints:
    """Return the start of each span, from its length and the bytes by which it advances within its example."""
    ends = np.cumsum(advances, dtype=np.int64)
    before = np.concatenate([[0], ends])[offsets[:-1]]
    starts: Ints = ends - lengths + np.repeat(text_offsets[:-1] - before, np.diff(offsets))
    return starts


def _uncovered_before(tokens: pa.Table, offsets: Ints) -> Ints:
    """Return the number of uncovered bytes [tokens] right before each token."""
    at, runs = flatten_lists(tokens["uncovered_at"])
    examples = np.repeat(np.arange(tokens.num_rows), np.diff(runs))
    inside = at < np.diff(offsets)[examples]  # bytes after an example's last token precede none
    before = np.zeros(offsets[-1], np.int64)
    np.add.at(before, (at + offsets[examples])[inside], flatten_lists(tokens["uncovered_bytes"])[0][inside])
    return before


def related(url: str) -> dict[str, Dataset]:
    """Open the alignments at the URL and the datasets they were made from. Raises UserError for another kind."""
    alignments = open_dataset(url)
    if alignments.kind != Kind.ALIGNMENTS:
        raise UserError(f"{url}: holds {alignments.kind}, not alignments")
    teacher, student = (
        open_dataset(join_url(alignments.root, Kind.TOKENS, alignments.identity[f"{side}_tokens"])) for side in SIDES
    )
    examples = open_dataset(join_url(alignments.root, Kind.EXAMPLES, teacher.identity["examples"]))
    return {"examples": examples, "teacher": teacher, "student": student, "alignments": alignments}


def read_tables(url: str, shard: int, example: str | None) -> dict[str, pa.Table]:
    """Read a shard of the alignments and of the datasets they were made from, or only the example with this id.

    Raises UserError if the shard or the example does not exist.
    """
    datasets = related(url)
    shards = len(datasets["alignments"].complete_manifest().shards)
    if not 0 <= shard < shards:
        raise UserError(f"{url}: has no shard {shard}: it has {shards}, numbered from 0")
    tables = read_aligned(datasets, shard, _COLUMNS)
    if example is None:
        return tables
    row = tables["examples"]["id"].index(example).as_py()
    if row < 0:
        ids = tables["examples"]["id"]
        contents = f"it has {ids[0]} to {ids[-1]}" if len(ids) else "it is empty"
        raise UserError(f"{url}: shard {shard} has no example {example}: {contents}")
    return {name: table.slice(row, 1) for name, table in tables.items()}


def read_shard(url: str, shard: int, example: str | None = None) -> Shard:
    """Read a shard of the alignments at the URL, or one of its examples. Raises UserError like `read_tables`."""
    tables = read_tables(url, shard, example)
    texts = Texts.of(tables["examples"])
    chunks = Chunks.of(tables["alignments"], texts)
    return Shard(texts, chunks, {side: Tokens.of(tables[side], texts, chunks) for side in SIDES}, tables)
