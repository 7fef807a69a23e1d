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


def standard_error(
    logprobs: npt.NDArray[np.float32],
    byte_lengths: npt.NDArray[np.int32],
    kinds: npt.NDArray[np.uint8],
    documents: npt.NDArray[np.int64],
) -> float | None:
    """Return the standard error of `bits_per_byte`, from how much documents differ; None for a single document.

    `documents` [tokens] is the number of each token's document: pieces of one document resemble each other, so they
    count as one observation. It is that of a ratio of sums over D documents (Cochran, Sampling Techniques, 1977, 2.11):
    √(D / (D − 1) · Σ (bits − r · bytes)²) / Σ bytes, where r is the bits per byte.
    """
    counted = ~np.isnan(logprobs) & (kinds == TokenKind.CONTENT)
    bits = np.bincount(documents[counted], -logprobs[counted].astype(np.float64) / math.log(2))
    sizes = np.bincount(documents[counted], byte_lengths[counted].astype(np.float64))
    bits, sizes = bits[sizes > 0], sizes[sizes > 0]
    if len(sizes) < 2:
        return None
    residuals = bits - bits.sum() / sizes.sum() * sizes
    return math.sqrt(len(sizes) / (len(sizes) - 1) * float((residuals**2).sum())) / float(sizes.sum())


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
        return bits_per_byte(self.logprobs(student, title), self.byte_lengths, self.kinds)

    def logprobs(self, student: Scorer, title: str | None = None) -> npt.NDArray[np.float32]:
        """Return the log-probability of each token [tokens]; NaN for one without a prediction."""
        progress = track(title, sum(map(len, self.ids)), "tokens") if title else contextlib.nullcontext()
        with progress as advance:
            scores = student.score(self.ids, advance)
        return np.concatenate([row.logprobs for row in scores])
