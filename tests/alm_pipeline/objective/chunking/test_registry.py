"""The table of chunkings: it is complete, and each entry does what its name says."""

from typing import get_args

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from alm_pipeline.config import Chunking, ObjectiveConfig
from alm_pipeline.objective.chunking.arrays import AlignedScores
from alm_pipeline.objective.chunking.ends import SideTokens
from alm_pipeline.objective.chunking.merging import FARTHEST_ANCHOR
from alm_pipeline.objective.chunking.pair_bias import PairBiases
from alm_pipeline.objective.chunking.registry import CHUNKINGS, chunk_ends, chunks_of
from alm_pipeline.vocabulary.byte_view import ByteView, byte_view
from storage.schemas import ChunkEnd

SPACE_BEFORE = np.array([False, False, True, True, True, False])
"""of each token of the example: one token per chunk on both sides"""
COUNT = len(SPACE_BEFORE)
OFFSETS = np.array([0, COUNT], np.int64)
ONES = np.ones(COUNT, np.int32)


@pytest.fixture(scope="module")
def view(byte_level: PreTrainedTokenizerFast) -> ByteView:
    return byte_view(byte_level.backend_tokenizer)


def side(view: ByteView) -> SideTokens:
    """The example's tokens: the first of the vocabulary that begin with a space, or do not."""
    without_space = ~view.starts_word & ~view.special & (view.lengths > 0)
    ids = np.where(SPACE_BEFORE, np.flatnonzero(view.starts_word)[:COUNT], np.flatnonzero(without_space)[:COUNT])
    return SideTokens(ids.astype(np.int32), OFFSETS, ONES, OFFSETS)


def scores() -> AlignedScores:
    """The teacher expects a boundary with certainty after the first and fourth chunk, and nowhere else."""
    logprobs = np.full(COUNT, -1.0, np.float32)
    boundary = np.where(np.isin(np.arange(COUNT), [0, 3]), 0.0, -9.0).astype(np.float32)
    kinds, ends = np.zeros(COUNT, np.uint8), np.append(SPACE_BEFORE[1:], False).astype(np.uint8)
    ends[[1, 2]] = ChunkEnd.ANCHOR
    return AlignedScores(OFFSETS, ONES, ONES, kinds, ends, np.zeros(0, np.bool_), OFFSETS, logprobs, boundary)


def biases(tokens: SideTokens) -> PairBiases:
    """The pairs after the first, second and fifth chunk have no bias, the others a high one."""
    ids, order = tokens.ids, np.argsort(tokens.ids)
    towards = np.where(np.isin(np.arange(COUNT), [0, 1, 4]), 0.0, 1.0).astype(np.float32)[order]
    return PairBiases(ids[order], ids[order], towards, towards)


def student_ends(chunking: Chunking, view: ByteView) -> list[int]:
    """Where the chunks of the example end, counted in student tokens; the first chunk has no prediction."""
    objective, tokens = ObjectiveConfig(chunking=chunking, debias="end"), side(view)
    ends = chunk_ends(objective, lambda: biases(tokens))
    return chunks_of(scores(), objective, tokens, tokens, ends).student_ends.tolist()


EXPECTED: dict[Chunking, list[int]] = {
    "boundary": [4, 6],
    "unconstrained": [2, 3, 4, 5, 6],
    "space": [3, 4, 6],
    "anchor": [3, 6],
    "pair_bias": [2, 5, 6],
}


def test_every_chunking_is_in_the_table() -> None:
    assert set(CHUNKINGS) == set(get_args(Chunking)) == set(EXPECTED)


@pytest.mark.parametrize("chunking", CHUNKINGS)
def test_each_chunking_ends_chunks_elsewhere(chunking: Chunking, view: ByteView) -> None:
    assert student_ends(chunking, view) == EXPECTED[chunking]


LONG = 3 * FARTHEST_ANCHOR


def ends_without_spaces(chunking: Chunking, gamma: float) -> list[int]:
    """As `student_ends`, of a script without white space: a boundary and a bias of 0.5 are likely everywhere."""
    offsets, ones, zeros = np.array([0, LONG], np.int64), np.ones(LONG, np.int32), np.zeros(LONG, np.uint8)
    level, ids = np.full(LONG, -0.1, np.float32), np.arange(LONG, dtype=np.int32)
    texts = AlignedScores(offsets, ones, ones, zeros, zeros, np.zeros(0, np.bool_), offsets, level, level)
    tokens, halves = SideTokens(ids, offsets, ones, offsets), np.full(LONG, 0.5, np.float32)
    objective = ObjectiveConfig(chunking=chunking, gamma=gamma)
    ends = chunk_ends(objective, lambda: PairBiases(ids, ids, halves, halves))
    return chunks_of(texts, objective, tokens, tokens, ends).student_ends.tolist()


def test_far_from_an_anchor_chunks_end_by_gamma() -> None:
    assert ends_without_spaces("anchor", 0.1) == [2 * (FARTHEST_ANCHOR + 1), LONG]
    assert ends_without_spaces("anchor", 1.0) == []


@pytest.mark.parametrize("chunking", CHUNKINGS)
def test_gamma_matters_where_the_table_says_so(chunking: Chunking) -> None:
    found = {tuple(ends_without_spaces(chunking, gamma)) for gamma in (0.1, 1.0)}
    assert (len(found) > 1) == CHUNKINGS[chunking].reads_gamma


@pytest.mark.parametrize("chunking", CHUNKINGS)
def test_ends_are_returned_for_chunkings_that_look_at_tokens(chunking: Chunking, view: ByteView) -> None:
    calls: list[None] = []

    def read_pair_biases() -> PairBiases:
        calls.append(None)
        return biases(side(view))

    ends = chunk_ends(ObjectiveConfig(chunking=chunking), read_pair_biases)
    assert (ends is not None) == CHUNKINGS[chunking].looks_at_tokens
    assert bool(calls) == CHUNKINGS[chunking].needs_pair_biases


@pytest.mark.parametrize("chunking", CHUNKINGS)
def test_ends_that_do_not_fit_the_chunking_are_refused(chunking: Chunking, view: ByteView) -> None:
    other: Chunking = "unconstrained" if CHUNKINGS[chunking].looks_at_tokens else "pair_bias"
    tokens = side(view)
    ends = chunk_ends(ObjectiveConfig(chunking=other), lambda: biases(tokens))
    with pytest.raises(ValueError, match=f"the chunking {chunking} .*look.* at tokens"):
        chunks_of(scores(), ObjectiveConfig(chunking=chunking), tokens, tokens, ends)
