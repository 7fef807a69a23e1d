"""Rows of many shards in a shuffled order, endless, split between readers, from any position on.

The order is decided by the seed, the epoch and the number of readers alone:

- An epoch is a shuffled sequence of units, a unit being a part of a shard; of R readers, reader r takes every R-th unit
  from the r-th on. Shards are cut in parts only where there are too few of them to go round, since every part costs a
  reading of the whole shard.
- A reader takes units in until they hold as many rows as the buffer has places, shuffles them together with what the
  buffer holds, gives all rows but a bufferful as one block, and keeps the others. So whole tables are shuffled at
  once, and a row that is kept pins no shard in memory.

A position is thus a few numbers: which rows the buffer holds follows from how many rows each unit had. A reader that
starts at a position reads again only the shards whose rows are in the block or in the buffer.

Shards are read in threads, some ahead of what is asked for, and the next block is made while one is in use; no more is
held than that, however large the dataset.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.errors import UserError

Ints = npt.NDArray[np.int64]
Item = TypeVar("Item")
_UNITS_A_READER = 8
"""from so many on, one unit more or less is no matter"""
_ROWS_AT_ONCE = 1024
"""so that what is done for all rows at once makes no step of a training longer than the others"""


@dataclass(frozen=True)
class Reader:
    """One of the readers that share a dataset: a rank's loader worker, for example."""

    index: int
    count: int


SOLE_READER = Reader(0, 1)


@dataclass(frozen=True)
class Position:
    """The place before a row of an endless stream."""

    epoch: int = 0
    unit_rows: tuple[int, ...] = ()
    """the rows of each unit that was taken in for this block and those before it in the epoch"""
    row: int = 0
    """in the block"""


@dataclass(frozen=True)
class Block:
    """Shuffled rows, and the position before the first of them."""

    rows: pa.Table
    position: Position

    def position_at(self, row: int) -> Position:
        return replace(self.position, row=self.position.row + row)


class _Unit(NamedTuple):
    """Parts of a shard that a reader takes at once."""

    shard: int
    parts: tuple[int, ...]


class _Taken(NamedTuple):
    """A unit that is read or being read, the `number`-th of an epoch."""

    epoch: int
    number: int
    is_last: bool
    rows: Future[pa.Table]


