"""Several streams of rows as one, in exact shares.

The order of the sources is just-in-time apportionment: of n rows, a source of weight w (of a sum of 1) has fewer than
w·n + 1 and more than w·n − 1, at every n. A source's next row may come once its count is below w·n, and has to come
before w·n is a whole row ahead of it; of those that may come, the one that has to come first does. Such an order exists
for any weights, and this rule finds it (Baruah et al. 1996, "Proportionate progress", for a single processor). It is
computed in whole numbers, so that nothing adds up however long the training is.

A source that ends begins again, in a new order: the order of epoch 2 differs from that of epoch 1. The order of the
sources depends only on the weights and on how many rows came before; the order within a source on the seed, its name
and the number of readers. With R readers, each reads its own part of every source, in these shares.
"""

import hashlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import reduce
from math import gcd, lcm
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alm_pipeline.objective.chunking.ends import ChunkEnds
from alm_pipeline.objective.prefix_arrays import PrefixTable
from alm_pipeline.training.data.row_stream import RowBlock, RowStream, StreamPosition, one_ahead, threads
from storage.dataset import Dataset
from storage.errors import UserError

Ints = npt.NDArray[np.int64]
_ROWS_AT_ONCE = 1024
_LARGEST_TOTAL = 2**53


@dataclass(frozen=True)
class TrainingSource:
    """A source of a mixture: the caches of a corpus, and its share of the examples that are trained on."""

    name: str
    datasets: Mapping[str, Dataset]
    """by role, as `read_examples` takes them"""
    weight: float = 1.0
    """relative to the other sources' weights, in examples; its decimal digits are taken as they are"""
    ends: ChunkEnds | None = None
    """as in `read_examples`"""
    prefixes: PrefixTable | None = None
    """as in `read_examples`"""


