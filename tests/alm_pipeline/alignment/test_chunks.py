"""`align` against an oracle that walks bytes and tokens one by one."""

import random
from dataclasses import dataclass, fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alm_pipeline.alignment.chunks import ShardChunks, ShardTokens, align
from storage.schemas import ChunkKind, TokenKind

CONTENT, SPECIAL, TEMPLATE, MIXED = TokenKind
Token = tuple[int, int]
"""bytes and TokenKind"""
Example = list[Token]


@dataclass
class Chunk:
    teacher: int
    student: int
    length: int
    kind: ChunkKind


def shard(examples: list[Example]) -> ShardTokens:
    tokens = [token for example in examples for token in example]
    return ShardTokens(
        np.cumsum([0, *map(len, examples)], dtype=np.int64),
        np.array([length for length, _ in tokens], dtype=np.int32),
        np.array([kind for _, kind in tokens], dtype=np.uint8),
    )


def by_example(chunks: ShardChunks) -> list[list[Chunk]]:
    columns = (chunks.teacher_tokens, chunks.student_tokens, chunks.byte_lengths, chunks.kinds)
    rows = [Chunk(t, s, b, ChunkKind(k)) for t, s, b, k in zip(*(c.tolist() for c in columns), strict=True)]
    return [rows[start:end] for start, end in zip(chunks.offsets, chunks.offsets[1:], strict=False)]


def aligned(teacher: list[Example], student: list[Example]) -> list[list[Chunk]]:
    return by_example(align(shard(teacher), shard(student)))


def same(left: ShardChunks, right: ShardChunks) -> bool:
    return all(np.array_equal(getattr(left, field.name), getattr(right, field.name)) for field in fields(left))


# The oracle: walk to the next byte at which both sides have a token end, then over what covers no byte there.


def oracle(teacher: Example, student: Example) -> list[Chunk]:
    if not teacher or not student:
        return []
    sides, at, chunks, position = (teacher, student), [0, 0], [], 0
    total = sum(length for length, _ in teacher)
    while True:
        chunks += _oracle_gap(sides, at)
        if position == total:
            assert at == [len(teacher), len(student)]
            return chunks
        reached, taken = [position, position], ([], [])
        while reached[0] != reached[1] or not all(taken):
            behind = 0 if (reached[0], len(taken[0])) <= (reached[1], len(taken[1])) else 1
            token = sides[behind][at[behind]]
            at[behind] += 1
            reached[behind] += token[0]
            taken[behind].append(token)
        pure = all(kind == CONTENT for side in taken for _, kind in side)
        kind = ChunkKind.CONTENT if pure else ChunkKind.UNPAIRED
        chunks.append(Chunk(len(taken[0]), len(taken[1]), reached[0] - position, kind))
        position = reached[0]


def _oracle_gap(sides: tuple[Example, Example], at: list[int]) -> list[Chunk]:
    runs = []
    for side, start in zip(sides, at, strict=True):
        end = start
        while end < len(side) and side[end][0] == 0:
            end += 1
        runs.append(side[start:end])
    chunks, counts = [], [len(run) for run in runs]
    behind_content = min(at) > 0 and all(side[start - 1][0] > 0 for side, start in zip(sides, at, strict=True))
    if behind_content and all(run and run[0][1] == SPECIAL for run in runs):
        chunks.append(Chunk(1, 1, 0, ChunkKind.PAIRED))
        counts = [count - 1 for count in counts]
    if any(counts):
        chunks.append(Chunk(*counts, 0, ChunkKind.UNPAIRED))
    for side, run in enumerate(runs):
        at[side] += len(run)
    return chunks


def random_side(rng: random.Random, total: int) -> Example:
    """Tokens that cover `total` bytes, with others between them."""
    tokens: Example = []
    while total:
        length = min(total, rng.choice([1, 1, 2, 3, 5]))
        tokens.append((length, rng.choice([CONTENT] * 8 + [MIXED])))
        total -= length
    for _ in range(rng.choice([0, 0, 1, 4])):
        zero = (0, rng.choice([SPECIAL, SPECIAL, TEMPLATE, CONTENT]))
        tokens.insert(rng.randint(0, len(tokens)), zero)
    return tokens


