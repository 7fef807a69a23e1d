"""Conversations are cut between turns, by bytes and by the student's tokens."""

from collections import Counter
from itertools import chain, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alm_pipeline.corpus import cut_messages
from alm_pipeline.corpus.token_cutting import TokenLimit
from alm_pipeline.tokenization.encoder import ByteEncoder, Dropped
from tests.alm_pipeline.corpus.limits import encoder, limit


def turn(number: int, size: int = 10) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": f"{number}".ljust(size // 2)},
        {"role": "assistant", "content": "y" * (size - size // 2)},
    ]


SYSTEM = {"role": "system", "content": "s" * 10}


def test_a_conversation_that_fits_is_left_alone() -> None:
    messages = [{"role": "assistant", "content": "hello"}, *turn(1)]
    assert cut_messages(messages, 15, Counter()) == [messages]


def test_conversations_are_cut_before_a_user_and_repeat_the_system_message() -> None:
    messages = [SYSTEM, *turn(1), *turn(2), *turn(3)]
    dropped: Counter[str] = Counter()
    assert cut_messages(messages, 30, dropped) == [[SYSTEM, *turn(1), *turn(2)], [SYSTEM, *turn(3)]]
    assert not dropped


def test_what_comes_before_the_first_user_stays_with_it() -> None:
    greeting = {"role": "assistant", "content": "hi"}
    pieces = cut_messages([greeting, *turn(1), *turn(2)], 16, Counter())
    assert pieces == [[greeting, *turn(1)], turn(2)]


def test_a_turn_too_long_is_counted_and_nothing_reaches_across_it() -> None:
    dropped: Counter[str] = Counter()
    pieces = cut_messages([*turn(1), *turn(2, 40), *turn(3, 0), *turn(4)], 30, dropped)
    assert pieces == [turn(1), [*turn(3, 0), *turn(4)]]
    assert dropped == {"turn_over_max_bytes": 1}


@pytest.mark.parametrize("after", [[], turn(1), turn(1) + turn(2)])
def test_a_system_message_that_leaves_no_room_drops_every_turn(after: list[dict[str, Any]]) -> None:
    dropped: Counter[str] = Counter()
    assert cut_messages([{"role": "system", "content": "s" * 40}, *after], 30, dropped) == []
    assert dropped == {"turn_over_max_bytes": max(1, len(after) // 2)}


def test_bytes_are_counted_not_characters() -> None:
    dropped: Counter[str] = Counter()
    assert cut_messages([{"role": "user", "content": "漢" * 10}], 29, dropped) == []
    assert dropped == {"turn_over_max_bytes": 1}


def tokens(messages: list[dict[str, Any]]) -> int:
    """The tokens of a conversation, counted without the limit's own code."""
    text = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
    return len(encoder("byte_level").standard.encode([text], special_literals=True).ids)


def cut(
    messages: list[dict[str, Any]], context: int, max_bytes: int | None = 10_000
) -> tuple[list[Any], dict[str, int]]:
    dropped: Counter[str] = Counter()
    return cut_messages(messages, max_bytes, dropped, limit("byte_level", context)), dict(dropped)


def test_the_tokens_of_the_template_count() -> None:
    messages = turn(1)
    assert cut(messages, tokens(messages)) == ([messages], {})
    assert cut(messages, tokens(messages) - 1) == ([], {"turn_over_context": 1})


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=30), st.booleans(), st.data())
def test_only_turns_that_do_not_fit_are_dropped(
    sizes: list[tuple[int, int]], system: bool, data: st.DataObject
) -> None:
    turns = [
        [{"role": "user", "content": f"{number} " + "ask " * size}, {"role": "assistant", "content": "word " * answer}]
        for number, (size, answer) in enumerate(sizes)
    ]
    head = [SYSTEM] if system else []
    context = data.draw(st.integers(30, 300))
    pieces, dropped = cut([*head, *chain.from_iterable(turns)], context)
    assert all(tokens(piece) <= context for piece in pieces)
    assert all(piece[: len(head)] == head for piece in pieces)
    kept = [turn for turn in turns if tokens([*head, *turn]) <= context]
    assert list(chain.from_iterable(piece[len(head) :] for piece in pieces)) == list(chain.from_iterable(kept))
    assert dropped == ({"turn_over_context": len(turns) - len(kept)} if len(kept) < len(turns) else {})
    # the next turn would not have fitted
    for before, after in pairwise(pieces):
        following = after[len(head) : len(head) + 2]
        if turns.index(following) == turns.index(before[-2:]) + 1:
            assert tokens([*before, *following]) > context


def test_both_limits_hold_and_each_has_its_reason() -> None:
    messages = [*turn(1, 10), *turn(2, 150), *turn(3, 10), *turn(4, 10), *turn(5, 85), *turn(6, 15)]
    assert cut(messages, 10_000, max_bytes=100) == (
        [messages[:2], messages[4:8], messages[8:]],
        {"turn_over_max_bytes": 1},
    )
    most = tokens(messages[8:10]) - 1
    assert cut(messages, most, max_bytes=100) == (
        [messages[:2], messages[4:8], messages[10:]],
        {"turn_over_max_bytes": 1, "turn_over_context": 1},
    )
    assert cut(messages, 10_000, max_bytes=None) == ([messages], {})


def test_what_the_template_refuses_is_left_to_the_stage_that_counts_it() -> None:
    class Refusing(ByteEncoder):
        def _render(self, conversation: Any, arguments: Any) -> Dropped:
            return Dropped.TEMPLATE_REFUSES

    limit = TokenLimit(40, Refusing(encoder("byte_level").tokenizer))
    messages = [*turn(1, 400), *turn(2, 400)]
    assert cut_messages(messages, 10_000, Counter(), limit) == [messages]


def test_a_conversation_of_many_turns_is_measured_a_few_times() -> None:
    class Counting(ByteEncoder):
        calls = 0

        def conversation_tokens(self, conversation: Any, arguments: Any = None) -> int:
            self.calls += 1
            return super().conversation_tokens(conversation, arguments)

    counting = Counting(encoder("byte_level").tokenizer)
    messages = [message for number in range(200) for message in turn(number)]
    pieces = cut_messages(messages, 10**6, Counter(), TokenLimit(1000, counting))
    assert [message for piece in pieces for message in piece] == messages
    assert len(pieces) < 15
    assert counting.calls <= 1 + 12 * len(pieces)
