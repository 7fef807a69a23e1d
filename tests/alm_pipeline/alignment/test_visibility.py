"""Who shows each byte, against an oracle that looks at every byte by itself; and what becomes of one-sided ones."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alm_pipeline.alignment.counts import bytes_by_role, visibility_counts
from alm_pipeline.alignment.sections import PART_ROLES, Sections, learned_sections
from alm_pipeline.alignment.settings import AlignmentSettings
from alm_pipeline.alignment.shards import AlignedShard, align_tables, shard_tokens
from alm_pipeline.alignment.table import visibility_rows
from alm_pipeline.alignment.visibility import SEEN_BY, ShardVisibility, Visibility, seen_by
from alm_pipeline.config import LEARNED_PARTS, LearnedPart, LearnedTurns
from storage.schemas import SCHEMAS, ChunkKind, Kind
from tests.alm_pipeline.alignment.test_chunks import Element, Example, Token, example_of, oracle, place

ALIGNED, UNCOMPARED, TEACHER_ONLY, STUDENT_ONLY, UNSEEN = Visibility
ROLES = ("system", "user", "reasoning", "assistant", "tool_calls", "tool", "a.b")
KEEP, DROP = AlignmentSettings(), AlignmentSettings(one_sided="drop")


@dataclass(frozen=True)
class Conversation:
    """Tokens of both sides, and the role and the bytes of each section; a plain text has none."""

    sides: Example
    sections: tuple[tuple[str, int], ...]


def size(example: Example) -> int:
    sides = [side for side in (example.teacher, example.student) if side]
    return place(sides[0])[-1].end if sides else 0


@st.composite
def conversation_of(draw: Callable) -> Conversation:
    example = draw(example_of())
    count, total = len(example.assistant), size(example)
    cuts = sorted(draw(st.lists(st.integers(0, total), min_size=count - 1, max_size=count - 1))) if count else []
    sizes = [end - start for start, end in zip([0, *cuts], [*cuts, total], strict=True)] if count else []
    roles = draw(st.lists(st.sampled_from(ROLES), min_size=count, max_size=count))
    return Conversation(example, tuple(zip(roles, sizes, strict=True)))


def table(conversations: list[Conversation], side: str) -> pa.Table:
    rows = []
    for conversation in conversations:
        elements: list[Element] | None = getattr(conversation.sides, side)
        tokens = [element for element in elements or [] if isinstance(element, Token)]
        runs = [
            (sum(isinstance(before, Token) for before in (elements or [])[:k]), element)
            for k, element in enumerate(elements or [])
            if isinstance(element, int)
        ]
        sections = conversation.sections if elements is not None else ()
        rows.append(
            {
                "id": "0",
                "token_ids": [0] * len(tokens),
                "byte_lengths": [token.bytes for token in tokens],
                "kinds": [token.kind for token in tokens],
                "turns": [token.turn for token in tokens] if sections else [],
                "roles": [role for role, _ in sections],
                "turn_bytes": [count for _, count in sections],
                "uncovered_at": [at for at, _ in runs],
                "uncovered_bytes": [count for _, count in runs],
                "dropped": None if elements is not None else "too_long",
            }
        )
    return pa.Table.from_pylist(rows, SCHEMAS[Kind.TOKENS])


def aligned(conversations: list[Conversation], chosen: AlignmentSettings = KEEP) -> AlignedShard:
    return align_tables(table(conversations, "teacher"), table(conversations, "student"), chosen)


# The oracle: one byte after the other


def bytes_shown(side: list[Element]) -> list[bool]:
    return [element.token is not None for element in place(side) for _ in range(element.start, element.end)]


def byte_kinds(example: Example) -> list[Visibility]:
    """Who shows each byte of an example, by the definition."""
    if example.teacher is None or example.student is None:
        return []
    teacher, student = bytes_shown(example.teacher), bytes_shown(example.student)
    compared = [chunk.kind == ChunkKind.CONTENT for chunk in oracle(example) for _ in range(chunk.bytes)]
    return [
        (ALIGNED if is_compared else UNCOMPARED)
        if by_teacher and by_student
        else TEACHER_ONLY
        if by_teacher
        else STUDENT_ONLY
        if by_student
        else UNSEEN
        for by_teacher, by_student, is_compared in zip(teacher, student, compared, strict=True)
    ]


def section_kinds(conversation: Conversation) -> list[tuple[str, list[Visibility]]]:
    """The kinds of the bytes of each section."""
    kinds = byte_kinds(conversation.sides)
    if not conversation.sections:
        return [("text", kinds)]
    sections, start = [], 0
    for role, count in conversation.sections:
        sections.append((role, kinds[start : start + count]))
        start += count
    return sections


HIDDEN_FROM = {
    TEACHER_ONLY: (ALIGNED, UNCOMPARED, STUDENT_ONLY),
    STUDENT_ONLY: (ALIGNED, UNCOMPARED, TEACHER_ONLY),
    UNSEEN: (ALIGNED, UNCOMPARED, TEACHER_ONLY, STUDENT_ONLY),
}
"""what a section must not have to be left out as a whole by the side (or both) that does not show these bytes"""


def expected_counts(conversations: list[Conversation]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for role, kinds in (section for conversation in conversations for section in section_kinds(conversation)):
        for kind in kinds:
            counts[f"{kind.name.lower()}_bytes.{role}"] += 1
            counts[f"{kind.name.lower()}_bytes"] += 1
        for kind, shown in HIDDEN_FROM.items():
            if kind in kinds and not set(shown) & set(kinds):
                counts[f"{kind.name.lower()}_whole_bytes.{role}"] += kinds.count(kind)
                counts[f"{kind.name.lower()}_sections.{role}"] += 1
    return counts


@st.composite
def corpus_of(draw: Callable) -> list[Conversation]:
    """Conversations or plain texts: a corpus never mixes the two."""
    drawn = draw(st.lists(conversation_of(), max_size=4))
    if draw(st.booleans()):
        return [conversation for conversation in drawn if conversation.sections]
    plain = [Example(*(_without_turns(side) for side in (c.sides.teacher, c.sides.student))) for c in drawn]
    return [Conversation(example, ()) for example in plain]


def _without_turns(side: list[Element] | None) -> list[Element] | None:
    return side and [Token(e.bytes, e.kind) if isinstance(e, Token) else e for e in side]


@given(corpus_of())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_every_byte_is_counted_where_it_belongs(conversations: list[Conversation]) -> None:
    counts = visibility_counts(aligned(conversations).visibility)
    assert Counter(counts) == expected_counts(conversations)
    both = [c for c in conversations if c.sides.teacher is not None and c.sides.student is not None]
    assert sum(counts[f"{kind.name.lower()}_bytes"] for kind in Visibility) == sum(size(c.sides) for c in both)


@given(corpus_of())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_dropping_leaves_what_both_sides_show_as_it_is(conversations: list[Conversation]) -> None:
    kept, dropped = aligned(conversations), aligned(conversations, DROP)
    one_sided = [bool({TEACHER_ONLY, STUDENT_ONLY} & set(byte_kinds(c.sides))) for c in conversations]
    assert dropped.one_sided.tolist() == one_sided
    rows = zip(chunk_rows(kept), chunk_rows(dropped), one_sided, strict=True)
    assert all(after == ([] if is_one_sided else before) for before, after, is_one_sided in rows)
    assert visibility_counts(dropped.visibility)["teacher_only_bytes"] == 0


def chunk_rows(shard: AlignedShard) -> list[list[tuple[int, ...]]]:
    columns = (shard.chunks.teacher_tokens, shard.chunks.student_tokens, shard.chunks.byte_lengths, shard.chunks.kinds)
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    offsets = shard.chunks.offsets.tolist()
    return [rows[start:end] for start, end in pairwise(offsets)]


@given(conversation_of())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_without_chunks_only_who_shows_a_byte_is_known(conversation: Conversation) -> None:
    """As the check before a run counts."""
    teacher, student = (shard_tokens(table([conversation], side)) for side in ("teacher", "student"))
    sections = Sections.of(table([conversation], "teacher"))
    counts = visibility_counts(ShardVisibility.of(teacher, student, sections, None))
    expected = expected_counts([conversation])
    names = ("teacher_only_bytes", "student_only_bytes", "unseen_bytes")
    assert [counts[name] for name in names] == [expected[name] for name in names]
    assert counts["aligned_bytes"] == expected["aligned_bytes"] + expected["uncompared_bytes"]


# By hand


def words(*lengths: int, turn: int = 0) -> list[Element]:
    return [Token(length, turn=turn) for length in lengths]


HIDDEN_SYSTEM = Conversation(Example(words(4, 2), [4, *words(2, turn=1)]), (("system", 4), ("user", 2)))
TRIMMED = Conversation(Example(words(6), [*words(5), 1]), (("user", 6),))


def test_rows_name_whose_the_bytes_are() -> None:
    counts = visibility_counts(aligned([HIDDEN_SYSTEM, TRIMMED, HIDDEN_SYSTEM]).visibility)
    assert visibility_rows(counts, 18) == [
        ("only the teacher sees", "50.00% of the bytes: system 44.44%, parts of user 5.56%"),
        ("both see, not compared", "27.78% of the bytes: user 27.78%"),
    ]
    (teacher_only,) = [roles for kind, roles in bytes_by_role(counts).items() if kind == TEACHER_ONLY]
    assert [(role.role, role.bytes, role.whole_bytes, role.whole_sections) for role in teacher_only] == [
        ("system", 8, 8, 2),
        ("user", 1, 0, 0),
    ]


def test_no_rows_where_all_is_aligned_or_nothing_was_counted() -> None:
    same = Conversation(Example(words(3), words(3)), (("user", 3),))
    assert visibility_rows(visibility_counts(aligned([same]).visibility), 3) == []
    assert visibility_rows({"aligned_bytes": 3, "unaligned_bytes": 1}, 4) == []


def test_rare_and_long_roles_are_counted_together() -> None:
    sides = Example(words(100 + 99 * 50), words(100 + 99 * 50))
    roles = tuple((f"author {k}", 50) for k in range(99))
    counts = visibility_counts(aligned([Conversation(sides, (("x" * 65, 100), *roles))]).visibility)
    named = {name: count for name, count in counts.items() if name.startswith("aligned_bytes.")}
    assert sum(named.values()) == counts["aligned_bytes"]
    assert len(named) == 32
    assert named["aligned_bytes.other"] == 100 + (99 - 31) * 50


def test_who_sees_a_chunk() -> None:
    rows = [
        {},
        {ALIGNED: 3},
        {TEACHER_ONLY: 2},
        {STUDENT_ONLY: 2},
        {UNSEEN: 2},
        {ALIGNED: 1, TEACHER_ONLY: 1},
        {UNCOMPARED: 1},
    ]
    seen = seen_by(np.array([[row.get(kind, 0) for kind in Visibility] for row in rows]))
    assert seen.tolist() == [None, "both", "teacher", "student", "neither", "partly", "both"]
    assert set(seen.tolist()) - {None} == set(SEEN_BY)


# What is learned

TURNS = (
    "system",
    "user",
    "reasoning",
    "assistant",
    "tool_calls",
    "tool",
    "assistant",
    "user",
    "reasoning",
    "assistant",
)
LEARNABLE = {"answer": ("assistant", "completion"), "tool_calls": ("tool_calls",), "reasoning": ("reasoning",)}


def sections_of(*conversations: tuple[str, ...]) -> Sections:
    rows = [{"roles": list(roles), "turn_bytes": [1] * len(roles)} for roles in conversations]
    schema = pa.schema([SCHEMAS[Kind.TOKENS].field(name) for name in ("roles", "turn_bytes")])
    return Sections.of(pa.Table.from_pylist(rows, schema))


SUBSETS = [parts for count in (1, 2, 3) for parts in combinations(LEARNED_PARTS, count)]
CONVERSATIONS: list[tuple[str, ...]] = [
    TURNS,
    (),
    ("system", "assistant"),
    ("user", "prompt", "user", "completion", "tool_calls", "tool", "completion"),
    ("prompt", "completion", "user", "reasoning", "completion"),
    ("user", "prompt", "prompt", "prompt", "tool", "assistant"),
    ("user",),
]


def test_long_shards_are_counted_as_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of the compiled loop are those of NumPy."""
    rows = [TRIMMED, HIDDEN_SYSTEM, Conversation(Example(None, words(3)), (("user", 3),)), HIDDEN_SYSTEM, TRIMMED]
    plain = [Conversation(Example([2, *words(4)], [*words(5), 1]), ())] * 3
    for conversations in (rows, plain):
        expected = visibility_counts(aligned(conversations).visibility)
        with monkeypatch.context() as patch:
            patch.setattr("alm_pipeline.alignment.visibility._LONG", 0)
            assert visibility_counts(aligned(conversations).visibility) == expected