def random_shard(rng: random.Random) -> tuple[list[Example], list[Example]]:
    totals = [rng.choice([0, 1, 2, 5, 12]) for _ in range(rng.randint(0, 5))]
    teacher, student = ([random_side(rng, total) for total in totals] for _ in range(2))
    for side in (teacher, student):
        for k in range(len(side)):
            if rng.random() < 0.15:
                side[k] = []
    return teacher, student


shards = st.integers(0, 2**32).map(lambda seed: random_shard(random.Random(seed)))


@given(shards)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_oracle(sides: tuple[list[Example], list[Example]]) -> None:
    teacher, student = sides
    assert aligned(teacher, student) == [oracle(t, s) for t, s in zip(teacher, student, strict=True)]


@given(shards)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_chunks_tile_both_sides_and_end_at_every_common_end(sides: tuple[list[Example], list[Example]]) -> None:
    for teacher, student, chunks in zip(*sides, aligned(*sides), strict=True):
        if not teacher or not student:
            assert chunks == []
            continue
        assert sum(chunk.teacher for chunk in chunks) == len(teacher)
        assert sum(chunk.student for chunk in chunks) == len(student)
        ends = [set(np.cumsum([length for length, _ in side]).tolist()) - {0} for side in (teacher, student)]
        chunk_ends = np.cumsum([chunk.length for chunk in chunks]).tolist()
        assert set(chunk_ends) - {0} == ends[0] & ends[1]
        assert all(chunk.teacher or chunk.student for chunk in chunks)
        assert all(chunk.teacher and chunk.student for chunk in chunks if chunk.length)


@given(shards)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_swapping_the_sides_swaps_the_result(sides: tuple[list[Example], list[Example]]) -> None:
    teacher, student = (shard(side) for side in sides)
    there, back = align(teacher, student), align(student, teacher)
    swapped = ShardChunks(back.offsets, back.student_tokens, back.teacher_tokens, back.byte_lengths, back.kinds)
    assert same(there, swapped)


@given(shards)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_examples_do_not_influence_each_other(sides: tuple[list[Example], list[Example]]) -> None:
    alone = [aligned([teacher], [student])[0] for teacher, student in zip(*sides, strict=True)]
    assert aligned(*sides) == alone


@given(st.lists(st.lists(st.integers(1, 9), min_size=1), max_size=4))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_tokenization_with_itself_gives_one_chunk_a_token(lengths: list[list[int]]) -> None:
    examples = [[(length, int(CONTENT)) for length in example] for example in lengths]
    expected = [[Chunk(1, 1, length, ChunkKind.CONTENT) for length in example] for example in lengths]
    assert aligned(examples, examples) == expected


def test_finest_chunks() -> None:
    teacher = [(3, CONTENT), (2, CONTENT), (4, CONTENT)]
    student = [(3, CONTENT), (1, CONTENT), (3, CONTENT), (2, CONTENT)]
    assert aligned([teacher], [student]) == [[Chunk(1, 1, 3, ChunkKind.CONTENT), Chunk(2, 3, 6, ChunkKind.CONTENT)]]


def test_end_tokens_pair_only_where_both_sides_have_one() -> None:
    text, bos, end = (5, CONTENT), (0, SPECIAL), (0, SPECIAL)
    content = Chunk(1, 1, 5, ChunkKind.CONTENT)
    paired = Chunk(1, 1, 0, ChunkKind.PAIRED)
    assert aligned([[text, end]], [[text, end]]) == [[content, paired]]
    assert aligned([[text, end]], [[text]]) == [[content, Chunk(1, 0, 0, ChunkKind.UNPAIRED)]]
    newline = (0, TEMPLATE)
    assert aligned([[text, end, newline]], [[text, end]]) == [[content, paired, Chunk(1, 0, 0, ChunkKind.UNPAIRED)]]
    assert aligned([[text, newline, end]], [[text, end]]) == [[content, Chunk(2, 1, 0, ChunkKind.UNPAIRED)]]
    assert aligned([[bos, text]], [[bos, text]]) == [[Chunk(1, 1, 0, ChunkKind.UNPAIRED), content]]


