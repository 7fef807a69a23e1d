"""Intervals and shares by a paired bootstrap: the same resamples of questions for every model and every measure.

Clusters of questions (rephrasings of one question, several labels of one text) are drawn together. Because every model
is measured on the same resamples, "this one is better" is a count of resamples.

Shapes: Q questions, R resamples, K clusters, L models (points of the sweep).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from alm_pipeline.calibration.report.measures import Floats, Ints
from alm_pipeline.calibration.report.settings import RESAMPLES

LEVEL = 0.95
Flags = npt.NDArray[np.bool_]


class Interval(NamedTuple):
    """A percentile interval."""

    low: float
    high: float


def cluster_numbers(clusters: Sequence[str]) -> Ints:
    """[Q] a number for each cluster's name, in the order of the names, whatever the order of the questions."""
    return np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64)


def bootstrap_weights(clusters_Q: Ints, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """[R, Q] how often each resample has each question: K of the K clusters are drawn, with replacement."""
    count = int(clusters_Q.max()) + 1
    drawn_RK = np.random.default_rng(seed).integers(0, count, (resamples, count))
    places = drawn_RK + count * np.arange(resamples)[:, None]
    times_RK = np.bincount(places.ravel(), minlength=count * resamples).reshape(resamples, count)
    return times_RK[:, clusters_Q].astype(np.float64)


def percentile_interval(values_R: Floats, level: float = LEVEL) -> Interval:
    """Return the interval that holds the middle `level` of the resamples' values."""
    tail = (1 - level) / 2
    low, high = np.quantile(values_R, (tail, 1 - tail)).tolist()
    return Interval(low, high)


def validation_half(clusters_Q: Ints, seed: int = 0) -> Flags:
    """[Q] whether each question is in the validation half; clusters are never split between the halves."""
    count = int(clusters_Q.max()) + 1
    chosen = np.random.default_rng(seed).permutation(count)[: count // 2]
    is_chosen_Q: Flags = np.isin(clusters_Q, chosen)
    return is_chosen_Q


def dominates(accuracy: Floats, ece: Floats, other_accuracy: Floats, other_ece: Floats) -> Flags:
    """Whether a point is at least as accurate and at least as well calibrated as another, and one of them strictly."""
    as_good = (accuracy >= other_accuracy) & (ece <= other_ece)
    return as_good & ((accuracy > other_accuracy) | (ece < other_ece))


def on_front(accuracy_RL: Floats, ece_RL: Floats) -> Flags:
    """[R, L] whether no other point of the resample dominates this one."""
    dominated_RL = np.zeros(accuracy_RL.shape, bool)
    for other in range(accuracy_RL.shape[1]):
        dominated_RL |= dominates(accuracy_RL[:, [other]], ece_RL[:, [other]], accuracy_RL, ece_RL)
    return ~dominated_RL
