"""Overlapping windows, in which the teacher scores examples that are longer than its context.

The overlap gives each token enough tokens to be predicted from. Every window after the first begins with the example's
begin-of-text token, if it has one: models that were trained with it give meaningless predictions without it. Positions
count from 0 in every window.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.errors import UserError

Ids = npt.NDArray[np.int32]
_BEGIN = 1
"""the maximum number of begin-of-text tokens before a window"""


@dataclass(frozen=True)
class WindowRow:
    """One window of an example, and the tokens that are scored in it."""

    example: int
    ids: Ids
    first: int
    """the index of the first scored token in the example"""
    skipped: int
    """the number of the row's tokens before it, which are context"""

    @property
    def scored(self) -> int:
        return len(self.ids) - self.skipped


@dataclass(frozen=True)
class WindowPlan:
    """Windows of at most `size` tokens (None: no limit), with at least `context` tokens before each scored token.

    The context does not include the begin-of-text token. A token with fewer tokens before it has all of them.
    """

    size: int | None
    context: int

    @classmethod
    def of(cls, length: int | None, size: int | None, context: int | None) -> "WindowPlan":
        """Return the windows for a model with a context of `length` tokens.

        Raises UserError if the context leaves no room for scored tokens.
        """
        limits = [limit for limit in (length, size) if limit]
        if not limits:
            return cls(None, 0)
        largest = min(limits)
        used_context = max(1, largest // 2) if context is None else context
        if used_context > largest - _BEGIN - 1:
            raise UserError(
                f"score.context: {used_context} tokens leave no room in the teacher's window of {largest}: "
                f"use at most {largest - _BEGIN - 1}"
            )
        return cls(largest, used_context)

    def rows(self, example: int, ids: Ids, begins: bool) -> Iterator[WindowRow]:
        """Yield the example's rows, which score each token once; `begins`: its first token is a begin-of-text token."""
        stop = min(len(ids), self.size or len(ids))
        if stop:
            yield WindowRow(example, ids[:stop], 0, 0)
        while stop < len(ids):
            assert self.size is not None
            front, first = ids[: _BEGIN if begins else 0], stop
            start = first - self.context
            stop = min(len(ids), start + self.size - len(front))
            yield WindowRow(example, np.concatenate([front, ids[start:stop]]), first, len(front) + self.context)
