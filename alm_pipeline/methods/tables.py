"""The tables of a comparison: for each domain, methods by measures; and what their trainings cost."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from storage.printed.inert import markdown

Document = Mapping[str, Any]
"""a report as plain values: `ComparisonReport.document`"""


class ShownTable(NamedTuple):
    """A table of texts."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def shown_tables(document: Document) -> list[ShownTable]:
    """Return the tables to print: means, each with its difference from the first row and the 95 % interval of that."""
    domains = dict.fromkeys(row["domain"] for row in document["measures"])
    return [*(_domain_table(document, domain) for domain in domains), _cost_table(document)]


def _domain_table(document: Document, domain: str) -> ShownTable:
    rows = [row for row in document["measures"] if row["domain"] == domain]
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    cells = {(row["method"], row["measure"]): _cell(row) for row in rows}
    shown = [
        (method, *(cells.get((method, measure), "") for measure in measures))
        for method in document["methods"]
        if any((method, measure) in cells for measure in measures)
    ]
    seeds, units = document["seeds"], max(row["units"] for row in rows)
    of = _remark(document, domain)
    title = f"{domain}{of}: {units:,} documents or questions, {seeds} seed{'s'[: seeds != 1]}{_alone(rows)}"
    return ShownTable(title, ("method", *measures), shown)


def _alone(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a remark where the intervals do not count that documents vary."""
    if not any(row["varied"] == "seeds" for row in rows):
        return ""
    return "; intervals are of the seeds alone, as a single document says nothing of others"


def _remark(document: Document, domain: str) -> str:
    """Return what a domain is to the training."""
    shares = document["shares"]
    if domain in shares:
        return f" ({shares[domain]:.2%} of the training), held out"
    if domain != document["corpus"]:
        return ""
    return ", held out" + (", means by share" if shares else "")


def _cell(row: Mapping[str, Any]) -> str:
    difference = row["difference"]
    if difference is None:
        return number(row["value"]) + _half(row["half"])
    sign = "+" if difference > 0 else "−" if difference < 0 else ""
    return f"{number(row['value'])} ({sign}{number(abs(difference))}{_half(row['difference_half'])})"


def _half(value: float | None) -> str:
    return "" if value is None else f" ± {number(value)}"


def number(value: float | None) -> str:
    """Return a number with four digits after the point, or in short as 2.1e-04."""
    if value is None:
        return "?"
    return f"{value:.4f}" if abs(value) >= 0.01 or not value else f"{value:.1e}"


def _cost_table(document: Document) -> ShownTable:
    rows = [
        (
            method,
            f"{cost['seconds_per_step']:.2f}",
            f"{cost['tokens_per_second']:,.0f}",
            f"{cost['memory_bytes'] / 2**30:.2f}",
        )
        for method, cost in document["costs"].items()
    ]
    header = ("method", "seconds per step", "student tokens per second", "memory, GiB")
    return ShownTable("training: medians over the steps, means over the seeds", header, rows)


def markdown_page(document: Document) -> str:
    """Return the tables as Markdown, with foreign text in them inert."""
    parts = []
    for title, header, rows in shown_tables(document):
        lines = ["| " + " | ".join(map(markdown, row)) + " |" for row in (header, *rows)]
        parts.append("\n".join([f"**{markdown(title)}**", "", lines[0], "|---" * len(header) + "|", *lines[1:]]))
    return "\n\n".join(parts) + "\n"
