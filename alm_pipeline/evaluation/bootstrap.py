"""Intervals by the bootstrap: how far another sample of texts, or of questions, would lead.

Items that resemble each other (pieces of a document, labels of one question) are one cluster, and clusters are drawn,
with replacement. All models are measured on the same resamples, so the interval of a difference is that of a *paired*
one: what makes a text hard for all models cancels. Intervals are the percentiles 2.5 and 97.5 of the resamples (Efron,
Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13): with few clusters they are somewhat too short.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)

Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A number, and where 95 % of the resamples are; None if there is a single cluster, which says nothing of that."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PairedInterval:
    """The value of a model, and its difference to the first model on the same resamples; None for the first model."""

    value: Interval
    difference: Interval | None


def resample_counts(clusters: npt.ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> npt.NDArray[np.int64]:
    """[resamples, items] how often each item is in each resample; `clusters` [items] names each item's cluster.

    Each resample draws as many clusters as there are, with replacement; all items of a drawn cluster come with it.
    A weighted mean of items by a row of this is the statistic on that resample.
    """
    names, of_item = np.unique(np.asarray(clusters), return_inverse=True)
    drawn = _drawn_clusters(len(names), resamples, seed)
    return drawn[:, of_item]


def _drawn_clusters(clusters: int, resamples: int, seed: int) -> npt.NDArray[np.int64]:
    """[resamples, clusters] how often each cluster was drawn."""
    if not clusters:
        return np.zeros((resamples, 0), np.int64)
    return np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), resamples)


def percentile_interval(value: float, resampled: npt.ArrayLike) -> Interval:
    """Return a value with the percentiles of the same statistic on resamples [resamples]."""
    return Interval(value, *percentiles(resampled))


def percentiles(resampled: npt.ArrayLike) -> tuple[float, float]:
    """Return the ends of the interval of a statistic on resamples [resamples]."""
    low, high = np.percentile(np.asarray(resampled, np.float64), PERCENTILES)
    return float(low), float(high)


def paired_intervals(
    sums: npt.ArrayLike,
    sizes: npt.ArrayLike,
    clusters: npt.ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[PairedInterval]:
    """Return for each model Σ sums / Σ sizes over the items, and the difference of this to the first model.

    Args:
        sums: [models, items] what is added up, such as the bits of a text or whether an answer is right.
        sizes: What it is divided by, such as the bytes of a text: [models, items] or, of all models, [items].
        clusters: [items] the cluster of each item; by default each is its own.
        resamples: The number of resamples.
        seed: The seed that clusters are drawn with.

    Raises:
        ValueError: A model has no item with a size.
    """
    sums_MI = np.atleast_2d(np.asarray(sums, np.float64))
    sizes_MI = np.broadcast_to(np.asarray(sizes, np.float64), sums_MI.shape)
    of_item = np.arange(sums_MI.shape[1]) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    sums_MC, sizes_MC = _by_cluster(sums_MI, of_item), _by_cluster(sizes_MI, of_item)
    known = (sizes_MC > 0).any(axis=0)
    if not (sizes_MC > 0).any(axis=1).all():
        raise ValueError("a model has no item with a size")
    sums_MC, sizes_MC = sums_MC[:, known], sizes_MC[:, known]
    values = sums_MC.sum(axis=1) / sizes_MC.sum(axis=1)
    if known.sum() < 2:
        return [
            PairedInterval(Interval(float(value), None, None), _single(values, row)) for row, value in enumerate(values)
        ]
    drawn = _drawn_clusters(int(known.sum()), resamples, seed).astype(np.float64)
    sizes_MB = sizes_MC @ drawn.T
    usable = (sizes_MB > 0).all(axis=0)
    resampled_MB = (sums_MC @ drawn.T)[:, usable] / sizes_MB[:, usable]
    return [
        PairedInterval(
            percentile_interval(float(value), row),
            percentile_interval(float(value - values[0]), row - resampled_MB[0]) if number else None,
        )
        for number, (value, row) in enumerate(zip(values, resampled_MB, strict=True))
    ]


def _single(values: Float64s, row: int) -> Interval | None:
    return Interval(float(values[row] - values[0]), None, None) if row else None


def _by_cluster(values_MI: Float64s, of_item: npt.NDArray[np.int64]) -> Float64s:
    return np.stack([np.bincount(of_item, row) for row in values_MI])