def test_an_end_token_does_not_pair_with_the_next_examples_first() -> None:
    text, special = (5, CONTENT), (0, SPECIAL)
    content = Chunk(1, 1, 5, ChunkKind.CONTENT)
    assert aligned([[text, special], [text]], [[text], [special, text]]) == [
        [content, Chunk(1, 0, 0, ChunkKind.UNPAIRED)],
        [Chunk(0, 1, 0, ChunkKind.UNPAIRED), content],
    ]


def test_turns_of_a_conversation() -> None:
    scaffold, end, text = [(0, SPECIAL), (0, TEMPLATE)], (0, SPECIAL), (2, CONTENT)
    teacher = [*scaffold, text, end, *scaffold, text, text, end]
    student = [(0, SPECIAL), text, end, (0, SPECIAL), (4, CONTENT), end]
    head = Chunk(2, 1, 0, ChunkKind.UNPAIRED)
    paired = Chunk(1, 1, 0, ChunkKind.PAIRED)
    assert aligned([teacher], [student]) == [
        [head, Chunk(1, 1, 2, ChunkKind.CONTENT), paired, head, Chunk(2, 1, 4, ChunkKind.CONTENT), paired]
    ]


def test_a_content_token_without_bytes_inside_a_chunk_belongs_to_it() -> None:
    teacher = [(1, CONTENT), (0, CONTENT), (1, CONTENT)]
    assert aligned([teacher], [[(2, CONTENT)]]) == [[Chunk(3, 1, 2, ChunkKind.CONTENT)]]


@pytest.mark.parametrize("foreign", [(0, SPECIAL), (0, TEMPLATE), (1, MIXED)])
def test_a_chunk_with_more_than_content_is_not_compared(foreign: Token) -> None:
    teacher = [(1, CONTENT), foreign, (2 - foreign[0], CONTENT)]
    assert aligned([teacher], [[(3, CONTENT)]]) == [[Chunk(3, 1, 3, ChunkKind.UNPAIRED)]]


def test_examples_without_bytes_keep_their_tokens() -> None:
    nothing, text = [(0, SPECIAL)], [(2, CONTENT)]
    unpaired, content = Chunk(1, 1, 0, ChunkKind.UNPAIRED), Chunk(1, 1, 2, ChunkKind.CONTENT)
    examples = [nothing, text, nothing, nothing, text, nothing]
    assert aligned(examples, examples) == [[unpaired if example is nothing else content] for example in examples]
    assert aligned([nothing], [nothing]) == [[unpaired]]


@pytest.mark.parametrize("examples", [0, 1, 3])
def test_no_example_left(examples: int) -> None:
    dropped: list[Example] = [[] for _ in range(examples)]
    chunks = align(shard(dropped), shard([[(1, int(CONTENT))]] * examples))
    assert chunks.offsets.tolist() == [0] * (examples + 1)
    assert [len(getattr(chunks, name)) for name in ("teacher_tokens", "student_tokens", "byte_lengths", "kinds")] == [
        0
    ] * 4


def test_different_bytes_are_refused() -> None:
    with pytest.raises(AssertionError, match="different bytes"):
        align(shard([[(3, int(CONTENT))]]), shard([[(2, int(CONTENT))]]))


def test_types() -> None:
    chunks = align(shard([[(3, int(CONTENT))]]), shard([[(3, int(CONTENT))]]))
    assert [getattr(chunks, field.name).dtype for field in fields(chunks)] == [np.int64] * 4 + [np.uint8]
