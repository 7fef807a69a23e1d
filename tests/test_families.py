"""Published chat templates of model families with all kinds of conversation: each alone, and all pairs.

A template's rendering has to be what `apply_chat_template` gives for the same row in the form that the template takes.
Each byte of the text that both sides share is aligned, or shown by one side, by none, or by both in tokens that can't
be compared. Which of these it is, is computed here in another way, and every byte is exactly one of them.
"""

import json
from collections.abc import Iterator
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest

from alm_pipeline.alignment.counts import visibility_counts
from alm_pipeline.alignment.visibility import Visibility
from alm_pipeline.conversations.sections import joined_text
from alm_pipeline.corpus.files.errors import RowDropped
from alm_pipeline.corpus.formats.messages import openai_messages
from alm_pipeline.tokenization.encoder import Dropped
from storage.schemas import TokenKind
from tests.conversation_kinds import KINDS, REFUSED
from tests.families import FAMILIES
from tests.family_sides import (
    LEARNED,
    AlignedPair,
    Unit,
    conversations,
    kinds_of_bytes,
    roles_of_bytes,
    side,
    sizes,
    turn_ends,
    units,
)
from tests.real_tokenizers import require

NAMES = list(FAMILIES)
MOVES_SYSTEM = ("deepseek_v2_5", "deepseek_v3", "deepseek_v3_1", "deepseek_r1", "r1_distill", "r1_qwen3", "cohere2")
MOVED = {
    # a system prompt at the end is written at the start
    **{name: {"system"} for name in (*MOVES_SYSTEM, "nemotron_mini", "hunyuan")},
    # results are written into the message that calls, before its content
    "gemma4": {"results"},
}
"""The kinds of which a template writes contents in another order than the messages have: those are dropped."""


@pytest.fixture(scope="module", autouse=True)
def _real_tokenizers() -> None:
    for family in FAMILIES.values():
        if family.package == "real":
            require(family.template)


@pytest.mark.bad_input
@pytest.mark.parametrize("kind", REFUSED)
def test_a_kind_that_no_side_can_have_is_counted_by_reason(kind: str) -> None:
    for row in KINDS[kind]:
        with pytest.raises(RowDropped) as error:
            openai_messages(json.loads(json.dumps(row.messages)))
        assert error.value.reason == REFUSED[kind]


def test_the_text_that_both_sides_share() -> None:
    assert len(conversations()) > 30
    assert [joined_text(row.messages) for row in conversations()] == [row.text for row in conversations()]


@pytest.mark.parametrize("name", NAMES)
def test_the_rendering_is_that_of_apply_chat_template(name: str) -> None:
    own = side(name)
    for conversation, expected, reason, row in zip(
        conversations(), own.oracles, own.batch.dropped, range(len(conversations())), strict=True
    ):
        assert (reason == Dropped.TEMPLATE_REFUSES) == (expected is None), conversation.kind
        if reason is None:
            ids = own.batch.token_ids[own.batch.offsets[row] : own.batch.offsets[row + 1]].tolist()
            assert b"".join(own.encoder.view.spelling[id_] for id_ in ids) == expected.encode(), conversation.kind
            assert ids == own.encoder.tokenizer.fast(expected, add_special_tokens=False)["input_ids"], conversation.kind
        else:
            assert reason in (Dropped.TEMPLATE_REFUSES, Dropped.TEMPLATE_CHANGES_CONTENT)
            assert expected is None or conversation.kind in MOVED.get(name, {}), conversation.kind


@pytest.mark.parametrize("name", NAMES)
def test_tokens_spell_the_bytes_that_they_cover(name: str) -> None:
    own = side(name)
    for row in np.flatnonzero(own.kept).tolist():
        conversation = conversations()[row]
        text, sections = conversation.text.encode(), conversation.sections
        example = own.batch.example(row)
        assert not isinstance(example, str)
        assert example.roles == tuple(section.role for section in sections)
        for kind, turn, start, spelling, size in own.spelled(row):
            shown = text[start : start + size]
            if kind == TokenKind.CONTENT:
                # a first token may spell the space that its tokenizer puts before a text
                assert spelling.removeprefix(b" " * (len(spelling) - size)) == shown
            else:
                assert kind == TokenKind.MIXED
                assert _is_subsequence(shown, spelling)
            assert start + size <= sections[turn].end
            assert kind != TokenKind.CONTENT or sections[turn].start <= start


