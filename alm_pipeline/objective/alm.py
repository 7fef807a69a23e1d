"""The ALM objective (arXiv 2503.20083, section 3) as pure functions of named tensors.

Shapes: N positions of a batch, C chunks of a batch. A chunk's log-likelihood is the sum of its tokens'
log-probabilities, debiased by the log-probability that a boundary token comes after its last token.
"""

import torch
from torch import Tensor

_EPSILON = 1e-6
_LOG_HALF = -0.6931471805599453


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − eˣ) for x < 0, stable at both ends (Mächler 2012)."""
    # each branch sees only arguments it is finite for, or its gradient would poison the other's
    near_zero = x > _LOG_HALF
    small = torch.where(near_zero, x, torch.full_like(x, _LOG_HALF))
    large = torch.where(near_zero, torch.full_like(x, _LOG_HALF), x)
    return torch.where(near_zero, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def chunk_logprobs(
    token_logprobs_N: Tensor,
    boundary_logprobs_N: Tensor,
    chunk_of_token_N: Tensor,
    last_token_C: Tensor,
    *,
    debias: bool,
) -> Tensor:
    """[C] log-likelihoods of chunks. `chunk_of_token_N` is −1 for a token of no chunk.

    `boundary_logprobs_N[i]` is for what comes after token i, `token_logprobs_N[i]` is of token i itself.
    """
    counted = chunk_of_token_N >= 0
    sums_C = token_logprobs_N.new_zeros(len(last_token_C))
    sums_C = sums_C.index_add(0, chunk_of_token_N[counted], token_logprobs_N[counted])
    return sums_C + boundary_logprobs_N[last_token_C] if debias else sums_C


def binary_cross_entropy(teacher_C: Tensor, student_C: Tensor, temperature: float) -> Tensor:
    """[C] −[eᵃ b + (1 − eᵃ) log(1 − eᵇ)], a = C_T/τ − ε, b = C_S/τ − ε: `binary_ce`."""
    a, b = teacher_C / temperature - _EPSILON, student_C / temperature - _EPSILON
    return -(a.exp() * b - torch.expm1(a) * log1mexp(b))


def binary_kl(teacher_C: Tensor, student_C: Tensor, temperature: float) -> Tensor:
    """[C] the Kullback-Leibler divergence whose gradient `binary_cross_entropy` has; zero where both agree."""
    return binary_cross_entropy(teacher_C, student_C, temperature) - binary_cross_entropy(
        teacher_C, teacher_C, temperature
    )
