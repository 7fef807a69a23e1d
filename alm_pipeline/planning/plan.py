"""A plan: what a run would do, stage by stage. Numbers that a manifest holds are exact, all others are estimates."""

from collections.abc import Callable, Sequence
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


def add_plans(plans: Sequence[Plan], names: Sequence[str], training: Plan | None) -> Plan:
    """Return one plan of several sources up to their scores, and of the student's training.

    The student's tokenizer, which is made once, is that of the first plan. `training` has this one stage; its title,
    place and notes are those of the whole.
    """
    stages = [
        _stage([stage for plan in plans for stage in plan.stages if stage.stage == name], names)
        for name in STAGES
        if any(stage.stage == name for plan in plans for stage in plan.stages)
    ]
    stages += training.stages if training else ()
    left = [stage for stage in stages if stage.state != "complete"]
    whole = training or plans[0]

    def summed(of: Callable[[Plan], Amount | None]) -> Amount | None:
        return total([of(plan) for plan in plans])

    teacher_tokens, per_token = summed(lambda plan: plan.teacher_tokens), summed(_cache_bytes)
    return whole.model_copy(
        update={
            "examples": summed(lambda plan: plan.examples),
            "held_out_examples": summed(lambda plan: plan.held_out_examples),
            "text_bytes": summed(lambda plan: plan.text_bytes),
            "teacher_tokens": teacher_tokens,
            "student_tokens": summed(lambda plan: plan.student_tokens),
            "cache_bytes_per_teacher_token": per_token
            and teacher_tokens
            and Amount(
                value=per_token.value / max(1.0, teacher_tokens.value), exact=per_token.exact and teacher_tokens.exact
            ),
            "stages": tuple(stages),
            "seconds": total([stage.seconds for stage in left]),
            "new_bytes": total([plan.new_bytes for plan in (*plans, *([training] if training else []))]),
            "cost": whole.cost and total([stage.cost for stage in left]),
            "notes": tuple(dict.fromkeys(note for plan in (*plans, whole) for note in plan.notes)),
        }
    )


def _cache_bytes(plan: Plan) -> Amount | None:
    per_token, tokens = plan.cache_bytes_per_teacher_token, plan.teacher_tokens
    if per_token is None or tokens is None:
        return None
    return Amount(value=per_token.value * tokens.value, exact=per_token.exact and tokens.exact)


def _stage(parts: Sequence[StagePlan], names: Sequence[str]) -> StagePlan:
    """Return the sum of a stage over the sources; its reasons name them."""
    first = parts[0]
    if first.stage == "train tokenizer":
        return first
    states = {part.state for part in parts}
    shards = [part.shards for part in parts]
    return StagePlan(
        stage=first.stage,
        state=first.state if len(states) == 1 else "partly",
        shards_done=sum(part.shards_done for part in parts),
        shards=None if None in shards else total(shards),
        unit=first.unit,
        amount=total([part.amount for part in parts]),
        left=total([part.left for part in parts]),
        stored_bytes=total([part.stored_bytes for part in parts]),
        seconds=total([part.seconds for part in parts]),
        cost=first.cost and total([part.cost for part in parts]),
        reasons=tuple(f"{name}: {reason}" for name, part in zip(names, parts, strict=True) for reason in part.reasons),
    )
