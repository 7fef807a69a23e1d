"""The objective: loss terms, chunking and divergence."""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from alm_pipeline.config.frozen import Frozen, Real


class Ramp(Frozen):
    """A weight that changes linearly from one value to another and then stays there."""

    start: Real = Field(ge=0, description="The weight at the first step.")
    end: Real = Field(ge=0, description="The weight from step `steps` on.")
    steps: int = Field(gt=0, description="The number of training steps from `start` to `end`.")

    def at(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(1.0, step / self.steps)


Chunking = Literal["boundary", "unconstrained", "space", "anchor", "pair_bias"]
Debias = Literal["none", "end", "both"]
Divergence = Literal["binary_ce", "reverse_binary_kl", "binary_kl_limit", "abs", "abs_exp", "k2", "k3"]
Balance = Literal["fixed", "temperature", "gradmag"]
LearnedPart = Literal["answer", "tool_calls", "reasoning"]
LEARNED_PARTS: tuple[LearnedPart, ...] = get_args(LearnedPart)
LearnedTurns = Literal["all", "last"]
Term = Literal["alm", "bpm", "sft", "latents", "uld", "mined", "dskd", "gold", "simct"]
LIVE_TERMS: frozenset[Term] = frozenset({"latents", "uld", "mined", "dskd", "gold", "simct"})
"""Terms that need the teacher itself in training memory, and not only its scores."""
TOP_TERMS: frozenset[Term] = frozenset({"bpm"})
"""Terms that need the teacher's likeliest tokens among its scores (`score.top_k`)."""


class ObjectiveConfig(Frozen):
    """The ALM objective (arXiv 2503.20083), further terms, and the baselines that it is compared with."""

    terms: dict[Term, Annotated[Real, Field(ge=0)] | Ramp] = Field(
        {"alm": 1.0},
        description="The loss terms and their weights; a weight is a number or a ramp `{start, end, steps}`. `alm` "
        "matches the teacher's chunk likelihoods; `sft` is next-token cross-entropy on the student's tokens; `bpm` "
        "matches the teacher's likeliest next tokens, which `score.top_k` stores, at the beginnings of words. The "
        "others keep the teacher in memory: `latents` matches hidden states at the ends of chunks; `uld`, `mined`, "
        "`dskd`, `gold` and `simct` are baselines.",
    )
    balance: Balance = Field(
        "fixed",
        description="How weights are scaled. `fixed` takes them as they are. `temperature` multiplies that of `alm` by "
        "what its gradients lose through `temperature` (τ; τ² for `k2` and `k3`), so that a nat of a chunk counts "
        "about as much as one of `sft` at every temperature. `gradmag` divides each by the norm of its term's gradient "
        "at the last layer and scales them to sum to 1; this costs one backward pass through the head for each term.",
    )
    chunking: Chunking = Field(
        "boundary",
        description="Where chunks end. `boundary`: where the teacher's P(boundary) exceeds `gamma`. `unconstrained`: "
        "wherever tokens of both sides end. `space`: where white space or a special token follows on both sides. "
        "`anchor`: at those of them where the likelihood is the same for every tokenizer, and as with `boundary` where "
        "there is none for 16 teacher tokens. `pair_bias`: where the tokenization bias of the pair of last tokens is "
        "at most `gamma`.",
    )
    gamma: float = Field(
        0.1,
        ge=0,
        le=1,
        description="The threshold of the chunkings `boundary`, `pair_bias` and, far from an anchor, `anchor`; the "
        "others ignore it.",
    )
    debias: Debias = Field(
        "both",
        description="Which ends of a chunk are freed of tokenization bias. `none`: its likelihood is that of its "
        "tokens. `end`: times P(boundary) after it, as published. `both`: also over P(boundary) before it, counted "
        "from the last end of a word before the chunk, which makes it the same for every tokenizer.",
    )
    divergence: Divergence = Field(
        "binary_ce",
        description="The divergence between the two likelihoods of a chunk. `binary_ce` has the gradient of the binary "
        "KL, `reverse_binary_kl` is that KL with the sides exchanged, and `binary_kl_limit` is its limit at infinite "
        "temperature. `abs` and `abs_exp` are absolute differences of log-likelihoods and of likelihoods; `k2` and "
        "`k3` are estimators of the KL.",
    )
    temperature: Real = Field(
        100.0,
        gt=0,
        description="The number τ that chunk log-likelihoods are divided by before the divergence is computed. `abs` "
        "and `binary_kl_limit` ignore it.",
    )
    assistant_only: bool = Field(
        False,
        description="In conversations, learn only from the assistant's turns, or the parts of them that `learn` and "
        "`learned_turns` choose. Plain texts are not affected. Of prompts with completions (`corpus.layout`), only the "
        "completions are ever learned.",
    )
    learn: tuple[LearnedPart, ...] = Field(
        LEARNED_PARTS,
        description="What of the assistant's turns `assistant_only` learns: `answer` (the content and the turn's end), "
        "`tool_calls` (names and arguments) and `reasoning`. Default: all three. The rest is context.",
    )
    learned_turns: LearnedTurns = Field(
        "all",
        description="Which of the assistant's turns `assistant_only` learns: `all`, or `last`, those after the last "
        "message of the user, which may call tools and answer.",
    )

    @field_validator("learn", mode="before")
    @classmethod
    def _one_is_a_list(cls, parts: Any) -> Any:
        return (parts,) if isinstance(parts, str) else parts

    @field_validator("learn")
    @classmethod
    def _in_one_order(cls, parts: tuple[LearnedPart, ...]) -> tuple[LearnedPart, ...]:
        """The same parts in another order learn the same, so they have the same name."""
        if not parts:
            raise ValueError(f"nothing would be learned: choose of {', '.join(LEARNED_PARTS)}")
        return tuple(part for part in LEARNED_PARTS if part in parts)

    @model_validator(mode="after")
    def _has_a_term(self) -> Self:
        if not any(isinstance(weight, Ramp) or weight for weight in self.terms.values()):
            raise ValueError("terms: no term has a positive weight: set one, such as {alm: 1}")
        return self

    @property
    def is_live(self) -> bool:
        """Whether the teacher must be in memory while the student is trained."""
        return not LIVE_TERMS.isdisjoint(self.terms)

    @property
    def given_boundary(self) -> bool:
        """Whether next-token distributions are compared given that a boundary token follows, where they are exact."""
        return self.debias == "both"

    @property
    def needs_top(self) -> bool:
        """Whether the scores must have the teacher's likeliest tokens."""
        return not TOP_TERMS.isdisjoint(self.terms)
