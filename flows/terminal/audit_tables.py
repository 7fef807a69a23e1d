"""The tables of an audit: its numbers by group, and the largest cases."""

from typing import TYPE_CHECKING, get_args

from alm_pipeline.config import Debias
from flows.terminal.console import Shown, out, show_count, show_quoted

if TYPE_CHECKING:
    from alm_pipeline.audit.numbers import AuditReport


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


NUMBERS = (
    Shown("group", "group"),
    Shown("chunks", "chunks", show_count),
    Shown("uncertain", "not certain", show_count),
    *(
        Shown(f"{form}_{quantile}", f"{form}: {title}", _nats)
        for form in get_args(Debias)
        for quantile, title in (("median", "median"), ("p90", "90%"), ("p99", "99%"))
    ),
)
CASES = (
    Shown("side", "side"),
    Shown("error", "off by", _nats),
    Shown("value", "target", _nats),
    Shown("exact", "exact", _nats),
    Shown("text", "text", repr),
    Shown("teacher_tokens", "teacher's tokens", show_quoted),
    Shown("student_tokens", "student's tokens", show_quoted),
)


def print_audit(report: "AuditReport") -> None:
    """Print the numbers by group, the largest cases and the remarks."""
    from alm_pipeline.audit.tables import number_tables, remarks

    of = f"{report.source}: " if report.source else ""
    for side, title, rows in number_tables(report):
        out.print_rows(NUMBERS, rows, f"{of}{side}, {title}: distance of targets from their exact values, nats")
    if report.largest:
        cases = [case.row() for case in report.largest]
        out.print_rows(CASES, cases, f"{of}largest distances with debias {report.debias}, nats")
    for sentence in remarks(report):
        out.print_line(of + sentence)