def _is_subsequence(part: bytes, whole: bytes) -> bool:
    rest = iter(whole)
    return all(byte in rest for byte in part)


NOT_IN_ORDER = {
    # sorts keys, and writes calls and results into the message that calls, before that message's content
    "gemma4": {"calls_as_text", "calls_as_mapping", "parallel_calls", "results", "reasoning_turns"},
    # writes the first call alone, and its name again beside each result
    "gpt_oss": {"parallel_calls"},
}
"""The kinds of which a template shows texts in another order than the messages have."""


def missed_units(name: str, row: int) -> list[Unit]:
    """Return the units that are shown, more often than when all texts are others, and were not found."""
    own, start = side(name), int(sizes()[:row].sum())
    text, other = own.oracles[row], own.others[row]
    if text is None or other is None:
        return []
    missed = []
    for same in grouped(units(conversations()[row])):
        found = sum(own.map.shown[start + unit.start : start + unit.end].all() for unit in same)
        shown = text.count(same[0].text) - other.count(same[0].text)
        missed += same[: max(0, min(shown, len(same)) - found)]
    return missed


def grouped(all_units: list[Unit]) -> list[list[Unit]]:
    """Return the units of equal text together."""
    return [[unit for unit in all_units if unit.text == text] for text in {unit.text for unit in all_units}]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_template_shows_is_found(name: str) -> None:
    missed = [
        (conversation.kind, *unit)
        for row, conversation in enumerate(conversations())
        if side(name).kept[row] and conversation.kind not in NOT_IN_ORDER.get(name, ())
        for unit in missed_units(name, row)
    ]
    assert not missed


@pytest.mark.parametrize("teacher", NAMES)
def test_every_byte_of_every_pair(teacher: str) -> None:
    for student in NAMES[NAMES.index(teacher) :]:
        pair = AlignedPair.of(teacher, student)
        chunks, bytes_ = pair.shard.chunks, np.zeros(len(sizes()), np.int64)
        np.add.at(bytes_, np.repeat(np.arange(len(sizes())), np.diff(chunks.offsets)), chunks.byte_lengths)
        assert np.array_equal(bytes_, np.where(pair.kept, sizes(), 0)), student
        visible = pair.visible_by_definition()
        assert np.array_equal(pair.aligned, visible[Visibility.ALIGNED]), student
        assert np.array_equal(np.sum(list(visible.values()), axis=0), pair.in_kept), student
        counts = visibility_counts(pair.shard.visibility)
        assert {key: value for key, value in counts.items() if "_bytes" in key and "whole" not in key} == {
            name: size for name, size in expected_counts(visible) if "." not in name or size
        }, student
        # the other half of the pairs
        swapped = pair.swapped()
        assert np.array_equal(swapped.teacher_tokens, chunks.student_tokens), student
        assert np.array_equal(swapped.student_tokens, chunks.teacher_tokens), student
        for column in ("offsets", "byte_lengths", "kinds", "assistant"):
            assert np.array_equal(getattr(swapped, column), getattr(chunks, column)), student


def expected_counts(visible: dict[Visibility, npt.NDArray[np.bool_]]) -> Iterator[tuple[str, int]]:
    """Yield what is counted: bytes by who shows them, and of each role."""
    roles, codes = encoded_roles()
    for visibility, mask in visible.items():
        name = f"{visibility.name.lower()}_bytes"
        yield name, int(mask.sum())
        for role, size in zip(roles, np.bincount(codes[mask], minlength=len(roles)).tolist(), strict=True):
            yield f"{name}.{role}", size


@cache
def encoded_roles() -> tuple[list[str], npt.NDArray[np.int64]]:
    roles, codes = np.unique(roles_of_bytes(), return_inverse=True)
    return roles.tolist(), codes


