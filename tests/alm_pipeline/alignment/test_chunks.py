"""`align` against an oracle that does not merge: it sorts everything by byte position and filters."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import groupby, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alm_pipeline.alignment.chunks import AssistantTurns, ShardChunks, ShardTokens, align
from storage.schemas import ChunkKind, TokenKind

CONTENT, MIXED, TEMPLATE = TokenKind.CONTENT, TokenKind.MIXED, TokenKind.TEMPLATE
BOT, START, ROLE, HEADER, END, EOT, TRANSITION = list(TokenKind)[TokenKind.BEGIN_OF_TEXT :]
UNPAIRED = ChunkKind.UNPAIRED
INT32_MAX = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Token:
    bytes: int
    kind: TokenKind = CONTENT
    turn: int = -1


Element = Token | int
"""a token, or a number of uncovered bytes"""


@dataclass(frozen=True)
class Example:
    teacher: list[Element] | None
    """None where the example was dropped"""
    student: list[Element] | None
    assistant: tuple[bool, ...] = ()
    """by message"""

    def swapped(self) -> "Example":
        return Example(self.student, self.teacher, self.assistant)


@dataclass(frozen=True)
class Chunk:
    teacher: int
    student: int
    bytes: int
    kind: ChunkKind = ChunkKind.CONTENT
    assistant: bool = False


def chars(lengths: str) -> list[Element]:
    """Return content tokens of these numbers of bytes: `chars("312")`."""
    return [Token(int(length)) for length in lengths]


def scaffold(*roles: TokenKind | tuple[TokenKind, int]) -> list[Element]:
    """Return tokens without bytes of these kinds, or kinds and turns."""
    return [Token(0, *role) if isinstance(role, tuple) else Token(0, role) for role in roles]


def paired(teacher: int = 1, student: int = 1, assistant: bool = False) -> Chunk:
    return Chunk(teacher, student, 0, ChunkKind.PAIRED, assistant)


def unpaired(teacher: int, student: int, bytes_: int = 0, assistant: bool = False) -> Chunk:
    return Chunk(teacher, student, bytes_, UNPAIRED, assistant)


# Conversion to arrays and back


def joined(lists: list[list]) -> list:
    return [item for items in lists for item in items]


def offsets(counts: list[int]) -> np.ndarray:
    return np.cumsum([0, *counts], dtype=np.int64)


def shard(sides: list[list[Element] | None]) -> ShardTokens:
    tokens = [[e for e in side or [] if isinstance(e, Token)] for side in sides]
    runs = [
        [
            (sum(isinstance(e, Token) for e in side[:k]), length)
            for k, length in enumerate(side)
            if isinstance(length, int)
        ]
        for side in (side or [] for side in sides)
    ]
    flat, flat_runs = joined(tokens), joined(runs)
    return ShardTokens(
        offsets(list(map(len, tokens))),
        np.array([token.bytes for token in flat], np.int32),
        np.array([token.kind for token in flat], np.uint8),
        np.array([token.turn for token in flat], np.int16),
        offsets(list(map(len, runs))),
        np.array([at for at, _ in flat_runs], np.int32),
        np.array([length for _, length in flat_runs], np.int32),
        np.array([side is None for side in sides], np.bool_),
    )


def align_examples(examples: list[Example]) -> ShardChunks:
    turns = AssistantTurns(
        offsets([len(example.assistant) for example in examples]),
        np.array([flag for example in examples for flag in example.assistant], np.bool_),
    )
    return align(shard([e.teacher for e in examples]), shard([e.student for e in examples]), turns)


def aligned(*examples: Example) -> list[list[Chunk]]:
    chunks = align_examples(list(examples))
    columns = [getattr(chunks, field.name).tolist() for field in fields(chunks)[1:]]
    rows = [Chunk(t, s, b, ChunkKind(k), a) for t, s, b, k, a in zip(*columns, strict=True)]
    assert len(rows) == chunks.offsets[-1]
    return [rows[start:end] for start, end in pairwise(chunks.offsets.tolist())]


def aligned_sides(teacher: list[Element], student: list[Element], assistant: tuple[bool, ...] = ()) -> list[Chunk]:
    return aligned(Example(teacher, student, assistant))[0]


# The oracle


@dataclass(frozen=True)
class Placed:
    start: int
    end: int
    token: Token | None
    """None for uncovered bytes"""


def place(side: list[Element]) -> list[Placed]:
    placed, position = [], 0
    for element in side:
        length = element.bytes if isinstance(element, Token) else element
        placed.append(Placed(position, position + length, element if isinstance(element, Token) else None))
        position += length
    return placed


def inner_bytes(side: list[Placed]) -> set[int]:
    return {byte for element in side for byte in range(element.start + 1, element.end)}


def oracle(example: Example) -> list[Chunk]:
    if example.teacher is None or example.student is None:
        return []
    sides = place(example.teacher), place(example.student)
    total = max(element.end for element in [*sides[0], *sides[1], Placed(0, 0, None)])
    common = sorted(set(range(total + 1)) - inner_bytes(sides[0]) - inner_bytes(sides[1]))
    chunks: list[Chunk] = []
    for position, following in zip(common, [*common[1:], None], strict=True):
        here = [[e.token for e in side if e.token and e.start == e.end == position] for side in sides]
        chunks += oracle_gap(here[0], here[1], example.assistant)
        if following is not None:
            within = [[e for e in side if e.end > position and e.start < following] for side in sides]
            chunks.append(oracle_bytes(within[0], within[1], following - position, example.assistant))
    return chunks


def oracle_bytes(teacher: list[Placed], student: list[Placed], length: int, assistant: tuple[bool, ...]) -> Chunk:
    pure = all(e.token and e.token.kind == CONTENT and e.start < e.end for e in [*teacher, *student])
    tokens = [[e.token for e in side if e.token] for side in (teacher, student)]
    kind = ChunkKind.CONTENT if pure else UNPAIRED
    return Chunk(len(tokens[0]), len(tokens[1]), length, kind, spoken(tokens, assistant))


def oracle_gap(teacher: list[Token], student: list[Token], assistant: tuple[bool, ...]) -> list[Chunk]:
    if not teacher and not student:
        return []
    runs = [
        [list(run) for _, run in groupby(side, lambda token: (token.turn, token.kind))] for side in (teacher, student)
    ]
    roles = [[k for k, run in enumerate(side) if run[0].kind >= BOT] for side in runs]
    matches = [
        (max(x, y), min(x, y), runs[0][t][0].turn, runs[0][t][0].kind, t, s)
        for x, t in enumerate(roles[0])
        for y, s in enumerate(roles[1])
        if runs[0][t][0] == runs[1][s][0]
    ]
    if not matches:
        return [Chunk(len(teacher), len(student), 0, UNPAIRED, spoken([teacher, student], assistant))]
    *_, t, s = min(matches)
    before, pair, after = zip(
        *[(joined(side[:k]), side[k], joined(side[k + 1 :])) for side, k in zip(runs, (t, s), strict=True)],
        strict=True,
    )
    chunk = Chunk(len(pair[0]), len(pair[1]), 0, ChunkKind.PAIRED, spoken(list(pair), assistant))
    # there is no pair before the nearest one
    return [*oracle_gap(before[0], before[1], assistant), chunk, *oracle_gap(after[0], after[1], assistant)]


def spoken(sides: list[list[Token]], assistant: tuple[bool, ...]) -> bool:
    lasts = [side[-1] for side in sides if side]
    written = (CONTENT, MIXED, END, TRANSITION)
    return any(last.turn >= 0 and assistant[last.turn] and last.kind in written for last in lasts)


# Strategies


@st.composite
def side_of(draw: Callable, total: int, messages: int) -> list[Element]:
    """Draw elements that cover `total` bytes, with tokens without bytes between them."""
    turns = st.integers(-1, messages - 1)
    cuts = sorted(draw(st.sets(st.integers(1, total - 1))) if total > 1 else set())
    lengths = [end - start for start, end in pairwise([0, *cuts, total])] if total else []
    kinds = st.sampled_from([CONTENT] * 6 + [MIXED, None])
    side: list[Element] = []
    for length in lengths:
        kind = draw(kinds)
        side.append(length if kind is None else Token(length, kind, draw(turns)))
    for _ in range(draw(st.integers(0, 3))):
        here = draw(st.lists(st.builds(Token, st.just(0), st.sampled_from(TokenKind), turns), max_size=6))
        at = draw(st.integers(0, len(side)))
        side[at:at] = here
    return side


@st.composite
def example_of(draw: Callable) -> Example:
    assistant = tuple(draw(st.lists(st.booleans(), max_size=3)))
    total = draw(st.sampled_from([0, 1, 2, 5, 12]))
    sides = [draw(side_of(total, len(assistant))) if draw(st.integers(0, 9)) else None for _ in range(2)]
    return Example(sides[0], sides[1], assistant)


examples_of = st.lists(example_of(), max_size=4)
thorough = settings(max_examples=150, deadline=None, derandomize=True)


@given(examples_of)
@thorough
def test_oracle(examples: list[Example]) -> None:
    assert aligned(*examples) == [oracle(example) for example in examples]


@given(example_of())
@thorough
def test_chunks_tile_the_text_and_both_token_sequences(example: Example) -> None:
    if example.teacher is None or example.student is None:
        assert aligned(example) == [[]]
        return
    (chunks,) = aligned(example)
    for name in ("teacher", "student"):
        tokens = [element for element in getattr(example, name) if isinstance(element, Token)]
        assert sum(getattr(chunk, name) for chunk in chunks) == len(tokens)
    covered = [place(side)[-1].end if side else 0 for side in (example.teacher, example.student)]
    assert [sum(chunk.bytes for chunk in chunks)] * 2 == covered
    assert all(chunk.teacher or chunk.student or chunk.bytes for chunk in chunks)
    assert all(chunk.teacher and chunk.student for chunk in chunks if chunk.kind != UNPAIRED)


@given(example_of())
@thorough
def test_chunks_of_bytes_end_at_the_common_ends_and_nowhere_else(example: Example) -> None:
    if example.teacher is None or example.student is None:
        return
    ends = [{element.end for element in place(side)} - {0} for side in (example.teacher, example.student)]
    chunk_ends = np.cumsum([chunk.bytes for chunk in aligned(example)[0] if chunk.bytes]).tolist()
    assert chunk_ends == sorted(ends[0] & ends[1])


@given(examples_of)
@thorough
def test_swapping_the_sides_swaps_the_result(examples: list[Example]) -> None:
    swapped = aligned(*(example.swapped() for example in examples))
    assert aligned(*examples) == [
        [replace(chunk, teacher=chunk.student, student=chunk.teacher) for chunk in chunks] for chunks in swapped
    ]


@given(examples_of, examples_of)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_shards_one_after_the_other_align_as_each_does(first: list[Example], second: list[Example]) -> None:
    assert aligned(*first, *second) == aligned(*first) + aligned(*second)


@given(st.lists(st.lists(st.integers(1, 9), min_size=1), max_size=4))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_aligning_a_tokenization_with_itself_gives_one_chunk_per_token(lengths: list[list[int]]) -> None:
    sides = [[Token(length) for length in example] for example in lengths]
    assert aligned(*(Example(side, side) for side in sides)) == [
        [Chunk(1, 1, length) for length in example] for example in lengths
    ]


ORDER = [(kind, turn) for turn in range(12) for kind in (START, ROLE, HEADER, TRANSITION, END, TEMPLATE)]


@given(st.lists(st.sampled_from(ORDER), unique=True), st.lists(st.sampled_from(ORDER), unique=True))
@thorough
def test_roles_in_the_same_order_are_all_paired(
    teacher: list[tuple[TokenKind, int]], student: list[tuple[TokenKind, int]]
) -> None:
    sides = [sorted(side, key=ORDER.index) for side in (teacher, student)]
    chunks = aligned_sides(scaffold(*sides[0]), scaffold(*sides[1]), (False,) * 12)
    common = {role for role in set(teacher) & set(student) if role[0] != TEMPLATE}
    assert sum(chunk.kind == ChunkKind.PAIRED for chunk in chunks) == len(common)


# Written by hand


def test_chunks_are_the_smallest_possible() -> None:
    assert aligned_sides(chars("324"), chars("3132")) == [Chunk(1, 1, 3), Chunk(2, 3, 6)]


def test_no_chunk_crosses_from_an_example_to_the_next() -> None:
    end, begin = scaffold(EOT), scaffold(EOT)
    assert aligned(Example([*chars("5"), *end], chars("5")), Example(chars("5"), [*begin, *chars("5")])) == [
        [Chunk(1, 1, 5), unpaired(1, 0)],
        [unpaired(0, 1), Chunk(1, 1, 5)],
    ]


def test_tokens_of_two_templates_are_paired() -> None:
    teacher = [
        *scaffold(BOT, (START, 0), (ROLE, 0), (HEADER, 0)), Token(4, CONTENT, 0), *scaffold((END, 0), (TEMPLATE, 0)),
        *scaffold((START, 1), (ROLE, 1), (ROLE, 1), (HEADER, 1)), Token(2, CONTENT, 1), Token(1, CONTENT, 1),
        *scaffold((END, 1), (TEMPLATE, 1)),
    ]  # fmt: skip
    student = [
        *scaffold(TEMPLATE, TEMPLATE, TEMPLATE, (START, 0), *[(ROLE, 0)] * 9, (HEADER, 0)), Token(3, CONTENT, 0),
        Token(1, CONTENT, 0), *scaffold((END, 0), (START, 1), (ROLE, 1), (HEADER, 1)), Token(3, CONTENT, 1),
        *scaffold((END, 1), EOT),
    ]  # fmt: skip
    assert aligned_sides(teacher, student, (False, True)) == [
        unpaired(1, 3), paired(), paired(1, 9), paired(), Chunk(1, 2, 4), paired(), unpaired(1, 0),
        paired(), paired(2, 1), paired(), Chunk(2, 1, 3, assistant=True), paired(assistant=True), unpaired(1, 1),
    ]  # fmt: skip


def test_equal_roles_of_different_turns_are_not_paired() -> None:
    assert aligned_sides(scaffold((START, 1)), scaffold((START, 0)), (False,) * 2) == [unpaired(1, 1)]
    runs = scaffold((ROLE, 0), (ROLE, 1), (ROLE, 1)), scaffold((ROLE, 0), (ROLE, 0), (ROLE, 1))
    assert aligned_sides(*runs, (False,) * 2) == [paired(1, 2), paired(2, 1)]


def test_a_token_in_between_splits_a_run() -> None:
    assert aligned_sides(scaffold(ROLE, TEMPLATE, ROLE), scaffold(ROLE, ROLE)) == [paired(1, 2), unpaired(2, 0)]
    parted = scaffold(ROLE, MIXED, ROLE)
    assert aligned_sides(parted, parted) == [paired(), unpaired(1, 1), paired()]


@pytest.mark.parametrize("kind", [CONTENT, MIXED, TEMPLATE])
def test_tokens_without_bytes_and_role_do_not_pair(kind: TokenKind) -> None:
    assert aligned_sides(scaffold(kind), scaffold(kind)) == [unpaired(1, 1)]


def test_crossing_roles_are_paired_alike_if_the_sides_are_swapped() -> None:
    there, back = scaffold(START, END), scaffold(END, START)
    assert aligned_sides(there, back) == [unpaired(0, 1), paired(), unpaired(1, 0)]
    assert aligned_sides(back, there) == [unpaired(1, 0), paired(), unpaired(0, 1)]


def test_the_nearest_role_is_paired() -> None:
    teacher = scaffold(START, END, ROLE)
    assert aligned_sides(teacher, scaffold(BOT, HEADER, ROLE, END, START)) == [unpaired(2, 2), paired(), unpaired(0, 2)]


def test_the_first_of_equal_roles_is_paired() -> None:
    twice, once = scaffold(ROLE, TEMPLATE, ROLE), scaffold(BOT, HEADER, ROLE)
    assert aligned_sides(twice, once) == [unpaired(0, 2), paired(), unpaired(2, 0)]
    assert aligned_sides(once, twice) == [unpaired(2, 0), paired(), unpaired(0, 2)]


def test_long_gaps() -> None:
    long, turns = 40_000, (False,) * 32_000
    template = scaffold(*[TEMPLATE] * long)
    assert aligned_sides([*template, *scaffold(END)], scaffold(END)) == [unpaired(long, 0), paired()]
    never = [scaffold(*[(kind, turn) for turn in range(32_000)]) for kind in (START, END)]
    assert aligned_sides(never[0], never[1], turns) == [unpaired(32_000, 32_000)]
    assert aligned_sides(never[0], never[0][::2], turns) == [paired(), unpaired(1, 0)] * 16_000


@pytest.mark.parametrize("foreign", [Token(0, TEMPLATE), Token(0, CONTENT), Token(0, END), Token(1, MIXED)])
def test_a_chunk_with_more_than_content_is_not_compared(foreign: Token) -> None:
    teacher = [*chars("1"), foreign, Token(2 - foreign.bytes)]
    assert aligned_sides(teacher, chars("3")) == [unpaired(3, 1, 3)]
    assert aligned_sides(chars("3"), teacher) == [unpaired(1, 3, 3)]


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        ([2, *chars("1")], chars("21"), [unpaired(0, 1, 2), Chunk(1, 1, 1)]),
        ([2, *chars("1")], chars("12"), [unpaired(1, 2, 3)]),
        ([*chars("1"), 2], chars("12"), [Chunk(1, 1, 1), unpaired(0, 1, 2)]),
        ([*chars("1"), 2], chars("3"), [unpaired(1, 1, 3)]),
        ([*chars("1"), 2, *chars("1")], chars("1111"), [Chunk(1, 1, 1), unpaired(0, 2, 2), Chunk(1, 1, 1)]),
        ([1, *chars("2")], [1, *chars("2")], [unpaired(0, 0, 1), Chunk(1, 1, 2)]),
        ([*chars("2"), 1], [*chars("2"), 1], [Chunk(1, 1, 2), unpaired(0, 0, 1)]),
        ([3, *chars("1")], [1, *chars("21")], [unpaired(0, 1, 3), Chunk(1, 1, 1)]),
        ([2, *chars("2")], [*chars("2"), 2], [unpaired(0, 1, 2), unpaired(1, 0, 2)]),
        ([1, 2], [2, 1], [unpaired(0, 0, 3)]),
        ([1, 2], [1, 2], [unpaired(0, 0, 1), unpaired(0, 0, 2)]),
        ([*scaffold(END), 2, *scaffold(END)], [2, *scaffold(END)], [unpaired(1, 0), unpaired(0, 0, 2), paired()]),
    ],
)
def test_uncovered_bytes(teacher: list[Element], student: list[Element], expected: list[Chunk]) -> None:
    assert aligned_sides(teacher, student) == expected


def test_the_last_token_decides_whether_a_chunk_is_an_assistants() -> None:
    turns = (False, True)
    words, question = Token(2, CONTENT, 1), Token(2, CONTENT, 0)
    assert aligned_sides([words], [words], turns) == [Chunk(1, 1, 2, assistant=True)]
    assert aligned_sides([question], [question], turns) == [Chunk(1, 1, 2)]
    assert aligned_sides([question, words], [Token(4, MIXED, 1)], turns) == [unpaired(2, 1, 4, assistant=True)]
    assert aligned_sides([words, 1], [3], turns) == [unpaired(1, 0, 3, assistant=True)]
    assert aligned_sides([3], [words, 1], turns) == [unpaired(0, 1, 3, assistant=True)]
    header = scaffold((START, 1), (ROLE, 1), (HEADER, 1), (TEMPLATE, 1), (EOT, 1))
    assert not any(chunk.assistant for chunk in aligned_sides(header, header, turns))
    assert aligned_sides(scaffold((END, 1)), [], turns) == [unpaired(1, 0, assistant=True)]


def test_an_empty_text_is_not_a_dropped_one() -> None:
    only, nothing = scaffold(BOT), Example([], [])
    assert aligned(
        nothing, Example(only, only), Example(only, []), Example(None, only), Example(only, None), Example(None, None)
    ) == [[], [paired()], [unpaired(1, 0)], [], [], []]


def test_the_other_sides_tokens_of_a_dropped_example_are_ignored() -> None:
    assert aligned(Example(None, chars("12")), Example(chars("2"), chars("2"))) == [[], [Chunk(1, 1, 2)]]
    # the sides cover different bytes, since the dropped one covers none
    assert aligned(Example(chars("12"), None)) == [[]]


@pytest.mark.parametrize("examples", [0, 1, 3])
def test_a_shard_without_aligned_examples(examples: int) -> None:
    chunks = align_examples([Example(None, chars("1"))] * examples)
    assert chunks.offsets.tolist() == [0] * (examples + 1)
    assert {len(getattr(chunks, field.name)) for field in fields(chunks)[1:]} == {0}


def test_different_bytes_are_refused() -> None:
    good = Example(chars("3"), chars("3"))
    with pytest.raises(AssertionError, match="example 1: the sides cover different bytes, 3 and 2"):
        align_examples([good, Example([*chars("2"), 1], chars("2"))])


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("byte_lengths", [-1, 3]),
        ("turns", [0, 1]),
        ("uncovered_at", [2, 1]),
        ("uncovered_at", [-1, 1]),
        ("uncovered_at", [1, 3]),
        ("uncovered_bytes", [0, 2]),
        ("uncovered_bytes", [-1, 3]),
    ],
)
def test_columns_out_of_range_are_refused(column: str, values: list[int]) -> None:
    tokens = shard([[*chars("1"), 1, *chars("1"), 1]])
    wrong = replace(tokens, **{column: np.array(values, getattr(tokens, column).dtype)})
    turns = AssistantTurns(offsets([1]), np.array([True]))
    align(tokens, tokens, turns)
    with pytest.raises(AssertionError, match="example 0: a length, kind, turn or uncovered run is out of range"):
        align(wrong, wrong, turns)


def test_without_messages_a_turn_has_no_role() -> None:
    assert aligned_sides(scaffold((ROLE, 32_767)), scaffold((ROLE, 32_767))) == [unpaired(1, 1)]


def test_an_example_has_at_most_the_bytes_that_int32_holds() -> None:
    teacher, student = [Token(INT32_MAX)], [Token(INT32_MAX - 1), 1]
    assert aligned_sides(teacher, student) == [unpaired(1, 1, INT32_MAX)]
    assert aligned_sides(teacher, teacher) == [Chunk(1, 1, INT32_MAX)]
    with pytest.raises(AssertionError, match="out of range"):
        aligned_sides([*teacher, *chars("1")], [*chars("1"), *teacher])


def test_types() -> None:
    chunks = align_examples([Example(chars("3"), chars("3"))])
    types = [getattr(chunks, field.name).dtype for field in fields(chunks)]
    assert types == [np.int64, np.int32, np.int32, np.int32, np.uint8, np.bool_]


def test_the_arguments_are_not_changed() -> None:
    tokens = shard([chars("3")])
    align(tokens, tokens, AssistantTurns(offsets([0]), np.zeros(0, np.bool_)))
    assert all(getattr(tokens, field.name).flags.writeable for field in fields(tokens))
