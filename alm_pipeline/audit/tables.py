"""An audit's numbers and largest cases as rows of plain values, for a table in a terminal, Markdown or Prefect."""

from collections.abc import Iterator
from typing import Any

from alm_pipeline.audit.chunks import FORMS
from alm_pipeline.audit.numbers import AuditReport, GroupNumbers
from alm_pipeline.audit.places import BY

Row = dict[str, Any]
QUANTILES = ("median", "p90", "p99")
TITLES = {"median": "median", "p90": "90%", "p99": "99%"}


def number_tables(report: AuditReport) -> Iterator[tuple[str, str, list[Row]]]:
    """Yield (side, grouping in words, rows) for each side and grouping: one row per group, all forms side by side."""
    for side in report.tokens:
        for by, title in BY.items():
            groups: dict[str, dict[str, GroupNumbers]] = {}
            for numbers in report.numbers:
                if (numbers.side, numbers.by) == (side, by):
                    groups.setdefault(numbers.name, {})[numbers.form] = numbers
            if groups:
                yield side, title, [_row(name, forms, report) for name, forms in groups.items()]


def _row(name: str, forms: dict[str, GroupNumbers], report: AuditReport) -> Row:
    counted = forms.get(report.debias) or next(iter(forms.values()))
    row: Row = {"group": name, "chunks": counted.chunks, "uncertain": counted.uncertain}
    for form in FORMS:
        numbers = forms.get(form)
        row |= {f"{form}_{quantile}": numbers and getattr(numbers, quantile) for quantile in QUANTILES}
    return row


def remarks(report: AuditReport) -> list[str]:
    """Return what has to be known beside the tables, a sentence each."""
    everywhere = [row for row in report.numbers if (row.by, row.form) == ("all", report.debias)]
    uncertain = dict.fromkeys(report.tokens, 0) | {row.side: row.uncertain for row in everywhere}
    sentences = [
        f"{report.examples} examples; the configuration trains with objective.debias {report.debias}",
        *(
            f"{side}: {report.tokens[side]:,} tokens, {report.followed[side]:,} sequences off the canonical path; of "
            f"the chunks, {uncertain[side]:,} are not certain within {report.tolerance:g}, and "
            f"{report.not_covered[side]:,} were not looked at (scaffold, or beyond the tokens)"
            for side in report.tokens
        ),
    ]
    if report.stored:
        values = ", ".join(f"{TITLES[name]} {value:.1g}" for name, value in report.stored.items())
        sentences.append(f"the stored targets differ from those of this pass by (nats) {values}")
    return sentences
