"""Bits per byte on held-out text: the measure that does not depend on the tokenizer.

Counted are the content tokens that have a prediction, and the bytes that those cover: the first token of a sequence
without a begin-of-text token has none. Teacher and student are measured on the same examples: those that both could
tokenize.
"""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alm_pipeline.evaluation.held_out import HeldOut
from alm_pipeline.runtime.progress import track
from alm_pipeline.scoring.scorer import Scorer
from storage.dataset import Dataset
from storage.schemas import TokenKind


def bits_per_byte(
    logprobs: npt.NDArray[np.float32], byte_lengths: npt.NDArray[np.int32], kinds: npt.NDArray[np.uint8]
) -> float:
    """−Σ log₂ p / Σ bytes, over flat arrays of tokens."""
    counted = np.isfinite(logprobs) & (kinds == TokenKind.CONTENT)
    nats = -float(logprobs[counted].sum(dtype=np.float64))
    return nats / math.log(2) / int(byte_lengths[counted].sum())


def teacher_bits_per_byte(caches: Mapping[str, Dataset]) -> float:
    """The teacher's held-out bits per byte, from its scores: no forward pass.

    `caches` are the datasets by role, as `Pipeline.caches`. Raises UserError when nothing is held out.
    """
    held_out = HeldOut.of(caches)
    logprobs: list[npt.NDArray[Any]] = held_out.column(caches, "scores", "logprobs")
    return bits_per_byte(np.concatenate(logprobs), *_bytes_and_kinds(caches, held_out, "teacher_tokens"))


def student_bits_per_byte(caches: Mapping[str, Dataset], student: Scorer, title: str) -> float:
    """A student's held-out bits per byte; `title` is what the progress is called.

    Raises UserError when nothing is held out.
    """
    return HeldOutTokens.of(caches, HeldOut.of(caches)).bits_per_byte(student, title)


@dataclass(frozen=True)
class HeldOutTokens:
    """Held-out examples as a student reads them, in memory: to be scored again and again."""

    ids: list[npt.NDArray[Any]]
    byte_lengths: npt.NDArray[Any]
    """of the tokens of one example after the other, as `kinds`"""
    kinds: npt.NDArray[Any]

    @classmethod
    def of(cls, caches: Mapping[str, Dataset], held_out: HeldOut) -> "HeldOutTokens":
        ids = held_out.column(caches, "student_tokens", "token_ids")
        return cls(ids, *_bytes_and_kinds(caches, held_out, "student_tokens"))

    def bits_per_byte(self, student: Scorer, title: str | None = None) -> float:
        """`title` is what the progress is called; none is shown without."""
        shown = track(title, sum(map(len, self.ids)), "tokens") if title else contextlib.nullcontext()
        with shown as advance:
            scores = student.score(self.ids, advance)
        return bits_per_byte(np.concatenate([row.logprobs for row in scores]), self.byte_lengths, self.kinds)


def _bytes_and_kinds(
    caches: Mapping[str, Dataset], held_out: HeldOut, tokens: str
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    lengths, kinds = (np.concatenate(held_out.column(caches, tokens, column)) for column in ("byte_lengths", "kinds"))
    return lengths, kinds
