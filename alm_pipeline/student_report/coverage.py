"""How much of the text is aligned, by script, from the first examples of the alignments."""

from collections.abc import Sequence
from typing import Any

from alm_pipeline.student_report.stored import ReportedStudent
from storage.errors import UserError

MOST_BYTES = 2_000_000
"""of text that are read for a report: a large dataset would take minutes (`alm inspect URL --summary` reads all)"""


def coverages(students: Sequence[ReportedStudent]) -> dict[str, Any] | None:
    """Return a table for each alignments dataset, with the students that were made from it."""
    groups: dict[tuple[str, str], list[ReportedStudent]] = {}
    for student in students:
        for prefix in student.sources:
            if f"{prefix}alignments" in student.datasets:
                groups.setdefault((prefix, student.datasets[f"{prefix}alignments"].url), []).append(student)
    tables = [table for (prefix, url), group in groups.items() if (table := _table(prefix, url, group))]
    return {"tables": tables} if tables else None


def _table(prefix: str, url: str, group: Sequence[ReportedStudent]) -> dict[str, Any] | None:
    names = [f"{prefix}{student.name}" for student in group]
    try:
        from alm_pipeline.inspection.summary import coverage

        rows = [row for row in coverage(url, MOST_BYTES).to_dicts() if row["bytes"]]
    except (UserError, ModuleNotFoundError) as error:  # a dataset is no longer stored, or a GPU worker has no Polars
        return {"students": names, "rows": [], "problem": str(error)}
    if not rows:
        return None
    examples = group[0].dataset(f"{prefix}examples")
    size, read = examples.counts.get("text_bytes", 0) if examples else 0, rows[0]["bytes"]
    return {"students": names, "rows": rows, "read": read, "size": size, "problem": None}
