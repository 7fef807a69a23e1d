"""Rows of many shards in a shuffled order, endlessly, split between readers, starting from any position.

Only the seed, the epoch and the number of readers decide the order:

- An epoch is a shuffled sequence of units; a unit is a part of a shard. With R readers, reader r takes every R-th unit,
  beginning with the r-th. Shards are cut into parts only if there are too few shards for all readers, since each part
  costs a read of the whole shard.
- A reader collects units until they have at least as many rows as the buffer, shuffles them together with the rows in
  the buffer, emits all but a buffer's worth as one block, and holds the others back in the buffer. So whole tables are
  shuffled at once, and a row in the buffer keeps no shard in memory.

A position is therefore a few numbers: the row count of each unit determines which rows are in the buffer. A reader that
starts at a position reads again only the shards whose rows are in the block or in the buffer.

Threads read some shards in advance, and the next block is prepared while one is in use. Memory holds no more than that,
however large the dataset is. A dataset that fits in the buffer is held in memory whole, and read once for all epochs.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.errors import UserError

Ints = npt.NDArray[np.int64]
Item = TypeVar("Item")
_UNITS_PER_READER = 8
"""With at least this number, it hardly matters whether a reader has one unit more than another."""
_ROWS_AT_ONCE = 1024
"""The rows per emitted block: few, so that work on a whole block makes no training step longer than the others."""


@dataclass(frozen=True)
class StreamReader:
    """One of the readers that share a dataset, for example a rank's loader worker."""

    index: int
    count: int


SOLE_READER = StreamReader(0, 1)


@dataclass(frozen=True)
class StreamPosition:
    """The place before a row of an endless stream."""

    epoch: int = 0
    unit_rows: tuple[int, ...] = ()
    """The row count of each unit collected for this block and for earlier blocks of the epoch."""
    row: int = 0
    """The row within the block."""

    def state(self) -> dict[str, Any]:
        """Return the position as plain JSON."""
        # not with `asdict`, which goes through `unit_rows` number by number: late in an epoch, it is as long as the
        # dataset
        return {"epoch": self.epoch, "unit_rows": [*self.unit_rows], "row": self.row}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "StreamPosition":
        return cls(state["epoch"], tuple(state["unit_rows"]), state["row"])


@dataclass(frozen=True)
class RowBlock:
    """Shuffled rows, and the position before the first of them."""

    rows: pa.Table
    position: StreamPosition

    def position_at(self, row: int) -> StreamPosition:
        return replace(self.position, row=self.position.row + row)

    def after(self, row: int) -> "RowBlock":
        """Return the block without its first rows."""
        return RowBlock(self.rows.slice(row), self.position_at(row))


class _Unit(NamedTuple):
    """Parts of a shard that a reader reads at once."""

    shard: int
    parts: tuple[int, ...]


class _QueuedUnit(NamedTuple):
    """The `number`-th unit of an epoch, already read or being read."""

    epoch: int
    number: int
    is_last: bool
    rows: Future[pa.Table]


class _Pool(NamedTuple):
    """The rows that a block and the buffer after it are shuffled from: those buffered before, then those of units."""

    units: int
    """of the epoch, up to and with those of this pool"""
    first: int
    """the epoch's number of the first row that was not buffered"""
    buffered: int
    size: int


