"""The loss of one batch: the ALM term, the SFT term and what is worth watching, from one pass of the head."""

from dataclasses import dataclass

import torch
from torch import Tensor

from alm_pipeline.config import ObjectiveConfig
from alm_pipeline.objective.alm import binary_cross_entropy, binary_kl, chunk_logprobs


@dataclass(frozen=True)
class BatchLoss:
    """Scalars; `loss` is the one to differentiate, the others are detached."""

    loss: Tensor
    alm: Tensor
    """mean over chunks of `binary_ce`"""
    kl: Tensor
    """mean over chunks of the divergence: zero where the student gives each chunk the teacher's likelihood"""
    sft: Tensor
    """mean negative log-likelihood a token, in nats"""


def batch_loss(
    next_token_logprobs_N: Tensor,
    boundary_logprobs_N: Tensor,
    predicted_N: Tensor,
    chunk_of_token_N: Tensor,
    last_token_C: Tensor,
    teacher_logprobs_C: Tensor,
    objective: ObjectiveConfig,
) -> BatchLoss:
    """From the student's two numbers a position: position i's are of token i + 1, and of a boundary after token i."""
    token_logprobs_N = next_token_logprobs_N.roll(1)
    student_C = chunk_logprobs(
        token_logprobs_N, boundary_logprobs_N, chunk_of_token_N, last_token_C, debias=objective.debias
    )
    alm = binary_cross_entropy(teacher_logprobs_C, student_C, objective.temperature).mean()
    sft = -token_logprobs_N[predicted_N].mean()
    with torch.no_grad():
        kl = binary_kl(teacher_logprobs_C, student_C, objective.temperature).mean()
    loss = objective.alm_weight * alm + objective.sft_weight * sft
    return BatchLoss(loss, alm.detach(), kl, sft.detach())