@dataclass(frozen=True)
class MixedPosition:
    """The place before a row of a mixture."""

    counts: tuple[int, ...]
    """[sources] the rows of each that came before"""
    positions: tuple[StreamPosition, ...]
    """[sources] the place in each"""

    @classmethod
    def first(cls, sources: int) -> "MixedPosition":
        return cls((0,) * sources, (StreamPosition(),) * sources)

    def state(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the position as plain JSON."""
        rows = zip(names, self.counts, self.positions, strict=True)
        return {"sources": [{"name": name, "rows": count, **at.state()} for name, count, at in rows]}

    @classmethod
    def of_state(cls, state: Mapping[str, Any], names: Sequence[str]) -> "MixedPosition":
        """Raises UserError if the state is of other sources."""
        saved = state.get("sources", [])
        if [source["name"] for source in saved] != [*names]:
            raise UserError(
                f"the stream's position was saved for the sources {', '.join(source['name'] for source in saved)}, and "
                f"these are {', '.join(names)}: resume with the same sources, or start again"
            )
        return cls(tuple(source["rows"] for source in saved), tuple(map(StreamPosition.of_state, saved)))


@dataclass(frozen=True)
class MixedBlock:
    """Rows of a mixture, and the position before any of them."""

    rows: pa.Table
    order: Ints
    """the source of each row after `start`"""
    start: MixedPosition
    parts: tuple[tuple[RowBlock, ...], ...]
    """[sources] the rows that each has in this block, in order"""
    skipped: int = 0
    """the rows after `start` that are not in `rows`"""

    def after(self, row: int) -> "MixedBlock":
        """Return the block without its first rows."""
        return replace(self, rows=self.rows.slice(row), skipped=self.skipped + row)

    def position_at(self, row: int) -> MixedPosition:
        taken = np.bincount(self.order[: self.skipped + row], minlength=len(self.parts)).tolist()
        places = zip(self.parts, taken, self.start.positions, strict=True)
        counts = tuple(before + new for before, new in zip(self.start.counts, taken, strict=True))
        return MixedPosition(counts, tuple(_place(parts, new, start) for parts, new, start in places))


class MixedStream:
    """The rows of several streams in shares, as `whole_shares` returns them; all streams are of the same reader."""

    def __init__(self, streams: Sequence[RowStream], shares: Ints) -> None:
        self.streams, self.shares = streams, shares

    def blocks(self, start: MixedPosition | None = None) -> Generator[MixedBlock, None, None]:
        """Yield blocks of rows from a position on; closing the iterator ends its threads.

        Raises what the streams raise, when those rows are due.
        """
        with ExitStack() as stack:
            position = start or MixedPosition.first(len(self.streams))
            opened = zip(self.streams, position.positions, strict=True)
            sources = [_SourceRows(stack.enter_context(closing(stream.blocks(at)))) for stream, at in opened]
            with threads(len(sources)) as starting:  # so that the first block waits for the slowest source alone
                list(starting.map(_SourceRows.begin, sources))
            mixing = stack.enter_context(threads(1))  # which ends before the streams that it reads are closed
            yield from one_ahead(self._blocks(position, sources), mixing)

    def _blocks(self, position: MixedPosition, sources: Sequence["_SourceRows"]) -> Iterator[MixedBlock]:
        while True:
            order = next_sources(self.shares, position.counts, _ROWS_AT_ONCE)
            counts = np.bincount(order, minlength=len(sources)).tolist()
            parts = tuple(source.take(count) for source, count in zip(sources, counts, strict=True))
            # the rows lie source by source: of these, the place of each row of the block
            places = np.empty(len(order), np.int64)
            places[np.argsort(order, kind="stable")] = np.arange(len(order))
            rows = pa.concat_tables([block.rows for part in parts for block in part]).take(places)
            block = MixedBlock(rows, order, position, parts)
            yield block
            position = block.position_at(len(order))


class _SourceRows:
    """Takes any number of rows off a stream of blocks."""

    def __init__(self, blocks: Iterator[RowBlock]) -> None:
        self._blocks, self._rest = blocks, list[RowBlock]()

    def begin(self) -> None:
        """Read the first block, if that has not been done."""
        self._rest = self._rest or [next(self._blocks)]

    def take(self, count: int) -> tuple[RowBlock, ...]:
        """Return the next `count` rows."""
        taken = list[RowBlock]()
        while count:
            self.begin()
            block = self._rest.pop()
            taken.append(RowBlock(block.rows.slice(0, count), block.position))
            if count < block.rows.num_rows:
                self._rest = [block.after(count)]
            count -= taken[-1].rows.num_rows
        return tuple(taken)


def _place(parts: Sequence[RowBlock], row: int, start: StreamPosition) -> StreamPosition:
    """Return the place before a row of a source's part of a block, or after its last row."""
    place = start
    for block in parts:
        if row <= block.rows.num_rows:
            return block.position_at(row)
        row -= block.rows.num_rows
    return place


def whole_shares(weights: Sequence[float]) -> Ints:
    """Return weights as the smallest whole numbers of the same ratios. A weight is its shortest decimal: 0.1 is 1/10.

    Raises UserError if a weight is not positive, or if the numbers are too large for exact shares.
    """
    exact = [Fraction(repr(weight)) if np.isfinite(weight) else Fraction(0) for weight in weights]
    if wrong := [weight for weight, fraction in zip(weights, exact, strict=True) if fraction <= 0]:
        raise UserError(f"the weight {wrong[0]} of a source is not a positive number: leave the source out instead")
    denominator = lcm(*(fraction.denominator for fraction in exact))
    numbers = [int(fraction * denominator) for fraction in exact]
    divisor = reduce(gcd, numbers)
    numbers = [number // divisor for number in numbers]
    if sum(numbers) > _LARGEST_TOTAL:
        raise UserError(f"the weights {', '.join(map(str, weights))} have too many digits: round them to 6")
    return np.array(numbers, np.int64)


def next_sources(shares: Ints, counts: Sequence[int], rows: int) -> Ints:
    """Return the source of each of the next `rows` rows ([rows]), after `counts` rows of each."""
    from alm_pipeline.training.data.kernel import interleave  # numba takes seconds to import

    total, before = int(shares.sum()), sum(counts)
    lags = [share * before - total * count for share, count in zip(shares.tolist(), counts, strict=True)]
    order = np.empty(rows, np.int64)
    interleave(shares, np.array(lags, np.int64), order)
    return order


def source_seed(seed: int, name: str) -> int:
    """Return the seed of a source's order: sources with equal shards would otherwise be shuffled alike."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8, person=b"mixture").digest(), "big")