@pytest.mark.parametrize("name", NAMES)
def test_all_that_a_template_shows_is_aligned_with_itself(name: str) -> None:
    pair = AlignedPair.of(name, name)
    shown, chunks = pair.teacher.map.shown & pair.teacher.map.clean, pair.shard.chunks
    assert np.array_equal(pair.aligned, shown)
    assert np.array_equal(pair.learned, shown & np.isin(roles_of_bytes(), LEARNED))
    # scaffold without a counterpart has none on the other side either
    assert (chunks.teacher_tokens == chunks.student_tokens).all()


def share(teacher: str, student: str, role: str, *kinds: str) -> float:
    """Return the share of a role's bytes that are aligned, in conversations of these kinds that both sides have."""
    pair = AlignedPair.of(teacher, student)
    return float(pair.aligned[(roles_of_bytes() == role) & np.isin(kinds_of_bytes(), kinds) & pair.in_kept].mean())


def share_of_units(teacher: str, student: str, what: str) -> float:
    """Return the share of the bytes of all names, keys or values of calls that are aligned."""
    pair, starts = AlignedPair.of(teacher, student), np.cumsum(sizes()) - sizes()
    aligned = pair.aligned
    found = [
        aligned[starts[row] + unit.start : starts[row] + unit.end]
        for row in np.flatnonzero(pair.kept).tolist()
        for unit in units(conversations()[row])
        if unit.what == what
    ]
    return float(np.concatenate(found).mean())


# Qwen 2.5 writes JSON as `json.dumps` does, so the whole call is the same text
@pytest.mark.parametrize(
    "student",
    ["qwen2_5", "qwen3", "qwen3_2507", "llama3_1", "granite4", "rnj1", "deepseek_v3_1", "mistral_v3", "ling2"],
)
def test_calls_as_json_are_aligned_as_a_whole(student: str) -> None:
    assert share("qwen2_5", student, "tool_calls", "calls_as_mapping", "results", "reasoning_turns") > 0.97


@pytest.mark.parametrize(
    "student", ["qwen3_coder", "qwen3_5", "nemotron_3", "glm4_5", "minimax_m2", "seed_oss", "lfm2"]
)
def test_names_keys_and_values_of_calls_as_xml_are_aligned_with_json(student: str) -> None:
    for what in ("name", "key", "value"):
        assert share_of_units("qwen2_5", student, what) > 0.9, what
    assert share("qwen2_5", student, "tool_calls", "results", "reasoning_turns") > 0.6


def test_reasoning_is_aligned_where_both_show_it() -> None:
    for student in ("qwen3_5", "glm4_5", "nemotron_3", "minimax_m2", "gpt_oss", "exaone4", "magistral"):
        assert share("qwen3", student, "reasoning", "reasoning") > 0.9, student


def test_reasoning_that_one_side_strips_is_shown_by_the_other_only() -> None:
    only_teacher = AlignedPair.of("qwen3", "r1_distill").visible_by_definition()[Visibility.TEACHER_ONLY]
    for kind, role in (("reasoning_inline", "assistant"), ("reasoning", "reasoning"), ("half_open_think", "assistant")):
        of_kind = (kinds_of_bytes() == kind) & (roles_of_bytes() == role)
        assert only_teacher[of_kind].sum() > 20, kind


@pytest.mark.parametrize("name", NAMES)
def test_an_end_of_turn_is_learned_wherever_the_template_writes_one(name: str) -> None:
    own = side(name)
    found = [turn_end for row in np.flatnonzero(own.kept).tolist() for turn_end in turn_ends(own, row)]
    assert not [turn_end for turn_end in found if turn_end.end != TokenKind.END_OF_TURN or not turn_end.is_own]


def test_what_closes_a_call_is_a_transition() -> None:
    for name in (
        "qwen2_5",
        "qwen3",
        "qwen3_coder",
        "qwen3_5",
        "granite4",
        "deepseek_v3",
        "nemotron_3",
        "minimax_m2",
        "lfm2",
    ):
        own = side(name)
        calls = [
            turn_end
            for row in np.flatnonzero(own.kept).tolist()
            for turn_end in turn_ends(own, row)
            # a last value that the template writes in another way would hide in what closes the call
            if turn_end.role == "tool_calls" and turn_end.kind in ("parallel_calls", "results", "reasoning_turns")
        ]
        assert calls, name
        assert all(set(turn_end.inner) <= {TokenKind.TRANSITION, TokenKind.MIXED} for turn_end in calls), name
