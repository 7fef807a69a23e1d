"""The results of the students side by side, with intervals: a value ± 1.96 standard errors, over held-out documents."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from alm_pipeline.evaluation.precision import why_too_few
from alm_pipeline.student_report.stored import ReportedStudent, mapping, number

WIDTH = 200
"""of the drawing of an interval, in its own units"""
_NORMAL_95 = 1.96


@dataclass(frozen=True)
class Measure:
    """A quantity on held-out text, of the teacher and the student before and after training."""

    title: str
    unit: str
    rows: list[dict[str, Any]]
    """`who`, `value`, `low`, `high` and, on a scale that the rows share, `at`, `from`, `to`"""


def results(students: Sequence[ReportedStudent]) -> dict[str, Any] | None:
    """Return the measures that any student has, and what is to be known about them."""
    measures = [
        Measure("Bits per byte", "held out; lower is better", _placed(_bits(students))),
        Measure(
            "Distance to the teacher", "KL per word in nats, held out; 0 is the teacher", _placed(_word_kl(students))
        ),
    ]
    measures = [measure for measure in measures if measure.rows]
    if not measures:
        return None
    return {"measures": measures, "width": WIDTH, "remarks": list(_remarks(students))}


def _bits(students: Sequence[ReportedStudent]) -> list[dict[str, Any]]:
    errors = {"teacher": "teacher", "student_after": "student_after"}
    return [
        row
        for who in ("teacher", "student_before", "student_after")
        for row in _rows(students, "held_out_bits_per_byte", who, errors.get(who))
    ]


def _word_kl(students: Sequence[ReportedStudent]) -> list[dict[str, Any]]:
    before = _rows(students, "held_out_word_kl", "student_before", None)
    return [*before, *_rows(students, "held_out_word_kl", "student_after", "student_word_kl")]


def _rows(students: Sequence[ReportedStudent], part: str, who: str, error: str | None) -> list[dict[str, Any]]:
    """Return a row for each student that has the value; a single one if it is the same for all of several."""
    values = [number(_part(student, part).get(who)) for student in students]
    errors = [number(_part(student, "held_out_standard_errors").get(error)) for student in students]
    title = who.replace("student_", "") + (" training" if who != "teacher" else "")
    if len(set(zip(values, errors, strict=True))) == 1:
        return [_row(title, values[0], errors[0])] if values[0] is not None else []
    return [
        _row(f"{student.name}: {title}", value, spread)
        for student, value, spread in zip(students, values, errors, strict=True)
        if value is not None
    ]


def _part(student: ReportedStudent, name: str) -> Any:
    return mapping(student.results.get(name))


def _row(who: str, value: float, error: float | None) -> dict[str, Any]:
    reach = None if error is None else _NORMAL_95 * error
    return {
        "who": who,
        "value": value,
        "low": None if reach is None else value - reach,
        "high": None if reach is None else value + reach,
    }


def _placed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add where each row is drawn, between 4 and WIDTH - 4."""
    ends = [end for row in rows for end in (row["value"], row["low"], row["high"]) if end is not None]
    if not ends:
        return []
    low, span = min(ends), max(ends) - min(ends)

    def place(value: float) -> float:
        return round(4 + (WIDTH - 8) * ((value - low) / span if span else 0.5), 1)

    return [
        {
            **row,
            "at": place(row["value"]),
            "from": place(row["value"] if row["low"] is None else row["low"]),
            "to": place(row["value"] if row["high"] is None else row["high"]),
        }
        for row in rows
    ]


def _remarks(students: Sequence[ReportedStudent]) -> Iterator[str]:
    for student in students:
        bits, errors = _part(student, "held_out_bits_per_byte"), _part(student, "held_out_standard_errors")
        documents, chosen = (
            number(student.results.get("held_out_documents")),
            number(student.results.get("chosen_step")),
        )
        after, error = number(bits.get("student_after")), number(errors.get("student_after"))
        who = "" if len(students) == 1 else f"{student.name}: "
        if documents is not None:
            yield f"{who}measured on {documents:,.0f} held-out documents" + (
                f"; its weights are those of step {chosen:,.0f}" if chosen is not None else ""
            )
        if documents is not None and after is not None and (problem := why_too_few(int(documents), after, error)):
            yield f"{who}{problem}"
    if len(students) > 1:
        yield (
            "students that are measured on the same documents differ less by chance than their intervals say: "
            "alm compare gives the intervals of differences"
        )
