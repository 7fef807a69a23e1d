"""Mixtures: exact shares at every row, each source's own order, the same rows from any position."""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alm_pipeline.config import AlmConfig
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.training.data.batch_stream import BatchStream
from alm_pipeline.training.data.examples import read_examples
from alm_pipeline.training.data.mixture import (
    MixedPosition,
    MixedStream,
    TrainingSource,
    next_sources,
    source_seed,
    whole_shares,
)
from alm_pipeline.training.data.row_stream import SOLE_READER, RowStream, StreamReader
from storage.columns import list_rows
from storage.errors import UserError
from tests.alm_pipeline.training.data.test_completions import pair_rows, with_rows

Batches = list[dict[str, torch.Tensor]]

weights = st.lists(st.integers(1, 10**6).map(lambda number: number / 1000), min_size=1, max_size=9)


@settings(deadline=None)  # the first call compiles
@given(weights=weights, rows=st.integers(1, 3000))
def test_every_count_is_less_than_one_row_from_its_share_at_every_row(weights: list[float], rows: int) -> None:
    """By the definition, in fractions: |count − w·n| < 1, for the decimals that the weights are written as."""
    exact = [Fraction(repr(weight)) for weight in weights]
    order = next_sources(whole_shares(weights), [0] * len(weights), rows)
    counts = np.cumsum(order[:, None] == np.arange(len(weights)), axis=0)
    assert counts[-1].sum() == rows
    for source, weight in enumerate(exact):
        share = weight / sum(exact)
        # count − share·n, times the share's denominator: whole numbers, so that nothing is rounded
        distance = counts[:, source] * share.denominator - np.arange(1, rows + 1) * share.numerator
        assert np.abs(distance).max() < share.denominator


@settings(deadline=None)  # the first call compiles
@given(weights=weights, data=st.data())
def test_any_window_has_its_shares_to_less_than_two_rows(weights: list[float], data: st.DataObject) -> None:
    """That of a window is at most the difference of two prefixes; the issue asks for one example at its end."""
    first, length = data.draw(st.integers(0, 500)), data.draw(st.integers(1, 500))
    order = next_sources(whole_shares(weights), [0] * len(weights), first + length)[first:]
    counts = np.bincount(order, minlength=len(weights))
    assert np.abs(counts - np.array(weights) / sum(weights) * length).max() < 2


@settings(deadline=None)  # the first call compiles
@given(weights=weights, at=st.integers(0, 700))
def test_the_order_goes_on_from_any_counts(weights: list[float], at: int) -> None:
    shares = whole_shares(weights)
    whole = next_sources(shares, [0] * len(weights), at + 300)
    counts = np.bincount(whole[:at], minlength=len(weights)).tolist()
    assert next_sources(shares, counts, 300).tolist() == whole[at:].tolist()


def test_shares_stay_exact_after_any_number_of_rows() -> None:
    """From 10¹⁵ rows on, where a float's last digit is an eighth of a row, and a product of 64 bits overflows."""
    shares = whole_shares([0.3, 0.123457, 0.576543])
    total = int(shares.sum())
    counts = [int(share) * (10**15 // total) for share in shares]
    assert next_sources(shares, counts, 2000).tolist() == next_sources(shares, [0, 0, 0], 2000).tolist()


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_not_positive_is_refused(weight: float) -> None:
    with pytest.raises(UserError, match=r"the weight .* of a source is not a positive number"):
        whole_shares([1.0, weight])


def test_weights_of_too_many_digits_are_refused() -> None:
    with pytest.raises(UserError, match="have too many digits: round them to 6"):
        whole_shares([0.1234567890123456, 0.3333333333333333, 1.0])


def test_weights_are_decimals_and_only_ratios_count() -> None:
    assert whole_shares([0.1, 0.2, 0.7]).tolist() == [1, 2, 7]
    assert whole_shares([5, 10, 35]).tolist() == [1, 2, 7]


# streams

shapes = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any), min_size=1, max_size=5)


def source(number: int, sizes: Sequence[int], reader: StreamReader = SOLE_READER) -> RowStream:
    """Return a stream of shards of these sizes; each row has its source and its number."""

    def load(shard: int) -> pa.Table:
        rows = range(sum(sizes[:shard]), sum(sizes[: shard + 1]))
        return pa.table({"source": pa.array([number] * len(rows), pa.int64()), "row": pa.array(rows, pa.int64())})

    return RowStream(
        load, len(sizes), seed=source_seed(0, str(number)), buffer=5, nothing=lambda: "nothing", reader=reader
    )


