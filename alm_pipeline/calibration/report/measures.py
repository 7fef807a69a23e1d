"""Accuracy and calibration on multiple-choice questions, from the log-probabilities of the choices alone.

Shapes: Q questions, C choices of the question with the most, M bins, R resamples, K clusters. A question with fewer
choices is filled up with choices that have a log-probability of −∞, and so a probability of 0.

With p the softmax over a question's choices, y the answer, ŷ the likeliest choice and conf = p(ŷ):

| measure | per question | range |
|---|---|---|
| accuracy | 1 if p(y) > p(c) for all other choices c: a tie is wrong | 0 … 1 |
| nll | −log p(y), nats | 0 … ∞ |
| brier | Σ_c (p(c) − 1[c = y])² | 0 … 2 |
| entropy | −Σ_c p(c) log p(c), nats | 0 … log C |
| confidence | conf | 1/C … 1 |
| overconfidence | conf − accuracy | −1 … 1 |

ECE is Σ_b n_b/n |accuracy_b − conf_b| over M bins of equal width in (0, 1] (Guo et al. 2017), ACE over M bins of nearly
equal numbers of questions. Both are biased upward: a well calibrated model does not read 0 on a few hundred questions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from alm_pipeline.calibration.report.settings import BINS, Reading

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Measure = Literal["accuracy", "nll", "brier", "entropy", "confidence", "overconfidence", "ece", "ace"]
MEASURES: tuple[Measure, ...] = get_args(Measure)


@dataclass(frozen=True)
class ScoredChoices:
    """The choices of questions, as one model scored them."""

    logprobs: Floats
    """[Q, C] Σ log p of the choice's tokens, nats; −∞ where a question has no further choice"""
    tokens: Ints
    """[Q, C] tokens per choice; at least 1, and 1 in padding"""
    bytes: Ints
    """[Q, C] bytes per choice; at least 1, and 1 in padding"""
    answers: Ints
    """[Q] the right choice of each question"""

    def predictions(self, reading: Reading) -> "Predictions":
        """Return the probabilities of the choices under a reading."""
        divisors: Mapping[Reading, Ints | int] = {"sum": 1, "token": self.tokens, "bytes": self.bytes}
        return Predictions(log_softmax(self.logprobs / divisors[reading]), self.answers)

    def rows(self, chosen: npt.NDArray[np.bool_] | Ints) -> "ScoredChoices":
        """Return some of the questions."""
        return ScoredChoices(self.logprobs[chosen], self.tokens[chosen], self.bytes[chosen], self.answers[chosen])


def log_softmax(scores_QC: Floats) -> Floats:
    """[Q, C] the logarithm of the softmax over each row, with −∞ where the score is −∞."""
    shifted_QC = scores_QC - scores_QC.max(1, keepdims=True)
    normalized_QC: Floats = shifted_QC - np.log(np.exp(shifted_QC).sum(1, keepdims=True))
    return normalized_QC


@dataclass(frozen=True)
class Predictions:
    """The probability of every choice of every question, and the answers."""

    logprobs: Floats
    """[Q, C] log p, whose exponentials add up to 1 in each row"""
    answers: Ints
    """[Q]"""

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def correct(self) -> Floats:
        """[Q] 1 where the answer is likelier than every other choice, else 0."""
        others_QC = self.logprobs.copy()
        others_QC[np.arange(len(self)), self.answers] = -np.inf
        correct_Q: Floats = (self.answer_logprobs > others_QC.max(1)).astype(np.float64)
        return correct_Q

    @property
    def answer_logprobs(self) -> Floats:
        """[Q] log p of the answers."""
        logprobs_Q: Floats = self.logprobs[np.arange(len(self)), self.answers]
        return logprobs_Q

    @property
    def confidence(self) -> Floats:
        """[Q] the probability of the likeliest choice, in (0, 1]."""
        confidence_Q: Floats = np.minimum(np.exp(self.logprobs.max(1)), 1.0)
        return confidence_Q

    def rows(self, chosen: npt.NDArray[np.bool_] | Ints) -> "Predictions":
        """Return some of the questions."""
        return Predictions(self.logprobs[chosen], self.answers[chosen])

    def with_temperature(self, temperature: float) -> Self:
        """Return the predictions with all log-probabilities divided by a temperature: above 1, they are less sure."""
        return type(self)(log_softmax(self.logprobs / temperature), self.answers)


def question_measures(predictions: Predictions) -> dict[Measure, Floats]:
    """[Q] the measures that are means over questions."""
    probabilities_QC = np.exp(predictions.logprobs)
    errors_QC = probabilities_QC.copy()
    errors_QC[np.arange(len(predictions)), predictions.answers] -= 1
    finite_QC = np.where(probabilities_QC > 0, predictions.logprobs, 0.0)
    correct_Q, confidence_Q = predictions.correct, predictions.confidence
    return {
        "accuracy": correct_Q,
        "nll": -predictions.answer_logprobs,
        "brier": (errors_QC**2).sum(1),
        "entropy": -(probabilities_QC * finite_QC).sum(1),
        "confidence": confidence_Q,
        "overconfidence": confidence_Q - correct_Q,
    }


