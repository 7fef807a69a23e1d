"""The curves of the students as plain values, for the page's script to draw."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from alm_pipeline.student_report.stored import ReportedStudent, number
from alm_pipeline.training.student.curves import PANELS, Column, Panel, smooth

_POINTS = 3200
"""of all students' curves in one chart; longer ones are means over steps in a row"""
_FEWEST_POINTS = 200
_LOG_RANGE = 20
"""a positive curve whose largest value is this many times its smallest has a logarithmic axis"""
_TABLE_ROWS = 10
_COLORS = 8
"""of the page's style, `c0` to `c7`"""
_INK = -1

Chart = dict[str, Any]


def charts(students: Sequence[ReportedStudent]) -> dict[str, Any] | None:
    """Return a chart for each quantity that a student has."""
    drawn = [_chart(panel, students) for panel in PANELS if any(panel.has(student.curves) for student in students)]
    return {"charts": drawn} if drawn else None


def _chart(panel: Panel, students: Sequence[ReportedStudent]) -> Chart:
    series = [line for place, student in enumerate(students) for line in _series(panel, student, place, len(students))]
    series += _references(students) if panel.has_results else []
    values = [value for line in series for value in line["y"]]
    return {
        "title": panel.title,
        "unit": panel.unit,
        "log": panel.log and bool(values) and min(values) > 0 and max(values) > _LOG_RANGE * min(values),
        "zero": panel.from_zero,
        "series": series,
        "table": _table(series),
    }


def _series(panel: Panel, student: ReportedStudent, color: int, count: int) -> Iterator[dict[str, Any]]:
    steps, values = panel.values(student.curves)
    points = max(_FEWEST_POINTS, _POINTS // count)
    if len(steps):
        smoothed = values if panel.exact else smooth(values)
        if count == 1 and smoothed is not values:
            yield _line("single steps", color, "pale", *_fewer(steps, values, points))
        kind = "points" if panel.part == "evaluations" or len(steps) == 1 else "line"
        yield _line(student.name, color, kind, *_fewer(steps, smoothed, points))


def _references(students: Sequence[ReportedStudent]) -> list[dict[str, Any]]:
    """Return the teacher and the student before training as dashed lines: one if it is the same for all students."""
    last = max(student.curves.last_step for student in students)
    lines = []
    for who, kind in (("teacher", "dashed"), ("student_before", "dotted")):
        values = [number(student.curves.bits_per_byte.get(who)) for student in students]
        named = zip(students, values, range(len(students)), strict=True)
        title = who.replace("student_", "")
        places = [("", values[0], _INK)] if len(set(values)) == 1 else [(f"{s.name}: ", v, k) for s, v, k in named]
        for prefix, value, color in places:
            if value is not None:
                lines.append(_line(f"{prefix}{title}", color, kind, np.array([0.0, last]), np.array([value, value])))
    return lines


def _line(name: str, color: int, kind: str, steps: Column, values: Column) -> dict[str, Any]:
    return {
        "name": name,
        "color": "ink" if color == _INK else f"c{color % _COLORS}",
        "kind": kind,
        "x": _plain(steps),
        "y": _plain(values),
    }


def _plain(values: Column) -> list[float]:
    """Round to five digits: a page has thousands of numbers."""
    return [int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.5g}") for value in values]


def _fewer(steps: Column, values: Column, most: int) -> tuple[Column, Column]:
    """Return at most `most` points: means over neighbors. A single step is not left out, but blends with them."""
    if len(steps) <= most:
        return steps, values
    starts = np.arange(0, len(steps), math.ceil(len(steps) / most))
    sizes = np.diff([*starts, len(steps)])
    means: Column = np.add.reduceat(values, starts) / sizes
    return steps[starts + sizes - 1], means


def _table(series: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the values at a few steps, for who can't see the chart."""
    lines = [line for line in series if line["kind"] in ("line", "points")]
    steps = sorted({step for line in lines for step in line["x"]})
    places = np.unique(np.linspace(0, len(steps) - 1, _TABLE_ROWS).astype(int)).tolist() if steps else []
    columns = [dict(zip(line["x"], line["y"], strict=True)) for line in lines]
    return {
        "names": [line["name"] for line in lines],
        "rows": [
            {"step": steps[place], "values": [column.get(steps[place]) for column in columns]} for place in places
        ],
    }
