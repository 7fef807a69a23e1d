"""Cuts conversations to size, between turns."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

from alm_pipeline.conversations.sections import Messages, text_bytes
from alm_pipeline.corpus.formats.tools import Arguments
from alm_pipeline.corpus.token_cutting import TokenLimit


def cut_messages(
    messages: Messages,
    max_bytes: int | None,
    dropped: Counter[str],
    limit: TokenLimit | None = None,
    arguments: Arguments | None = None,
) -> list[Messages]:
    """Cut a conversation into conversations of at most `max_bytes` bytes of text, each beginning at a user's turn.

    A leading system message is repeated in front of each, and counts. Messages before the first user's turn stay with
    that turn. A turn (up to the next user's) that is too long by itself is dropped and counted as
    `turn_over_max_bytes`; no piece extends across it, since an answer to it could follow.

    With `limit`, each conversation also fits the student's context as its template renders it with `arguments`. A turn
    that does not is counted as `turn_over_context`.
    """

    def has_few_bytes(conversation: Messages) -> bool:
        return max_bytes is None or text_bytes(conversation) <= max_bytes

    def fits(conversation: Messages) -> bool:
        return has_few_bytes(conversation) and (limit is None or limit.fits(conversation, arguments))

    if fits(messages):
        return [messages]
    system = messages[:1] if messages[0]["role"] == "system" else []
    turns = _turns(messages[len(system) :])
    pieces: list[Messages] = []
    first = 0
    while first < len(turns):
        if piece := _longest_piece(system, turns, first, fits):
            pieces.append(piece.messages)
        else:
            alone = [*system, *turns[first]]
            dropped["turn_over_context" if has_few_bytes(alone) else "turn_over_max_bytes"] += 1
        first += piece.turns if piece else 1
    return pieces


class _Piece(NamedTuple):
    messages: Messages
    turns: int


def _longest_piece(
    system: Messages, turns: Sequence[Messages], first: int, fits: Callable[[Messages], bool]
) -> _Piece | None:
    """Return the most turns from `first` on that fit, or None if the first does not.

    A piece is measured for twice as many turns at a time, and then by bisection: measuring renders it.
    """

    def piece(count: int) -> Messages:
        return [*system, *chain.from_iterable(turns[first : first + count])]

    rest = len(turns) - first
    fitting, next_count = 0, 1
    while next_count <= rest and fits(piece(next_count)):
        fitting, next_count = next_count, 2 * next_count
    counts = range(1, min(next_count - 1, rest) + 1)
    count = bisect_left(counts, True, lo=fitting, key=lambda count: not fits(piece(count)))
    return _Piece(piece(count), count) if count else None


def _turns(messages: Messages) -> list[Messages]:
    """Split into turns, at least one, each from a user's message up to the next user's."""
    turns: list[Messages] = [[]]
    user_seen = False
    for message in messages:
        if message["role"] == "user" and user_seen:
            turns.append([])
        user_seen = user_seen or message["role"] == "user"
        turns[-1].append(message)
    return turns
