"""Packing and batches, held to the examples they are made of."""

import itertools
import random
from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alm_pipeline.config import AlmConfig
from alm_pipeline.distillation.stream import BatchStream, CachedExample, make_batch, pack
from alm_pipeline.objective.merging import TeacherChunks
from alm_pipeline.pipeline import Pipeline
from storage.errors import UserError


def example(length: int, seed: int = 0) -> CachedExample:
    """Random ids, and chunks over a part of the tokens with gaps between them."""
    generator = np.random.default_rng([length, seed])
    edges = np.unique(generator.integers(1, length + 1, 6)) if length > 1 else np.zeros(0, np.int64)
    starts, ends = edges[:-1], edges[1:]
    kept = generator.random(len(starts)) < 0.7
    logprobs = -generator.random(kept.sum()).astype(np.float32)
    ids = generator.integers(1, 1000, length).astype(np.int32)
    return CachedExample(ids, TeacherChunks(logprobs, starts[kept].astype(np.int64), ends[kept].astype(np.int64)))


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), rows=st.integers(1, 4))
def test_packing_loses_nothing_and_keeps_to_the_budget(lengths: list[int], rows: int) -> None:
    examples = [example(length, index) for index, length in enumerate(lengths)]
    batches = list(pack(iter(examples), batch_tokens=rows * 20, row_tokens=20))
    packed = [id(item) for batch in batches for row in batch for item in row]
    assert sorted(packed) == sorted(map(id, examples))
    for batch in batches:
        assert len(batch) <= rows
        for row in batch:
            assert len(row) == 1 or sum(len(item.token_ids) for item in row) <= 20


@given(st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_batch_is_its_examples(shape: list[list[int]]) -> None:
    rows = [[example(length, 10 * r + c) for c, length in enumerate(row)] for r, row in enumerate(shape)]
    batch = make_batch(rows)
    ids, positions = batch.token_ids_BS.numpy(), batch.position_ids_BS.numpy()
    chunk_of, predicted = batch.chunk_of_token_N.numpy(), batch.predicted_N.numpy()
    width, chunk = ids.shape[1], 0
    expected_chunks = np.full(ids.size, -1)
    for r, row in enumerate(rows):
        column = 0
        for item in row:
            n = len(item.token_ids)
            assert ids[r, column : column + n].tolist() == item.token_ids.tolist()
            assert positions[r, column : column + n].tolist() == list(range(n))
            assert predicted[r * width + column : r * width + column + n].tolist() == [k > 0 for k in range(n)]
            for value, start, end in zip(
                item.chunks.logprobs, item.chunks.student_starts, item.chunks.student_ends, strict=True
            ):
                first = r * width + column
                expected_chunks[first + start : first + end] = chunk
                assert batch.last_token_C[chunk] == first + end - 1
                assert batch.teacher_logprobs_C[chunk] == value
                chunk += 1
            column += n
        assert not predicted[r * width + column : (r + 1) * width].any()
    assert len(batch.last_token_C) == chunk
    assert chunk_of.tolist() == expected_chunks.tolist()


@pytest.fixture
def stream(config: AlmConfig, tmp_path: object) -> Iterator[BatchStream]:
    pipeline = Pipeline(config, str(tmp_path))
    pipeline.cache()
    return BatchStream(pipeline.caches, config.objective, config.train)


def first_batches(stream: BatchStream, count: int) -> list[dict[str, torch.Tensor]]:
    return list(itertools.islice(iter(stream), count))


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def test_the_stream_starts_anywhere(stream: BatchStream) -> None:
    """The batches from the k-th on are those of a stream that was read that far, over the end of an epoch too."""
    whole = first_batches(stream, 40)
    later = BatchStream(stream.datasets, stream.objective, stream.train, first_batch=33)
    assert all(map(same, whole[33:], first_batches(later, 7)))
    assert not same(whole[0], whole[1])


def test_epochs_have_their_own_order_and_the_same_examples(stream: BatchStream) -> None:
    def epoch(number: int) -> list[bytes]:
        count = len(list(stream._epoch(random.Random(0))))
        return [item.token_ids.tobytes() for item in itertools.islice(stream._endless(), count * (number + 1))][-count:]

    assert epoch(0) != epoch(1)
    assert sorted(epoch(0)) == sorted(epoch(1))


def test_held_out_examples_are_never_trained_on(config: AlmConfig, stream: BatchStream) -> None:
    examples, tokens = stream.datasets["examples"], stream.datasets["student_tokens"]
    held_out = set()
    for shard in range(stream.shards):
        rows = pc.equal(examples.read_shard(shard)["split"], "held_out")
        held_out |= {tuple(ids) for ids in tokens.read_shard(shard)["token_ids"].filter(rows).to_pylist()}
    trained = {tuple(item.token_ids.tolist()) for item in stream._epoch(random.Random(0))}
    assert held_out
    assert trained
    assert not held_out & trained


def test_nothing_to_train_on_is_told(config: AlmConfig, tmp_path: object) -> None:
    corpus = config.corpus.model_copy(update={"held_out": 0.999999})
    pipeline = Pipeline(config.model_copy(update={"corpus": corpus}), str(tmp_path))
    pipeline.cache()
    with pytest.raises(UserError, match="no example to train on"):
        next(iter(BatchStream(pipeline.caches, config.objective, config.train)))