def mixed(
    sources: Sequence[Sequence[int]], weights: Sequence[float], reader: StreamReader = SOLE_READER
) -> MixedStream:
    return MixedStream([source(*item, reader) for item in enumerate(sources)], whole_shares(weights))


def rows_of(
    stream: MixedStream, count: int, start: MixedPosition | None = None
) -> list[tuple[int, int, MixedPosition]]:
    """Return the source and number of each row, and the position before it."""
    found = []
    with closing(stream.blocks(start)) as blocks:
        while len(found) < count:
            block = next(blocks)
            columns = zip(*(column.to_pylist() for column in block.rows), strict=True)
            found += [(*row, block.position_at(at)) for at, row in enumerate(itertools.islice(columns, count))]
    return found[:count]


@settings(deadline=None, max_examples=40)
@given(sources=shapes, count=st.integers(1, 3), data=st.data())
def test_each_source_comes_in_its_own_order(sources: list[list[int]], count: int, data: st.DataObject) -> None:
    """For each of several readers, also where a source ends and begins again."""
    weights = data.draw(st.lists(st.integers(1, 20), min_size=len(sources), max_size=len(sources)))
    for index in range(count):
        reader = StreamReader(index, count)
        if any(not own_rows(number, sizes, reader, 1) for number, sizes in enumerate(sources)):
            continue  # a reader without a row waits for one forever, as it does without a mixture
        found = rows_of(mixed(sources, weights, reader), 60)
        assert [row[0] for row in found] == next_sources(whole_shares(weights), [0] * len(sources), 60).tolist()
        for number, sizes in enumerate(sources):
            mine = [row for from_, row, _ in found if from_ == number]
            assert mine == own_rows(number, sizes, reader, len(mine))


def own_rows(number: int, sizes: Sequence[int], reader: StreamReader, count: int) -> list[int]:
    """Return the first rows of a source alone; [] if the reader has none."""
    stream = source(number, sizes, reader)
    if not any(stream._read(unit).num_rows for epoch in range(1) for unit in stream.units(epoch)):
        return []
    found: list[int] = []
    with closing(stream.blocks()) as blocks:
        while len(found) < count:
            found += next(blocks).rows["row"].to_pylist()
    return found[:count]


@settings(deadline=None, max_examples=40)
@given(sources=shapes, data=st.data())
def test_a_mixture_resumes_from_any_position(sources: list[list[int]], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 20), min_size=len(sources), max_size=len(sources)))
    names = [str(number) for number in range(len(sources))]
    unbroken = rows_of(mixed(sources, weights), 50)
    at = data.draw(st.integers(0, 40))
    start = MixedPosition.of_state(json.loads(json.dumps(unbroken[at][2].state(names))), names)
    later = rows_of(mixed(sources, weights), 50 - at, start)
    assert [row[:2] for row in later] == [row[:2] for row in unbroken[at:]]


def test_the_readers_of_an_epoch_share_each_source() -> None:
    """Three readers together have every row of a source once, before the first of them begins it again."""
    sources, count = [[8, 8, 8], [24]], 3
    found = Counter[tuple[int, int]]()
    for index in range(count):
        reader = StreamReader(index, count)
        for number, sizes in enumerate(sources):
            with closing(source(number, sizes, reader).blocks()) as blocks:
                for block in itertools.takewhile(lambda block: not block.position.epoch, blocks):
                    found.update((number, row) for row in block.rows["row"].to_pylist())
        taken = [row[:2] for row in rows_of(mixed(sources, [1, 1], reader), 16)]
        assert len(set(taken)) == 16  # none twice, before one of them is through
    assert set(found.values()) == {1}
    assert len(found) == 48


# batches


@pytest.fixture
def sources(config: AlmConfig, tmp_path: Path) -> list[TrainingSource]:
    """Two sources that share nothing but the store: one of two or three shards, one of a fifth of the texts."""
    corpora = [config.corpus, config.corpus.model_copy(update={"name": "fifth", "sample": 0.2})]
    pipelines = [Pipeline(config.model_copy(update={"corpus": corpus}), str(tmp_path)) for corpus in corpora]
    for pipeline in pipelines:
        pipeline.cache()
    weights = (0.25, 0.75)
    return [
        TrainingSource(pipeline.config.corpus.name, pipeline.caches, weight)
        for pipeline, weight in zip(pipelines, weights, strict=True)
    ]


