"""The losses of a batch that compare likelihoods, and what is logged beside them, from one pass of the student's head.

Shapes: N positions of a batch, C chunks of a batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from alm_pipeline.config import ObjectiveConfig, Term
from alm_pipeline.objective.alm import ChunkPlaces, alm_loss, chunk_logprobs, sft_loss
from alm_pipeline.objective.divergences import binary_kl


@dataclass(frozen=True)
class LossCounts:
    """What losses are averaged over: the global batch, that is, all micro-batches of a step on all devices."""

    chunks: Tensor
    tokens: Tensor
    """the student's predicted tokens"""
    aligned: Tensor
    """chunks before merging"""
    single: Tensor
    """chunks before merging that are one token on both sides; 0 where the batch has no column of them"""
    targets: Tensor
    """positions whose next token has a target; 0 likewise"""

    @classmethod
    def of(cls, *batches: Mapping[str, Tensor]) -> "LossCounts":
        """Return the counts of all these batches of `BatchStream`."""
        return cls(*torch.stack([_counts_of_batch(batch) for batch in batches]).sum(0))

    def on_all_devices(self, add: Callable[[Tensor], Tensor]) -> "LossCounts":
        """Return the sums over the devices, where `add` returns the sum of a tensor over them."""
        return LossCounts(*add(torch.stack([self.chunks, self.tokens, self.aligned, self.single, self.targets])))


def _counts_of_batch(batch: Mapping[str, Tensor]) -> Tensor:
    tokens = batch["predicted_N"].sum()
    single = batch["single_A"].sum() if "single_A" in batch else torch.zeros_like(tokens)
    has_targets = "target_ids_NL" in batch
    targets = (batch["target_ids_NL"][:, 0] >= 0).sum() if has_targets else torch.zeros_like(tokens)
    chunks = torch.full_like(tokens, len(batch["last_token_C"]))
    return torch.stack([chunks, tokens, batch["aligned"].to(tokens), single, targets])


@dataclass(frozen=True)
class BatchLosses:
    """Scalars; those of a step's micro-batches add up to the step's."""

    terms: dict[Term, Tensor]
    """to be weighted, added and differentiated"""
    watched: dict[str, Tensor]
    """by column of `metrics.parquet`, detached"""


@dataclass(frozen=True)
class ScoredBatch:
    """A batch with the student's two numbers per position, beside the teacher's likelihoods of its chunks."""

    token_logprobs_N: Tensor
    """[N] position i's is of token i itself"""
    boundary_logprobs_N: Tensor
    """[N] position i's is of a boundary after token i"""
    predicted_N: Tensor
    places: ChunkPlaces
    teacher_logprobs_C: Tensor
    objective: ObjectiveConfig
    counts: LossCounts
    source_C: Tensor | None = None
    """the number of each chunk's source, in a batch of a mixture"""
    sources: int = 0
    """of the mixture"""

    @classmethod
    def of(
        cls,
        next_token_logprobs_N: Tensor,
        boundary_logprobs_N: Tensor,
        batch: Mapping[str, Tensor],
        objective: ObjectiveConfig,
        counts: LossCounts,
    ) -> "ScoredBatch":
        """Join the student's numbers and a batch of `BatchStream`; `next_token_logprobs_N[i]` is of token i + 1."""
        return cls(
            next_token_logprobs_N.roll(1),
            boundary_logprobs_N,
            batch["predicted_N"],
            ChunkPlaces(**{name: batch[name] for name in ChunkPlaces._fields}),
            batch["teacher_logprobs_C"],
            objective,
            counts,
            batch.get("source_C"),
            len(batch["source_examples_K"]) if "source_examples_K" in batch else 0,
        )

    @cached_property
    def student_logprobs_C(self) -> Tensor:
        return chunk_logprobs(self.token_logprobs_N, self.boundary_logprobs_N, self.places)

    def alm(self) -> Tensor:
        return alm_loss(
            self.teacher_logprobs_C,
            self.student_logprobs_C,
            divergence=self.objective.divergence,
            temperature=self.objective.temperature,
            count=self.counts.chunks,
        )

    def sft(self) -> Tensor:
        return sft_loss(self.token_logprobs_N, self.predicted_N, self.counts.tokens)

    @torch.no_grad()
    def watched(self) -> dict[str, Tensor]:
        """Return what is logged of a batch, by column of `metrics.parquet`.

        Of a mixture, also the sum of each source's divergences, as `source_kl(k)`.
        """
        teacher_C, student_C = self.teacher_logprobs_C, self.student_logprobs_C
        values = {
            "kl": binary_kl(teacher_C, student_C, self.objective.temperature),
            "teacher_chunk_probability": teacher_C.exp(),
            "student_chunk_probability": student_C.exp(),
            "boundary_probability": self.boundary_logprobs_N[self.places.last_token_C].exp(),
        }
        means = {name: values_C.sum() / self.counts.chunks.clamp(min=1) for name, values_C in values.items()}
        return means | {"tokens_in_chunks": self.places.covered_N.sum()} | self._kl_by_source(values["kl"])

    def _kl_by_source(self, kl_C: Tensor) -> dict[str, Tensor]:
        if self.source_C is None:
            return {}
        sums_K = kl_C.new_zeros(self.sources).index_add_(0, self.source_C, kl_C)
        return {source_kl(number): sums_K[number] for number in range(self.sources)}


def source_kl(number: int) -> str:
    """Return the name of the sum of a source's divergences among what is watched."""
    return f"source {number} kl"
