"""The halves that questions are split into, and which models no other one beats.

Shapes: Q questions, R resamples, L models (points of the sweep).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from alm_pipeline.calibration.report.measures import Floats, Ints

Flags = npt.NDArray[np.bool_]


def cluster_numbers(clusters: Sequence[str]) -> Ints:
    """[Q] a number for each cluster's name, in the order of the names, whatever the order of the questions."""
    return np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64)


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
