"""The caches as endless training batches, split between ranks and loader workers, from any position on.

Torch's plain `DataLoader` and `torchdata`'s `StatefulDataLoader` take a `BatchStream` as it is; the second keeps the
state of every worker's stream. Training does without workers: reading and merging have threads, and hold no lock.
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
from alm_pipeline.training.data.arrays import Examples, Group, TeacherTokens
from alm_pipeline.training.data.examples import read_examples
from alm_pipeline.training.data.packing import Place, make_batch, make_teacher_batch, next_group
from storage.dataset import Dataset
from storage.errors import UserError
from storage.row_stream import RowBlock, RowStream, StreamPosition, StreamReader

State = dict[str, Any]
_SHARDS_AHEAD = (2, 8)
"""at least and at most"""


class BatchStream(IterableDataset[dict[str, Tensor]]):
    """Endless batches of the training split for one of several ranks, epoch after epoch, each in its own order.

    In an epoch every example goes to one rank and one worker of it. `datasets` and `ends` are as in `read_examples`.
    A batch has the fields of `Batch`, and where a term of the objective needs the teacher in memory those of
    `TeacherBatch`. Iterating raises UserError when the training split holds no chunk to learn from.
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
    ) -> None:
        self.datasets, self.objective, self.train, self.rank, self.ranks = datasets, objective, train, rank, ranks
        self.ends = ends
        manifest = datasets["scores"].complete_manifest()
        self.shards, self.examples = len(manifest.shards), manifest.rows
        self._start: State | None = None
        self._state: State | None = None

    def state_dict(self) -> State:
        """The place behind the last batch, as plain JSON: batches that are made ahead don't count."""
        return self._state or self._start or _state(self.reader(), StreamPosition(), Place())

    def load_state_dict(self, state: State) -> None:
        """Begin at a state with the next iteration. That raises UserError when another number of readers saved it."""
        self._start, self._state = state, None

    def reader(self) -> StreamReader:
        """The part that this process reads: ranks' parts are split between their workers."""
        worker = get_worker_info()
        index, count = (worker.id, worker.num_workers) if worker else (0, 1)
        return StreamReader(self.rank * count + index, self.ranks * count)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        reader = self.reader()
        start = self._start or _state(reader, StreamPosition(), Place())
        self._check_reader(start, reader)
        with closing(self.rows(reader).blocks(_position(start))) as blocks:
            for window, group, state in self._groups(blocks, reader, start["alone"]):
                batch = window.batch(group)
                self._state = state
                yield batch

    def example_ids(self, start: State, batches: int) -> list[str]:
        """The ids of the examples of so many batches behind a state. They are read again: batches don't carry them."""
        reader = self.reader()
        with closing(self.rows(reader, with_ids=True).blocks(_position(start))) as blocks:
            groups = itertools.islice(self._groups(blocks, reader, start["alone"]), batches)
            return [name for window, group, _ in groups for name in window.ids(group)]

    def _check_reader(self, start: State, reader: StreamReader) -> None:
        if start["reader"] != asdict(reader):
            saved = StreamReader(**start["reader"])
            raise UserError(
                f"the stream's position was saved for reader {saved.index} of {saved.count}, and this is reader "
                f"{reader.index} of {reader.count}: go on with as many ranks and loader workers, or start again"
            )

    def rows(self, reader: StreamReader, *, with_ids: bool = False) -> RowStream:
        """The examples of a reader, as `read_examples` gives them."""
        read = partial(read_examples, self.datasets, objective=self.objective, ends=self.ends, with_ids=with_ids)
        return RowStream(
            partial(read, split="train"),
            self.shards,
            seed=self.train.seed,
            buffer=self.train.shuffle_buffer,
            nothing=f"{self.datasets['examples'].url}: no example to train on (all are held out, dropped, or "
            "without a chunk that counts): use a larger corpus, or a smaller corpus.held_out",
            reader=reader,
            ahead=self._shards_ahead(),
        )

    def _shards_ahead(self) -> int:
        """As many as hold a bufferful: of small shards many, or a store far away would be waited for."""
        fewest, most = _SHARDS_AHEAD
        return min(most, max(fewest, self.train.shuffle_buffer * self.shards // max(1, self.examples)))

    def _groups(
        self, blocks: Iterator[RowBlock], reader: StreamReader, alone: int
    ) -> Iterator[tuple["_Window", Group, State]]:
        """The examples of each batch, and the state behind it."""
        window, place = _Window(), Place(0, alone)
        for block in blocks:
            window, place = window.followed_by(block, place.example), place._replace(example=0)
            lengths = window.lengths
            while found := next_group(lengths, place, self.train.batch_tokens, self.train.row_tokens):
                group, place = found
                position = window.position_at(place.example)
                yield window, group, _state(reader, position, place)


class _Window:
    """The examples that the next batches are packed from: what is left of earlier blocks, and the last one."""

    def __init__(self, blocks: tuple[RowBlock, ...] = ()) -> None:
        self.blocks = blocks
        if blocks:
            rows = pa.concat_tables([block.rows for block in blocks])
            self.examples = Examples.of(rows)
            self.teacher = TeacherTokens.of(rows) if "teacher_ids" in rows.column_names else None
            self.lengths = self.examples.token_offsets[1:] - self.examples.token_offsets[:-1]

    def followed_by(self, block: RowBlock, done: int) -> "_Window":
        """Without the first `done` examples, and with a block behind."""
        left = []
        for each in self.blocks:
            if done < each.rows.num_rows:
                left.append(RowBlock(each.rows.slice(done), each.position_at(done)))
            done = max(0, done - each.rows.num_rows)
        return _Window((*left, block))

    def batch(self, group: Group) -> dict[str, Tensor]:
        """The fields of `Batch`, and where the teacher is needed those of `TeacherBatch`."""
        batch: dict[str, Tensor] = vars(make_batch(self.examples, group))
        return batch | vars(make_teacher_batch(self.examples, self.teacher, group)) if self.teacher else batch

    def ids(self, group: Group) -> list[str]:
        """Of examples that were read with them."""
        rows = pa.concat_tables([block.rows for block in self.blocks])
        names: list[str] = rows["id"].take(group.examples).to_pylist()
        return names

    def position_at(self, example: int) -> StreamPosition:
        """Before an example of the window, or behind its last."""
        for block in self.blocks[:-1]:
            if example < block.rows.num_rows:
                return block.position_at(example)
            example -= block.rows.num_rows
        return self.blocks[-1].position_at(example)


def _position(state: State) -> StreamPosition:
    return StreamPosition(state["epoch"], tuple(state["unit_rows"]), state["row"])


def _state(reader: StreamReader, position: StreamPosition, place: Place) -> State:
    return {"reader": asdict(reader), **asdict(position), "unit_rows": [*position.unit_rows], "alone": place.alone}
