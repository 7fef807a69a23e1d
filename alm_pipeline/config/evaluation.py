"""How the student is evaluated."""

from typing import Any, Literal

from pydantic import Field

from alm_pipeline.config.frozen import Frozen

HeldOutMetric = Literal["bits_per_byte", "word_kl", "alm", "kl"]
ChosenStep = Literal["last", "best"]


class EvaluationConfig(Frozen):
    """How the student is evaluated on held-out examples: before, during and after training."""

    steps: int = Field(100, gt=0, description="Training steps between two evaluations.")
    max_examples: int | None = Field(
        200,
        gt=0,
        description="The number of held-out examples in each evaluation; they are drawn once and stay the same. `null` "
        "takes all of them.",
    )
    samples: int = Field(
        3, ge=0, description="The number of held-out beginnings that the student continues greedily, for `samples.txt`."
    )
    sample_tokens: int = Field(32, gt=0, description="The maximum number of tokens in each of these continuations.")
    metric: HeldOutMetric = Field(
        "bits_per_byte",
        description="The metric that decides which student is better; lower is better. `bits_per_byte` is the "
        "cross-entropy of the held-out texts, `word_kl` the divergence from the teacher word by word (the same measure "
        "for every tokenizer and objective), `alm` the ALM loss, `kl` the divergence of the objective's own chunks.",
    )
    patience: int | None = Field(
        None,
        gt=0,
        description="Stop training after this many evaluations in a row without an improvement. Default: never.",
    )
    min_improvement: float = Field(
        0.0,
        ge=0,
        description="With `patience`: the least decrease of `metric` below its best value that counts as an "
        "improvement.",
    )
    student: ChosenStep = Field(
        "last",
        description="Which weights become the student. `last`: those after the last step. `best`: those of the best "
        "evaluation (step 0, before training, is not a candidate).",
    )

    def identity(self) -> dict[str, Any]:
        """Return what decides the student: nothing if evaluations only watch."""
        if self.patience is None and self.student == "last":
            return {}
        unused = set() if self.patience else {"min_improvement"}
        return self.model_dump(mode="json", exclude={"samples", "sample_tokens"} | unused)
