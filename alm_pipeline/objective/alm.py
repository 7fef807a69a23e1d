"""The ALM objective (arXiv 2503.20083, section 3) as pure functions of named tensors.

Shapes: N positions of a batch, C chunks of a batch. A chunk's log-likelihood is the sum of its tokens'
log-probabilities, plus the log-probability that a boundary token comes after its last token, minus the one that a
boundary token comes before its first, as it is debiased at its ends.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from alm_pipeline.config import Divergence
from alm_pipeline.objective.divergences import DIVERGENCES


class ChunkPlaces(NamedTuple):
    """Where the chunks of a batch are. They may overlap."""

    covered_N: Tensor
    """whether the token is in a chunk"""
    first_token_C: Tensor
    """the position (of N) of each chunk's first token"""
    last_token_C: Tensor
    starts_debiased_C: Tensor
    """whether the likelihood is divided by P(boundary) before the chunk"""
    ends_debiased_C: Tensor
    """whether it is multiplied by P(boundary) after the chunk"""


def chunk_logprobs(token_logprobs_N: Tensor, boundary_logprobs_N: Tensor, places: ChunkPlaces) -> Tensor:
    """[C] log-likelihoods of chunks, at most 0.

    `token_logprobs_N[i]` is that of token i itself, `boundary_logprobs_N[i]` that of a boundary token after token i.
    """
    none = token_logprobs_N.new_zeros(())
    # differences of sums over a whole batch lose no digit of float32 in float64
    wide = torch.float32 if token_logprobs_N.device.type == "mps" else torch.float64
    totals_N = token_logprobs_N.where(places.covered_N, none).cumsum(0, dtype=wide)
    before_C = places.first_token_C - 1  # the first token of a batch has no prediction, so it is in no chunk
    logprobs_C = (totals_N[places.last_token_C] - totals_N[before_C]).to(token_logprobs_N.dtype)
    logprobs_C = logprobs_C + boundary_logprobs_N[places.last_token_C].where(places.ends_debiased_C, none)
    logprobs_C = logprobs_C - boundary_logprobs_N[before_C].where(places.starts_debiased_C, none)
    # rounding: a token that begins with white space is at most as likely as all of them
    return logprobs_C.clamp(max=0)


def alm_loss(
    teacher_logprobs_C: Tensor,
    student_logprobs_C: Tensor,
    *,
    divergence: Divergence = "binary_ce",
    temperature: float = 100.0,
    count: Tensor | float | None = None,
) -> Tensor:
    """Return the sum of the chunks' divergences, divided by `count`: the number of chunks in the global batch.

    If `count` is None, the sum is divided by C. A batch without chunks has the loss 0, and all its gradients are 0.
    """
    values_C = DIVERGENCES[divergence](teacher_logprobs_C, student_logprobs_C, temperature)
    return values_C.sum() / _at_least_one(len(values_C) if count is None else count)


def sft_loss(token_logprobs_N: Tensor, predicted_N: Tensor, count: Tensor | float | None = None) -> Tensor:
    """The negative log-likelihood of the predicted tokens in nats, summed and divided by `count`.

    `count` is the number of predicted tokens in the global batch (None: in this batch). Tokens that are not predicted
    may be NaN.
    """
    total = -token_logprobs_N.where(predicted_N, token_logprobs_N.new_zeros(())).sum()
    return total / _at_least_one(predicted_N.sum() if count is None else count)


def _at_least_one(count: Tensor | float) -> Tensor | float:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(1.0, count)
