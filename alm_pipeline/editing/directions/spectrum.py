"""From activations or their sums to the directions of an edit, in float64.

Shapes: N demonstrations, D width, R rank, K kept directions.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alm_pipeline.editing.directions.sums import Float64s, PairSums
from storage.errors import UserError


@dataclass(frozen=True)
class Spectrum:
    """The left singular vectors and the singular values of a covariance, largest first."""

    vectors: Float64s
    """[D, R] orthonormal"""
    values: Float64s
    """[R]"""

    def leading(self, energy: float) -> Float64s:
        """[D, K] the leading vectors that hold this share of the squared singular values."""
        return self.vectors[:, : leading_count(self.values, energy, len(self.vectors))]


def spectrum_of_covariance(omega_DD: Float64s) -> Spectrum:
    """Return the spectrum of Ω."""
    vectors, values, _ = np.linalg.svd(omega_DD)
    return Spectrum(vectors, values)


def spectrum_of_rows(neutral_ND: Float64s, other_ND: Float64s) -> Spectrum:
    """Return the spectrum of Ω = HᵀX / N without making it, for fewer demonstrations than the activations are wide.

    With QR decompositions Hᵀ = A B and Xᵀ = C E, Ω = A (B Eᵀ / N) Cᵀ, whose left vectors are A times those of the
    matrix in the middle, [N, N].
    """
    basis_DN, middle_NN = np.linalg.qr(neutral_ND.T)
    _, other_NN = np.linalg.qr(other_ND.T)
    vectors, values, _ = np.linalg.svd(middle_NN @ other_NN.T / len(neutral_ND))
    return Spectrum(basis_DN @ vectors, values)


def leading_count(values: npt.ArrayLike, energy: float, width: int | None = None) -> int:
    """Return the least K with Σ_{j ≤ K} s² / Σ s² ≥ energy, for singular values in descending order.

    Values that are zero but for rounding are zero, so that all of the energy is the rank. Of equal values at the cut,
    those that come first count. Raises UserError if all values are zero.
    """
    squares = np.asarray(values, np.float64) ** 2
    size = max(len(squares), width or 0)
    squares[np.sqrt(squares) <= np.sqrt(squares.max(initial=0)) * size * np.finfo(np.float64).eps] = 0
    total = squares.sum()
    if not total:
        raise UserError("the activations have no covariance: they are the same for all demonstrations, or zero")
    # added from the smallest on: what is left out is compared, which 1 − energy resolves where a sum near 1 does not
    left_out = np.append(np.cumsum(squares[::-1])[::-1][1:], 0.0)
    allowed = (1 - energy) * total * (1 + 1e-12)
    return int(np.argmax(left_out <= allowed)) + 1


def spectra(rows: tuple[Float64s, Float64s, Float64s] | PairSums, *, center: bool) -> tuple[Spectrum, Spectrum]:
    """Return the spectra of Ω⁺ and Ω⁻ of one place, from rows [N, D] of neutral, positive and negative, or from sums.

    Raises UserError for a single demonstration where it is centered: nothing is left of it.
    """
    count = rows.rows if isinstance(rows, PairSums) else len(rows[0])
    if count < 2 and center:
        raise UserError("one demonstration has no centered covariance: give more, or set center to false")
    if isinstance(rows, tuple) and count < rows[0].shape[1]:
        neutral, positive, negative = (each - each.mean(axis=0) if center else each for each in rows)
        return spectrum_of_rows(neutral, positive), spectrum_of_rows(neutral, negative)
    sums = rows if isinstance(rows, PairSums) else PairSums.of(*rows)
    plus, minus = sums.covariances(center=center)
    return spectrum_of_covariance(plus), spectrum_of_covariance(minus)


def signature(positive_D: Float64s, negative_D: Float64s, *, center: bool) -> float:
    """Return Σ of the singular values of the covariance between activations and labels (2405.09719, 4.3).

    Its columns are, of N positive and N negative activations, Σ h⁺ / 2N and Σ h⁻ / 2N; the arguments are the means.
    """
    columns_D2 = np.stack([positive_D, negative_D], 1) / 2
    if center:
        columns_D2 = columns_D2 - np.outer(columns_D2.sum(axis=1), [0.5, 0.5])
    return float(np.linalg.svd(columns_D2, compute_uv=False).sum())
