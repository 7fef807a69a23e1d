"""Windows: how an example that is longer than the teacher sees at once is scored.

Windows overlap, so that each token is predicted from enough of what stands before it. In a window behind the first
one the example's begin-of-text token stands in front, where it has one: models that were trained with it compute
nonsense without. Positions count from 0 in every window.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.errors import UserError

Ids = npt.NDArray[np.int32]
_BEGIN = 1
"""the most begin-of-text tokens that are put in front of a window"""


@dataclass(frozen=True)
class Row:
    """What the teacher sees at once of an example, and which of the example's tokens it scores there."""

    example: int
    ids: Ids
    first: int
    """the first token that is scored, counted in the example"""
    skipped: int
    """as many of the row's tokens stand before it: context"""

    @property
    def scored(self) -> int:
        return len(self.ids) - self.skipped


@dataclass(frozen=True)
class Windows:
    """Windows of at most `size` tokens (None: no limit), with `context` tokens before each that is scored.

    The context is counted without the begin-of-text token; a token with fewer tokens before it has all of them.
    """

    size: int | None
    context: int

    @classmethod
    def of(cls, length: int | None, size: int | None, context: int | None) -> "Windows":
        """The windows that a setting means for a model that takes `length` tokens.

        Raises UserError where the context leaves no room in them.
        """
        limits = [limit for limit in (length, size) if limit]
        if not limits:
            return cls(None, 0)
        most = min(limits)
        least = max(1, most // 2) if context is None else context
        if least > most - _BEGIN - 1:
            raise UserError(
                f"score.context: {least} tokens leave no room in the teacher's window of {most}: "
                f"at most {most - _BEGIN - 1}"
            )
        return cls(most, least)

    def rows(self, example: int, ids: Ids, begins: bool) -> Iterator[Row]:
        """The example's rows, each of its tokens scored in one of them; `begins`: its first token begins a text."""
        stop = min(len(ids), self.size or len(ids))
        if stop:
            yield Row(example, ids[:stop], 0, 0)
        while stop < len(ids):
            assert self.size is not None
            front, first = ids[: _BEGIN if begins else 0], stop
            start = first - self.context
            stop = min(len(ids), start + self.size - len(front))
            yield Row(example, np.concatenate([front, ids[start:stop]]), first, len(front) + self.context)
