"""The objective: loss terms, chunking and divergence."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from alm_pipeline.config.frozen import Frozen


class Ramp(Frozen):
    """A weight that goes from one value to another in equal steps, and stays there."""

    start: float = Field(ge=0)
    end: float = Field(ge=0)
    steps: int = Field(gt=0, description="training steps until it is `end`")

    def at(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(1.0, step / self.steps)


Chunking = Literal["boundary", "unconstrained", "space", "pair_bias"]
Divergence = Literal["binary_ce", "reverse_binary_kl", "binary_kl_limit", "abs", "abs_exp", "k2", "k3"]
Balance = Literal["fixed", "gradmag"]
Term = Literal["alm", "sft", "latents", "uld", "mined", "dskd"]
LIVE_TERMS: frozenset[Term] = frozenset({"latents", "uld", "mined", "dskd"})
"""what needs the teacher itself in training memory, and not its scores alone"""


class ObjectiveConfig(Frozen):
    """The ALM objective (arXiv 2503.20083), what stands beside it, and what it is compared with."""

    terms: dict[Term, Annotated[float, Field(ge=0)] | Ramp] = Field(
        {"alm": 1.0},
        description="losses and their weights: alm; sft, next-token cross-entropy on the student's tokens; with the "
        "teacher in memory: latents, hidden states at the ends of chunks; the baselines uld, mined, dskd",
    )
    balance: Balance = Field(
        "fixed",
        description="gradmag divides each weight by the norm of its term's gradient at the last layer, and scales "
        "them to sum to 1; it costs a backward pass through the head for each term",
    )
    chunking: Chunking = Field(
        "boundary",
        description="where chunks end: where the teacher's P(boundary) exceeds gamma; wherever both sides' tokens end; "
        "where a space follows on both sides; where the bias of the pair of tokens is at most gamma",
    )
    gamma: float = Field(0.1, ge=0, le=1, description="of the chunkings boundary and pair_bias")
    debias: bool = Field(True, description="multiply a chunk's likelihood by P(boundary) after it")
    divergence: Divergence = Field("binary_ce", description="between the likelihoods that both sides give a chunk")
    temperature: float = Field(100.0, gt=0)
    assistant_only: bool = Field(False, description="of conversations, learn the assistant's turns only")

    @model_validator(mode="after")
    def _has_a_term(self) -> Self:
        if not any(isinstance(weight, Ramp) or weight for weight in self.terms.values()):
            raise ValueError("terms: no term has a weight: give one, such as {alm: 1}")
        return self

    @property
    def is_live(self) -> bool:
        """Whether the teacher has to be there while the student is trained."""
        return not LIVE_TERMS.isdisjoint(self.terms)
