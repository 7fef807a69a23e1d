"""The plan of a run of the flow `alm`: an artifact before the stages, the time left during them, a comparison after.

A plan only informs people: where it can't be made, a warning is logged and the run goes on.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from prefect import get_run_logger
from prefect.artifacts import create_table_artifact

from alm_pipeline.planning.plan import Plan
from alm_pipeline.planning.table import reason_lines, stage_table, total_rows
from flows.stages import Until
from storage.printed.inert import markdown, one_line

if TYPE_CHECKING:
    from alm_pipeline.pipeline import Pipeline

Result = TypeVar("Result")


def plan_run(pipeline: "Pipeline", *, with_student: bool) -> Plan | None:
    """Make a plan and the artifact `alm-plan`; None if there can be no plan."""
    plan = _attempt("this run has no plan", lambda: _make(pipeline, with_student))
    if plan:
        _attempt("the plan can't be shown", lambda: _show(plan))
    return plan


def _make(pipeline: "Pipeline", with_student: bool) -> Plan:
    from alm_pipeline.planning.estimate import make_plan

    return make_plan(pipeline, with_student=with_student)


def _show(plan: Plan) -> None:
    create_table_artifact(_table(plan), key="alm-plan", description=_description(plan))


def _attempt(failure: str, work: Callable[[], Result]) -> Result | None:
    try:
        return work()
    except Exception as error:  # a stage will report it, or the server can't be reached for now
        get_run_logger().warning("%s: %s: %s", failure, type(error).__name__, error)
        return None


def _table(plan: Plan) -> list[dict[str, Any]]:
    header, rows = stage_table(plan)
    return [dict(zip(header, map(one_line, row), strict=True)) for row in rows]


def _description(plan: Plan) -> str:
    lines: Sequence[str] = [*(f"{what}: {value}" for what, value in total_rows(plan)), *reason_lines(plan), *plan.notes]
    return "\n".join([f"Plan of {markdown(plan.title)}", "", *(f"- {markdown(line)}" for line in lines)])


def remember_finished(pipeline: "Pipeline", result: dict[str, Any], until: Until) -> None:
    """Record that a run is finished, so that this machine answers the next one like it at once."""
    from alm_pipeline.planning.finished import record_finished
    from alm_pipeline.report import RunSummary

    fields = {name: value for name, value in result.items() if name in RunSummary.model_fields}
    _attempt(
        "it is not recorded that this run is finished",
        lambda: record_finished(pipeline, RunSummary.model_validate(fields), until),
    )


def record_run(pipeline: "Pipeline", plan: Plan | None, seconds: dict[str, float]) -> None:
    """Record how fast this machine did what was planned, for later plans."""
    if plan is None:
        return
    from alm_pipeline.planning.duration import record_rates

    left = {stage.stage: stage.left.value for stage in plan.stages if stage.left}
    _attempt("this run's speed is not recorded", lambda: record_rates(pipeline, left, seconds))
