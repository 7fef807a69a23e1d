"""Divergences between the likelihoods that teacher and student give a chunk (arXiv 2503.20083, section 3 and table).

All take [C] log-likelihoods C_T and C_S, which are at most 0, and a temperature τ, and return [C] values. With
a = C_T/τ − ε and b = C_S/τ − ε, they compare the binary distributions (eᵃ, 1 − eᵃ) and (eᵇ, 1 − eᵇ).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from alm_pipeline.config import Divergence

_EPSILON = 1e-6
_LOG_HALF = -0.6931471805599453
_STEEPEST = 40.0


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − eˣ) for x < 0, stable at both ends (Mächler 2012)."""
    # each branch gets only arguments that it is finite for: an infinite gradient would become NaN in the sum
    near_zero = x > _LOG_HALF
    small = torch.where(near_zero, x, torch.full_like(x, _LOG_HALF))
    large = torch.where(near_zero, torch.full_like(x, _LOG_HALF), x)
    return torch.where(near_zero, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def binary_cross_entropy(teacher_C: Tensor, student_C: Tensor, temperature: float) -> Tensor:
    """−[eᵃ b + (1 − eᵃ) log(1 − eᵇ)]: `binary_ce`."""
    a, b = teacher_C / temperature - _EPSILON, student_C / temperature - _EPSILON
    return -(a.exp() * b - torch.expm1(a) * log1mexp(b))


def binary_kl(teacher_C: Tensor, student_C: Tensor, temperature: float) -> Tensor:
    """The Kullback-Leibler divergence: it has the gradient of `binary_ce`, and is zero where both sides agree."""
    return binary_cross_entropy(teacher_C, student_C, temperature) - binary_cross_entropy(
        teacher_C, teacher_C, temperature
    )


def reverse_binary_kl(teacher_C: Tensor, student_C: Tensor, temperature: float) -> Tensor:
    """eᵇ (b − a) + (1 − eᵇ) (log(1 − eᵇ) − log(1 − eᵃ))."""
    a, b = teacher_C / temperature - _EPSILON, student_C / temperature - _EPSILON
    return b.exp() * (b - a) - torch.expm1(b) * (log1mexp(b) - log1mexp(a))


def binary_kl_limit(teacher_C: Tensor, student_C: Tensor, temperature: float) -> Tensor:
    """(C_T − C_S) + C_T log(−C_S) − C_T log(−C_T): the limit of τ · KL for τ → ∞. Ignores the temperature."""
    a, b = teacher_C - _EPSILON, student_C - _EPSILON
    return (a - b) + a * (torch.log(-b) - torch.log(-a))


def absolute(teacher_C: Tensor, student_C: Tensor, temperature: float) -> Tensor:
    """|C_T − C_S|. Ignores the temperature."""
    return (teacher_C - student_C).abs()


def absolute_of_likelihoods(teacher_C: Tensor, student_C: Tensor, temperature: float) -> Tensor:
    """|eᵃ − eᵇ|."""
    a, b = teacher_C / temperature - _EPSILON, student_C / temperature - _EPSILON
    return (a.exp() - b.exp()).abs()


def k2(teacher_C: Tensor, student_C: Tensor, temperature: float) -> Tensor:
    """r²/2 with r = (C_T − C_S)/τ (one of Schulman's estimators of the KL)."""
    return ((teacher_C - student_C) / temperature) ** 2 / 2


def k3(teacher_C: Tensor, student_C: Tensor, temperature: float) -> Tensor:
    """eʳ − 1 − r with r = (C_T − C_S)/τ; above r = 40 the tangent at 40, which float32 can represent."""
    r = (teacher_C - student_C) / temperature
    bounded = r.clamp(max=_STEEPEST)
    return torch.expm1(bounded) + bounded.exp() * (r - bounded) - r


TEMPERATURE_POWERS: dict[Divergence, int] = {
    "binary_ce": 1,
    "reverse_binary_kl": 1,
    "binary_kl_limit": 0,
    "abs": 0,
    "abs_exp": 1,
    "k2": 2,
    "k3": 2,
}
"""Times τ to this power, a divergence's gradient neither vanishes nor grows as τ grows."""

DIVERGENCES: dict[Divergence, Callable[[Tensor, Tensor, float], Tensor]] = {
    "binary_ce": binary_cross_entropy,
    "reverse_binary_kl": reverse_binary_kl,
    "binary_kl_limit": binary_kl_limit,
    "abs": absolute,
    "abs_exp": absolute_of_likelihoods,
    "k2": k2,
    "k3": k3,
}
