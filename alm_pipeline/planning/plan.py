"""A plan: what a run would do, stage by stage. Numbers that a manifest holds are exact, all others are estimates."""

from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict

Stage = Literal[
    "shard", "train tokenizer", "tokenize teacher", "tokenize student", "align", "pair biases", "score", "train"
]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""in the order of a run, under the names that its table has"""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Amount(_Model):
    """A number, and whether it is known or estimated."""

    value: float
    exact: bool = False

    @classmethod
    def known(cls, value: float) -> Self:
        return cls(value=value, exact=True)

    def times(self, factor: float) -> "Amount":
        """Return an estimate that follows from this number."""
        return Amount(value=self.value * factor)


def total(amounts: list[Amount | None]) -> Amount | None:
    """Return the sum; None if one of them is unknown."""
    known = [amount for amount in amounts if amount is not None]
    if len(known) < len(amounts):
        return None
    return Amount(value=sum(amount.value for amount in known), exact=all(amount.exact for amount in known))


class StagePlan(_Model):
    """What there is of one stage, and what it would take to finish it."""

    stage: Stage
    state: Literal["complete", "partly", "missing"]
    shards_done: int = 0
    shards: Amount | None = None
    """of a stage that works by shards; None if their number is unknown"""
    unit: Literal["bytes", "tokens"]
    amount: Amount | None
    """the whole of what the stage reads, in `unit`"""
    left: Amount | None
    """what is missing of it"""
    stored_bytes: Amount | None
    """what the whole stage takes in the store"""
    seconds: Amount | None = None
    """of work that is left on this machine"""
    cost: Amount | None = None
    reasons: tuple[str, ...] = ()
    """why a stage that is missing is not there already"""


class Plan(_Model):
    """What a run would do."""

    title: str
    storage: str
    examples: Amount | None
    held_out_examples: Amount | None
    text_bytes: Amount | None
    teacher_tokens: Amount | None
    student_tokens: Amount | None
    cache_bytes_per_teacher_token: Amount | None
    stages: tuple[StagePlan, ...]
    seconds: Amount | None
    """of all work that is left"""
    new_bytes: Amount | None
    """what it adds to the store"""
    cost: Amount | None
    notes: tuple[str, ...] = ()
    """what a reader has to know of the estimates"""

    def expected_seconds(self) -> dict[str, float]:
        """Return the seconds that each stage that is not complete will take; empty if one of them is unknown."""
        if self.seconds is None:
            return {}
        return {stage.stage: stage.seconds.value for stage in self.stages if stage.seconds and stage.seconds.value}
