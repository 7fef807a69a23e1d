"""Intervals by the bootstrap: held to loops over resamples, and to how often they hold the truth."""

import numpy as np
import pytest

from alm_pipeline.evaluation.bootstrap import paired_intervals, percentile_interval, resample_counts


def test_each_resample_draws_whole_clusters() -> None:
    clusters = np.array(["b", "a", "b", "c", "a", "d"])
    counts = resample_counts(clusters, 500, seed=3)
    assert counts.shape == (500, 6)
    for cluster in "abcd":
        assert (np.ptp(counts[:, clusters == cluster], axis=1) == 0).all()
    firsts = [1, 0, 3, 5]
    assert (counts[:, firsts].sum(axis=1) == 4).all()
    assert counts[:, firsts].mean(axis=0) == pytest.approx(np.ones(4), abs=0.15)
    assert np.array_equal(counts, resample_counts(clusters, 500, seed=3))
    assert not np.array_equal(counts, resample_counts(clusters, 500, seed=4))


def test_intervals_are_those_of_a_loop_over_resamples() -> None:
    random = np.random.default_rng(0)
    sums, sizes, clusters = random.normal(2, 1, (3, 40)), random.uniform(1, 9, 40), random.integers(0, 12, 40)
    ratios = [
        [
            sum(c * s for c, s in zip(counts, row, strict=True))
            / sum(c * s for c, s in zip(counts, sizes, strict=True))
            for row in sums
        ]
        for counts in resample_counts(clusters, 200, seed=5)
    ]
    found = paired_intervals(sums, sizes, clusters, 200, seed=5)
    for model, pair in enumerate(found):
        assert pair.value.value == pytest.approx(sums[model].sum() / sizes.sum())
        low, high = np.percentile([row[model] for row in ratios], [2.5, 97.5])
        assert (pair.value.low, pair.value.high) == pytest.approx((low, high))
        if not model:
            assert pair.difference is None
            continue
        low, high = np.percentile([row[model] - row[0] for row in ratios], [2.5, 97.5])
        assert pair.difference is not None
        assert (pair.difference.low, pair.difference.high) == pytest.approx((low, high))


def test_ninety_five_percent_of_the_intervals_hold_the_truth() -> None:
    """Documents of several texts, hard or easy for both models: value, and paired difference, which is narrower."""
    random = np.random.default_rng(1)
    hits, widths = np.zeros(2), []
    for trial in range(400):
        documents = np.repeat(np.arange(80), 3)
        sizes = random.uniform(50, 150, 240)
        hard = 1 + random.gamma(4, 0.1, 80)[documents]  # mean 0.4
        first = sizes * (hard + random.normal(0, 0.05, 240))
        second = sizes * (hard + 0.03 + random.normal(0, 0.05, 240))
        value, other = (pair for pair in paired_intervals([first, second], sizes, documents, 500, seed=trial))
        difference = other.difference
        assert difference is not None
        hits += [
            value.value.low <= 1.4 <= value.value.high,  # type: ignore[operator]
            difference.low <= 0.03 <= difference.high,  # type: ignore[operator]
        ]
        widths.append((difference.high - difference.low) / (value.value.high - value.value.low))  # type: ignore[operator]
    assert np.all(abs(hits / 400 - 0.95) < 0.03)
    assert np.mean(widths) < 0.3


def test_one_cluster_has_no_interval() -> None:
    first, second = paired_intervals([[1.0, 3.0], [2.0, 4.0]], [2.0, 2.0], [7, 7])
    assert (first.value.value, first.value.low, first.value.high) == (1.0, None, None)
    assert second.difference is not None
    assert (second.difference.value, second.difference.low) == (0.5, None)
    with pytest.raises(ValueError, match="no item with a size"):
        paired_intervals([[1.0]], [0.0])


def test_items_without_a_size_count_for_nothing() -> None:
    with_empty = paired_intervals([[1.0, 0.0, 2.0, 5.0]], [[1.0, 0.0, 1.0, 2.0]], seed=1)
    assert with_empty == paired_intervals([[1.0, 2.0, 5.0]], [1.0, 1.0, 2.0], seed=1)


def test_a_percentile_interval_is_of_percentiles() -> None:
    interval = percentile_interval(50.0, np.arange(101))
    assert (interval.low, interval.high) == (2.5, 97.5)
