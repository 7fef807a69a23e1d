"""Bits per byte on text: the measure that does not depend on the tokenizer.

It counts the content tokens that have a prediction, and the bytes that those cover: the first token of a sequence
without a begin-of-text token has none. Teacher and student are measured on the same examples, those that both could
tokenize.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alm_pipeline.runtime.progress import track
from alm_pipeline.scoring.scorer import Scorer, TokenScores
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
    _check_finite(logprobs[counted])
    return nats / math.log(2) / size


def _check_finite(logprobs: npt.NDArray[np.float32]) -> None:
    if not np.isfinite(logprobs).all():
        raise UserError(f"the texts have a token whose log-probability is {logprobs.min()}: {_IMPOSSIBLE}")


def bits_and_bytes(
    logprobs: npt.NDArray[np.float32],
    byte_lengths: npt.NDArray[np.int32],
    kinds: npt.NDArray[np.uint8],
    groups: npt.NDArray[np.int64],
    count: int = 0,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the bits and the bytes of each of `count` groups of tokens (0: up to the last): their sums' ratio is the
    bits per byte.

    `groups` [tokens] is the number of each token's text or document; the rest is as in `bits_per_byte`. Raises
    UserError if a log-probability is not finite.
    """
    counted = ~np.isnan(logprobs) & (kinds == TokenKind.CONTENT)
    _check_finite(logprobs[counted])
    bits = np.bincount(groups[counted], -logprobs[counted].astype(np.float64) / math.log(2), count)
    sizes = np.bincount(groups[counted], byte_lengths[counted].astype(np.float64), count)
    return bits.astype(np.float64), sizes.astype(np.float64)


def standard_error(
    logprobs: npt.NDArray[np.float32],
    byte_lengths: npt.NDArray[np.int32],
    kinds: npt.NDArray[np.uint8],
    documents: npt.NDArray[np.int64],
) -> float | None:
    """Return the standard error of `bits_per_byte`, from how much documents differ; None for a single document.

    `documents` [tokens] is the number of each token's document: pieces of one document resemble each other, so they
    count as one observation.
    """
    return ratio_error(*bits_and_bytes(logprobs, byte_lengths, kinds, documents))


def ratio_error(sums: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64]) -> float | None:
    """Return the standard error of Σ sums / Σ sizes over documents; None for a single document.

    √(D / (D − 1) · Σ (sum − r · size)²) / Σ sizes, where r is the ratio and D the number of documents that have a size
    (Cochran, Sampling Techniques, 1977, 2.11).
    """
    sums, sizes = sums[sizes > 0], sizes[sizes > 0]
    if len(sizes) < 2:
        return None
    residuals = sums - sums.sum() / sizes.sum() * sizes
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

    def score(self, student: Scorer, title: str | None = None) -> list[TokenScores]:
        """Score the texts; `title` is the name of the progress bar, and without one none is shown."""
        progress = track(title, sum(map(len, self.ids)), "tokens") if title else contextlib.nullcontext()
        with progress as advance:
            return student.score(self.ids, advance)

    def bits_per_byte(self, scores: Sequence[TokenScores]) -> float:
        """Return the bits per byte of the texts' scores."""
        return bits_per_byte(np.concatenate([row.logprobs for row in scores]), self.byte_lengths, self.kinds)
