"""Packing and batches, compared with the examples that they are made of."""

import itertools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from alm_pipeline.config import AlmConfig
from alm_pipeline.objective.chunking.arrays import TeacherChunks
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.training.data.arrays import BatchPlan, ExampleArrays
from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.data.examples import read_examples
from alm_pipeline.training.data.packing import PackedBatch, PackingPosition, make_batch, plan_next_batch
from alm_pipeline.training.data.row_stream import StreamPosition
from storage.columns import list_rows
from storage.errors import UserError

Batches = list[dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Example:
    """One example, as plain arrays."""

    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    starts: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]
    starts_debiased: npt.NDArray[np.bool_]
    ends_debiased: npt.NDArray[np.bool_]


def example(length: int, seed: int = 0) -> Example:
    """Return random ids, and chunks over some of the tokens with gaps between them; some reach back over others."""
    generator = np.random.default_rng([length, seed])
    edges = np.unique(generator.integers(1, length + 1, 6)) if length > 1 else np.zeros(0, np.int64)
    starts, ends = edges[:-1].astype(np.int32), edges[1:].astype(np.int32)
    selected = generator.random(len(starts)) < 0.7
    logprobs = -generator.random(selected.sum()).astype(np.float32)
    ids = generator.integers(1, 1000, length).astype(np.int32)
    starts = np.where(generator.random(len(starts)) < 0.3, edges[:1], starts).astype(np.int32)[selected]
    flags = generator.random((2, len(starts))) < 0.5
    return Example(ids, logprobs, starts, ends[selected], flags[0], flags[1])


def joined(examples: list[Example]) -> ExampleArrays:
    tokens, chunks = (
        np.cumsum([0, *map(len, arrays)], dtype=np.int64)
        for arrays in ([item.token_ids for item in examples], [item.logprobs for item in examples])
    )
    ids, *columns = (
        np.concatenate([getattr(item, name) for item in examples])
        for name in ("token_ids", "logprobs", "starts", "ends", "starts_debiased", "ends_debiased")
    )
    counts = np.diff(chunks).astype(np.int32)
    return ExampleArrays(ids, tokens, np.zeros(0, np.bool_), TeacherChunks(chunks, counts, counts, *columns))


def batch_of(rows: list[list[Example]]) -> PackedBatch:
    numbers = np.repeat(np.arange(len(rows), dtype=np.int32), [len(row) for row in rows])
    return make_batch(joined([item for row in rows for item in row]), BatchPlan(np.arange(len(numbers)), numbers))


def pack(lengths: list[int], batch_tokens: int, row_tokens: int) -> Iterator[tuple[BatchPlan, PackingPosition]]:
    """Yield all batches except the last, which more examples could join."""
    place = PackingPosition()
    while found := plan_next_batch(np.array(lengths), place, batch_tokens, row_tokens):
        yield found
        place = found[1]


def loop_pack(lengths: list[int], batch_tokens: int, row_tokens: int) -> Iterator[list[list[int]]]:
    """The oracle of `pack`, example by example."""
    count = max(1, batch_tokens // row_tokens)
    rows: list[list[int]] = [[] for _ in range(count)]
    for number, length in enumerate(lengths):
        if length > row_tokens:
            yield [[number]]
            continue
        fitting = [row for row in rows if sum(lengths[k] for k in row) + length <= row_tokens]
        if not fitting:
            yield [row for row in rows if row]
            rows = [[] for _ in range(count)]
        (fitting or rows)[0].append(number)


@settings(deadline=None)  # the first call compiles
@given(lengths=st.lists(st.integers(1, 24), max_size=60), rows=st.integers(1, 4))
def test_packing_matches_the_loop(lengths: list[int], rows: int) -> None:
    expected = list(loop_pack(lengths, rows * 20 + 7, 20))
    found = [group for group, _ in pack(lengths, rows * 20 + 7, 20)]
    assert len(found) == len(expected)
    for group, batch in zip(found, expected, strict=True):
        assert group.examples.tolist() == [number for row in batch for number in row]
        assert group.rows.tolist() == [number for number, row in enumerate(batch) for _ in row]


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 24), min_size=1, max_size=60), data=st.data())
def test_packing_resumes_without_the_earlier_examples(lengths: list[int], data: st.DataObject) -> None:
    whole = list(pack(lengths, 45, 20))
    at = data.draw(st.integers(0, len(whole)))
    place = whole[at - 1][1] if at else PackingPosition()
    for group, following in whole[at:]:
        again = plan_next_batch(np.array(lengths[place.example :]), PackingPosition(0, place.alone), 45, 20)
        assert again is not None
        assert (again[0].examples + place.example).tolist() == group.examples.tolist()
        assert (again[1].example + place.example, again[1].alone) == following
        place = following


