"""Intervals cover what they should; resamples are of clusters, and the same for all; the front by its definition."""

from collections.abc import Callable

import numpy as np
import pytest

from alm_pipeline.calibration.report.measures import MEASURES, Measure, Predictions, log_softmax, measures
from alm_pipeline.calibration.report.resampling import cluster_numbers, dominates, on_front, validation_half
from alm_pipeline.evaluation.bootstrap import percentiles, resample_counts

Draw = Callable[[np.random.Generator, int], Predictions]


def overconfident(generator: np.random.Generator, questions: int) -> Predictions:
    """Answers are drawn from probabilities whose logits the model has doubled."""
    logits = generator.normal(0, 1, (questions, 4))
    truth = np.exp(log_softmax(logits))
    answers = (generator.random((questions, 1)) > truth.cumsum(1)).sum(1)
    return Predictions(log_softmax(2.5 * logits), np.minimum(answers, 3))


@pytest.fixture(scope="module")
def truth() -> dict[Measure, float]:
    values = measures(overconfident(np.random.default_rng(0), 400_000))
    return {name: float(found[0]) for name, found in values.items()}


def test_every_interval_covers(truth: dict[Measure, float]) -> None:
    """95 % intervals of 300 draws of 250 questions, less what the bootstrap of small samples lacks."""
    draws, covered = 300, dict.fromkeys(MEASURES, 0)
    weights = resample_counts(np.arange(250), 300, seed=1)
    for seed in range(draws):
        resampled = measures(overconfident(np.random.default_rng(100 + seed), 250), weights_RQ=weights)
        for name in MEASURES:
            low, high = percentiles(resampled[name])
            covered[name] += low <= truth[name] <= high
    for name, count in covered.items():
        # three standard errors of a share of 300 below 95 %; ECE and ACE are biased upward by their bins
        least = 0.91 if name not in ("ece", "ace") else 0.85
        assert least <= count / draws <= 0.99, (name, count / draws)


def test_intervals_of_clusters_cover_where_those_of_questions_do_not() -> None:
    """Eight rephrasings of each of 40 questions, which a model gets right or wrong together."""
    clusters, inside, alone = np.repeat(np.arange(40), 8), 0, 0
    by_cluster, by_question = resample_counts(clusters, 300, 0), resample_counts(np.arange(320), 300, 0)
    for seed in range(200):
        right = np.repeat(np.random.default_rng(seed).random(40) < 0.6, 8).astype(float)
        for_clusters, for_questions = (
            percentiles(weights @ right / weights.sum(1)) for weights in (by_cluster, by_question)
        )
        inside += for_clusters[0] <= 0.6 <= for_clusters[1]
        alone += for_questions[0] <= 0.6 <= for_questions[1]
    assert inside / 200 > 0.9
    assert alone / 200 < 0.7


def test_clusters_are_numbered_by_their_names() -> None:
    assert cluster_numbers(["b", "a", "b", "c", "a"]).tolist() == [1, 0, 1, 2, 0]


def test_halves_split_clusters_and_nothing_within() -> None:
    clusters = np.repeat(np.arange(10), 3)
    chosen = validation_half(clusters, 5)
    assert chosen.sum() == 15
    assert all(len(set(chosen[clusters == cluster])) == 1 for cluster in range(10))


def test_the_front_is_what_nothing_dominates() -> None:
    generator = np.random.default_rng(0)
    accuracy, ece = (generator.integers(0, 4, (200, 6)) / 4.0 for _ in range(2))
    found = on_front(accuracy, ece)
    for resample in range(200):
        for k in range(6):
            beaten = any(
                accuracy[resample, j] >= accuracy[resample, k]
                and ece[resample, j] <= ece[resample, k]
                and (accuracy[resample, j] > accuracy[resample, k] or ece[resample, j] < ece[resample, k])
                for j in range(6)
            )
            assert found[resample, k] == (not beaten)
    equal = np.array([0.5]), np.array([0.1])
    assert not dominates(*equal, *equal).any()
