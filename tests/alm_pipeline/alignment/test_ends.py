"""What is known at the ends of chunks, checked against a loop over tokens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alm_pipeline.alignment.chunks import ShardChunks
from alm_pipeline.alignment.ends import SideIds, chunk_ends
from alm_pipeline.vocabulary.token_edges import TokenEdge
from storage.schemas import ChunkEnd

Counts = list[list[int]]
"""tokens of each chunk, by example"""


def shard(teacher: Counts, student: Counts) -> ShardChunks:
    left, right = (np.array([count for example in side for count in example], np.int32) for side in (teacher, student))
    kinds, assistant = np.zeros(len(left), np.uint8), np.zeros(len(left), np.bool_)
    return ShardChunks(_offsets([len(example) for example in teacher]), left, right, left, kinds, assistant)


def _offsets(lengths: list[int]) -> np.ndarray:
    return np.cumsum([0, *lengths], dtype=np.int64)


def side(edges: list[list[int]]) -> SideIds:
    """One side whose token k has the edges k."""
    ids = np.array([edge for example in edges for edge in example], np.int32)
    return SideIds(ids, _offsets([len(example) for example in edges]), np.arange(8, dtype=np.uint8))


def loop_ends(counts: tuple[Counts, Counts], edges: tuple[list[list[int]], list[list[int]]]) -> list[int]:
    ends = []
    for example, (teacher, student) in enumerate(zip(*counts, strict=True)):
        places = [0, 0]
        for chunk in zip(teacher, student, strict=True):
            places = [place + count for place, count in zip(places, chunk, strict=True)]
            own = [of[example] for of in edges]
            before = [tokens[place - 1] if place else 0 for tokens, place in zip(own, places, strict=True)]
            after = [tokens[place] if place < len(tokens) else 0 for tokens, place in zip(own, places, strict=True)]
            boundary = all(edge & TokenEdge.BOUNDARY for edge in after)
            loose = any(edge & TokenEdge.LOOSE_END for edge in before)
            untold = all(edge & TokenEdge.PARTIAL_END for edge in before)
            ends.append(ChunkEnd.BOUNDARY * boundary + ChunkEnd.EXACT * (not loose and not untold))
    return ends


@st.composite
def shards(draw: st.DrawFn) -> tuple[tuple[Counts, Counts], tuple[list[list[int]], list[list[int]]]]:
    lengths = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    counts = [[[draw(st.integers(0, 2)) for _ in range(n)] for n in lengths] for _ in range(2)]
    # an example without chunks may have tokens
    sizes = [[sum(example) or draw(st.integers(0, 2)) for example in of] for of in counts]
    edges = [[[draw(st.integers(0, 7)) for _ in range(size)] for size in of] for of in sizes]
    return (counts[0], counts[1]), (edges[0], edges[1])


@settings(deadline=None)  # the first call compiles
@given(shards())
def test_ends_are_the_loop(drawn: tuple[tuple[Counts, Counts], tuple[list[list[int]], list[list[int]]]]) -> None:
    counts, edges = drawn
    assert chunk_ends(shard(*counts), *map(side, edges)).tolist() == loop_ends(counts, edges)


@pytest.mark.parametrize("id_", [8, -1])
def test_an_id_that_a_vocabulary_lacks_is_refused(id_: int) -> None:
    good, bad = side([[0, 0]]), side([[0, id_]])
    with pytest.raises(AssertionError, match="not in its vocabulary"):
        chunk_ends(shard([[1, 1]], [[1, 1]]), good, bad)
