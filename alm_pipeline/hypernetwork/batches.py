"""The batches of a hypernetwork's training: a drawn tokenizer, texts in its tokens, and the teacher's chunks.

Nothing of a batch is stored: the teacher's two numbers per token are, and they are aligned anew with each tokenizer.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from alm_pipeline.alignment.chunks import AssistantTurns, ShardTokens, align
from alm_pipeline.alignment.ends import SideIds, chunk_ends
from alm_pipeline.alignment.shards import COLUMNS, shard_tokens
from alm_pipeline.config import ObjectiveConfig
from alm_pipeline.hypernetwork.sampling.sampler import SampledTokenizer, encode
from alm_pipeline.hypernetwork.sampling.stage import refuse_conversations
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.objective.chunking.arrays import AlignedScores, TeacherChunks
from alm_pipeline.objective.chunking.ends import SideTokens
from alm_pipeline.objective.chunking.registry import chunks_of
from alm_pipeline.scoring.finite import check_stored_scores
from alm_pipeline.tokenization.rows import EncodedBatch, surround
from alm_pipeline.training.data.arrays import BatchPlan, ExampleArrays
from alm_pipeline.training.data.packing import make_batch
from alm_pipeline.training.data.row_stream import RowStream, StreamPosition
from alm_pipeline.vocabulary.token_edges import token_edges
from storage.columns import flatten_lists
from storage.dataset import Dataset, read_aligned

_TEACHER = ("token_ids", *COLUMNS)
_SCORES = ("logprobs", "boundary_logprobs")


class TextRows(NamedTuple):
    """Texts of a step, and the position of the stream after them."""

    rows: pa.Table
    position: StreamPosition


@dataclass(frozen=True)
class TextStream:
    """The training texts in a shuffled order, endlessly, with the teacher's tokens and scores if they are needed."""

    datasets: Mapping[str, Dataset]
    """`examples` and, with the teacher, `teacher_tokens` and `scores`"""
    seed: int
    buffer: int

    def texts(self, count: int, start: StreamPosition) -> Iterator[TextRows]:
        """Yield batches of `count` texts, starting at a position. Raises UserError if the examples have no text."""
        shards = len(self.datasets["examples"].complete_manifest().shards)
        stream = RowStream(self._load, shards, seed=self.seed, buffer=self.buffer, nothing=self._nothing)
        waiting, parts = count, list[pa.Table]()
        with closing(stream.blocks(start)) as blocks:
            for block in blocks:
                at = 0
                while at < block.rows.num_rows:
                    part = block.rows.slice(at, waiting)
                    parts.append(part)
                    at, waiting = at + part.num_rows, waiting - part.num_rows
                    if not waiting:
                        yield TextRows(pa.concat_tables(parts).combine_chunks(), block.position_at(at))
                        waiting, parts = count, []

    def _nothing(self) -> str:
        return (
            f"{self.datasets['examples'].url}: no text to train on (all are held out, or the teacher's tokenizer drops "
            "them): use a larger corpus, or a smaller corpus.held_out"
        )

    def _load(self, shard: int) -> pa.Table:
        columns: dict[str, tuple[str, ...]] = {"examples": ("split", "text", "messages")}
        if "scores" in self.datasets:
            columns |= {"teacher_tokens": _TEACHER, "scores": _SCORES}
        tables = read_aligned(self.datasets, shard, columns)
        examples = tables["examples"]
        refuse_conversations(examples, self.datasets["examples"])
        kept = pc.equal(examples["split"], "train")
        rows = examples.select(["id", "text"])
        if "scores" in tables:
            check_stored_scores(tables, self.datasets["scores"], shard)
            kept = pc.and_(kept, pc.is_null(tables["teacher_tokens"]["dropped"]))
            for name in ("teacher_tokens", "scores"):
                for column in columns[name]:
                    rows = rows.append_column(column, tables[name][column])
        return rows.filter(kept)


@dataclass(frozen=True)
class DrawnBatch:
    """A step's tokenizer, and its texts as the fields of `PackedBatch`, each text in a row of its own."""

    drawn: SampledTokenizer
    fields: dict[str, Tensor]

    @property
    def used(self) -> npt.NDArray[np.int64]:
        """The tokens that the texts have, and that padding is."""
        return np.unique(self.fields["token_ids_BS"].numpy())