def test_a_batch_ends_after_many_long_examples() -> None:
    """Among very many long examples, a batch ends before its rows are full, and no example is lost."""
    lengths = [1] + [21] * 2500 + [1, 20, 20, 20]
    found = list(pack(lengths, 40, 20))
    assert sorted(number for group, _ in found for number in group.examples.tolist()) == list(range(2503))
    assert max(place.alone for _, place in found) <= 1000


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_batch_holds_its_examples(shape: list[list[int]]) -> None:
    rows = [[example(length, 10 * r + c) for c, length in enumerate(row)] for r, row in enumerate(shape)]
    batch = batch_of(rows)
    ids, positions = batch.token_ids_BS.numpy(), batch.position_ids_BS.numpy()
    covered, predicted = batch.covered_N.numpy(), batch.predicted_N.numpy()
    width, chunk = ids.shape[1], 0
    expected_covered = np.zeros(ids.size, np.bool_)
    for r, row in enumerate(rows):
        column = 0
        for item in row:
            n = len(item.token_ids)
            assert ids[r, column : column + n].tolist() == item.token_ids.tolist()
            assert positions[r, column : column + n].tolist() == list(range(n))
            assert predicted[r * width + column : r * width + column + n].tolist() == [k > 0 for k in range(n)]
            flags = item.starts_debiased, item.ends_debiased
            for value, start, end, *debiased in zip(item.logprobs, item.starts, item.ends, *flags, strict=True):
                first = r * width + column
                assert [batch.starts_debiased_C[chunk], batch.ends_debiased_C[chunk]] == debiased
                expected_covered[first + start : first + end] = True
                assert batch.first_token_C[chunk] == first + start
                assert batch.last_token_C[chunk] == first + end - 1
                assert batch.teacher_logprobs_C[chunk] == value
                chunk += 1
            column += n
        assert not ids[r, column:].any()
        assert not positions[r, column:].any()
        assert not predicted[r * width + column : (r + 1) * width].any()
    assert len(batch.last_token_C) == chunk
    assert covered.tolist() == expected_covered.tolist()


def test_rows_have_few_widths_and_little_padding() -> None:
    widths = {longest: batch_of([[example(longest, 0)]]).token_ids_BS.shape[1] for longest in range(1, 600)}
    assert all(0 <= width - longest <= longest / 8 for longest, width in widths.items())
    assert len({width for longest, width in widths.items() if longest > 256}) <= 13
    assert widths[512] == 512


@pytest.fixture
def stream(config: AlmConfig, tmp_path: Path) -> BatchStream:
    """A stream over two or three shards, with rows so short that some examples are batches of their own."""
    pipeline = Pipeline(config, str(tmp_path))
    pipeline.cache()
    train = config.train.model_copy(update={"row_tokens": 59, "shuffle_buffer": 20})
    return BatchStream(pipeline.caches, config.objective, train)


def again(stream: BatchStream, rank: int = 0, ranks: int = 1) -> BatchStream:
    return BatchStream(stream.datasets, stream.objective, stream.train, rank, ranks)


def batches(stream: object, count: int) -> Batches:
    return list(itertools.islice(iter(stream), count))  # type: ignore[call-overload]


def same(left: Batches, right: Batches) -> bool:
    return len(left) == len(right) and all(
        one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        for one, other in zip(left, right, strict=True)
    )


def test_the_stream_resumes_from_any_state(stream: BatchStream) -> None:
    """From a state of a few hundred bytes the batches continue unchanged, also across the end of an epoch."""
    for rank, ranks in ((0, 1), (1, 3)):
        unbroken, states, whole = again(stream, rank, ranks), [], []
        for batch in itertools.islice(iter(unbroken), 60):
            whole.append(batch)
            states.append(json.dumps(unbroken.state_dict()))
        assert json.loads(states[-1])["epoch"] > 0
        assert any(json.loads(state)["alone"] for state in states)
        assert max(map(len, states)) < 300
        assert not same(whole[:1], whole[1:2])
        for at in range(0, 55, 3):
            later = again(stream, rank, ranks)
            later.load_state_dict(json.loads(states[at]))
            assert later.state_dict() == json.loads(states[at])
            assert same(batches(later, 5), whole[at + 1 : at + 6])


def test_a_chunking_by_tokens_without_ends_is_refused(stream: BatchStream) -> None:
    objective = stream.objective.model_copy(update={"chunking": "pair_bias"})
    with pytest.raises(ValueError, match="the chunking pair_bias looks at tokens"):
        next(iter(BatchStream(stream.datasets, objective, stream.train)))


def test_every_iteration_starts_at_the_loaded_state(stream: BatchStream) -> None:
    fresh = again(stream)
    first = fresh.state_dict()
    assert same(batches(fresh, 3), batches(fresh, 3))
    assert fresh.state_dict() != first
    fresh.load_state_dict(first)
    assert fresh.state_dict() == first


