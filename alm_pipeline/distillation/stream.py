"""The caches, zipped and merged into training batches: examples packed into rows, chunks as segment numbers.

Shapes: B rows, S positions a row, N = B·S positions, C chunks of the batch. The order is decided by the seed alone, so
a position in the stream is the number of batches before it.
"""

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from alm_pipeline.config import ObjectiveConfig, TrainConfig
from alm_pipeline.objective.merging import TeacherChunks, merged_chunks
from storage.columns import list_rows
from storage.dataset import Dataset, read_aligned
from storage.errors import UserError

COLUMNS = {
    "examples": ("split",),
    "student_tokens": ("token_ids",),
    "alignments": ("teacher_tokens", "student_tokens", "kinds"),
    "scores": ("logprobs", "boundary_logprobs"),
}


@dataclass(frozen=True)
class CachedExample:
    """What the objective needs of one example."""

    token_ids: npt.NDArray[np.int32]
    """[S] the student's tokens"""
    chunks: TeacherChunks


def read_examples(
    datasets: Mapping[str, Dataset], shard: int, split: str, objective: ObjectiveConfig
) -> list[CachedExample]:
    """The examples of one shard and split that both sides could tokenize. `datasets` has the keys of COLUMNS."""
    tables = read_aligned(datasets, shard, COLUMNS)
    chosen = [row for row, value in enumerate(tables["examples"]["split"].to_pylist()) if value == split]
    student, scores, alignments = (tables[name] for name in ("student_tokens", "scores", "alignments"))
    ids, logprobs, boundary, *chunks = (
        list_rows(column)
        for column in (
            student["token_ids"],
            scores["logprobs"],
            scores["boundary_logprobs"],
            alignments["teacher_tokens"],
            alignments["student_tokens"],
            alignments["kinds"],
        )
    )
    return [
        CachedExample(ids[row], _merge(objective, *(part[row] for part in (*chunks, logprobs, boundary))))
        for row in chosen
        if len(chunks[0][row])
    ]


def _merge(objective: ObjectiveConfig, *arrays: npt.NDArray[np.generic]) -> TeacherChunks:
    gamma = objective.gamma if objective.chunking == "boundary" else None
    return merged_chunks(*arrays, gamma=gamma, debias=objective.debias)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Batch:
    """One step's examples, packed into rows; padding is at the ends of rows."""

    token_ids_BS: Tensor
    position_ids_BS: Tensor
    """begin again at 0 with each example"""
    predicted_N: Tensor
    """the token has a predecessor in its example, and is no padding"""
    chunk_of_token_N: Tensor
    """−1 where the token is in no chunk that counts"""
    last_token_C: Tensor
    """positions among the N"""
    teacher_logprobs_C: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.__dict__)


class BatchStream(IterableDataset[dict[str, Tensor]]):
    """Endless batches of the training split, epoch after epoch, each in its own order.

    Raises UserError when the training split holds no chunk to learn from.
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset],
        objective: ObjectiveConfig,
        train: TrainConfig,
        first_batch: int = 0,
    ) -> None:
        self.datasets, self.objective, self.train, self.first_batch = datasets, objective, train, first_batch
        self.shards = len(datasets["scores"].complete_manifest().shards)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        groups = pack(self._endless(), self.train.batch_tokens, self.train.row_tokens)
        for rows in itertools.islice(groups, self.first_batch, None):
            yield make_batch(rows).tensors()

    def _endless(self) -> Iterator[CachedExample]:
        for epoch in itertools.count():
            generator = random.Random(f"{self.train.seed} {epoch}")
            found = False
            for example in _shuffled(self._epoch(generator), self.train.shuffle_buffer, generator):
                found = True
                yield example
            if not found:
                raise UserError(
                    f"{self.datasets['examples'].url}: no example to train on (all are held out, dropped, or "
                    "without a chunk that counts): use a larger corpus, or a smaller corpus.held_out"
                )

    def _epoch(self, generator: random.Random) -> Iterator[CachedExample]:
        for shard in generator.sample(range(self.shards), self.shards):
            for example in read_examples(self.datasets, shard, "train", self.objective):
                if len(example.chunks.logprobs):
                    yield example


def _shuffled(examples: Iterator[CachedExample], size: int, generator: random.Random) -> Iterator[CachedExample]:
    buffer: list[CachedExample] = []
    for example in examples:
        if len(buffer) < size:
            buffer.append(example)
            continue
        index = generator.randrange(size)
        yield buffer[index]
        buffer[index] = example
    generator.shuffle(buffer)
    yield from buffer


def pack(examples: Iterator[CachedExample], batch_tokens: int, row_tokens: int) -> Iterator[list[list[CachedExample]]]:
    """Groups of rows of examples: each example goes into the first row with room, and a batch is full when none has.

    An example longer than a row is a batch alone, so every row but that one fits `row_tokens`.
    """
    count = max(1, batch_tokens // row_tokens)
    rows: list[list[CachedExample]] = [[] for _ in range(count)]
    room = [row_tokens] * count
    for example in examples:
        length = len(example.token_ids)
        if length > row_tokens:
            yield [[example]]
            continue
        place = next((index for index, free in enumerate(room) if free >= length), None)
        if place is None:
            yield [row for row in rows if row]
            rows, room, place = [[] for _ in range(count)], [row_tokens] * count, 0
        rows[place].append(example)
        room[place] -= length
    if any(rows):
        yield [row for row in rows if row]


def make_batch(rows: list[list[CachedExample]]) -> Batch:
    """The tensors of packed rows."""
    width = max(sum(len(example.token_ids) for example in row) for row in rows)
    ids, positions = np.zeros((2, len(rows), width), dtype=np.int64)
    predicted = np.zeros((len(rows), width), dtype=bool)
    chunk_of_token = np.full(len(rows) * width, -1, dtype=np.int64)
    last_tokens: list[npt.NDArray[np.int64]] = []
    teacher: list[npt.NDArray[np.float32]] = []
    chunks = 0
    for index, row in enumerate(rows):
        column = 0
        for example in row:
            span, start = slice(column, column + len(example.token_ids)), index * width + column
            ids[index, span] = example.token_ids
            # padding goes on counting after the last example: nothing attends to it
            positions[index, column:] = np.arange(width - column)
            predicted[index, span] = positions[index, span] > 0
            _number_chunks(chunk_of_token[start : start + len(example.token_ids)], example.chunks, chunks)
            last_tokens.append(start + example.chunks.student_ends - 1)
            teacher.append(example.chunks.logprobs)
            chunks += len(example.chunks.logprobs)
            column = span.stop
    return Batch(
        token_ids_BS=torch.from_numpy(ids),
        position_ids_BS=torch.from_numpy(positions),
        predicted_N=torch.from_numpy(predicted.reshape(-1)),
        chunk_of_token_N=torch.from_numpy(chunk_of_token),
        last_token_C=torch.from_numpy(np.concatenate(last_tokens)),
        teacher_logprobs_C=torch.from_numpy(np.concatenate(teacher)),
    )


def _number_chunks(chunk_of_token: npt.NDArray[np.int64], chunks: TeacherChunks, first: int) -> None:
    """Fill one example's part: chunks are in order and do not overlap."""
    lengths = chunks.student_ends - chunks.student_starts
    numbers = np.repeat(np.arange(first, first + len(lengths)), lengths)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    chunk_of_token[np.repeat(chunks.student_starts, lengths) + within] = numbers
