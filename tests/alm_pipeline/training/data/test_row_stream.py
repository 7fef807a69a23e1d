"""The row stream: every row once per epoch for any number of readers, and the same rows from any position."""

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alm_pipeline.training.data.row_stream import (
    SOLE_READER,
    RowBlock,
    RowStream,
    StreamPosition,
    StreamReader,
    parts_per_shard,
)
from storage.errors import UserError

sizes = st.lists(st.integers(0, 12), min_size=1, max_size=6)
readers = st.integers(1, 9)
buffers = st.integers(1, 20)


def load_of(sizes: list[int]) -> object:
    """Return a loader of shards of these sizes; each row has its number and a list that repeats it."""

    def load(shard: int) -> pa.Table:
        numbers = range(sum(sizes[:shard]), sum(sizes[: shard + 1]))
        lists = pa.array([[number] * (number % 4) for number in numbers], pa.list_(pa.int32()))
        return pa.table({"number": pa.array(numbers, pa.int64()), "list": lists})

    return load


def stream(
    sizes: list[int], buffer: int = 4, reader: StreamReader = SOLE_READER, seed: int = 0, load: object = None
) -> RowStream:
    return RowStream(
        load or load_of(sizes),  # type: ignore[arg-type]
        len(sizes),
        seed=seed,
        buffer=buffer,
        nothing=lambda: "nothing here",
        reader=reader,
    )


def rows(blocks: Iterator[RowBlock]) -> Iterator[tuple[int, StreamPosition, StreamPosition]]:
    """Yield each row's number and the positions before and after it."""
    for block in blocks:
        for row, (number, values) in enumerate(zip(*(column.to_pylist() for column in block.rows), strict=True)):
            assert values == [number] * (number % 4)
            yield number, block.position_at(row), block.position_at(row + 1)


def take_rows(
    stream: RowStream, count: int, start: StreamPosition | None = None
) -> list[tuple[int, StreamPosition, StreamPosition]]:
    with closing(stream.blocks(start)) as blocks:
        return list(itertools.islice(rows(blocks), count))


def epoch(stream: RowStream, number: int) -> list[int]:
    """Return the rows of an epoch; does not end if the stream has none in it."""
    numbers = []
    with closing(stream.blocks(StreamPosition(number))) as blocks:
        for row, before, _ in rows(blocks):
            if before.epoch > number:
                break
            numbers.append(row)
    return numbers


