"""The caches as an endless stream of training batches, split between ranks and workers, from any position.

Torch's plain `DataLoader` and `torchdata`'s `StatefulDataLoader` accept a `BatchStream`; the second one also saves the
state of every worker's stream. Training needs no workers: reading and merging use threads and release the GIL.
"""

import itertools
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from alm_pipeline.config import ObjectiveConfig, TrainConfig
from alm_pipeline.objective.chunking.ends import ChunkEnds
from alm_pipeline.objective.chunking.registry import CHUNKINGS
from alm_pipeline.objective.prefix_arrays import PrefixTable
from alm_pipeline.training.data.arrays import BatchPlan, ExampleArrays, TeacherArrays, read_targets
from alm_pipeline.training.data.examples import learns_only_answers, read_examples, with_learned
from alm_pipeline.training.data.mixture import (
    MixedBlock,
    MixedPosition,
    MixedStream,
    TrainingSource,
    source_seed,
    whole_shares,
)
from alm_pipeline.training.data.packing import (
    PackingPosition,
    make_batch,
    make_source_batch,
    make_target_batch,
    make_teacher_batch,
    plan_next_batch,
)
from alm_pipeline.training.data.row_stream import RowBlock, RowStream, StreamPosition, StreamReader
from storage.dataset import Dataset
from storage.errors import UserError

StreamState = dict[str, Any]
_log = logging.getLogger("alm_pipeline")
_SHARDS_AHEAD = (2, 8)
"""the fewest and the most"""


