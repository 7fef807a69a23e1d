"""Bits per byte on text: the measure that does not depend on the tokenizer.

It counts the content tokens that have a prediction, and the bytes that those cover: the first token of a sequence
without a begin-of-text token has none. Teacher and student are measured on the same examples, those that both could
tokenize.
"""

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alm_pipeline.runtime.progress import track
from alm_pipeline.scoring.scorer import Scorer
from storage.errors import UserError
from storage.schemas import TokenKind

NO_PREDICTION = (
    "no token with a prediction covers a byte of the texts, so they have no bits per byte: each is empty or a single "
    "token: use longer texts"
)
_IMPOSSIBLE = "the model cannot produce it, so it has no bits per byte: measure it on other texts"


def bits_per_byte(
    logprobs: npt.NDArray[np.float32], byte_lengths: npt.NDArray[np.int32], kinds: npt.NDArray[np.uint8]
) -> float:
    """−Σ log₂ p / Σ bytes, over flat arrays of tokens. NaN is that of a token without a prediction.

    Raises UserError if the result is not finite, or if no token with a prediction covers a byte.
    """
    counted = ~np.isnan(logprobs) & (kinds == TokenKind.CONTENT)
    nats = -float(logprobs[counted].sum(dtype=np.float64))
    size = int(byte_lengths[counted].sum(dtype=np.int64))
    if not size:
        raise UserError(NO_PREDICTION)
    if not math.isfinite(nats):
        raise UserError(f"the texts have a token whose log-probability is {logprobs[counted].min()}: {_IMPOSSIBLE}")
    return nats / math.log(2) / size


@dataclass(frozen=True)
class TextTokens:
    """Texts in a student's tokens, in memory, so that they can be scored repeatedly."""

    ids: list[npt.NDArray[Any]]
    """one array per text"""
    byte_lengths: npt.NDArray[np.int32]
    """[tokens] of all texts, one after the other"""
    kinds: npt.NDArray[np.uint8]
    """[tokens] TokenKind"""

    def bits_per_byte(self, student: Scorer, title: str | None = None) -> float:
        """Score the texts; `title` is the name of the progress bar, and without one none is shown."""
        progress = track(title, sum(map(len, self.ids)), "tokens") if title else contextlib.nullcontext()
        with progress as advance:
            scores = student.score(self.ids, advance)
        return bits_per_byte(np.concatenate([row.logprobs for row in scores]), self.byte_lengths, self.kinds)
