"""What the tokens of a rendered conversation cover, compared with a walk over single bytes."""

import random

import numpy as np
import pytest

from alm_pipeline.tokenization.chat.template import RenderedConversation
from alm_pipeline.tokenization.covering import Covering, cover
from alm_pipeline.tokenization.spans import Spans
from storage.schemas import TokenKind

CONTENT, MIXED, TEMPLATE = TokenKind.CONTENT, TokenKind.MIXED, TokenKind.TEMPLATE
START, END = TokenKind.START_OF_TURN, TokenKind.END_OF_TURN
Part = tuple[int, TokenKind, int, int]
"""bytes, kind, turn, and for a content its first byte in the joined contents"""


def rendering(parts: list[Part]) -> RenderedConversation:
    sizes, kinds, turns, starts = zip(*parts, strict=True)
    return RenderedConversation("x" * sum(sizes), np.cumsum(sizes), *map(np.array, (kinds, turns, starts)))


def spans(lengths: list[int]) -> Spans:
    ends = np.cumsum(lengths)
    return Spans(ends - lengths, ends)


def covered(parts: list[Part], lengths: list[int], message_ends: list[int]) -> Covering:
    return cover(rendering(parts), spans(lengths), np.array(message_ends))


def runs(covering: Covering) -> list[tuple[int, int]]:
    return list(zip(covering.uncovered.at.tolist(), covering.uncovered.bytes.tolist(), strict=True))


def test_tokens_that_cover_one_span_each() -> None:
    parts = [(3, START, 0, -1), (5, CONTENT, 0, 0), (2, END, 0, -1), (1, TEMPLATE, -1, -1)]
    covering = covered(parts, [3, 2, 3, 2, 1], [5])
    assert covering.byte_lengths.tolist() == [0, 2, 3, 0, 0]
    assert covering.kinds.tolist() == [START, CONTENT, CONTENT, END, TEMPLATE]
    assert covering.turns.tolist() == [0, 0, 0, 0, -1]
    assert runs(covering) == []


def test_a_token_that_covers_several_spans() -> None:
    parts = [(2, START, 0, -1), (2, TokenKind.ROLE, 0, -1), (4, CONTENT, 0, 0), (2, TEMPLATE, 0, -1)]
    covering = covered(parts, [3, 2, 2, 3], [4])
    assert covering.kinds.tolist() == [TEMPLATE, MIXED, CONTENT, MIXED]
    assert covering.byte_lengths.tolist() == [0, 1, 2, 1]


def test_a_token_without_bytes_is_not_content() -> None:
    covering = covered([(4, CONTENT, 0, 0)], [0, 4, 0], [4])
    assert covering.kinds.tolist() == [TEMPLATE, CONTENT, TEMPLATE]


@pytest.mark.parametrize(
    ("parts", "message_ends", "expected"),
    [
        # trimmed at the front: before the content's first token
        ([(2, START, 0, -1), (3, CONTENT, 0, 2), (2, END, 0, -1)], [5], [(1, 2)]),
        # trimmed at the end: right after the content, before what ends the turn
        ([(2, START, 0, -1), (3, CONTENT, 0, 0), (2, END, 0, -1)], [5], [(2, 2)]),
        # omitted inside, where the template has other text or nothing
        ([(1, CONTENT, 0, 0), (2, TEMPLATE, 0, -1), (3, CONTENT, 0, 4)], [7], [(1, 3)]),
        ([(3, CONTENT, 0, 0), (2, CONTENT, 0, 4)], [6], [(1, 1)]),
        # nothing of the message is shown
        ([(2, START, 0, -1), (2, END, 0, -1), (2, START, 1, -1), (2, CONTENT, 1, 3)], [3, 5], [(1, 3)]),
        ([(2, START, 0, -1), (2, START, 1, -1), (2, CONTENT, 1, 3)], [3, 5], [(1, 3)]),
        ([(2, START, 0, -1), (2, CONTENT, 0, 0), (2, TEMPLATE, -1, -1)], [2, 5], [(3, 3)]),
        # the end of one message and the start of the next, each at its own message
        ([(2, CONTENT, 0, 0), (2, END, 0, -1), (2, CONTENT, 1, 5)], [3, 7], [(1, 1), (2, 2)]),
    ],
)
def test_the_place_of_omitted_content(
    parts: list[Part], message_ends: list[int], expected: list[tuple[int, int]]
) -> None:
    covering = covered(parts, [size for size, *_ in parts], message_ends)
    assert runs(covering) == expected


def test_content_that_the_tokenizer_removes() -> None:
    given = rendering([(2, START, 0, -1), (6, CONTENT, 0, 0), (2, END, 0, -1)])
    covering = cover(given, Spans(np.array([0, 2, 6, 8]), np.array([2, 5, 8, 10])), np.array([6]))
    assert covering.byte_lengths.tolist() == [0, 3, 2, 0]
    assert runs(covering) == [(2, 1)]


def test_lost_content_is_an_error() -> None:
    with pytest.raises(AssertionError):
        covered([(2, CONTENT, 0, 0), (2, CONTENT, 0, 0)], [4], [2])


def test_it_equals_a_walk_over_bytes() -> None:
    rng = random.Random(0)
    for _ in range(300):
        parts, at = [], 0
        for _ in range(rng.randint(1, 6)):
            size, kind = rng.randint(1, 4), rng.choice([CONTENT, TEMPLATE, END])
            at += rng.choice([0, 0, 2]) if kind == CONTENT else 0
            parts.append((size, kind, 0, at if kind == CONTENT else -1))
            at += size if kind == CONTENT else 0
        end = at + rng.choice([0, 1])
        kind_of = [kind for size, kind, *_ in parts for _ in range(size)]
        lengths = []
        while sum(lengths) < len(kind_of):
            lengths.append(min(rng.randint(1, 4), len(kind_of) - sum(lengths)))
        covering = covered(parts, lengths, [end])
        ends = np.cumsum(lengths)
        for index, (start, stop) in enumerate(zip(ends - lengths, ends, strict=True)):
            assert covering.byte_lengths[index] == kind_of[start:stop].count(CONTENT)
        assert covering.byte_lengths.sum() + covering.uncovered.bytes.sum() == end
        assert covering.uncovered.at.tolist() == sorted(covering.uncovered.at.tolist())
