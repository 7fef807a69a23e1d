"""The distance between a student and its teacher, word by word: the same measure for every tokenizer and objective.

A word is what lies between two anchors (`ChunkEnd.ANCHOR`). Its likelihood, debiased at both ends, is the probability
of its bytes and of a boundary after it, given that a boundary stands before it, and does not depend on how the word is
cut into tokens. The distance is the Kullback-Leibler divergence between the two sides' (p, 1 − p), in nats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from alm_pipeline.evaluation.bits_per_byte import ratio_error
from alm_pipeline.objective.chunking.arrays import AlignedScores, TeacherChunks
from alm_pipeline.objective.chunking.merging import merged_chunks
from alm_pipeline.objective.divergences import binary_kl
from alm_pipeline.scoring.scorer import TokenScores

Float64s = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Distance:
    """The mean divergence per word, and its standard error; None for words of a single document."""

    kl: float
    standard_error: float | None


class WordSums(NamedTuple):
    """The divergences of the words of D documents."""

    kl: Float64s
    """[D] nats"""
    words: Float64s
    """[D] how many"""
    log_ratios: Float64s
    """[D] nats: log q - log p, where q is the student's and p the teacher's likelihood of a word"""
    mean: float
    """over all words"""


@dataclass(frozen=True)
class Words:
    """The words of E examples, with the teacher's likelihood of each."""

    chunks: TeacherChunks

    @classmethod
    def of(cls, tables: Mapping[str, pa.Table], *, assistant_only: bool) -> "Words":
        """Return the words of tables that hold the columns `ALIGNED_COLUMNS`."""
        scores = AlignedScores.of(tables, assistant_only=assistant_only)
        if not np.isfinite(scores.boundary_logprobs).any():  # a vocabulary without boundary tokens has no words
            scores = scores.without_chunks()
        return cls(merged_chunks(scores, debias="both", closes=scores.words_end()))

    def kl(self, student: Sequence[TokenScores]) -> Float64s:
        """[words] the divergence of each word, by a student's scores [E] of the examples."""
        return self._kl(self._likelihoods(student))

    def _kl(self, likelihoods: Float64s) -> Float64s:
        teacher = torch.from_numpy(self.chunks.logprobs.astype(np.float64))
        kl: Float64s = binary_kl(teacher, torch.from_numpy(likelihoods), 1.0).numpy()
        return kl

    def _likelihoods(self, student: Sequence[TokenScores]) -> Float64s:
        """[words] the log-likelihood that the student gives each word, at most 0."""
        sizes = np.diff(self.chunks.offsets)
        tokens = np.cumsum([0, *(len(row.logprobs) for row in student)])
        firsts, ends = (
            np.repeat(tokens[:-1], sizes) + of for of in (self.chunks.student_starts, self.chunks.student_ends)
        )
        logprobs, boundary = (
            np.concatenate([np.zeros(0), *(getattr(row, name) for row in student)], dtype=np.float64)
            for name in ("logprobs", "boundary_logprobs")
        )
        totals = np.append(0, np.cumsum(np.nan_to_num(logprobs, nan=0.0)))
        likelihoods = totals[ends] - totals[firsts]
        likelihoods += np.where(self.chunks.ends_debiased, boundary[ends - 1], 0)
        likelihoods -= np.where(self.chunks.starts_debiased, boundary[firsts - 1], 0)
        at_most_0: Float64s = np.minimum(likelihoods, 0)
        return at_most_0

    def sums(self, student: Sequence[TokenScores], documents: Longs) -> "WordSums | None":
        """Return the divergences of each document's words, added up; `documents` [E] numbers the examples' documents.

        None without words, or if the student's vocabulary lacks boundary tokens.
        """
        has_boundary = any(np.isfinite(row.boundary_logprobs).any() for row in student)
        if not len(self.chunks.logprobs) or not has_boundary:
            return None
        likelihoods, of_word = self._likelihoods(student), np.repeat(documents, np.diff(self.chunks.offsets))
        kl, count = self._kl(likelihoods), int(documents.max()) + 1
        columns = (kl, np.ones_like(kl), likelihoods - self.chunks.logprobs)
        sums, words, log_ratios = (np.bincount(of_word, values, count).astype(np.float64) for values in columns)
        return WordSums(sums, words, log_ratios, float(kl.mean()))

    def distance(self, student: Sequence[TokenScores], documents: Longs) -> Distance | None:
        """Return the mean over all words; None as `sums`."""
        sums = self.sums(student, documents)
        return Distance(sums.mean, ratio_error(sums.kl, sums.words)) if sums else None
