"""The plan of a mixture: those of its sources, added up stage by stage, and the training of all."""

from collections.abc import Callable, Sequence

from alm_pipeline.planning.plan import STAGES, Amount, Plan, StagePlan, total


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
