"""Sums over demonstrations, from which means, covariances and signatures follow.

They add up: in whatever shards and order the rows come, float64 sums differ by rounding alone. Raw sums suffice for
centered covariances, Σ x yᵀ / N − x̄ ȳᵀ.

Shapes: N demonstrations, D width. h are neutral activations, h⁺ and h⁻ those of positive and negative answers.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt

Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PairSums:
    """The sums of one place over demonstrations."""

    rows: int
    neutral: Float64s
    """[D] Σ h"""
    positive: Float64s
    """[D] Σ h⁺"""
    negative: Float64s
    """[D] Σ h⁻"""
    squares: Float64s
    """[D] Σ h²"""
    neutral_positive: Float64s
    """[D, D] Σ h h⁺ᵀ: rows neutral, columns positive"""
    neutral_negative: Float64s
    """[D, D] Σ h h⁻ᵀ"""

    @classmethod
    def of(cls, neutral_ND: npt.ArrayLike, positive_ND: npt.ArrayLike, negative_ND: npt.ArrayLike) -> Self:
        """Add up the activations of one place."""
        neutral, positive, negative = (np.asarray(each, np.float64) for each in (neutral_ND, positive_ND, negative_ND))
        return cls(
            len(neutral),
            neutral.sum(axis=0),
            positive.sum(axis=0),
            negative.sum(axis=0),
            (neutral**2).sum(axis=0),
            neutral.T @ positive,
            neutral.T @ negative,
        )

    def __add__(self, other: "PairSums") -> "PairSums":
        return PairSums(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def swapped(self) -> "PairSums":
        """Return the sums with positive and negative answers in each other's place."""
        own = self.rows, self.neutral, self.negative, self.positive, self.squares
        return PairSums(*own, self.neutral_negative, self.neutral_positive)

    def covariances(self, *, center: bool) -> tuple[Float64s, Float64s]:
        """[D, D] twice: Ω⁺ = Σ h h⁺ᵀ / N and Ω⁻, minus the product of the means if centered (2405.09719, 2.2)."""
        omegas = self.neutral_positive / self.rows, self.neutral_negative / self.rows
        if not center:
            return omegas
        means = [np.outer(self.neutral, other) / self.rows**2 for other in (self.positive, self.negative)]
        return omegas[0] - means[0], omegas[1] - means[1]


def add_up(parts: Iterable[PairSums]) -> PairSums:
    """Return the sum of at least one part, added in order."""
    total, *others = parts
    for part in others:
        total = total + part
    return total
