"""Batches of rows within a budget of tokens, which grows while memory allows, and is halved when it runs out.

Rows are padded on the right to the longest of their batch, where causal attention never looks. The longest rows come
first, so that the rows of a batch have similar lengths and little padding, and a lack of memory shows at once.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from alm_pipeline.scoring.windows import WindowRow

Item = TypeVar("Item")

logger = logging.getLogger("alm_pipeline")

DEFAULT_TOKENS = 4096
_LARGEST_TOKENS = 65_536
"""a GPU gains nothing from larger batches"""


def weighted_groups(items: Iterable[tuple[Item, int]], max_weight: int) -> Iterator[list[Item]]:
    """Group (item, weight) pairs in order, up to `max_weight` per group; a heavier item is a group of its own."""
    group: list[Item] = []
    total = 0
    for item, weight in items:
        if group and total + weight > max_weight:
            yield group
            group, total = [], 0
        group.append(item)
        total += weight
    if group:
        yield group


class BatchBudget:
    """The maximum number of tokens in a batch, including padding; a longer row is a batch of its own."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def rows(self, longest: int) -> int:
        """Return the number of rows that fit if the longest has `longest` tokens; at least one."""
        return max(1, self.tokens // longest)

    def grow(self, fits: Callable[[int], bool]) -> None:
        """Double the budget as long as memory suffices for a batch of that many tokens.

        Before the first batch and by powers of two, so that a run that is resumed makes the batches of an unbroken one.
        """
        while self.tokens < _LARGEST_TOKENS and fits(2 * self.tokens):
            self.tokens *= 2
        logger.info("scoring %d tokens at once, as memory allows (score.batch_tokens sets another number)", self.tokens)

    def halve(self, failed: Sequence[WindowRow]) -> None:
        """Halve the budget after a batch of several rows was too large."""
        assert len(failed) > 1
        tried = len(failed) * len(failed[0].ids)
        self.tokens = max(1, tried // 2)
        logger.warning(
            "out of memory with %d tokens at once (%d rows of up to %d): continuing with %d "
            "(set score.batch_tokens to this number to start with it)",
            tried,
            len(failed),
            len(failed[0].ids),
            self.tokens,
        )


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the processor ran out of memory."""
    phrases = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)
    )