def measures(predictions: Predictions, bins: int = BINS, weights_RQ: Floats | None = None) -> dict[Measure, Floats]:
    """[R] every measure of each resample; `weights_RQ` says how often a resample has each question (default: once)."""
    if weights_RQ is None:
        weights_RQ = np.ones((1, len(predictions)))
    totals_R = weights_RQ.sum(1)
    values: dict[Measure, Floats] = {
        name: weights_RQ @ values_Q / totals_R for name, values_Q in question_measures(predictions).items()
    }
    correct_Q, confidence_Q = predictions.correct, predictions.confidence
    values["ece"] = _width_error(correct_Q, confidence_Q, weights_RQ, bins) / totals_R
    values["ace"] = _mass_error(correct_Q, confidence_Q, weights_RQ, bins) / totals_R
    return values


def width_bins(confidence_Q: Floats, bins: int) -> Ints:
    """[Q] the bin of each confidence: bin b is (b/M, (b + 1)/M], so that a confidence of 1 is in the last."""
    edges = np.arange(1, bins) / bins
    bins_Q: Ints = np.searchsorted(edges, confidence_Q, side="left")
    return bins_Q


def _width_error(correct_Q: Floats, confidence_Q: Floats, weights_RQ: Floats, bins: int) -> Floats:
    """[R] Σ_b |Σ_{q in b} weight (accuracy − confidence)|."""
    in_bin_QM = width_bins(confidence_Q, bins)[:, None] == np.arange(bins)
    errors_R: Floats = np.abs(weights_RQ @ ((correct_Q - confidence_Q)[:, None] * in_bin_QM)).sum(1)
    return errors_R


def _mass_error(correct_Q: Floats, confidence_Q: Floats, weights_RQ: Floats, bins: int) -> Floats:
    """[R] the same over bins of equal mass, cut anew in each resample: a confidence is in bin ⌊M m/n⌋ by its middle m.

    Questions of the same confidence, and all copies of a question, are in the bin of their middle (of a single one, its
    place from 0 and a half): so the order of the questions does not matter.
    """
    order = np.argsort(confidence_Q, kind="stable")
    starts = np.flatnonzero(np.diff(confidence_Q[order], prepend=-1.0))  # of each confidence, of which there are G
    gaps_RQ = weights_RQ * (correct_Q - confidence_Q)
    weights_RG, gaps_RG = (np.add.reduceat(of[:, order], starts, axis=1) for of in (weights_RQ, gaps_RQ))
    middles_RG = weights_RG.cumsum(1) - weights_RG / 2
    bins_RG = np.minimum(middles_RG * bins // weights_RG.sum(1, keepdims=True), bins - 1).astype(np.int64)
    resamples = len(weights_RQ)
    places = bins_RG + bins * np.arange(resamples)[:, None]
    sums = np.bincount(places.ravel(), gaps_RG.ravel(), bins * resamples)
    errors_R: Floats = np.abs(sums.reshape(resamples, bins)).sum(1)
    return errors_R


@dataclass(frozen=True)
class ReliabilityBin:
    """The questions whose confidence is in one bin of equal width."""

    low: float
    """exclusive"""
    high: float
    questions: int
    confidence: float
    """mean; NaN of an empty bin"""
    accuracy: float
    """mean; NaN of an empty bin"""


def reliability(correct_Q: Floats, confidence_Q: Floats, bins: int = BINS) -> list[ReliabilityBin]:
    """Return the reliability table: every bin of equal width, also the empty ones."""
    bins_Q = width_bins(confidence_Q, bins)
    counts = np.bincount(bins_Q, minlength=bins)
    sums = (np.bincount(bins_Q, values, bins) for values in (confidence_Q, correct_Q))
    with np.errstate(invalid="ignore"):
        confidences, accuracies = (values / counts for values in sums)
    return [
        ReliabilityBin(b / bins, (b + 1) / bins, int(counts[b]), float(confidences[b]), float(accuracies[b]))
        for b in range(bins)
    ]


LOWEST, HIGHEST = 0.05, 50.0
"""the range of temperatures: beyond it, one choice has all of the probability, or all have the same"""
_STEPS = 100


def fit_temperature(predictions: Predictions) -> float:
    """Return the temperature with the least NLL (temperature scaling, Guo et al. 2017).

    It makes a model less sure without changing which choice is the likeliest, so it repairs calibration and never
    accuracy: the baseline that a merge has to stand beside.

    The NLL is convex in 1/T, so a golden-section search finds the least; it ends at `LOWEST` or `HIGHEST` where the
    least is beyond.
    """
    ratio = (np.sqrt(5) - 1) / 2
    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(_STEPS):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if _nll(predictions, 1 / left) <= _nll(predictions, 1 / right):
            high = right
        else:
            low = left
    return float(2 / (low + high))


def _nll(predictions: Predictions, temperature: float) -> float:
    return float(-predictions.with_temperature(temperature).answer_logprobs.mean())
