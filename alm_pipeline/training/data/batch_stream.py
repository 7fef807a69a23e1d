"""The caches as an endless stream of training batches, split between ranks and workers, from any position.

Torch's plain `DataLoader` and `torchdata`'s `StatefulDataLoader` accept a `BatchStream`; the second one also saves the
state of every worker's stream. Training needs no workers: reading and merging use threads and release the GIL.
"""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from alm_pipeline.config import ObjectiveConfig, TrainConfig
from alm_pipeline.objective.chunking.ends import ChunkEnds
from alm_pipeline.objective.prefix_arrays import PrefixTable
from alm_pipeline.training.data.arrays import BatchPlan, ExampleArrays, TeacherArrays, read_targets
from alm_pipeline.training.data.examples import read_examples
from alm_pipeline.training.data.packing import (
    PackingPosition,
    make_batch,
    make_target_batch,
    make_teacher_batch,
    plan_next_batch,
)
from alm_pipeline.training.data.row_stream import RowBlock, RowStream, StreamPosition, StreamReader
from storage.dataset import Dataset
from storage.errors import UserError

StreamState = dict[str, Any]
_SHARDS_AHEAD = (2, 8)
"""the fewest and the most"""


class BatchStream(IterableDataset[dict[str, Tensor]]):
    """Endless batches of the training split for one of several ranks, epoch after epoch, each in its own order.

    In an epoch every example goes to exactly one worker of one rank. `datasets`, `ends` and `prefixes` are those of
    `read_examples`. A batch has the fields of `PackedBatch`, those of `TeacherBatch` if a term of the objective needs
    the teacher in memory, and those of `TargetBatch` if one needs the teacher's likeliest tokens. Iterating raises
    UserError if the training split holds no chunk to learn from.
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset],
        objective: ObjectiveConfig,
        train: TrainConfig,
        rank: int = 0,
        ranks: int = 1,
        *,
        ends: ChunkEnds | None = None,
        prefixes: PrefixTable | None = None,
    ) -> None:
        self.datasets, self.objective, self.train, self.rank, self.ranks = datasets, objective, train, rank, ranks
        self.ends, self.prefixes = ends, prefixes
        manifest = datasets["scores"].complete_manifest()
        self.shards, self.examples = len(manifest.shards), manifest.rows
        self._start: StreamState | None = None
        self._state: StreamState | None = None

    def state_dict(self) -> StreamState:
        """Return the position after the last batch, as plain JSON. Batches prepared ahead do not count."""
        return self._state or self._start or _state(self.reader(), StreamPosition(), PackingPosition())

    def load_state_dict(self, state: StreamState) -> None:
        """Start the next iteration at a state. Iterating raises UserError if another number of readers saved it."""
        self._start, self._state = state, None

    def reader(self) -> StreamReader:
        """Return the part that this process reads. The part of a rank is split between its workers."""
        worker = get_worker_info()
        index, count = (worker.id, worker.num_workers) if worker else (0, 1)
        return StreamReader(self.rank * count + index, self.ranks * count)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        reader = self.reader()
        start = self._start or _state(reader, StreamPosition(), PackingPosition())
        self._check_reader(start, reader)
        with closing(self.rows(reader).blocks(_position(start))) as blocks:
            for window, plan, state in self._plans(blocks, reader, start["alone"]):
                batch = window.batch(plan)
                self._state = state
                yield batch

    def example_ids(self, start: StreamState, batches: int) -> list[str]:
        """Return the ids of the examples in the next `batches` batches after a state.

        The examples are read again, since batches do not carry ids.
        """
        reader = self.reader()
        with closing(self.rows(reader, with_ids=True).blocks(_position(start))) as blocks:
            plans = itertools.islice(self._plans(blocks, reader, start["alone"]), batches)
            return [example_id for window, plan, _ in plans for example_id in window.ids(plan)]

    def _check_reader(self, start: StreamState, reader: StreamReader) -> None:
        if start["reader"] != asdict(reader):
            saved = StreamReader(**start["reader"])
            raise UserError(
                f"the stream's position was saved for reader {saved.index} of {saved.count}, and this is reader "
                f"{reader.index} of {reader.count}: resume with the same number of ranks and loader workers, or start "
                "again"
            )

    def rows(self, reader: StreamReader, *, with_ids: bool = False) -> RowStream:
        """Return the stream of a reader's examples, with the columns of `read_examples`."""
        read = partial(read_examples, self.datasets, objective=self.objective, ends=self.ends, with_ids=with_ids)
        return RowStream(
            partial(read, split="train", prefixes=self.prefixes),
            self.shards,
            seed=self.train.seed,
            buffer=self.train.shuffle_buffer,
            nothing=nothing_to_train_on(self.datasets["examples"]),
            reader=reader,
            ahead=self._shards_ahead(),
        )

    def _shards_ahead(self) -> int:
        """Return the number of shards that fill the buffer: with small shards, a slow store would stall training."""
        fewest, most = _SHARDS_AHEAD
        return min(most, max(fewest, self.train.shuffle_buffer * self.shards // max(1, self.examples)))

    def _plans(
        self, blocks: Iterator[RowBlock], reader: StreamReader, alone: int
    ) -> Iterator[tuple["ExampleWindow", BatchPlan, StreamState]]:
        """Yield each batch's examples, with the state after it."""
        window, position = ExampleWindow(), PackingPosition(0, alone)
        for block in blocks:
            window, position = window.followed_by(block, position.example), position._replace(example=0)
            lengths = window.lengths
            while following := plan_next_batch(lengths, position, self.train.batch_tokens, self.train.row_tokens):
                plan, position = following
                yield window, plan, _state(reader, window.position_at(position.example), position)


def nothing_to_train_on(examples: Dataset) -> str:
    """Return the sentence of the error about a training split that has no chunk to learn from."""
    return (
        f"{examples.url}: no example to train on (all are held out, dropped, or without a chunk that counts): use a "
        "larger corpus, or a smaller corpus.held_out"
    )


class ExampleWindow:
    """The examples that the next batches are packed from: the rest of earlier blocks, and the last block."""

    def __init__(self, blocks: tuple[RowBlock, ...] = ()) -> None:
        self.blocks = blocks
        if blocks:
            rows = pa.concat_tables([block.rows for block in blocks])
            self.examples = ExampleArrays.of(rows)
            self.teacher = TeacherArrays.of(rows) if "teacher_ids" in rows.column_names else None
            self.targets = read_targets(rows) if "target_ids" in rows.column_names else None
            self.lengths = self.examples.token_offsets[1:] - self.examples.token_offsets[:-1]

    def followed_by(self, block: RowBlock, done: int) -> "ExampleWindow":
        """Return the window without its first `done` examples, and with a block after it."""
        rest = []
        for earlier in self.blocks:
            if done < earlier.rows.num_rows:
                rest.append(RowBlock(earlier.rows.slice(done), earlier.position_at(done)))
            done = max(0, done - earlier.rows.num_rows)
        return ExampleWindow((*rest, block))

    def batch(self, plan: BatchPlan) -> dict[str, Tensor]:
        """Return the fields of `PackedBatch`, and those of `TeacherBatch` and `TargetBatch` if they are needed."""
        batch: dict[str, Tensor] = vars(make_batch(self.examples, plan))
        if self.teacher:
            batch = batch | vars(make_teacher_batch(self.examples, self.teacher, plan))
        return batch | vars(make_target_batch(self.examples, self.targets, plan)) if self.targets else batch

    def ids(self, plan: BatchPlan) -> list[str]:
        """Return the ids of examples that were read with their ids."""
        rows = pa.concat_tables([block.rows for block in self.blocks])
        ids: list[str] = rows["id"].take(plan.examples).to_pylist()
        return ids

    def position_at(self, example: int) -> StreamPosition:
        """Return the position before an example of the window, or after its last example."""
        for block in self.blocks[:-1]:
            if example < block.rows.num_rows:
                return block.position_at(example)
            example -= block.rows.num_rows
        return self.blocks[-1].position_at(example)


def _position(state: StreamState) -> StreamPosition:
    return StreamPosition(state["epoch"], tuple(state["unit_rows"]), state["row"])


def _state(reader: StreamReader, position: StreamPosition, packing: PackingPosition) -> StreamState:
    # not with `asdict`, which goes through `unit_rows` number by number: late in an epoch, it is as long as the dataset
    return {
        "reader": asdict(reader),
        "epoch": position.epoch,
        "unit_rows": [*position.unit_rows],
        "row": position.row,
        "alone": packing.alone,
    }