def batch_stream(
    sources: list[TrainingSource], config: AlmConfig, rank: int = 0, ranks: int = 1, seed: int = 0
) -> BatchStream:
    train = config.train.model_copy(update={"row_tokens": 59, "shuffle_buffer": 20, "seed": seed})
    return BatchStream(sources, config.objective, train, rank, ranks)


def batches(stream: BatchStream, count: int) -> Batches:
    return list(itertools.islice(iter(stream), count))


def same(left: Batches, right: Batches) -> bool:
    return all(
        one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        for one, other in zip(left, right, strict=True)
    )


def test_batches_resume_from_any_state(sources: list[TrainingSource], config: AlmConfig) -> None:
    for rank, ranks in ((0, 1), (1, 2)):
        unbroken, states, whole = batch_stream(sources, config, rank, ranks), [], []
        for batch in itertools.islice(iter(unbroken), 40):
            whole.append(batch)
            states.append(json.dumps(unbroken.state_dict()))
        assert json.loads(states[-1])["sources"][1]["epoch"] > 0
        for at in range(0, 35, 4):
            later = batch_stream(sources, config, rank, ranks)
            later.load_state_dict(json.loads(states[at]))
            assert later.state_dict() == json.loads(states[at])
            assert same(batches(later, 4), whole[at + 1 : at + 5])


def test_batches_know_the_source_of_what_they_hold(sources: list[TrainingSource], config: AlmConfig) -> None:
    """By ids: those of an example's source, which a state's batches are read again with."""
    stream = batch_stream(sources, config)
    start, found = stream.state_dict(), batches(stream, 30)
    names = [example.split(": ")[0] for example in stream.example_ids(start, 30)]
    examples = torch.stack([batch["source_examples_K"] for batch in found]).sum(0).tolist()
    assert examples == [names.count(source.name) for source in sources]
    for batch in found:
        assert len(batch["source_C"]) == len(batch["last_token_C"])
        assert batch["source_tokens_K"].sum() == batch["predicted_N"].sum()
        assert set(batch["source_C"].tolist()) == set(batch["source_examples_K"].nonzero()[:, 0].tolist())


def test_the_shares_are_those_of_the_weights(sources: list[TrainingSource], config: AlmConfig) -> None:
    """Of the examples that left the stream; those in batches wait for no more than a batch."""
    stream = batch_stream(sources, config)
    batches(stream, 200)
    counts = [source["rows"] for source in stream.state_dict()["sources"]]
    assert abs(counts[0] - sum(counts) / 4) < 1


def test_another_seed_mixes_other_examples_in_the_same_shares(sources: list[TrainingSource], config: AlmConfig) -> None:
    zero, other = (batch_stream(sources, config, seed=seed) for seed in (0, 1))
    ids = [stream.example_ids(stream.state_dict(), 20) for stream in (zero, other)]
    assert ids[0] != ids[1]
    assert ids[0] == batch_stream(sources, config).example_ids(zero.state_dict(), 20)


def test_a_state_of_other_sources_is_refused(sources: list[TrainingSource], config: AlmConfig) -> None:
    stream = batch_stream(sources, config)
    stream.load_state_dict(batch_stream(sources[:1], config).state_dict())
    with pytest.raises(UserError, match=r"was saved for the sources .*, and these are .*, fifth: resume with the same"):
        next(iter(stream))


def test_texts_are_learned_whole_beside_completions(config: AlmConfig, tmp_path: Path) -> None:
    """A source of prompts with completions has a mark for each token; texts beside it get one that is always true."""
    texts = Pipeline(config, str(tmp_path))
    pairs = Pipeline(
        with_rows(config, tmp_path / "pairs.jsonl", [*pair_rows(60)], name="pairs", text="text"), str(tmp_path)
    )
    found = []
    for pipeline in (texts, pairs):
        pipeline.cache()
        found.append(TrainingSource(pipeline.config.corpus.name, pipeline.caches))
    stream = batch_stream(found, config)
    rows = stream.rows(stream.reader())
    assert isinstance(rows, MixedStream)
    whole, parts = (mixed_source.load(0) for mixed_source in rows.streams)
    assert whole.drop(["source", "learned"]).equals(read_examples(texts.caches, 0, "train", config.objective))
    assert all(learned.all() for learned in list_rows(whole["learned"]))
    assert parts.drop(["source"]).equals(read_examples(pairs.caches, 0, "train", config.objective))
    assert not all(learned.all() for learned in list_rows(parts["learned"]))
    several = batches(stream, 30)
    assert all(batch["source_tokens_K"].sum() == batch["predicted_N"].sum() for batch in several)
    assert {source for batch in several for source in batch["source_C"].tolist()} == {0, 1}