class RowStream:
    """The rows of `shards` shards, as `load` returns them; `buffer` rows are held back and shuffled with later ones.

    `load` is called in threads, for up to `ahead` shards at once, and must return the same rows for a shard every time.
    `nothing` returns the error message for the user if no shard has a row.
    """

    def __init__(
        self,
        load: Callable[[int], pa.Table],
        shards: int,
        *,
        seed: int,
        buffer: int,
        nothing: Callable[[], str],
        reader: StreamReader = SOLE_READER,
        ahead: int = 2,
    ) -> None:
        self.load, self.shards, self.buffer, self.nothing, self.ahead = load, shards, buffer, nothing, ahead
        self.seed, self.reader = seed & 0xFFFF_FFFF_FFFF_FFFF, reader
        self.parts = parts_per_shard(shards, reader.count)
        self._loaded = _LoadedShards(load, buffer)

    def blocks(self, start: StreamPosition | None = None) -> Generator[RowBlock, None, None]:
        """Yield slices of the blocks from a position on; closing the iterator ends its threads.

        Raises what `load` raises, when those rows are due. Raises UserError if there are no rows, or if the position
        was saved while reading other data.
        """
        if not self.shards:
            raise UserError(self.nothing())
        # the reading threads end first, since the shuffling thread may be waiting for them
        with threads(1) as shuffling, threads(self.ahead) as reading:
            for block in one_ahead(self._blocks(start or StreamPosition(), reading), shuffling):
                for row in range(0, block.rows.num_rows, _ROWS_AT_ONCE):
                    yield RowBlock(block.rows.slice(row, _ROWS_AT_ONCE), block.position_at(row))

    def _blocks(self, start: StreamPosition, reading: ThreadPoolExecutor) -> Iterator[RowBlock]:
        buffered, unit_rows, new = None, list(start.unit_rows), list[pa.Table]()
        if unit_rows:
            rows, buffered = self._restored(start, reading)
            yield RowBlock(rows, start)
        for unit in self._queued_units(start.epoch, len(unit_rows), reading):
            if unit.number == 0:
                buffered, unit_rows = None, []
            new.append(unit.rows.result())
            unit_rows.append(new[-1].num_rows)
            if unit.is_last and not any(unit_rows):
                self._require_rows()
            if unit.is_last or sum(table.num_rows for table in new) >= self.buffer:
                pool = pa.concat_tables([*([buffered] if buffered else []), *new]).combine_chunks()
                emitted, held = self._shuffle(pool.num_rows, unit.epoch, len(unit_rows), is_last=unit.is_last)
                new, rows, buffered = [], pool.take(emitted), pool.take(held)
                del pool
                if rows.num_rows:
                    yield RowBlock(rows, StreamPosition(unit.epoch, tuple(unit_rows)))

    def _shuffle(self, rows: int, epoch: int, units: int, *, is_last: bool) -> tuple[Ints, Ints]:
        """Return which of the pool's rows to emit, in order, and which to buffer, after `units` units of the epoch."""
        order = self._random(epoch, self.reader.index, units).permutation(rows)
        end = rows if is_last else max(rows - self.buffer, 0)
        return order[:end], order[end:]

    def _random(self, *keys: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *keys])

    def _queued_units(self, epoch: int, first: int, reading: ThreadPoolExecutor) -> Iterator[_QueuedUnit]:
        """Yield all units from the `first` of an epoch on, epoch after epoch; `ahead` more are being read."""
        queue = deque[_QueuedUnit]()
        for current in count(epoch):
            units = self.units(current)
            for number in range(first if current == epoch else 0, len(units)):
                rows = reading.submit(self._read, units[number])
                queue.append(_QueuedUnit(current, number, number + 1 == len(units), rows))
                if len(queue) > self.ahead:
                    yield queue.popleft()

    def units(self, epoch: int) -> list[_Unit]:
        """Return this reader's units of an epoch, in order; parts of the same shard are read with the first of them."""
        shard_parts: dict[int, list[int]] = {}
        order = self._random(epoch).permutation(self.shards * self.parts)
        for number in order[self.reader.index :: self.reader.count].tolist():
            shard_parts.setdefault(number // self.parts, []).append(number % self.parts)
        return [_Unit(shard, tuple(sorted(parts))) for shard, parts in shard_parts.items()]

    def _read(self, unit: _Unit) -> pa.Table:
        table = self._loaded.table(unit.shard)
        if len(unit.parts) == self.parts:
            return table
        return table.take(np.flatnonzero(np.isin(np.arange(table.num_rows) % self.parts, unit.parts)))

    def _require_rows(self) -> None:
        if not any(self._loaded.table(shard).num_rows for shard in range(self.shards)):
            raise UserError(self.nothing())

    def _restored(self, start: StreamPosition, reading: ThreadPoolExecutor) -> tuple[pa.Table, pa.Table]:
        """Return the rest of the block at a position, and the rows buffered after it."""
        units = self.units(start.epoch)
        emitted, held = self._rows_at(start, len(units))
        emitted = emitted[start.row :]
        needed = np.sort(np.concatenate([emitted, held]))
        firsts = np.cumsum([0, *start.unit_rows])
        bounds = np.searchsorted(needed, firsts)

        def read(number: int) -> pa.Table:
            table = self._read(units[number])
            if table.num_rows != start.unit_rows[number]:
                raise UserError(
                    f"the position was saved when shard {units[number].shard} had different rows "
                    f"({start.unit_rows[number]} for this reader, now {table.num_rows}): restart from the beginning"
                )
            return table.take(needed[bounds[number] : bounds[number + 1]] - firsts[number])

        used = np.flatnonzero(np.diff(bounds)).tolist() or [0]
        pool = pa.concat_tables(reading.map(read, used)).combine_chunks()
        return pool.take(np.searchsorted(needed, emitted)), pool.take(np.searchsorted(needed, held))

    def _rows_at(self, start: StreamPosition, units: int) -> tuple[Ints, Ints]:
        """Return the rows of the block at a position and those buffered after it, as row numbers of the epoch.

        A row of a block came with the block's units, or was in the buffer and so in the block before. Blocks are
        followed back until all rows are found, which are half as many with each, however far the epoch has come.
        """
        earlier = self._pools_at(start, units)
        if not earlier:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        last = earlier.pop()
        order = emitted, _ = self._shuffle(last.size, start.epoch, last.units, is_last=last.units == units)
        places = np.concatenate(order)
        rows, unknown, pool = np.zeros(len(places), np.int64), np.arange(len(places)), last
        while True:
            is_new = places >= pool.buffered
            rows[unknown[is_new]] = places[is_new] - pool.buffered + pool.first
            places, unknown = places[~is_new], unknown[~is_new]
            if not len(unknown):
                return rows[: len(emitted)], rows[len(emitted) :]
            pool = earlier.pop()
            _, held = self._shuffle(pool.size, start.epoch, pool.units, is_last=False)
            places = held[places]

    def _pools_at(self, start: StreamPosition, units: int) -> list[_Pool]:
        """Return what each block up to a position was shuffled from; the epoch has `units` units."""
        pools, buffered, first, end = list[_Pool](), 0, 0, 0
        for units_read, rows in enumerate(start.unit_rows, 1):
            end += rows
            if units_read == units or end - first >= self.buffer:
                pools.append(_Pool(units_read, first, buffered, buffered + end - first))
                buffered, first = min(self.buffer, pools[-1].size), end
        return pools


class _LoadedShards:
    """The tables of shards, each loaded once as long as all of them together have at most `most` rows."""

    def __init__(self, load: Callable[[int], pa.Table], most: int) -> None:
        self._load, self._left = load, most
        self._tables: dict[int, pa.Table] = {}
        self._lock = Lock()
        self._locks: dict[int, Lock] = {}

    def table(self, shard: int) -> pa.Table:
        """Return a shard's table. Threads may call this: one loads a shard, and others that want it wait."""
        with self._locks.setdefault(shard, Lock()):  # atomic, unlike a defaultdict
            table = self._tables.get(shard)
            return self._add(shard, self._load(shard)) if table is None else table

    def _add(self, shard: int, table: pa.Table) -> pa.Table:
        with self._lock:
            self._left -= table.num_rows
            if self._left < 0:
                self._tables.clear()
            else:
                self._tables[shard] = table
        return table


def parts_per_shard(shards: int, readers: int) -> int:
    """Return the number of parts per shard that gives readers equal numbers, or enough parts that one is negligible."""
    return next(
        parts
        for parts in count(1)
        if shards * parts % readers == 0 or shards * parts >= _UNITS_PER_READER * readers or not shards
    )


@contextmanager
def threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a thread pool that is shut down at the end; work that has not begun is canceled."""
    pool = ThreadPoolExecutor(number, "row-stream")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def one_ahead(items: Iterator[Item], thread: ThreadPoolExecutor) -> Iterator[Item]:
    """Yield endless items; the thread prepares each one while the one before is in use."""
    following = thread.submit(next, items)
    while True:
        item = following.result()
        following = thread.submit(next, items)
        yield item
