"""Batches of rows: a budget of tokens that is halved where memory does not suffice.

Rows are padded on the right to their batch's longest, where causal attention never looks. Longest first, so that a
batch has rows of about one length, little of it padding, and a memory too small shows at once.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from alm_pipeline.scoring.windows import Row

Item = TypeVar("Item")

logger = logging.getLogger("alm_pipeline")


def groups(items: Iterable[tuple[Item, int]], most: int) -> Iterator[list[Item]]:
    """Items of a weight each, in order, in groups that weigh at most so much; what is heavier is a group alone."""
    group: list[Item] = []
    total = 0
    for item, weight in items:
        if group and total + weight > most:
            yield group
            group, total = [], 0
        group.append(item)
        total += weight
    if group:
        yield group


class Budget:
    """How many tokens a batch holds at most, padding included; a row that is longer is a batch alone."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def rows(self, longest: int) -> int:
        """How many rows fit, of which the longest has so many tokens; at least one."""
        return max(1, self.tokens // longest)

    def halve(self, failed: Sequence[Row]) -> None:
        """After a batch of several rows was too much."""
        assert len(failed) > 1
        tried = len(failed) * len(failed[0].ids)
        self.tokens = max(1, tried // 2)
        logger.warning(
            "out of memory with %d tokens at once (%d rows of up to %d): going on with %d "
            "(set score.batch_tokens to that to start with it)",
            tried,
            len(failed),
            len(failed[0].ids),
            self.tokens,
        )


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device, or the processor's memory, had no room; other errors are somebody's mistake."""
    told = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in told)
    )
