"""A plan as a table: a row per stage, and lines for what does not fit into one."""

from collections.abc import Iterator

from alm_pipeline.planning.numbers import amount_text, bytes_text, duration_text, price_text
from alm_pipeline.planning.plan import Amount, Plan, StagePlan

Rows = list[tuple[str, ...]]


def stage_table(plan: Plan) -> tuple[tuple[str, ...], Rows]:
    """Return the header and the rows of the stages; with a column of costs if the plan has a price."""
    header: tuple[str, ...] = ("stage", "state", "to do", "in the store", "time")
    has_costs = any(stage.cost for stage in plan.stages)
    rows = [_row(stage) + ((_cost(stage),) if has_costs else ()) for stage in plan.stages]
    return header + (("cost",) if has_costs else ()), rows


def _row(stage: StagePlan) -> tuple[str, ...]:
    if stage.state == "complete":
        return stage.stage, "complete", "–", amount_text(stage.stored_bytes, bytes_text), "–"
    show = bytes_text if stage.unit == "bytes" else _tokens
    return (
        stage.stage,
        _state(stage),
        amount_text(stage.left, show),
        amount_text(stage.stored_bytes, bytes_text),
        amount_text(stage.seconds, duration_text),
    )


def _cost(stage: StagePlan) -> str:
    return "–" if stage.state == "complete" else amount_text(stage.cost, price_text)


def _state(stage: StagePlan) -> str:
    if stage.state == "missing":
        return "missing"
    if not stage.shards_done:
        return "begun"
    return f"{stage.shards_done} of {amount_text(stage.shards)} shards"


def _tokens(value: float) -> str:
    return f"{value:,.0f} tokens"


def total_rows(plan: Plan) -> list[tuple[str, str]]:
    """Return the rows of the corpus and the totals: name and value."""
    rows = [
        ("examples", f"{amount_text(plan.examples)} ({amount_text(plan.held_out_examples)} held out)"),
        ("text", amount_text(plan.text_bytes, bytes_text)),
        ("tokens", f"teacher {amount_text(plan.teacher_tokens)}, student {amount_text(plan.student_tokens)}"),
        ("cache", f"{amount_text(plan.cache_bytes_per_teacher_token, _two_digits)} bytes per teacher token"),
        ("added to the store", amount_text(plan.new_bytes, bytes_text)),
        ("time", _total_time(plan)),
    ]
    return [*rows, *([("cost", amount_text(plan.cost, price_text))] if _has_price(plan) else [])]


def _total_time(plan: Plan) -> str:
    if plan.seconds is not None:
        return amount_text(plan.seconds, duration_text)
    known = [stage.seconds.value for stage in plan.stages if stage.seconds]
    unknown = [stage.stage for stage in plan.stages if stage.seconds is None]
    return f"{amount_text(Amount(value=sum(known)), duration_text)} without {' and '.join(unknown)}"


def _has_price(plan: Plan) -> bool:
    return any(stage.cost for stage in plan.stages)


def _two_digits(value: float) -> str:
    return f"{value:.2f}"


def reason_lines(plan: Plan) -> Iterator[str]:
    """Yield a line for each stage that is computed again although the store has one of its kind: why."""
    for stage in plan.stages:
        if stage.reasons:
            yield f"{stage.stage} is computed: {', '.join(stage.reasons)}"
