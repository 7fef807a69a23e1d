"""How the student is evaluated."""

from typing import Any, Literal

from pydantic import Field

from alm_pipeline.config.frozen import Frozen

HeldOutScore = Literal["bits_per_byte", "alm", "kl"]


class EvaluationConfig(Frozen):
    """How the student is evaluated on held-out examples: before, while and after it is trained."""

    steps: int = Field(100, gt=0, description="from one evaluation to the next")
    max_examples: int | None = Field(200, gt=0, description="drawn once from all that are held out; null: all of them")
    samples: int = Field(3, ge=0, description="held-out beginnings that the student goes on from, greedily")
    sample_tokens: int = Field(32, gt=0, description="at most")
    score: HeldOutScore = Field("bits_per_byte", description="the student with the lowest is the best")
    patience: int | None = Field(
        None, gt=0, description="stop after so many evaluations in a row without an improvement; null: never"
    )
    least_improvement: float = Field(0.0, ge=0, description="of the best score so far; less counts as none")
    student: Literal["last", "best"] = Field("last", description="which step's weights become the student")

    def identity(self) -> dict[str, Any]:
        """What decides the student: nothing where evaluations only watch."""
        if self.patience is None and self.student == "last":
            return {}
        unused = set() if self.patience else {"least_improvement"}
        return self.model_dump(mode="json", exclude={"samples", "sample_tokens"} | unused)
