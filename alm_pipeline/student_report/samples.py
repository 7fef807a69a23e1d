"""How the students continue held-out beginnings, before and after training, side by side; and the teacher, if asked."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alm_pipeline.student_report.stored import ReportedStudent
from storage.dataset import open_dataset
from storage.errors import user_error
from storage.urls import join_url, read_bytes

FILE = "samples.parquet"

Continue = Callable[[ReportedStudent, str], str]
"""returns how a student's teacher goes on after a text"""


def samples(students: Sequence[ReportedStudent], teacher: Continue | None = None) -> dict[str, Any] | None:
    """Return for each beginning how the text goes on: `prompt`, and `texts` by who wrote them.

    Beginnings differ between students whose tokenizers cut the texts differently.
    """
    found: dict[str, dict[str, str]] = {}
    for student in students:
        label = "" if len(students) == 1 else f"{student.name}: "
        for prompt, texts in _continuations(student).items():
            shown = found.setdefault(prompt, {"teacher": teacher(student, prompt)} if teacher else {})
            shown.update({f"{label}{when}": text for when, text in texts.items()})
    if not found:
        return None
    return {
        "prompts": [{"prompt": prompt, "texts": texts} for prompt, texts in found.items()],
        "teacher": bool(teacher),
    }


def _continuations(student: ReportedStudent) -> Mapping[str, Mapping[str, str]]:
    """Return for each beginning what the student wrote `before` training and `after` it; empty if none are stored."""
    content = read_bytes(join_url(student.url, FILE))
    if content is None:
        return {}
    with user_error(f"{student.url}/{FILE}: is not a valid table of samples", "`alm repair --checksums` its folder"):
        rows = pq.read_table(pa.BufferReader(content)).to_pylist()
        steps = sorted({row["step"] for row in rows})
        chosen = student.results.get("chosen_step")
        last = chosen if chosen in steps else steps[-1]
        found: dict[str, dict[str, str]] = {}
        for step, when in ((steps[0], "before"), (last, "after")) if len(steps) > 1 else ((last, "after"),):
            for row in (row for row in rows if row["step"] == step):
                found.setdefault(row["prompt"], {})[when] = row["continuation"]
        return found


def has_conversations(student: ReportedStudent) -> bool:
    """Return whether beginnings are conversations in the student's template, which the teacher may not know."""
    roles = [f"{prefix}examples" for prefix in student.sources]
    stored = [open_dataset(student.datasets[role].url) for role in roles if student.dataset(role)]
    firsts = [dataset.read_shard(0, ["messages"])["messages"] for dataset in stored]
    return any(len(first) > first.null_count for first in firsts)
