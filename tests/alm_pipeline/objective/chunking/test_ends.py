"""Where chunks may end by their last tokens, checked against a loop."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from alm_pipeline.objective.chunking.ends import PairBiasEnds, SideTokens
from alm_pipeline.objective.chunking.pair_bias import PairBiases
from storage.schemas import ChunkKind


@st.composite
def examples(draw: st.DrawFn) -> list[tuple[list[list[int]], list[list[int]], list[int]]]:
    """For each example: each chunk's teacher and student ids, and its kind; an example may have tokens but no chunk."""

    def chunks(most: int, count: int) -> list[list[int]]:
        return [draw(st.lists(st.integers(0, most), min_size=1, max_size=3)) for _ in range(count)]

    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    kinds = [draw(st.lists(st.sampled_from([0, 1, 2]), min_size=n, max_size=n)) for n in lengths]
    return [(chunks(6, n), chunks(4, n), of) for n, of in zip(lengths, kinds, strict=True)]


def side(chunks: list[list[list[int]]], dropped: int) -> SideTokens:
    """One side's tokens; an example without chunks has `dropped` tokens."""
    ids = [list(itertools.chain(*example)) or [0] * dropped for example in chunks]
    offsets, chunk_offsets = (np.cumsum([0, *map(len, rows)], dtype=np.int64) for rows in (ids, chunks))
    of_chunk = np.array([len(chunk) for example in chunks for chunk in example], np.int32)
    return SideTokens(np.array(list(itertools.chain(*ids)), np.int32), offsets, of_chunk, chunk_offsets)


Chunks = list[list[int]]


@given(examples=examples(), dropped=st.integers(0, 2), seed=st.integers(0, 9))
def test_pair_bias_ends_are_the_loop(examples: list[tuple[Chunks, Chunks, list[int]]], dropped: int, seed: int) -> None:
    kinds = np.array([kind for *_, of in examples for kind in of], np.uint8)
    teacher, student = side([one for one, *_ in examples], dropped), side([other for _, other, _ in examples], 0)
    pairs = np.array(list(itertools.product(range(7), range(5))), np.int32)
    towards = np.random.default_rng(seed).random((2, len(pairs))).astype(np.float32)
    got = PairBiasEnds(PairBiases(*pairs.T, *towards), 0.5).closes(teacher, student, kinds)
    lasts = [(one[-1], other[-1]) for left, right, _ in examples for one, other in zip(left, right, strict=True)]
    within = [bool((towards[:, 5 * one + other] <= 0.5).all()) for one, other in lasts]
    assert got.tolist() == [ends or kind == ChunkKind.PAIRED for ends, kind in zip(within, kinds, strict=True)]