def last_question(roles: tuple[str, ...]) -> int:
    return max((k for k, role in enumerate(roles) if role == "user"), default=-1)


@pytest.mark.parametrize("parts", SUBSETS)
@pytest.mark.parametrize("turns", ["all", "last"])
def test_the_chosen_parts_of_the_chosen_turns_are_learned(parts: tuple[LearnedPart, ...], turns: LearnedTurns) -> None:
    chosen = AlignmentSettings(learn=parts, learned_turns=turns)
    expected = [
        any(role in LEARNABLE[part] for part in parts) and (turns == "all" or k > last_question(roles))
        for roles in CONVERSATIONS
        for k, role in enumerate(roles)
    ]
    assert learned_sections(sections_of(*CONVERSATIONS), chosen).tolist() == expected


def test_every_part_has_its_roles() -> None:
    assert {part: set(roles) for part, roles in PART_ROLES.items()} == {k: set(v) for k, v in LEARNABLE.items()}


def test_what_is_learned_decides_the_chunks_column() -> None:
    roles = (("user", 2), ("reasoning", 2), ("assistant", 2))
    side: list[Element] = [Token(2, turn=turn) for turn in range(3)]
    conversation = Conversation(Example(side, side), roles)
    for parts, expected in ((LEARNED_PARTS, [False, True, True]), (("reasoning",), [False, True, False])):
        shard = aligned([conversation], AlignmentSettings(learn=parts))
        assert shard.chunks.assistant.tolist() == expected


def test_only_settings_that_are_not_the_default_are_named() -> None:
    assert KEEP.identity() == {}
    chosen = AlignmentSettings("refuse", ("answer",), "last")
    assert chosen.identity() == {"one_sided": "refuse", "learn": ("answer",), "learned_turns": "last"}
    assert (
        AlignmentSettings.of_identity({"learn": ["answer"], "learned_turns": "last", "one_sided": "refuse"}) == chosen
    )
    assert AlignmentSettings.of_identity({"stage_version": 4}) == KEEP
