"""How `alm plan` and `alm run` show a plan, what it was worth, and a run that was finished before."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alm_pipeline.config.fields.unread import refuse_unread
from flows.stages import Until
from flows.storage_block import is_block, storage_root
from flows.terminal.console import err, out
from flows.terminal.options import finite

if TYPE_CHECKING:
    from alm_pipeline.config import AlmConfig
    from alm_pipeline.planning.plan import Plan
    from alm_pipeline.report import RunSummary

PricePerHour = Annotated[
    float | None, typer.Option(min=0, callback=finite, help="What an hour of this machine costs, for the plan's costs.")
]
ScoreRate = Annotated[
    float | None,
    typer.Option(min=1e-6, callback=finite, help="The teacher tokens per second to plan with.  [default: recorded]"),
]
TrainRate = Annotated[
    float | None,
    typer.Option(min=1e-6, callback=finite, help="The student tokens per second to plan with.  [default: recorded]"),
]
Measure = Annotated[
    bool, typer.Option("--measure", help="Load both models and measure how fast this machine scores and trains.")
]


def show_plan(
    config: "AlmConfig",
    storage: str,
    until: Until,
    *,
    price_per_hour: float | None = None,
    score_rate: float | None = None,
    train_rate: float | None = None,
    measure: bool = False,
    as_json: bool = False,
) -> None:
    """Make the plan of a run, and print it."""
    from alm_pipeline.pipeline import Pipeline
    from alm_pipeline.planning.duration import Rates
    from alm_pipeline.planning.estimate import make_plan

    if until == "scores":
        refuse_unread("a plan until scores trains nothing", train_rate=(train_rate, None))
    if score_rate and (train_rate or until == "scores"):
        refuse_unread("all rates are given", measure=(measure, False))
    pipeline = Pipeline(config, storage_root(storage))
    measured = {}
    if measure:
        from alm_pipeline.planning.probe import measure as measure_rates

        err.print_line("measuring how fast this machine scores and trains…")
        measured = measure_rates(pipeline)
    rates = Rates(score_rate, train_rate, price_per_hour, measured)
    plan = make_plan(pipeline, rates, with_student=until == "student")
    if as_json:
        out.write_json(plan.model_dump(mode="json"))
    else:
        _print_plan(plan)


def _print_plan(plan: "Plan") -> None:
    from alm_pipeline.planning.table import reason_lines, stage_table, total_rows

    out.print_line(f"{plan.title}, in {plan.storage}")
    out.print_table(*stage_table(plan))
    for what, value in total_rows(plan):
        out.print_line(f"{what}: {value}")
    for line in (*reason_lines(plan), *(f"note: {note}" for note in plan.notes)):
        out.print_line(line)


def answer_if_finished(config: "AlmConfig", storage: str, until: Until, *, as_json: bool) -> bool:
    """Print the table of a run that is finished, and return whether it is; without a server or any model."""
    if is_block(storage):  # its place is known to the server alone
        return False
    from alm_pipeline.planning.finished import find_finished

    summary = find_finished(config, storage, until)
    if summary is None:
        return False
    print_summary(summary, {}, [], as_json=as_json)
    if not as_json:
        out.print_line("everything was there already")
    return True


def print_summary(
    summary: "RunSummary", seconds: Mapping[str, float], planned: Sequence[Mapping[str, Any]], *, as_json: bool
) -> None:
    """Print a run's table, and what was planned beside what came out."""
    from alm_pipeline.report import summary_table

    if as_json:
        out.write_json({**summary.model_dump(mode="json"), "seconds": seconds, "planned": planned})
        return
    out.print(summary_table(summary, seconds))
    _print_plan_and_run(planned)


def _print_plan_and_run(planned: Sequence[Mapping[str, Any]]) -> None:
    """Print what was planned beside what came out, if anything was estimated."""
    from alm_pipeline.planning.comparison import HEADER, Comparison

    if rows := [Comparison.model_validate(item).row() for item in planned]:
        out.print_table(HEADER, rows, "the plan and the run")