class BatchStream(IterableDataset[dict[str, Tensor]]):
    """Endless batches of the training split for one of several ranks, epoch after epoch, each in its own order.

    In an epoch every example goes to exactly one worker of one rank. `datasets`, `ends` and `prefixes` are those of
    `read_examples`; instead, `datasets` can be the sources of a mixture, which bring their own. A batch has the fields
    of `PackedBatch`, those of `TeacherBatch` if a term of the objective needs the teacher in memory, those of
    `TargetBatch` if one needs the teacher's likeliest tokens, and those of `SourceBatch` if it is of a mixture.
    Iterating raises UserError if the training split holds no chunk to learn from.
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset] | Sequence[TrainingSource],
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
        self.is_mixture = not isinstance(datasets, Mapping)
        self.sources = (
            (TrainingSource("", datasets, 1.0, ends, prefixes),) if isinstance(datasets, Mapping) else (*datasets,)
        )
        self.names = tuple(source.name for source in self.sources)
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"two sources of a mixture have the same name: {', '.join(self.names)}")
        self._start: StreamState | None = None
        self._state: StreamState | None = None

    def state_dict(self) -> StreamState:
        """Return the position after the last batch, as plain JSON. Batches prepared ahead do not count."""
        return self._state or self._start or self._first_state(self.reader())

    def load_state_dict(self, state: StreamState) -> None:
        """Start the next iteration at a state.

        Iterating raises UserError if another number of readers saved it, or a stream of other sources.
        """
        self._start, self._state = state, None

    def reader(self) -> StreamReader:
        """Return the part that this process reads. The part of a rank is split between its workers."""
        worker = get_worker_info()
        index, count = (worker.id, worker.num_workers) if worker else (0, 1)
        return StreamReader(self.rank * count + index, self.ranks * count)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        reader = self.reader()
        start = self._start or self._first_state(reader)
        self._check_reader(start, reader)
        with closing(self._blocks(reader, start)) as blocks:
            for window, plan, state in self._plans(blocks, reader, start["alone"]):
                batch = window.batch(plan, len(self.sources) if self.is_mixture else 0)
                if self.is_mixture:
                    _log_repeats(self._state or start, state)
                self._state = state
                yield batch

    def example_ids(self, start: StreamState, batches: int) -> list[str]:
        """Return the ids of the examples in the next `batches` batches after a state.

        The examples are read again, since batches do not carry ids. Those of a mixture begin with their source's name.
        """
        reader = self.reader()
        with closing(self._blocks(reader, start, with_ids=True)) as blocks:
            plans = itertools.islice(self._plans(blocks, reader, start["alone"]), batches)
            return [example_id for window, plan, _ in plans for example_id in window.ids(plan, self.names)]

    def rows(self, reader: StreamReader, *, with_ids: bool = False) -> "RowStream | MixedStream":
        """Return the stream of a reader's examples, with the columns of `read_examples`."""
        if not self.is_mixture:
            return self._rows_of(0, reader, self.train.shuffle_buffer, self.train.seed, with_ids)
        shares = whole_shares([source.weight for source in self.sources])
        # one buffer of rows, divided like the rows themselves
        buffers = np.maximum(1, self.train.shuffle_buffer * shares // shares.sum()).tolist()
        seeds = (source_seed(self.train.seed, name) for name in self.names)
        streams = [
            self._rows_of(number, reader, buffer, seed, with_ids)
            for number, (buffer, seed) in enumerate(zip(buffers, seeds, strict=True))
        ]
        return MixedStream(streams, shares)

    def _blocks(
        self, reader: StreamReader, start: StreamState, *, with_ids: bool = False
    ) -> Generator[RowBlock, None, None] | Generator[MixedBlock, None, None]:
        rows = self.rows(reader, with_ids=with_ids)
        if isinstance(rows, MixedStream):
            return rows.blocks(MixedPosition.of_state(start, self.names))
        return rows.blocks(StreamPosition.of_state(start))

    def _rows_of(self, number: int, reader: StreamReader, buffer: int, seed: int, with_ids: bool) -> RowStream:
        """Return the stream of one source, with a column `source` if it is one of a mixture."""
        source = self.sources[number]
        manifest = source.datasets["scores"].complete_manifest()
        shards = len(manifest.shards)
        read = partial(
            read_examples, source.datasets, objective=self.objective, ends=source.ends, with_ids=with_ids, split="train"
        )
        load = partial(read, prefixes=source.prefixes)
        if self.is_mixture:
            marks = any(learns_only_answers(each.datasets["examples"], self.objective) for each in self.sources)
            load = partial(_of_source, load, number, marks_learned=marks, is_live=self.objective.is_live)
        return RowStream(
            load,
            shards,
            seed=seed,
            buffer=buffer,
            nothing=partial(nothing_to_train_on, source.datasets, self.objective),
            reader=reader,
            ahead=_shards_ahead(buffer, shards, manifest.rows),
        )

    def _check_reader(self, start: StreamState, reader: StreamReader) -> None:
        if start["reader"] != asdict(reader):
            saved = StreamReader(**start["reader"])
            raise UserError(
                f"the stream's position was saved for reader {saved.index} of {saved.count}, and this is reader "
                f"{reader.index} of {reader.count}: resume with the same number of ranks and loader workers, or start "
                "again"
            )

    def _plans(
        self, blocks: Iterator[RowBlock] | Iterator[MixedBlock], reader: StreamReader, alone: int
    ) -> Iterator[tuple["ExampleWindow", BatchPlan, StreamState]]:
        """Yield each batch's examples, with the state after it."""
        window, position = ExampleWindow(), PackingPosition(0, alone)
        for block in blocks:
            window, position = window.followed_by(block, position.example), position._replace(example=0)
            lengths = window.lengths
            while following := plan_next_batch(lengths, position, self.train.batch_tokens, self.train.row_tokens):
                plan, position = following
                yield window, plan, self._state_at(reader, window.position_at(position.example), position)

    def _first_state(self, reader: StreamReader) -> StreamState:
        first = MixedPosition.first(len(self.sources)) if self.is_mixture else StreamPosition()
        return self._state_at(reader, first, PackingPosition())

    def _state_at(
        self, reader: StreamReader, position: StreamPosition | MixedPosition, packing: PackingPosition
    ) -> StreamState:
        place = position.state(self.names) if isinstance(position, MixedPosition) else position.state()
        return {"reader": asdict(reader), **place, "alone": packing.alone}


def _log_repeats(before: StreamState, after: StreamState) -> None:
    """Log the sources of a mixture that have ended and begun again."""
    for old, new in zip(before["sources"], after["sources"], strict=True):
        if new["epoch"] > old["epoch"]:
            _log.info("source %s: all was read, so it begins again: epoch %d", new["name"], new["epoch"] + 1)


def _shards_ahead(buffer: int, shards: int, examples: int) -> int:
    """Return the number of shards that fill the buffer: with small shards, a slow store would stall training."""
    fewest, most = _SHARDS_AHEAD
    return min(most, max(fewest, buffer * shards // max(1, examples)))


def _of_source(
    load: Callable[[int], pa.Table], number: int, shard: int, *, marks_learned: bool, is_live: bool
) -> pa.Table:
    """Return a shard's rows with the columns that the rows of all sources have.

    `source` is the source's number. With `marks_learned`, a source tells tokens that are learned from others.
    """
    rows = load(shard)
    if marks_learned:
        rows = with_learned(rows, is_live=is_live)
    return rows.append_column("source", pa.array(np.full(rows.num_rows, number, np.uint16)))


def nothing_to_train_on(datasets: Mapping[str, Dataset], scored_by: ObjectiveConfig | None = None) -> str:
    """Return the sentence of the error about a training split that has no chunk to learn from.

    `datasets` are the caches by role. `scored_by` is the objective if the scores were read, too: chunks that end where
    the teacher is unsure do not count.
    """
    examples, dropped = datasets["examples"].complete_manifest(), datasets["alignments"].complete_manifest().dropped
    held_out = examples.counts.get("held_out_examples", 0)
    sentence = (
        f"{datasets['examples'].url}: no example to train on (of {examples.rows:,}, {held_out:,} are held out, "
        f"{sum(dropped.values()):,} were dropped, and no other has a chunk that counts): use a larger corpus, or a "
        "smaller corpus.held_out"
    )
    if scored_by and CHUNKINGS[scored_by.chunking].merges_by_scores:
        sentence += (
            f"; a chunk counts where the teacher gives a boundary behind it more than objective.gamma "
            f"({scored_by.gamma:g}), so for a teacher that knows no such texts use a smaller one"
        )
    return sentence


Block = RowBlock | MixedBlock


class ExampleWindow:
    """The examples that the next batches are packed from: the rest of earlier blocks, and the last block."""

    def __init__(self, blocks: tuple[Block, ...] = ()) -> None:
        self.blocks = blocks
        if blocks:
            rows = pa.concat_tables([block.rows for block in blocks])
            self.examples = ExampleArrays.of(rows)
            self.teacher = TeacherArrays.of(rows) if "teacher_ids" in rows.column_names else None
            self.targets = read_targets(rows) if "target_ids" in rows.column_names else None
            self.sources = rows["source"].to_numpy() if "source" in rows.column_names else None
            self.lengths = self.examples.token_offsets[1:] - self.examples.token_offsets[:-1]

    def followed_by(self, block: Block, done: int) -> "ExampleWindow":
        """Return the window without its first `done` examples, and with a block after it."""
        rest = list[Block]()
        for earlier in self.blocks:
            if done < earlier.rows.num_rows:
                rest.append(earlier.after(done))
            done = max(0, done - earlier.rows.num_rows)
        return ExampleWindow((*rest, block))

    def batch(self, plan: BatchPlan, sources: int = 0) -> dict[str, Tensor]:
        """Return the fields of `PackedBatch`, and those of the others that are needed.

        `sources` is the number of a mixture's sources.
        """
        batch: dict[str, Tensor] = vars(make_batch(self.examples, plan))
        if self.teacher:
            batch = batch | vars(make_teacher_batch(self.examples, self.teacher, plan))
        if self.targets:
            batch = batch | vars(make_target_batch(self.examples, self.targets, plan))
        if self.sources is not None:
            batch = batch | vars(make_source_batch(self.examples, self.sources, plan, sources))
        return batch

    def ids(self, plan: BatchPlan, names: Sequence[str]) -> list[str]:
        """Return the ids of examples that were read with their ids; `names` are those of the sources."""
        rows = pa.concat_tables([block.rows for block in self.blocks])
        ids: list[str] = rows["id"].take(plan.examples).to_pylist()
        if self.sources is None:
            return ids
        return [f"{names[source]}: {id_}" for id_, source in zip(ids, self.sources[plan.examples], strict=True)]

    def position_at(self, example: int) -> StreamPosition | MixedPosition:
        """Return the position before an example of the window, or after its last example."""
        for block in self.blocks[:-1]:
            if example < block.rows.num_rows:
                return block.position_at(example)
            example -= block.rows.num_rows
        return self.blocks[-1].position_at(example)