class BatchMaker:
    """Makes batches of texts and drawn tokenizers."""

    def __init__(self, objective: ObjectiveConfig, source: LoadedTokenizer, teacher: LoadedTokenizer) -> None:
        self.objective = objective
        self._frame = source.frame
        self._teacher_edges = token_edges(teacher.view) if "alm" in objective.terms else np.zeros(0, np.uint8)

    def make(self, rows: pa.Table, drawn: SampledTokenizer) -> DrawnBatch:
        """Return the batch of these texts, which are rows of `TextStream`, in the tokenizer's tokens."""
        encoded = self._encoded(rows["text"].to_pylist(), drawn)
        chunks = self._chunks(rows, encoded, drawn) if "logprobs" in rows.column_names else _no_chunks(rows.num_rows)
        examples = ExampleArrays(encoded.token_ids, encoded.offsets, np.zeros(0, np.bool_), chunks)
        order = np.arange(rows.num_rows)
        return DrawnBatch(drawn, vars(make_batch(examples, BatchPlan(order, order.astype(np.int32)))))

    def _encoded(self, texts: list[str], drawn: SampledTokenizer) -> EncodedBatch:
        """Encode texts, with the special tokens that the source tokenizer puts around every text."""
        ids = encode(drawn, texts)
        tokens, count = np.concatenate(ids), len(texts)
        none: list[tuple[()]] = [()] * count
        batch = EncodedBatch(
            np.concatenate([[0], np.cumsum([len(row) for row in ids])]),
            tokens,
            drawn.lengths[tokens],
            np.zeros(len(tokens), np.uint8),
            np.full(len(tokens), -1, np.int16),
            {},
            none,
            none,
            [None] * count,
        )
        special = {int(id_): len(drawn.chosen) + k for k, id_ in enumerate(drawn.specials)}
        return surround(batch, *([special[id_] for id_ in ids] for ids in self._frame))

    def _chunks(self, rows: pa.Table, encoded: EncodedBatch, drawn: SampledTokenizer) -> TeacherChunks:
        """Align the teacher's tokens with the drawn tokenizer's, and merge the chunks as configured."""
        count, nowhere = rows.num_rows, np.zeros(0, np.int32)
        student = ShardTokens(
            encoded.offsets,
            encoded.byte_lengths,
            encoded.kinds,
            encoded.turns,
            np.zeros(count + 1, np.int64),
            nowhere,
            nowhere,
            np.zeros(count, np.bool_),
        )
        chunks = align(shard_tokens(rows), student, _no_turns(count))
        ids = SideIds(encoded.token_ids, encoded.offsets, token_edges(drawn.view))
        ends = chunk_ends(chunks, SideIds.of(rows, self._teacher_edges), ids)
        (logprobs, offsets), (boundary, _) = (flatten_lists(rows[name]) for name in _SCORES)
        aligned = AlignedScores(
            chunks.offsets,
            chunks.teacher_tokens,
            chunks.student_tokens,
            chunks.kinds,
            ends,
            np.zeros(0, np.bool_),
            offsets,
            logprobs,
            boundary,
        )
        tokens = SideTokens(encoded.token_ids, encoded.offsets, chunks.student_tokens, chunks.offsets)
        return chunks_of(aligned, self.objective, None, tokens, None)


def _no_turns(count: int) -> AssistantTurns:
    return AssistantTurns(np.zeros(count + 1, np.int64), np.zeros(0, np.bool_))


def _no_chunks(count: int) -> TeacherChunks:
    zeros: Any = np.zeros(count, np.int32)
    none: Any = np.zeros(0, np.int32)
    bools = np.zeros(0, np.bool_)
    return TeacherChunks(np.zeros(count + 1, np.int64), zeros, zeros, none.astype(np.float32), none, none, bools, bools)


def boundary_ids(drawn: SampledTokenizer, places: npt.NDArray[np.int64]) -> Tensor:
    """Return the rows of the drawn tokenizer's boundary tokens, of those that have a row."""
    rows = places[np.flatnonzero(drawn.view.boundary(drawn.size))]
    return torch.from_numpy(rows[rows >= 0])