def stream_threads() -> set[threading.Thread]:
    """Return only the threads of streams: those of another test or a library may end or begin at any moment."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("row-stream")}


@settings(deadline=None)  # the first call loads pyarrow's functions
@given(sizes=sizes.filter(any), buffer=buffers, count=readers, number=st.integers(0, 3))
def test_an_epoch_has_every_row_once_for_any_readers(sizes: list[int], buffer: int, count: int, number: int) -> None:
    parts = [epoch(stream(sizes, buffer, StreamReader(index, count)), number) for index in range(count)]
    assert sorted(itertools.chain(*parts)) == list(range(sum(sizes)))


@settings(deadline=None)  # the first call loads pyarrow's functions
@given(sizes=sizes.filter(any), buffer=buffers, count=readers, data=st.data())
def test_a_stream_resumes_from_any_position(sizes: list[int], buffer: int, count: int, data: st.DataObject) -> None:
    reader = StreamReader(data.draw(st.integers(0, count - 1)), count)
    unbroken = take_rows(stream(sizes, buffer, reader), 40)
    at = data.draw(st.integers(0, 25))
    for position in {unbroken[at][1], unbroken[at - 1][2]} if at else {unbroken[0][1]}:
        saved = json.loads(json.dumps(asdict(position)))
        start = StreamPosition(saved["epoch"], tuple(saved["unit_rows"]), saved["row"])
        assert take_rows(stream(sizes, buffer, reader), 40 - at, start) == unbroken[at:]


def test_epochs_seeds_and_readers_have_their_own_orders() -> None:
    sizes = [20] * 5
    orders = [epoch(stream(sizes, 30, seed=seed), number) for seed, number in ((0, 0), (0, 1), (1, 0), (-1, 0))]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == epoch(stream(sizes, 30), 0)
    assert orders[0] != sorted(orders[0])
    assert epoch(stream(sizes, 30, StreamReader(0, 2)), 0) != epoch(stream(sizes, 30, StreamReader(1, 2)), 0)


def test_rows_are_shuffled_beyond_their_shard() -> None:
    """With a buffer of two shards, the first half of an epoch has rows of most shards."""
    order = epoch(stream([100] * 10, 200), 0)
    changes = sum(left // 100 != right // 100 for left, right in itertools.pairwise(order))
    assert changes > 500
    assert Counter(number // 100 for number in order[:500]).most_common()[-1][1] < 100


@given(shards=st.integers(1, 300), count=st.integers(1, 300))
def test_readers_have_nearly_equal_numbers_of_units(shards: int, count: int) -> None:
    units = shards * parts_per_shard(shards, count)
    assert units % count == 0 or units >= 8 * count
    assert parts_per_shard(shards, count) <= count


def test_only_shards_with_rows_to_come_are_read_again() -> None:
    read: list[int] = []

    def load(shard: int) -> pa.Table:
        read.append(shard)
        return load_of(sizes)(shard)  # type: ignore[operator]

    sizes = [50] * 40
    whole = stream(sizes, 60)
    late = take_rows(whole, 1500)[-1][1]
    assert len(late.unit_rows) > 30
    first = take_rows(stream(sizes, 60, load=load), 1, late)[0]
    assert first[0] == take_rows(whole, 1500)[-1][0]
    # a block of two shards, a buffer of rows from a few earlier ones, and the shards read in advance
    assert len(read) < 20


def test_reading_ahead_is_bounded() -> None:
    """A consumer that pauses stops the threads: memory does not grow with the dataset."""
    read: list[int] = []

    def load(shard: int) -> pa.Table:
        read.append(shard)
        return pa.table({"number": pa.array(range(10))})

    others = stream_threads()
    with closing(stream([10] * 1000, 10, load=load).blocks()) as blocks:
        next(blocks)
        seen = -1
        while len(read) > seen:
            seen = len(read)
            time.sleep(0.1)
        # the first block has two units, the second one; two are read in advance, and one more is being read
        assert seen <= 7
        assert next(blocks).rows.num_rows == 10
        assert stream_threads() - others
    assert not stream_threads() - others


@pytest.mark.parametrize("consumed", [0, 3])
def test_a_threads_error_is_raised_when_its_rows_are_due(consumed: int) -> None:
    def load(shard: int) -> pa.Table:
        if shard == bad:
            raise UserError("shard is damaged")
        return pa.table({"number": pa.array([shard])})

    whole = stream([1] * 8, 1)
    bad = whole.units(0)[consumed + 1].shard
    blocks = stream([1] * 8, 1, load=load).blocks()
    others = stream_threads()
    given = [next(blocks) for _ in range(consumed)]
    assert len(given) == consumed
    with pytest.raises(UserError, match="damaged"):
        next(blocks)
    assert not stream_threads() - others


def test_closing_cancels_work_that_has_not_begun() -> None:
    """It does not wait for the block in preparation."""
    begun: list[int] = []

    def load(shard: int) -> pa.Table:
        begun.append(shard)
        if len(begun) > 3:
            time.sleep(0.2)
        return pa.table({"number": pa.array([shard])})

    blocks = stream([1] * 1000, 1, load=load).blocks()
    next(blocks)
    blocks.close()
    read = len(begun)
    time.sleep(0.3)
    assert len(begun) == read < 10


def test_an_empty_stream_is_reported() -> None:
    for empty in ([], [0, 0]):
        for reader in (SOLE_READER, StreamReader(2, 3)):
            with pytest.raises(UserError, match="nothing here"):
                next(stream(empty, reader=reader).blocks())


def test_a_reader_without_rows_in_an_epoch_gets_some_later() -> None:
    for index in range(4):
        assert [row for row, *_ in take_rows(stream([1], reader=StreamReader(index, 4)), 3)] == [0, 0, 0]


def test_a_position_of_other_data_is_refused() -> None:
    position = take_rows(stream([5, 5]), 3)[-1][1]
    with pytest.raises(UserError, match="had different rows"):
        take_rows(stream([5, 6]), 10, StreamPosition(position.epoch, (4, 4), 0))


@pytest.mark.parametrize(("buffer", "is_small"), [(12, True), (11, False)])
def test_a_dataset_that_fits_in_the_buffer_is_read_once(buffer: int, is_small: bool) -> None:
    sizes, reads = [5, 0, 4, 3], Counter[int]()
    load = load_of(sizes)

    def counted(shard: int) -> pa.Table:
        reads[shard] += 1
        return load(shard)  # type: ignore[operator]

    blocks = stream(sizes, buffer, load=counted).blocks()
    with closing(blocks):
        numbers = [number for number, _, _ in itertools.islice(rows(blocks), 12 * 5)]
    expected = [number for number, _, _ in itertools.islice(rows(stream(sizes, buffer).blocks()), 12 * 5)]
    assert numbers == expected
    assert (set(reads.values()) == {1}) == is_small
    assert set(reads) == {0, 1, 2, 3}
