"""Prompts with completions, marked in the tokens as conversations are: a turn of the prompt, and one that is learned.

A token that covers bytes of both is mixed, so that no chunk that is learned reaches into the prompt.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from alm_pipeline.conversations.sections import ASSISTANT, REASONING, TOOL_CALLS
from alm_pipeline.tokenization.rows import EncodedBatch, Uncovered
from storage.schemas import COMPLETION, PROMPT, TokenKind


def with_completions(batch: EncodedBatch, completions: Sequence[int]) -> EncodedBatch:
    """Return the tokens of texts with the turns 0, the prompt, and 1, the completion, which begins at these bytes.

    The special token after a text ends its completion.
    """
    kinds, turns = batch.kinds.copy(), batch.turns.copy()
    roles: list[tuple[str, ...]] = [()] * len(batch)
    turn_bytes: list[tuple[int, ...]] = [()] * len(batch)
    for row, completion_at in enumerate(completions):
        if batch.dropped[row]:
            continue
        own = slice(int(batch.offsets[row]), int(batch.offsets[row + 1]))
        starts = _starts(batch.byte_lengths[own], batch.uncovered.get(row))
        is_text = kinds[own] == TokenKind.CONTENT
        is_mixed = is_text & (starts < completion_at) & (starts + batch.byte_lengths[own] > completion_at)
        is_end = kinds[own] == TokenKind.END_OF_TEXT
        turns[own] = np.where(is_end, 1, np.where(is_text, starts >= completion_at, -1))
        kinds[own] = np.where(is_mixed, TokenKind.MIXED, np.where(is_end, TokenKind.END_OF_TURN, kinds[own]))
        roles[row] = PROMPT, COMPLETION
        turn_bytes[row] = completion_at, batch.text_bytes(row) - completion_at
    return replace(batch, kinds=kinds, turns=turns, roles=roles, turn_bytes=turn_bytes)


def _starts(lengths: npt.NDArray[np.int32], uncovered: Uncovered | None) -> npt.NDArray[np.int64]:
    """Return the byte [tokens] at which each token begins."""
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    if uncovered is not None:
        gaps = np.zeros(len(lengths) + 1, np.int64)
        np.add.at(gaps, uncovered.at, uncovered.bytes)
        starts += np.cumsum(gaps)[:-1]
    return starts


def with_learned_turns(batch: EncodedBatch, completions: Sequence[int]) -> EncodedBatch:
    """Return the tokens of conversations, of whose sections only the assistant's from these on are learned."""
    roles = [_roles(*row) for row in zip(batch.roles, completions, strict=True)]
    return replace(batch, roles=roles)


def _roles(roles: tuple[str, ...], completion_at: int) -> tuple[str, ...]:
    # what others say is context anyway, and is counted under their roles
    earlier = [PROMPT if role in (ASSISTANT, REASONING, TOOL_CALLS) else role for role in roles[:completion_at]]
    return (*earlier, *(COMPLETION if role == ASSISTANT else role for role in roles[completion_at:]))
