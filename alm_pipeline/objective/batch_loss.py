"""The losses of one batch that need the student alone, and what is worth watching, from one pass of its head.

Shapes: N positions of a batch, C chunks of a batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from alm_pipeline.config import ObjectiveConfig, Term
from alm_pipeline.objective.alm import alm_loss, chunk_logprobs, sft_loss
from alm_pipeline.objective.divergences import binary_kl


@dataclass(frozen=True)
class Counts:
    """What losses are means over: the global batch, that is all micro-batches of a step on all devices."""

    chunks: Tensor
    tokens: Tensor
    """predicted ones of the student"""
    aligned: Tensor
    """chunks before merging"""
    single: Tensor
    """those of one token on either side; 0 where the batch does not say which"""

    @classmethod
    def of(cls, *batches: Mapping[str, Tensor]) -> "Counts":
        """Of all these batches of `BatchStream`."""
        return cls(*torch.stack([_held(batch) for batch in batches]).sum(0))

    def on_all_devices(self, add: Callable[[Tensor], Tensor]) -> "Counts":
        """`add` gives a tensor's sum over the devices."""
        return Counts(*add(torch.stack([self.chunks, self.tokens, self.aligned, self.single])))


def _held(batch: Mapping[str, Tensor]) -> Tensor:
    tokens = batch["predicted_N"].sum()
    single = batch["single_A"].sum() if "single_A" in batch else torch.zeros_like(tokens)
    chunks = torch.full_like(tokens, len(batch["last_token_C"]))
    return torch.stack([chunks, tokens, batch["aligned"].to(tokens), single])


@dataclass(frozen=True)
class BatchLosses:
    """Scalars; those of a step's micro-batches add up to the step's."""

    terms: dict[Term, Tensor]
    """to be weighted, added and differentiated"""
    watched: dict[str, Tensor]
    """by column of `metrics.parquet`, detached"""


def batch_losses(
    next_token_logprobs_N: Tensor,
    boundary_logprobs_N: Tensor,
    predicted_N: Tensor,
    chunk_of_token_N: Tensor,
    last_token_C: Tensor,
    teacher_logprobs_C: Tensor,
    objective: ObjectiveConfig,
    counts: Counts,
) -> BatchLosses:
    """ALM and SFT from the student's two numbers a position.

    Position i's are of token i + 1, and of a boundary after token i. Both terms are there whether or not the objective
    weights them: they cost nothing beside the head.
    """
    token_logprobs_N = next_token_logprobs_N.roll(1)
    student_C = chunk_logprobs(
        token_logprobs_N, boundary_logprobs_N, chunk_of_token_N, last_token_C, debias=objective.debias
    )
    alm = alm_loss(
        teacher_logprobs_C,
        student_C,
        divergence=objective.divergence,
        temperature=objective.temperature,
        count=counts.chunks,
    )
    sft = sft_loss(token_logprobs_N, predicted_N, counts.tokens)
    with torch.no_grad():
        means = {
            "kl": binary_kl(teacher_logprobs_C, student_C, objective.temperature),
            "teacher_chunk_probability": teacher_logprobs_C.exp(),
            "student_chunk_probability": student_C.exp(),
            "boundary_probability": boundary_logprobs_N[last_token_C].exp(),
        }
        watched = {name: values_C.sum() / counts.chunks.clamp(min=1) for name, values_C in means.items()}
        in_chunks = (chunk_of_token_N >= 0).sum()
    return BatchLosses({"alm": alm, "sft": sft}, watched | {"tokens_in_chunks": in_chunks})