def test_a_state_of_other_readers_is_refused(stream: BatchStream) -> None:
    other = again(stream, 1, 2)
    other.load_state_dict(again(stream, 0, 2).state_dict())
    with pytest.raises(UserError, match="reader 0 of 2, and this is reader 1 of 2"):
        next(iter(other))


def in_processes(number: int) -> dict[str, Any]:
    """Return the settings of a DataLoader with worker processes, also where an earlier test ran a flow."""

    def forget_threads(_: int) -> None:
        # what Prefect's threads do at their process's end fails in a fork, which lacks them
        threading._threading_atexits.clear()  # type: ignore[attr-defined]

    return {"num_workers": number, "worker_init_fn": forget_threads}


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata 0.11 under torch 2.13
@pytest.mark.parametrize("workers", [0, 2])
def test_torchdatas_loader_carries_the_state(stream: BatchStream, workers: int) -> None:
    """The state of every worker, in the middle of its batches. Plain DataLoader gives the same batches."""
    loaders = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")

    def loader() -> object:
        return loaders.StatefulDataLoader(again(stream, 1, 2), batch_size=None, **in_processes(workers))

    first = loader()
    whole = []
    for batch in itertools.islice(iter(first), 13):
        whole.append(batch)
    state = json.loads(json.dumps(first.state_dict()))  # type: ignore[attr-defined]
    later = loader()
    later.load_state_dict(state)  # type: ignore[attr-defined]
    plain = batches(DataLoader(again(stream, 1, 2), batch_size=None, **in_processes(workers)), 20)
    assert same(plain[:13], whole)
    assert same(plain[13:], batches(later, 7))


def trained(stream: BatchStream, number: int) -> list[bytes]:
    """Return the examples of an epoch, in order."""
    found: list[bytes] = []
    for block in stream.rows(stream.reader()).blocks(StreamPosition(number)):
        if block.position.epoch > number:
            break
        found += [ids.tobytes() for ids in list_rows(block.rows["token_ids"])]
    return found


def test_ranks_share_the_examples_of_an_epoch(stream: BatchStream) -> None:
    whole = sorted(trained(stream, 0))
    assert trained(stream, 0) != trained(stream, 1)
    assert sorted(trained(stream, 1)) == whole
    for ranks in (2, 5):
        parts = [trained(again(stream, rank, ranks), 0) for rank in range(ranks)]
        assert sorted(itertools.chain(*parts)) == whole
        assert all(parts)


def test_workers_share_a_ranks_part(stream: BatchStream) -> None:
    """The first batches of two workers of two ranks are those of readers 0 to 3 of 4."""
    for rank in range(2):
        loader = DataLoader(again(stream, rank, 2), batch_size=None, **in_processes(2))
        alone = [batches(again(stream, 2 * rank + worker, 4), 3) for worker in range(2)]
        assert same(batches(loader, 6), [batch for pair in zip(*alone, strict=True) for batch in pair])


def test_held_out_examples_are_never_trained_on(stream: BatchStream) -> None:
    examples, tokens = stream.datasets["examples"], stream.datasets["student_tokens"]
    held_out = set()
    for shard in range(len(examples.complete_manifest().shards)):
        rows = pc.equal(examples.read_shard(shard)["split"], "held_out")
        held_out |= {ids.tobytes() for ids in list_rows(tokens.read_shard(shard)["token_ids"].filter(rows))}
    assert held_out
    assert not held_out & set(trained(stream, 0))


def test_only_examples_with_a_chunk_are_read(stream: BatchStream) -> None:
    shards = range(len(stream.datasets["scores"].complete_manifest().shards))
    rows = [read_examples(stream.datasets, shard, "train", stream.objective) for shard in shards]
    for table in rows:
        chunks = ExampleArrays.of(table).chunks
        assert np.diff(chunks.offsets).min() > 0
        assert np.isfinite(chunks.logprobs).all()
        assert (chunks.student_starts > 0).all()
        assert (chunks.student_ends > chunks.student_starts).all()
    assert sum(table.num_rows for table in rows) == len(trained(stream, 0))


@pytest.mark.parametrize(
    ("held_out", "gamma", "message"),
    [
        (0.999999, 0.1, r"no example to train on \(of 80, 80 are held out, 0 were dropped, and no other has a chunk"),
        (0.25, 1.0, r"are held out, 0 were dropped, .*more than objective\.gamma \(1\)"),
    ],
    ids=["held out", "unsure teacher"],
)
def test_nothing_to_train_on_is_reported(
    held_out: float, gamma: float, message: str, config: AlmConfig, tmp_path: Path
) -> None:
    corpus = config.corpus.model_copy(update={"held_out": held_out})
    pipeline = Pipeline(config.model_copy(update={"corpus": corpus}), str(tmp_path))
    pipeline.cache()
    objective = config.objective.model_copy(update={"gamma": gamma, "chunking": "boundary"})
    with pytest.raises(UserError, match=message):
        next(iter(BatchStream(pipeline.caches, objective, config.train)))