class RowStream:
    """The rows of `shards` shards, as `load` gives them; `buffer` rows are kept to be shuffled with later ones.

    `load` is called in threads, for up to `ahead` shards at once, and must give a shard the same rows every time.
    `nothing` is what a user is told where no shard has a row.
    """

    def __init__(
        self,
        load: Callable[[int], pa.Table],
        shards: int,
        *,
        seed: int,
        buffer: int,
        nothing: str,
        reader: Reader = SOLE_READER,
        ahead: int = 2,
    ) -> None:
        self.load, self.shards, self.buffer, self.nothing, self.ahead = load, shards, buffer, nothing, ahead
        self.seed, self.reader = seed & 0xFFFF_FFFF_FFFF_FFFF, reader
        self.parts = parts_a_shard(shards, reader.count)

    def blocks(self, start: Position | None = None) -> Generator[Block, None, None]:
        """From a position on, in slices of the blocks; closing the iterator ends its threads.

        Raises what `load` raises, where the rows would come; UserError where there are none, or where the position was
        saved while reading other data.
        """
        if not self.shards:
            raise UserError(self.nothing)
        # at the end the first to go are the reading threads, which the shuffling one may be waiting for
        with _threads(1) as shuffling, _threads(self.ahead) as reading:
            for block in _one_ahead(self._blocks(start or Position(), reading), shuffling):
                for row in range(0, block.rows.num_rows, _ROWS_AT_ONCE):
                    yield Block(block.rows.slice(row, _ROWS_AT_ONCE), block.position_at(row))

    def _blocks(self, start: Position, reading: ThreadPoolExecutor) -> Iterator[Block]:
        kept, unit_rows, new = None, list(start.unit_rows), list[pa.Table]()
        if unit_rows:
            rows, kept = self._restored(start, reading)
            yield Block(rows, start)
        for taken in self._taken(start.epoch, len(unit_rows), reading):
            if taken.number == 0:
                kept, unit_rows = None, []
            new.append(taken.rows.result())
            unit_rows.append(new[-1].num_rows)
            if taken.is_last and not any(unit_rows):
                self._require_rows()
            if taken.is_last or sum(table.num_rows for table in new) >= self.buffer:
                pool = pa.concat_tables([*([kept] if kept else []), *new]).combine_chunks()
                given, held = self._shuffle(pool.num_rows, taken.epoch, len(unit_rows), is_last=taken.is_last)
                new, rows, kept = [], pool.take(given), pool.take(held)
                del pool
                if rows.num_rows:
                    yield Block(rows, Position(taken.epoch, tuple(unit_rows)))

    def _shuffle(self, rows: int, epoch: int, units: int, *, is_last: bool) -> tuple[Ints, Ints]:
        """The numbers of the pool's rows to give, in order, and to keep, after so many units of the epoch."""
        order = self._random(epoch, self.reader.index, units).permutation(rows)
        end = rows if is_last else max(rows - self.buffer, 0)
        return order[:end], order[end:]

    def _random(self, *keys: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *keys])

    def _taken(self, epoch: int, first: int, reading: ThreadPoolExecutor) -> Iterator[_Taken]:
        """All units from the `first` of an epoch on, epoch after epoch; `ahead` more are being read."""
        waiting = deque[_Taken]()
        for each in count(epoch):
            units = self.units(each)
            for number in range(first if each == epoch else 0, len(units)):
                rows = reading.submit(self._read, units[number])
                waiting.append(_Taken(each, number, number + 1 == len(units), rows))
                if len(waiting) > self.ahead:
                    yield waiting.popleft()

    def units(self, epoch: int) -> list[_Unit]:
        """What this reader takes in an epoch, in order; parts of the same shard are taken with the first of them."""
        own: dict[int, list[int]] = {}
        order = self._random(epoch).permutation(self.shards * self.parts)
        for number in order[self.reader.index :: self.reader.count].tolist():
            own.setdefault(number // self.parts, []).append(number % self.parts)
        return [_Unit(shard, tuple(sorted(parts))) for shard, parts in own.items()]

    def _read(self, unit: _Unit) -> pa.Table:
        table = self.load(unit.shard)
        if len(unit.parts) == self.parts:
            return table
        return table.take(np.flatnonzero(np.isin(np.arange(table.num_rows) % self.parts, unit.parts)))

    def _require_rows(self) -> None:
        if not any(self.load(shard).num_rows for shard in range(self.shards)):
            raise UserError(self.nothing)

    def _restored(self, start: Position, reading: ThreadPoolExecutor) -> tuple[pa.Table, pa.Table]:
        """What is left of the block at a position, and what is kept behind it."""
        given, kept = self._rows_at(start)
        given = given[start.row :]
        needed = np.sort(np.concatenate([given, kept]))
        firsts = np.cumsum([0, *start.unit_rows])
        bounds = np.searchsorted(needed, firsts)

        def read(number: int) -> pa.Table:
            table = self._read(units[number])
            if table.num_rows != start.unit_rows[number]:
                raise UserError(
                    f"the position was saved when shard {units[number].shard} had other rows "
                    f"({start.unit_rows[number]} for this reader, now {table.num_rows}): start again from the beginning"
                )
            return table.take(needed[bounds[number] : bounds[number + 1]] - firsts[number])

        units = self.units(start.epoch)
        used = np.flatnonzero(np.diff(bounds)).tolist() or [0]
        pool = pa.concat_tables(reading.map(read, used)).combine_chunks()
        return pool.take(np.searchsorted(needed, given)), pool.take(np.searchsorted(needed, kept))

    def _rows_at(self, start: Position) -> tuple[Ints, Ints]:
        """The rows of the block at a position and those kept behind it, as numbers among the epoch's."""
        given = kept = np.zeros(0, np.int64)
        first, end, total = 0, 0, len(self.units(start.epoch))
        for units, rows in enumerate(start.unit_rows, 1):
            end += rows
            if units == total or end - first >= self.buffer:
                pool = np.concatenate([kept, np.arange(first, end)])
                order = self._shuffle(len(pool), start.epoch, units, is_last=units == total)
                given, kept = (pool[numbers] for numbers in order)
                first = end
        return given, kept


def parts_a_shard(shards: int, readers: int) -> int:
    """In how many parts shards are cut so that every reader has equally many, or enough that one more is no matter."""
    return next(
        parts
        for parts in count(1)
        if shards * parts % readers == 0 or shards * parts >= _UNITS_A_READER * readers or not shards
    )


@contextmanager
def _threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that are gone at the end: work that has not begun is called off."""
    pool = ThreadPoolExecutor(number, "storage-stream")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _one_ahead(items: Iterator[Item], thread: ThreadPoolExecutor) -> Iterator[Item]:
    """Endless items, each made in the thread while the one before is in use."""
    following = thread.submit(next, items)
    while True:
        item = following.result()
        following = thread.submit(next, items)
        yield item
